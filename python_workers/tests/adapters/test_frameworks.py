"""What every framework does alike: its default agent in a real worker, in the locked environment, against a node on a socket."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from singularity_agents._proto.singularity.agents.v1 import agent_service_pb2, common_pb2, provider_service_pb2, task_pb2
from singularity_agents._proto.singularity.worker.v1 import worker_pb2
from singularity_agents.worker import _frames as f

from ..worker.peer import Peer, chat_response
from .conftest import FRAMEWORKS, started
from .script import Script, calculator

Bound = tuple[str, Peer]
#: The user's functions of `sample_code.py`.
TOOLS = {"double", "fails", "once", "dials", "asks"}


def an_agent(framework: str) -> agent_service_pb2.Agent:
    return agent_service_pb2.Agent(id="it", framework=framework, instructions="Be exact.")


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    """Its name."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(framework: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worker's own folder."""
    return tmp_path_factory.mktemp(framework)


@pytest.fixture(scope="module")
def bound(framework: str, folder: Path) -> Iterator[tuple[str, Peer]]:
    """One worker for all tests of a framework, so that what a task leaves behind would be seen in the next."""
    shutil.copy(Path(__file__).parent / "sample_code.py", folder / "users_code.py")
    with started(framework, folder) as peer:
        ready = peer.bind(
            project=folder,
            tools=[f"users_code:{name}" for name in TOOLS],
            agent=an_agent(framework),
            storage_dir=folder,
        )
        assert {t.name for t in ready.tools} == TOOLS
        yield framework, peer


_fences = itertools.count(1)


class Run:
    """One task on the worker of the test."""

    def __init__(self, bound: tuple[str, Peer], *answers: provider_service_pb2.ChatResponse, **recorded: str) -> None:
        self.framework, self.peer = bound
        self.script = Script(self.peer, *answers)
        self.script.recorded = recorded
        self.fence = next(_fences)

    def execute(self, description: str = "go", **more: Any) -> None:
        """EXECUTE."""
        self.peer.seen.clear()
        self.peer.execute(description, agent=an_agent(self.framework), fence=self.fence, **more)

    def __call__(self, description: str = "go", **more: Any) -> tuple[int, worker_pb2.Result]:
        """EXECUTE and RESULT."""
        self.execute(description, **more)
        return self.peer.result(self.script)


def texts(script: Script, number: int) -> str:
    """Everything that the model read in a call."""
    return "\n".join(part.text for message in script.asked[number].messages for part in message.content)


def test_a_tool_of_the_engine(bound: Bound) -> None:
    calls = chat_response(tool_calls=[("c1", "calculate", '{"expression": "17*23"}')])
    run = Run(bound, calls, chat_response("It is 391"))
    status, result = run("What is 17 * 23?", engine_tools=[calculator()])
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "It is 391"), result.error
    first, second = run.script.asked
    assert first.model == "default"
    assert "Be exact." in texts(run.script, 0) and "What is 17 * 23?" in texts(run.script, 0)
    assert {t.name for t in first.tools} == {"calculate", *TOOLS}
    offered = next(t for t in first.tools if t.name == "calculate")
    assert offered.description == "Calculates."
    expression = offered.parameters.fields["properties"].struct_value.fields["expression"].struct_value
    assert expression.fields["type"].string_value == "string"
    assert offered.parameters.fields["required"].list_value.values[0].string_value == "expression"
    assert (second.messages[-1].tool_call_id, second.messages[-1].content[0].text) == ("c1", "391")
    assert second.messages[-2].tool_calls[0].id == "c1"
    assert json.loads(run.script.tools[0].arguments) == {"expression": "17*23"}
    assert b"".join(run.peer.events(f.Event.TEXT)) == b"Itis391"


def test_history_and_preferences(bound: Bound) -> None:
    task = task_pb2.AgentTask(description="And now?")
    for role, text in ((common_pb2.ROLE_USER, "Hi"), (common_pb2.ROLE_ASSISTANT, "Hello")):
        task.context.conversation_history.add(role=role).content.add(text=text)
    task.context.user_preferences.update({"language": "Finnish"})
    task.requirements.expected_output = "one word"
    run = Run(bound, chat_response("Moi"))
    status, result = run(task=task)
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "Moi"), result.error
    read = texts(run.script, 0)
    assert "17" not in read and all(word in read for word in ("one word", "Finnish"))
    assert read.index("Hi") < read.index("Hello") < read.index("And now?")


