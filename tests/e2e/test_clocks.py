"""The time of day of a node's machine is set while tasks run and wait: spans stay what they are, times of day follow."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import HERE, KillableNode, eventually

from singularity_agents import Client

HOUR = 3600


class Clock:
    """The time of day as the node sees it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "shift"
        self.set(0)
        self.library = folder / "shift.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self.library, HERE / "shift.c", "-ldl"], check=True)

    def set(self, seconds: int) -> None:
        """Moves it by so much from what is right; in place, for the node has the file mapped."""
        with self.file.open("r+b" if self.file.exists() else "wb") as file:
            file.write(struct.pack("=q", seconds))

    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "SHIFT_FILE": str(self.file)}


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def node(killable: Callable[..., KillableNode], clock: Clock) -> KillableNode:
    return killable(**clock.environment())


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_pause_before_a_retry_is_a_span(node: KillableNode, clock: Clock, hours: int) -> None:
    with Client(node.address) as client:
        began = time.monotonic()
        task = client.submit("x", framework="native", model="bad/down", max_attempts=2, initial_backoff="5s").id
        eventually(lambda: client.attempts(task)[0].outcome)
        clock.set(hours * HOUR)
        ended = client.wait(task, timeout=20)
        assert ended.state == "FAILED"
        assert ended.attempts == 2
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("hours", [-1, 1])
def test_how_long_a_task_may_run_is_a_span(node: KillableNode, clock: Clock, hours: int) -> None:
    with Client(node.address) as client:
        began = time.monotonic()
        task = client.submit("x", framework="native", model="echo?latency=60000ms", max_duration="4s").id
        eventually(lambda: client.get(task).state == "RUNNING")
        clock.set(hours * HOUR)
        ended = client.wait(task, timeout=20)
        assert ended.state == "TIMED_OUT"
        assert 3.9 < time.monotonic() - began < 10
        (attempt,) = client.attempts(task)
        assert attempt.run_time is not None
        assert 3.9 < attempt.run_time.total_seconds() < 10


def test_a_model_call_has_the_time_that_its_task_has(node: KillableNode, clock: Clock) -> None:
    with Client(node.address) as client:
        for seconds in (HOUR, -HOUR):
            clock.set(seconds)
            task = client.submit("x", framework="native", model="echo?latency=500ms", max_duration="20s").id
            assert client.wait(task, timeout=30).state == "SUCCEEDED"


def test_what_attempts_ran_is_counted_by_spans(node: KillableNode, clock: Clock) -> None:
    with Client(node.address) as client:
        task = client.submit("x", agent="asks_people", max_duration="30s").id
        eventually(lambda: client.get(task).state == "WAITING")
        (first,) = client.attempts(task)
        assert first.run_time is not None
        clock.set(HOUR)
        client.cancel(task, grace="0s")
        other = client.submit(
            "x", framework="native", model="bad/down", max_attempts=2, initial_backoff="5s", max_duration="30s"
        ).id
        eventually(lambda: client.attempts(other)[0].outcome)
        clock.set(2 * HOUR)
        # An hour more by the time of day, milliseconds by what it ran: the second attempt is made.
        assert [a.outcome for a in client.attempts(client.wait(other, timeout=20).id)] == ["failed", "failed"]


def test_a_time_of_day_follows_the_clock(node: KillableNode, clock: Clock) -> None:
    with Client(node.address) as client:
        soon = client.submit("x", framework="native", not_before=datetime.now(UTC) + timedelta(hours=1)).id
        assert client.get(soon).state == "WAITING"
        clock.set(HOUR + 5)
        assert client.wait(soon, timeout=10).state == "SUCCEEDED"


def test_a_schedule_goes_on_after_the_clock_was_set_back(node: KillableNode, clock: Clock) -> None:
    with Client(node.address) as client:
        clock.set(HOUR)
        client.schedules.create("tick", every="1s", schedule_id="ticks", framework="native")
        eventually(lambda: client.schedules.get("ticks").fired >= 2)
        fired = client.schedules.get("ticks").fired
        clock.set(2 * HOUR)
        eventually(lambda: client.schedules.get("ticks").fired > fired)
        client.schedules.delete("ticks")
