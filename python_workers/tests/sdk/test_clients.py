"""Both clients over a real socket: what they send, how they read answers, what they repeat."""

from __future__ import annotations

import time
from datetime import timedelta

import grpc
import pytest

import singularity_agents as sa
from singularity_agents._proto.singularity.agents.v1 import task_pb2 as ta
from singularity_agents._proto.singularity.agents.v1 import task_service_pb2 as ts
from singularity_agents._transport import RetryBudget

from .scripted_node import Refusal, ScriptedNode

TASK_ID = "0198f3ab-6c1e-7d20-8a4f-52be9c41e7d0"


def task(state: int = ta.TASK_STATE_SUCCEEDED, **fields: object) -> ta.Task:
    made = ta.Task(id=TASK_ID, state=state, attempts=1, fencing_token=1, **fields)
    if state == ta.TASK_STATE_SUCCEEDED:
        made.result.output = "Paris"
        made.result.executor = "native"
        made.result.metrics.queue_time.FromMilliseconds(1500)
        made.result.metrics.tokens_used.input_tokens = 7
    return made


def test_execute_gives_the_typed_result(node: ScriptedNode) -> None:
    node.script("ExecuteTask", task())
    with sa.Client(node.address) as engine:
        result = engine.execute(
            "Capital of France?", agent="researcher", priority=0, max_steps=3, max_duration="1.5h", method="native",
            durability="ephemeral", history=[("user", "hi"), ("assistant", "hello")], output_schema={"type": "object"},
        )  # fmt: skip
    assert (result.output, result.executor) == ("Paris", "native")
    assert result.metrics.queue_time == timedelta(seconds=1.5)
    assert result.metrics.tokens_used.input_tokens == 7
    assert result.metrics.cost_micros is None, "an unknown cost is no zero"
    sent: ts.ExecuteTaskRequest = node.sent("ExecuteTask")[0]
    assert sent.task.agent_id == "researcher"
    assert sent.task.execution_hints.HasField("priority") and sent.task.execution_hints.priority == 0
    assert sent.task.execution_hints.durability == ta.DURABILITY_EPHEMERAL
    assert sent.task.requirements.max_duration.seconds == 5400
    assert sent.task.context.conversation_history[1].content[0].text == "hello"
    assert sent.wait.seconds == 600 and sent.request_id


async def test_the_asynchronous_client_does_the_same(node: ScriptedNode) -> None:
    node.script("ExecuteTask", task())
    async with sa.AsyncClient(node.address) as engine:
        assert (await engine.execute("Capital of France?")).output == "Paris"


def test_a_failed_task_raises_its_own_reason(node: ScriptedNode) -> None:
    error = ta.Task(id=TASK_ID, state=ta.TASK_STATE_FAILED)
    error.error.reason, error.error.message = "WORKER_OOM", "over 1 GiB"
    node.script("ExecuteTask", error)
    with sa.Client(node.address) as engine, pytest.raises(sa.TaskFailed) as caught:
        engine.execute("x")
    assert caught.value.reason == "WORKER_OOM" and caught.value.task_id == TASK_ID


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (ta.TASK_STATE_CANCELLED, sa.TaskCancelled),
        (ta.TASK_STATE_TIMED_OUT, sa.TaskTimedOut),
        (ta.TASK_STATE_RUNNING, sa.WaitExpired),
    ],
)
def test_every_other_end_has_its_own_class(node: ScriptedNode, state: int, kind: type[Exception]) -> None:
    node.script("ExecuteTask", task(state))
    with sa.Client(node.address) as engine, pytest.raises(kind):
        engine.execute("x")


def test_every_wrong_field_is_told(node: ScriptedNode) -> None:
    fields = {"task.execution_hints.priority": "12, must be 0 to 9", "task.description": "required"}
    node.script("SubmitTask", Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "2 fields", fields=fields))
    with sa.Client(node.address) as engine, pytest.raises(sa.InvalidRequest) as caught:
        engine.submit("", priority=12)
    assert {f.field: f.description for f in caught.value.fields} == fields
    assert "task.description: required" in str(caught.value)
    assert len(node.sent("SubmitTask")) == 1, "a wrong request is never repeated"


def test_overload_is_repeated_after_the_time_the_engine_asked_for(node: ScriptedNode) -> None:
    full = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=0.3)
    node.script("SubmitTask", full, task(ta.TASK_STATE_QUEUED))
    started = time.monotonic()
    with sa.Client(node.address) as engine:
        handle = engine.submit("x")
    assert handle.id == TASK_ID and time.monotonic() - started >= 0.3
    first, second = node.sent("SubmitTask")
    assert first.request_id == second.request_id, "the second one must be the same submission"


def test_retries_end_and_can_be_turned_off(node: ScriptedNode) -> None:
    node.script("SubmitTask", Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=0.01))
    with sa.Client(node.address) as engine:
        with pytest.raises(sa.Overloaded) as caught:
            engine.submit("x")
        assert caught.value.retry_after == pytest.approx(0.01) and caught.value.request_id
        assert len(node.sent("SubmitTask")) == 3
        with pytest.raises(sa.Overloaded):
            engine.submit("x", max_retries=0)
    assert len(node.sent("SubmitTask")) == 4