@pytest.mark.parametrize(("recorded", "expected"), [({}, "8"), ({"double": "80"}, "80")])
def test_a_tool_of_the_worker_is_recorded(bound: Bound, recorded: dict[str, str], expected: str) -> None:
    run = Run(bound, chat_response(tool_calls=[("c1", "double", '{"n": 4}')]), chat_response("done"), **recorded)
    status, result = run("double it")
    assert status == f.Status.SUCCEEDED, result.error
    begin = run.script.begun[0]
    assert (begin.name, begin.arguments, begin.replay) == ("double", '{"n":4}', common_pb2.TOOL_REPLAY_JOURNALED)
    assert run.script.asked[1].messages[-1].content[0].text == expected
    assert [e.content for e in run.script.ended] == ([] if recorded else ["8"])


def test_what_a_tool_raises_is_told_to_the_model(bound: Bound) -> None:
    run = Run(bound, chat_response(tool_calls=[("c1", "fails", '{"why": "broken"}')]), chat_response("I could not."))
    status, result = run("try")
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "I could not."), result.error
    assert "broken" in run.script.asked[1].messages[-1].content[0].text


def test_several_tools_at_once(bound: Bound) -> None:
    both = chat_response(tool_calls=[("a", "double", '{"n": 1}'), ("b", "double", '{"n": 2}')])
    run = Run(bound, both, chat_response("2 and 4"))
    status, result = run("both")
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "2 and 4"), result.error
    said = {m.tool_call_id: m.content[0].text for m in run.script.asked[1].messages if m.role == common_pb2.ROLE_TOOL}
    assert said == {"a": "2", "b": "4"}


def test_the_step_limit_counts_model_calls_and_is_said(bound: Bound) -> None:
    again = [chat_response("thinking", tool_calls=[(f"c{n}", "double", f'{{"n": {n}}}')]) for n in range(9)]
    run = Run(bound, *again)
    task = task_pb2.AgentTask(description="loop")
    task.execution_hints.max_steps = 3
    status, result = run(task=task)
    assert status == f.Status.SUCCEEDED, result.error
    assert len(run.script.asked) == 3
    assert (result.result.limit_reached, result.result.status) == ("max_steps", task_pb2.RESULT_STATUS_PARTIAL)
    assert result.result.output == "thinking"


