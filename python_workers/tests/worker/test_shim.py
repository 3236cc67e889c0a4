"""The door for users' own model clients, without a task and with what no client should send."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, cast

import pytest

from singularity_agents.worker import _door, _shim
from singularity_agents.worker._engine import Engine
from singularity_agents.worker._scope import Scope


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    monkeypatch.setattr(_door, "opened", None)
    opened = _door.open_door()
    assert opened is not None
    # No engine and no loop is asked: there is no task.
    _shim.serve(cast("Engine", None), cast("asyncio.AbstractEventLoop", None), list)
    yield opened.environment
    opened.listening.close()


def answer(door: dict[str, str], path: str, body: bytes | None, key: str | None = None) -> tuple[int, dict[str, Any], str | None]:
    headers = {"authorization": f"Bearer {key or door['OPENAI_API_KEY']}"}
    request = urllib.request.Request(door["OPENAI_BASE_URL"] + path, data=body, headers=headers)
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=10)
    said = error.value
    return said.code, json.loads(said.read())["error"], said.headers.get("x-should-retry")


def test_without_a_task_nobody_is_charged(door: dict[str, str]) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
    for path, sent in (("/chat/completions", body), ("/models", None), ("/embeddings", b'{"input": "x"}')):
        status, error, retry = answer(door, path, sent)
        assert (status, error["code"], retry) == (409, "WRONG_STATE", "false")


def test_a_key_of_somebody_else_opens_nothing(door: dict[str, str]) -> None:
    assert answer(door, "/models", None, key="sk-other")[0] == 401
    assert answer(door, "/chat/completions", b"{}", key="sk-other")[0] == 401


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/chat/completions", b"not json", 400), ("/chat/completions", b"[]", 400), ("/nothing", b"{}", 404)],
)
def test_what_is_no_request_is_refused(door: dict[str, str], path: str, body: bytes, status: int) -> None:
    assert answer(door, path, body)[0] == status


def test_a_body_that_is_too_large_is_not_read(door: dict[str, str]) -> None:
    status, error, _ = answer(door, "/chat/completions", b"x" * (_shim.MAX_BODY_BYTES + 1))
    assert (status, error["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_side_by_side_every_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_door, "opened", None)
    opened = _door.open_door()
    assert opened is not None
    one = cast("list[Scope]", [object()])
    _shim.serve(cast("Engine", None), cast("asyncio.AbstractEventLoop", None), lambda: one, 4)
    body = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
    for path, sent in (("/chat/completions", body), ("/models", None), ("/embeddings", b'{"input": "x"}')):
        status, error, retry = answer(opened.environment, path, sent)
        assert (status, error["code"], retry) == (409, "WRONG_STATE", "false")
        assert "concurrency = 4" in error["message"] and "use the engine's model" in error["message"]
    opened.listening.close()
