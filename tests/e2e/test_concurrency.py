"""Several tasks of an agent in one process: side by side, cancelled one by one, and what becomes of them when their process ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import eventually

from singularity_agents import Client, TaskHandle
from singularity_agents._local_node import LocalNode

HERE = Path(__file__).resolve().parent
NODE = f"""
[providers.echo]
dialect = "echo"
[workers]
max_per_framework = 1
block_grace = "2s"
[agents.mixed]
framework = "custom:mixed"
project = "{HERE}"
entrypoint = "e2e_concurrency"
concurrency = 3
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with LocalNode(NODE) as node:
        yield node.address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, max_retries=0, timeout="60s") as client:
        yield client
        assert client.execute("done", agent="mixed").output.isdigit()


def ask(client: Client, what: str, attempts: int = 1) -> TaskHandle:
    """A task that may be tried so often."""
    return client.submit(what, agent="mixed", max_attempts=attempts)


def running(client: Client) -> tuple[str, ...]:
    """What the one worker runs."""
    return tuple(t for w in client.frameworks.get("custom:mixed").workers for t in w.task_ids)


def together(client: Client, *tasks: TaskHandle) -> None:
    """Waits until these run in the one worker."""
    eventually(lambda: set(running(client)) == {t.id for t in tasks})


def causes(client: Client, task: TaskHandle) -> list[str]:
    """Why each attempt ended."""
    return [a.cause for a in client.attempts(task.id)]


def test_tasks_meet_in_one_process_and_the_next_one_waits_for_a_slot(client: Client) -> None:
    stays = ask(client, "stays")
    together(client, stays)
    first = ask(client, "meets room 3")
    second = ask(client, "meets room 3")
    together(client, stays, first, second)
    third = ask(client, "meets room 3")
    assert client.get(third.id).state in ("QUEUED", "RUNNING") and third.id not in running(client)
    assert stays.cancel(grace="5s").task.state == "CANCELLED"
    pids = {task.wait("30s").result.output for task in (first, second, third)}
    assert len(pids) == 1
    for task in (first, second, third):
        said = [e.data["message"] for e in client.watch(task.id) if e.kind == "log" and e.data["source"] == "worker"]
        assert said == [f"{task.id} has met"]


def test_a_cancel_ends_one_and_leaves_the_others(client: Client) -> None:
    stays, other, waits = ask(client, "stays"), ask(client, "stays"), ask(client, "meets again 2")
    together(client, stays, other, waits)
    answer = stays.cancel(grace="5s")
    assert answer.task.state == "CANCELLED" and answer.proof.confirmed_dead
    assert ask(client, "meets again 2").wait("30s").state == "SUCCEEDED" and waits.wait("30s").state == "SUCCEEDED"
    assert client.get(other.id).state == "RUNNING" and causes(client, other) == [""]
    other.cancel(grace="5s")


def test_one_that_does_not_end_is_killed_and_the_others_run_again_uncounted(client: Client) -> None:
    swallows, asks = ask(client, "swallows"), ask(client, "asks before")
    together(client, swallows, asks)
    assert ask(client, "awaits before").wait("30s").state == "SUCCEEDED"
    answer = swallows.cancel(grace="0.2s")
    assert answer.task.state == "CANCELLED" and answer.proof.confirmed_dead and not answer.proof.survivors
    assert [s for s in answer.proof.signals if s["name"] == "KILL"]
    done = asks.wait("30s")
    # The answer that it had paid for was not asked again.
    assert done.result.metrics.provider_calls == 1
    assert done.state == "SUCCEEDED" and causes(client, asks) == ["WORKER_CRASHED", ""]
    [lost] = [e.data for e in client.watch(asks.id) if e.kind == "worker_lost"]
    assert "did not end when it was cancelled" in lost["detail"]
    assert done.result.output != str(answer.proof.host_pid)


def test_a_clock_that_rings_leaves_the_others_alone(client: Client) -> None:
    other = ask(client, "stays")
    late = client.submit("stays", agent="mixed", max_attempts=1, max_duration="1s")
    assert late.wait("20s").state == "TIMED_OUT"
    assert client.get(other.id).state == "RUNNING" and causes(client, other) == [""]
    # Nor does one that is ended at once, and obeys.
    now = ask(client, "stays")
    together(client, other, now)
    assert now.cancel(grace="0s").task.state == "CANCELLED"
    assert client.get(other.id).state == "RUNNING" and causes(client, other) == [""]
    other.cancel(grace="5s")


def test_what_ends_the_process_is_found_out_alone_and_costs_its_neighbours_nothing(client: Client) -> None:
    dies = ask(client, "dies after", attempts=2)
    together(client, dies)
    beside = ask(client, "asks after")
    assert beside.wait("30s").state == "SUCCEEDED" and causes(client, beside) == ["WORKER_SHARED", ""]
    ended = dies.wait("30s")
    assert ended.error is not None and ended.error.reason == "POISON_TASK"
    assert causes(client, dies) == ["WORKER_SHARED", "WORKER_CRASHED", "POISON_TASK"]
