"""Who runs a task: `route explain` and what ran agree, what is learned decides between equals, and a task stays where it ran."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MANY, KillableNode, eventually, openai_provider

from singularity_agents import Client, SingularityError
from singularity_agents._local_node import LocalNode
from singularity_agents._models import Route
from singularity_agents.testing import Asked, ScriptedModel

ROOT = Path(__file__).resolve().parent.parent.parent
TYPES = ("general", "research", "conversation", "conversational", "collaborative", "planning", "coding", "unheard-of")
HINTS: tuple[dict[str, Any], ...] = (
    {},
    {"method": "native"},
    {"method": "framework"},
    {"framework": "langchain"},
    {"framework": "autogen"},
    {"framework": "gone", "fallback_frameworks": ["langchain"]},
    {"capabilities": ["own_code"]},
    {"capabilities": ["telepathy"]},
    {"agent": "researcher", "labels": {"tier": "gold"}},
)


class Model:
    """Answers, and holds what it is told to hold."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.script = ScriptedModel(*[self._answer] * MANY)

    def _answer(self, asked: Asked) -> str:
        if "wait here" in str(asked.messages):
            self.asked.set()
            self.go_on.wait(30)
        return "done"

    @property
    def config(self) -> str:
        return openai_provider("scripted", self.script.base_url, "scripted")


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    with model.script:
        yield model
        model.go_on.set()


def asked_first(client: Client, options: dict[str, Any]) -> Route | str:
    try:
        return client.check("Say a word.", **options)
    except SingularityError as refused:
        return refused.reason


@pytest.mark.parametrize("example", ["native_first", "framework_first"])
def test_explain_agrees_with_what_ran(example: str, model: Model) -> None:
    config = (ROOT / "config" / f"{example}.toml").read_text()
    with LocalNode(model.config + config) as node, Client(node.address, max_retries=0, timeout="120s") as client:
        ran, explored = set(), 0
        for task_type in TYPES:
            for hints in HINTS:
                options = {"task_type": task_type, **hints}
                explained = asked_first(client, options)
                if isinstance(explained, str):
                    with pytest.raises(SingularityError) as refused:
                        client.submit("Say a word.", **options)
                    assert refused.value.reason == explained, options
                    continue
                handle = client.submit("Say a word.", **options)
                result = handle.result()
                route = client.get(handle.id).route
                assert route is not None and result.executor == route.executor, options
                if route.explored:
                    explored += 1
                    possible = [
                        c.executor for c in explained.candidates if not c.refused and c.rule == explained.candidates[0].rule
                    ]
                    assert explained.exploration > 0 and route.executor in possible, options
                else:
                    assert (route.executor, route.reason) == (explained.executor, explained.reason), options
                assert not route.candidates or {c.executor for c in route.candidates} == {
                    c.executor for c in explained.candidates
                }
                ran.add(route.executor)
        assert {"native", "langchain"} <= ran
        assert explored <= len(TYPES) * len(HINTS) // 4


def test_every_part_of_a_score_is_said(model: Model) -> None:
    config = (ROOT / "config" / "native_first.toml").read_text()
    with LocalNode(model.config + config) as node, Client(node.address, max_retries=0, timeout="120s") as client:
        for _ in range(6):
            client.execute("Say a word.", task_type="research")

        def seen() -> Route | None:
            route = client.check("Say a word.", task_type="research")
            first = route.candidates[0]
            return route if first.parts is not None and first.parts.samples >= 5 else None

        route: Route = eventually(seen)
        assert route.executor == "langchain" and route.candidates[0].rule == "used for research tasks"
        for candidate in route.candidates:
            assert candidate.parts is not None
            parts = candidate.parts
            assert candidate.score == pytest.approx(parts.rule + parts.success + parts.latency + parts.cost + parts.queue)
            assert parts.rule - candidate.score < 10
        refused = {c.executor: c.refused for c in route.candidates}
        assert "enabled = true" in refused["autogen"] and not refused["native"]


def fail_natively(client: Client) -> None:
    with pytest.raises(SingularityError) as failed:
        client.execute("wait here", task_type="odd", method="native", model="scripted", max_duration="100ms")
    assert failed.value.reason == "TASK_TIMEOUT"


def test_what_fails_of_late_is_avoided_and_a_restart_remembers(killable: Callable[..., KillableNode], model: Model) -> None:
    place = killable(model.config)
    with Client(place.address, max_retries=0, timeout="120s") as client:
        assert client.check("x", task_type="odd", model="scripted").executor == "native"
        for _ in range(6):
            fail_natively(client)

        def learned() -> Route | None:
            route = client.check("x", task_type="odd")
            return route if route.executor != "native" else None

        route: Route = eventually(learned)
        assert "ahead of native" in route.reason
        native = next(c for c in route.candidates if c.executor == "native")
        assert native.parts is not None and native.parts.success == pytest.approx(-5.0)
        # Of another type nothing was learned, and whoever names an executor gets it.
        assert client.check("x", task_type="even").executor == "native"
        assert client.check("x", task_type="odd", method="native").executor == "native"
    place.stop()
    place.start()
    with Client(place.address, max_retries=0, timeout="120s") as client:
        assert client.check("x", task_type="odd").executor == route.executor


EXPLORES = """
[agent_execution]
exploration = 1.0
framework_fallback = true
[frameworks]
langchain = { use_for = ["research"] }
langgraph = { use_for = ["research"] }
"""


def test_another_one_is_tried_and_a_resumed_task_stays_there(model: Model, tmp_path: Path) -> None:
    place = KillableNode(tmp_path / "explores", model.config + EXPLORES)
    place.start()
    try:
        with Client(place.address, max_retries=3, timeout="120s") as client:
            explained = client.check("Say a word.", task_type="research")
            # A dry run draws nothing, and says what would be drawn.
            assert explained.executor == "langchain" and explained.exploration == 1.0 and not explained.explored
            handle = client.submit("wait here", task_type="research")
            assert model.asked.wait(60)
            route = client.get(handle.id).route
            assert route is not None and route.executor == "langgraph" and route.explored
            assert "in place of langchain" in route.reason
            # Who names one is not experimented with.
            assert client.execute("Say a word.", framework="langchain").executor == "langchain"
            place.kill()
            model.go_on.set()
            place.start()
            result = client.handle(handle.id).result()
            task = client.get(handle.id)
            assert result.executor == "langgraph" and task.attempts == 2
            assert task.route is not None and task.route.reason == "it ran there before"
    finally:
        place.kill_if_running()