def test_a_retry_budget_runs_dry() -> None:
    budget = RetryBudget()
    assert sum(budget.take() for _ in range(100)) == RetryBudget.SIZE
    for _ in range(11):
        budget.succeeded()
    assert budget.take()


def test_a_model_call_is_not_repeated(node: ScriptedNode) -> None:
    node.script("Chat", Refusal(grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE"))
    with sa.Client(node.address) as engine, pytest.raises(sa.ProviderFailed):
        engine.providers.chat("hi")
    assert len(node.sent("Chat")) == 1


def test_nobody_there_is_said_with_the_address() -> None:
    with sa.Client("127.0.0.1:9", max_retries=0) as engine, pytest.raises(sa.ConnectionFailed, match=r"127\.0\.0\.1:9"):
        engine.get(TASK_ID)


def test_what_has_not_come_yet_is_typed(node: ScriptedNode) -> None:
    with sa.Client(node.address) as engine:
        for call in (lambda: engine.memory.get("n", "k"), lambda: engine.schedules.list()):
            with pytest.raises(sa.CapabilityPending) as caught:
                call()
            assert caught.value.metadata["capability"]


def test_watch_goes_on_where_the_connection_broke(node: ScriptedNode) -> None:
    def event(sequence: int) -> ta.TaskEvent:
        return ta.TaskEvent(sequence=sequence, text_delta=ta.TextDelta(text=str(sequence), offset=sequence - 1))

    node.script("WatchTask", [event(1), event(2), Refusal(grpc.StatusCode.UNAVAILABLE, "DRAINING")], [event(3)])
    with sa.Client(node.address) as engine:
        assert [e.text for e in engine.watch(TASK_ID)] == ["1", "2", "3"]
    assert [request.after for request in node.sent("WatchTask")] == [0, 2]


async def test_a_handle_waits_for_the_end(node: ScriptedNode) -> None:
    ended = ta.TaskEvent(sequence=1, state_changed=ta.StateChanged(state=ta.TASK_STATE_SUCCEEDED))
    node.script("SubmitTask", task(ta.TASK_STATE_QUEUED))
    node.script("GetTask", task(ta.TASK_STATE_RUNNING), task())
    node.script("WatchTask", [ended])
    async with sa.AsyncClient(node.address) as engine:
        handle = await engine.submit("x")
        assert (await handle.result()).output == "Paris"


def test_lists_follow_their_pages(node: ScriptedNode) -> None:
    node.script(
        "ListTasks",
        ts.ListTasksResponse(tasks=[task()] * 3, next_page_token="n"),
        ts.ListTasksResponse(tasks=[task()] * 3, next_page_token="m"),
    )
    with sa.Client(node.address) as engine:
        assert len(engine.list("state=SUCCEEDED", limit=5)) == 5
    assert [(r.page_size, r.page_token) for r in node.sent("ListTasks")] == [(5, ""), (2, "n")]


def test_a_batch_keeps_each_outcome(node: ScriptedNode) -> None:
    refused = ts.BatchOutcome()
    refused.error.reason, refused.error.message, refused.error.code = "INVALID_FIELD", "no", 3
    node.script("BatchSubmitTasks", ts.BatchSubmitTasksResponse(outcomes=[ts.BatchOutcome(task=task()), refused]))
    with sa.Client(node.address) as engine:
        good, bad = engine.submit_many(["a", sa.TaskSpec("b", priority=1)], model="m")
    assert isinstance(good, sa.TaskHandle) and isinstance(bad, sa.InvalidRequest)
    sent = node.sent("BatchSubmitTasks")[0].requests
    assert sent[1].task.execution_hints.priority == 1 and sent[1].task.requirements.model == "m"
    assert sent[0].request_id != sent[1].request_id


def test_the_key_travels_and_is_never_shown(node: ScriptedNode) -> None:
    node.script("GetTask", task())
    with sa.Client(node.address, api_key="sk-very-secret") as engine:
        engine.get(TASK_ID)
        assert "very-secret" not in repr(engine._target)
    assert node.metadata[0]["authorization"] == "Bearer sk-very-secret"


def test_wrong_values_are_refused_before_anything_is_sent(node: ScriptedNode) -> None:
    with sa.Client(node.address) as engine:
        with pytest.raises(ValueError, match="auto, native"):
            engine.submit("x", method="magic")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="number and a unit"):
            engine.submit("x", max_duration="soon")
        with pytest.raises(TypeError, match="unknown options: speed"):
            engine.submit("x", speed=9)  # type: ignore[call-arg]
    assert not node.requests


def test_an_enum_value_of_a_newer_engine_does_no_harm(node: ScriptedNode) -> None:
    node.script("GetTask", lambda _: ta.Task.FromString(ta.Task(id=TASK_ID).SerializeToString() + b"\x20\x63"))
    with sa.Client(node.address) as engine:
        assert engine.get(TASK_ID).state == "99"