def test_structured_output(bound: Bound) -> None:
    task = task_pb2.AgentTask(description="Who?")
    task.requirements.output_schema.update({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
    by_tool = bound[0] in ("langchain", "langgraph")
    answer = chat_response(tool_calls=[("c1", "answer", '{"name": "Ada"}')]) if by_tool else chat_response('{"name": "Ada"}')
    run = Run(bound, answer)
    status, result = run(task=task)
    assert status == f.Status.SUCCEEDED, result.error
    assert result.result.structured_output.struct_value.fields["name"].string_value == "Ada"
    if by_tool:
        return
    assert "name" in run.script.asked[0].output_schema.fields["properties"].struct_value.fields
    status, result = Run(bound, chat_response("Ada, I think"))(task=task)
    # The engine holds it against the schema, and has it said again.
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "Ada, I think")
    assert not result.result.HasField("structured_output")


def test_the_engines_refusal_keeps_its_reason_and_is_asked_for_once(bound: Bound) -> None:
    run = Run(bound)
    run.execute()
    asked: list[f.Frame] = []

    def refuse(call: f.Frame) -> None:
        asked.append(call)
        run.peer.refuse(call, "PROVIDER_RATE_LIMITED", "429 rate limit, too many requests")

    status, result = run.peer.result(refuse)
    assert (status, result.error.reason, len(asked)) == (f.Status.FAILED, "PROVIDER_RATE_LIMITED", 1), result.error


def test_a_tool_in_doubt_waits_for_a_person(bound: Bound) -> None:
    run = Run(bound)
    run.execute()
    chats = 0

    def in_doubt(call: f.Frame) -> None:
        nonlocal chats
        if call.kind == f.Call.CHAT:
            chats += 1
            run.peer.reply(call, chat_response(tool_calls=[("c1", "once", '{"n": 1}')]).SerializeToString())
        else:
            run.peer.refuse(call, "REPLAY_NOT_ALLOWED", "it may have acted")

    status, result = run.peer.result(in_doubt)
    assert (status, chats) == (f.Status.INPUT_REQUESTED, 1), result.error
    assert result.inputs[0].kind == "approval"


def test_cancel_in_a_model_call_and_the_next_task(bound: Bound) -> None:
    run = Run(bound)
    run.execute()
    run.peer.expect(f.Type.CALL, skip_events=True)
    began = time.monotonic()
    run.peer.send(f.Type.CANCEL, call_id=5000, fence=run.fence)
    status, _ = run.peer.result()
    assert status == f.Status.CANCELLED
    assert time.monotonic() - began < 1.0
    assert [c.kind for c in run.peer.seen if c.type == f.Type.CALL] == [f.Call.CHAT]
    assert Run(bound, chat_response("still here"))("again")[1].result.output == "still here"


def test_text_is_shown_while_the_model_still_speaks(bound: Bound) -> None:
    run = Run(bound)
    run.execute()
    call = run.peer.expect(f.Type.CALL, skip_events=True)
    assert call.flags & f.FLAG_STREAM
    for piece in ("Good ", "morning"):
        chunk = provider_service_pb2.StreamChatResponse(text_delta=piece).SerializeToString()
        run.peer.reply(call, chunk, f.FLAG_STREAM, f.Type.REPLY_CHUNK)
        # The answer has not ended, and its piece is here.
        while (frame := run.peer.expect(f.Type.EVENT)).kind != f.Event.TEXT:
            pass
        assert frame.payload == piece.encode()
    run.peer.reply(call, chat_response("Good morning").SerializeToString())
    status, result = run.peer.result()
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "Good morning"), result.error
    assert b"".join(run.peer.events(f.Event.TEXT)) == b"Good morning"


def test_a_budget_that_is_spent_stops_the_run(bound: Bound) -> None:
    run = Run(bound)
    run.execute()
    chats = 0

    def until_spent(call: f.Frame) -> None:
        nonlocal chats
        if call.kind != f.Call.CHAT:
            run.script(call)
            return
        chats += 1
        if chats == 1:
            run.peer.reply(call, chat_response(tool_calls=[("c1", "double", '{"n": 1}')]).SerializeToString())
        else:
            run.peer.refuse(call, "BUDGET_EXHAUSTED", "the task has spent its budget", 8)

    status, result = run.peer.result(until_spent)
    assert (status, result.error.reason, chats) == (f.Status.FAILED, "BUDGET_EXHAUSTED", 2), result.error


def test_a_tool_asks_a_person_and_goes_on_with_the_answer(bound: Bound) -> None:
    wants = chat_response(tool_calls=[("c1", "asks", "{}")])
    status, result = Run(bound, wants)("ask")
    assert status == f.Status.INPUT_REQUESTED, result.error
    assert [(i.input_id, i.kind, i.prompt) for i in result.inputs] == [("input-1", "question", "Shall I?")]
    run = Run(bound, wants, chat_response("well"))
    status, result = run("ask", answers=[task_pb2.InputAnswer(input_id="input-1", input="yes")])
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "well"), result.error
    assert run.script.asked[1].messages[-1].content[0].text == "the person said yes"


def test_telemetry_is_silent_from_the_import_on(bound: Bound, folder: Path) -> None:
    """Last, when the worker has done all of the above."""
    log = folder / "network.log"
    assert not log.exists(), log.read_text()
    Run(bound, chat_response(tool_calls=[("c1", "dials", '{"port": 9}')]), chat_response("done"))("dial")
    assert log.read_text().split() == ["127.0.0.1:9", "127.0.0.1:9"], "the watch sees what is dialled"
