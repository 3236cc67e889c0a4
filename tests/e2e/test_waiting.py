"""Tasks that ask people: parked without a process, answered by signals, also on a node that was killed in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import KillableNode, eventually, openai_provider

from singularity_agents import Client, SingularityError
from singularity_agents.testing import ScriptedModel


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(*["a1"] * 10) as model:
        yield model


@pytest.fixture
def node(killable: Callable[[str], KillableNode], model: ScriptedModel) -> KillableNode:
    return killable(openai_provider("scripted", model.base_url, "scripted"))


def asks(client: Client, task_id: str, *input_ids: str) -> None:
    """Waits until the task asks just this."""
    eventually(lambda: sorted(i.input_id for i in client.get(task_id).pending_inputs) == sorted(input_ids), within_s=60)
    assert client.get(task_id).state == "WAITING"


def test_a_question_waits_no_longer_than_the_agent_wants(node: KillableNode) -> None:
    with Client(node.address, max_retries=0) as client:
        task = client.submit("x", agent="asks_in_vain").wait("60s")
        assert task.result is not None and task.result.output == "input-1 was not answered in time"
        assert [(a.input_id, a.expired) for a in task.answers] == [("input-1", True)]
        patient = client.submit("x", agent="asks_in_vain")
        client.signal(patient.id, input_id="input-1", input="here")
        answered = patient.wait("60s")
        assert answered.result is not None and answered.result.output == "here"


def test_the_client_runs_a_tool_of_its_own(node: KillableNode) -> None:
    with Client(node.address, max_retries=0) as client:
        handle = client.submit("x", agent="has_a_door_opened")
        asks(client, handle.id, "input-1")
        task = client.get(handle.id)
        assert task.waiting_for == "CLIENT_TOOL"
        assert task.pending_inputs[0].payload == {"name": "open_door", "arguments": {"floor": 3}}
        with pytest.raises(SingularityError, match="tool_result"):
            client.signal(handle.id, approve=True)
        client.signal(handle.id, tool_result="open")
        done = handle.wait("60s")
        assert done.result is not None and done.result.output == "the door is open"


def test_a_task_that_shows_no_progress_is_given_up(node: KillableNode) -> None:
    with Client(node.address, max_retries=0) as client:
        going = client.submit("a while", agent="silent", heartbeat_timeout="1s").wait("60s")
        assert going.result is not None and going.result.output == "went on", "longer than the timeout, but not silent"
        stuck = client.submit("for ever", agent="silent", heartbeat_timeout="1s", max_attempts=2)
        task = stuck.wait("60s")
        assert task.state == "TIMED_OUT" and task.error is not None and task.error.reason == "HEARTBEAT_TIMEOUT"
        assert [a.outcome for a in client.attempts(stuck.id)] == ["timed_out", "timed_out"]


def test_a_plain_agent_asks_two_people_and_pays_once(node: KillableNode, model: ScriptedModel) -> None:
    with Client(node.address, max_retries=0) as client:
        task_id = client.submit("x", agent="asks_people", model="scripted").id
        pid = int(eventually(lambda: next((a.host_pid for a in client.attempts(task_id)), 0)))
        asks(client, task_id, "input-1")
        task = client.get(task_id)
        assert task.waiting_for == "INPUT" and task.worker_pid == 0
        assert task.pending_inputs[0].prompt == "Who pays?" and task.pending_inputs[0].payload == {"currency": "EUR"}
    node.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists() or " Z" in Path(f"/proc/{pid}/stat").read_text())
    node.start()
    with Client(node.address, max_retries=0) as client:
        asks(client, task_id, "input-1")
        client.signal(task_id, input="Ana", request_id="r1")
        # The same again is no second answer.
        client.signal(task_id, input="Ana", request_id="r1")
        asks(client, task_id, "input-2")
        assert client.get(task_id).waiting_for == "APPROVAL"
        with pytest.raises(SingularityError, match="approve") as wrong:
            client.signal(task_id, input="yes")
        assert wrong.value.reason == "INVALID_FIELD"
        client.signal(task_id, approve=True, comment="ok, Eva")
        task = client.wait(task_id, timeout="60s")
        assert task.result is not None and task.result.output == "a1 Ana pays, done 1"
        assert task.attempts == 3 and [a.outcome for a in client.attempts(task_id)] == ["waiting", "waiting", "succeeded"]
        assert [a.input_id for a in task.answers] == ["input-1", "input-2"] and task.answers[1].comment == "ok, Eva"
    assert len(model.asked) == 1


@pytest.mark.parametrize("agent", ["graph", "saved_graph"])
def test_interrupts_of_a_graph_are_answered_all_before_it_goes_on(node: KillableNode, model: ScriptedModel, agent: str) -> None:
    with Client(node.address, max_retries=0) as client:
        handle = client.submit("x", agent=agent, model="scripted")
        asks(client, handle.id, "input-1", "input-2")
        asked = {i.prompt: i for i in client.get(handle.id).pending_inputs}
        assert set(asked) == {"Is it well written?", "Is it lawful?"}
        assert asked["Is it well written?"].payload == {"question": "Is it well written?", "draft": "a1"}
        client.signal(handle.id, input_id=asked["Is it lawful?"].input_id, input="lawful")
        assert client.get(handle.id).state == "WAITING"
        client.signal(handle.id, input_id=asked["Is it well written?"].input_id, input="well written")
        assert handle.result(timeout="60s").output == "a1: well written, lawful"
        nodes = [e.data["name"] for e in client.watch(handle.id) if e.kind == "step_started" and e.data.get("name")]
        assert {"node:draft", "node:editor", "node:lawyer", "node:publish"} <= set(nodes)
        assert nodes.count("node:publish") == 1
    assert len(model.asked) == 1


def test_an_answer_may_come_first_and_a_wrong_one_is_refused(node: KillableNode) -> None:
    with Client(node.address, max_retries=0) as client:
        handle = client.submit("x", agent="asks_people", model="scripted")
        client.signal(handle.id, input_id="input-2", approve=False)
        asks(client, handle.id, "input-1")
        with pytest.raises(SingularityError) as unknown:
            client.signal(handle.id, input_id="input-9", input="x")
        assert unknown.value.reason == "INVALID_FIELD" and "input-1" in str(unknown.value)
        client.signal(handle.id, input="Ana")
        assert handle.result(timeout="60s").output == "Ana does not pay"
        with pytest.raises(SingularityError) as ended:
            client.signal(handle.id, input="late")
        assert ended.value.reason == "TASK_ALREADY_TERMINAL"


def test_a_waiting_task_is_cancelled_without_a_process(node: KillableNode) -> None:
    with Client(node.address, max_retries=0) as client:
        handle = client.submit("x", agent="asks_people", model="scripted")
        asks(client, handle.id, "input-1")
        answer = client.cancel(handle.id)
        assert answer.task.state == "CANCELLED" and answer.proof.witness.endswith("NONE_NEEDED")


@pytest.mark.parametrize("decision", ["again", "not again", "result"])
def test_a_tool_that_may_run_once_and_was_cut_waits_for_a_decision(node: KillableNode, decision: str) -> None:
    with Client(node.address, max_retries=0) as client:
        handle = client.submit("x", agent="slow_once")
        next(e for e in client.watch(handle.id) if e.kind == "tool_call")
        os.kill(int(eventually(lambda: client.get(handle.id).worker_pid)), signal.SIGKILL)
        eventually(lambda: client.get(handle.id).pending_inputs)
        task = client.get(handle.id)
        assert task.waiting_for == "APPROVAL" and "dawdle" in task.pending_inputs[0].prompt
        if decision == "result":
            client.signal(handle.id, tool_result="by hand")
        else:
            client.signal(handle.id, approve=decision == "again")
        task = handle.wait("60s")
        if decision == "not again":
            assert task.error is not None and "not to run dawdle again" in task.error.message
        else:
            assert task.result is not None and task.result.output == ("by hand" if decision == "result" else "dawdled")
