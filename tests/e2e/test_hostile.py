"""Requests that are wrong in odd ways: each is refused by its field, in an answer that every client can read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from singularity_agents import Client, SingularityError
from singularity_agents._local_node import LocalNode

#: A time that a task may wait for.
NEXT_YEAR = datetime.now(UTC) + timedelta(days=200)
Bad = Callable[[Client, str], object]

#: What is asked of an ended task, and the reason and the word that the answer must have.
REFUSED: dict[str, tuple[Bad, str, str]] = {
    "no id": (lambda c, _: c.get(""), "INVALID_FIELD", "task_id"),
    "an id of any length": (lambda c, _: c.get("f" * 100_000), "TASK_NOT_FOUND", "there is no task"),
    "an id with a zero byte": (lambda c, _: c.get("\0" * 36), "TASK_NOT_FOUND", "there is no task"),
    "a fork at an event that never was": (lambda c, task: c.fork(task, after=10_000), "INVALID_FIELD", "after"),
    "a long reason": (lambda c, task: c.cancel(task, reason="x" * 1025), "INVALID_FIELD", "reason"),
    "a long reason for many": (lambda c, _: c.cancel_all("state=QUEUED", reason="x" * 1025), "INVALID_FIELD", "reason"),
    "a long name of many retries": (
        lambda c, _: c.retry_all("state=FAILED", request_id="x" * 92),
        "INVALID_FIELD",
        "request_id",
    ),
    "an open quote": (lambda c, _: list(c.list(filter='agent="crew')), "FILTER_INVALID", "quote"),
    "a zone of any length": (
        lambda c, _: c.schedules.create("x", cron="0 9 * * *", time_zone="x" * 100_000),
        "INVALID_FIELD",
        "time_zone",
    ),
    "a cron of any length": (lambda c, _: c.schedules.create("x", cron="* " * 50_000), "INVALID_FIELD", "cron"),
    "an interval without end": (
        lambda c, _: c.schedules.create("x", every="100000000h"),
        "INVALID_FIELD",
        "interval",
    ),
    "a schedule that may not start": (
        lambda c, _: c.schedules.create("x", every="1h", not_before=NEXT_YEAR),
        "INVALID_FIELD",
        "not_before",
    ),
}


@pytest.fixture(scope="module")
def ended(node: LocalNode) -> str:
    with Client(node.address) as client:
        return client.execute("shout", agent="shout").task_id


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_by_its_field(client: Client, ended: str, what: str) -> None:
    ask, reason, word = REFUSED[what]
    with pytest.raises(SingularityError) as error:
        ask(client, ended)
    assert (error.value.reason, word in str(error.value)) == (reason, True), error.value
    assert len(str(error.value)) < 2000, "an answer does not repeat what was sent"
