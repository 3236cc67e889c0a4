"""What happens when things die: workers, guards, and the node itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import KillableNode, eventually

from singularity_agents import Client, SingularityError
from singularity_agents._local_node import LocalNode


def sleepers() -> list[str]:
    """Children that an agent of ours let loose."""
    lines = subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if "sleep 987" in line and " Z" not in line and "ps -eo" not in line]


def running(client: Client, agent: str) -> tuple[str, int]:
    """Id and host pid of a task of this agent that runs now."""
    handle = client.submit("x", agent=agent)
    return handle.id, int(eventually(lambda: client.get(handle.id).worker_pid))


def test_cancel_ends_the_whole_tree_with_proof(client: Client) -> None:
    task_id, pid = running(client, "loop")
    eventually(lambda: len(sleepers()) >= 2)
    began = time.monotonic()
    answer = client.cancel(task_id, grace="0s")
    assert time.monotonic() - began < 2
    assert answer.proof.confirmed_dead and answer.proof.witness.endswith(("NAMESPACE", "DESCENDANTS"))
    assert answer.proof.host_pid == pid and not answer.proof.survivors
    assert sleepers() == []
    assert answer.task.state.endswith("CANCELLED")


def test_a_queued_or_native_task_needs_no_proof(client: Client) -> None:
    handle = client.submit("x", method="native", model="echo?latency=60000ms")
    eventually(lambda: client.get(handle.id).state.endswith("RUNNING"))
    answer = client.cancel(handle.id, grace="0s")
    assert answer.proof.witness.endswith("NONE_NEEDED") and answer.proof.confirmed_dead


def test_a_killed_worker_costs_one_attempt(client: Client) -> None:
    task_id, pid = running(client, "count")
    os.kill(pid, signal.SIGKILL)
    task = client.wait(task_id, timeout="60s")
    assert task.state.endswith("SUCCEEDED") and task.attempts == 2
    assert [a.outcome for a in client.attempts(task_id)] == ["lost", "succeeded"]


def test_a_stopped_worker_is_replaced(client: Client) -> None:
    task_id, pid = running(client, "count")
    os.kill(pid, signal.SIGSTOP)
    task = client.wait(task_id, timeout="60s")
    assert task.state.endswith("SUCCEEDED") and task.attempts == 2


def test_a_stuck_worker_leaves_its_stack_and_is_ended_after_the_tasks_own_grace(client: Client) -> None:
    handle = client.submit("x", agent="is_stuck", block_grace="1s", max_attempts=1)
    task = handle.wait("60s")
    assert task.error is not None and task.error.reason in {"WORKER_HUNG", "POISON_TASK"}
    said = [str(e.data["message"]) for e in client.watch(task.id) if e.kind == "log" and e.data["source"] == "stack"]
    assert any("is_stuck" in text for text in said), said
    # Suspected after 1 s, the stack at 2 s, the grace from there; the node's own would be 10 s.
    assert task.result is None and task.end_time is not None and task.start_time is not None
    assert (task.end_time - task.start_time).total_seconds() < 9


def test_a_task_that_kills_its_workers_is_stopped(client: Client) -> None:
    task = client.submit("x", agent="die", max_attempts=2).wait("60s")
    assert task.error is not None and task.error.reason in {
        "POISON_TASK",
        "WORKER_CRASHED",
    }
    assert task.attempts == 2


@pytest.mark.parametrize("agent", ["garbage", "half_frame", "huge_frame", "flood"])
def test_a_worker_that_breaks_the_protocol_is_ended(client: Client, agent: str) -> None:
    task = client.submit("x", agent=agent, max_attempts=1).wait("60s")
    assert task.error is not None
    assert task.error.reason in {
        "WORKER_PROTOCOL_ERROR",
        "WORKER_CRASHED",
        "POISON_TASK",
    }
    assert client.execute("still here", agent="shout").output == "STILL HERE"


def test_a_worker_that_takes_too_much_memory_is_ended(client: Client) -> None:
    task = client.submit("x", agent="hog", max_attempts=1).wait("60s")
    assert task.error is not None and task.error.reason in {"WORKER_OOM", "POISON_TASK"}


def test_a_neighbour_does_not_notice_what_another_worker_takes(client: Client) -> None:
    """One takes memory until it is ended, one every cycle it can get; each is alone in what it may take."""
    busy, _ = running(client, "loop")
    hungry = client.submit("x", agent="hog", max_attempts=1)
    neighbour = client.submit("x", agent="count")
    try:
        task = hungry.wait("60s")
        assert task.error is not None and task.error.reason in {"WORKER_OOM", "POISON_TASK"}
        done = neighbour.wait("60s")
        assert done.state.endswith("SUCCEEDED") and done.attempts == 1
        assert client.get(busy).state.endswith("RUNNING")
    finally:
        client.cancel(busy, grace="0s")


def test_a_client_that_disappears_costs_nobody_anything(node: LocalNode, client: Client) -> None:
    with Client(node.address, max_retries=0) as gone:
        handle = gone.submit("x", agent="count")
        next(iter(gone.watch(handle.id)))
    assert client.wait(handle.id, timeout="60s").state.endswith("SUCCEEDED")


def test_a_worker_is_replaced_after_its_number_of_tasks_and_nobody_notices(killable: Callable[[str], KillableNode]) -> None:
    with Client(killable("[workers]\nrecycle_after = 2\nwarm = 0\n").address, max_retries=0) as client:
        pids = []
        for _ in range(5):
            handle = client.submit("hello", agent="shout")
            assert handle.result().output == "HELLO"
            pids.append(next(iter(client.attempts(handle.id))).host_pid)
        assert len(set(pids)) == 3 and pids[0] == pids[1] and pids[2] == pids[3]
        assert all(framework.restarts == 0 for framework in client.frameworks.list())


def test_a_killed_node_keeps_what_it_finished_and_runs_the_rest(killable: Callable[[], KillableNode]) -> None:
    node = killable()
    with Client(node.address, max_retries=0) as client:
        done = client.submit("done")
        done.result()
        open_id, worker = running(client, "count")
        # A cancel that the node takes and does not live to carry out.
        asked_id, _ = running(client, "loop")
        asking = threading.Thread(target=_cancel, args=(node.address, asked_id), daemon=True)
        asking.start()
        eventually(lambda: client.get(asked_id).cancel_requested)
    node.kill()
    eventually(
        lambda: not Path(f"/proc/{worker}").exists() or " Z" in Path(f"/proc/{worker}/stat").read_text(),
        within_s=2,
    )
    node.start()
    with Client(node.address, max_retries=0) as client:
        assert client.get(done.id).state.endswith("SUCCEEDED")
        task = client.wait(open_id, timeout="60s")
        assert task.state.endswith("SUCCEEDED") and task.attempts == 2
        assert next(a.cause for a in client.attempts(open_id)) == "NODE_LOST"
        asked = client.get(asked_id)
        assert asked.state.endswith("CANCELLED") and asked.attempts == 1, "it does not run again"
        assert asked.cancellation_proof is not None and not asked.cancellation_proof.confirmed_dead


def _cancel(address: str, task_id: str) -> None:
    with Client(address, max_retries=0) as client, contextlib.suppress(SingularityError):
        client.cancel(task_id, grace="60s")


def test_workers_of_a_warm_framework_are_there_before_the_first_task(killable: Callable[..., KillableNode]) -> None:
    more = '[workers]\nwarm = 2\nmax_per_framework = 3\nwarm_frameworks = ["custom"]\n'
    with Client(killable(more).address, max_retries=0) as client:

        def idle() -> list[tuple[str, int]]:
            return sorted((w.agent_id, w.host_pid) for w in client.frameworks.get("custom:e2e").workers if w.state == "idle")

        there: list[tuple[str, int]] = eventually(lambda: found if len(found := idle()) == 3 else None)
        before = [agent for agent, _ in there]
        # As many as there is room for.
        assert sorted(before.count(agent) for agent in set(before)) == [1, 2]
