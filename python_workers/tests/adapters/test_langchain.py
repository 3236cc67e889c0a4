"""LangChain agents in a real worker, in the locked environment, against a node played on a socket."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from singularity_agents._proto.singularity.agents.v1 import agent_service_pb2, common_pb2, task_pb2
from singularity_agents._proto.singularity.worker.v1 import worker_pb2
from singularity_agents.worker import _frames as f

from ..worker.peer import Peer, chat_response
from .script import Script, calculator

Start = Callable[[], Peer]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the user's code."""
    (tmp_path / "lc_code.py").write_text((Path(__file__).parent / "sample_langchain.py").read_text(), "utf-8")
    return tmp_path


def an_agent() -> agent_service_pb2.Agent:
    return agent_service_pb2.Agent(id="lc", framework="langchain", instructions="Be exact.")


def test_the_default_agent_uses_an_engine_tool(langchain: Start) -> None:
    peer = langchain()
    peer.bind(agent=an_agent())
    script = Script(
        peer,
        chat_response(tool_calls=[("c1", "calculate", '{"expression": "17*23"}')]),
        chat_response("It is 391"),
    )
    peer.execute("What is 17 * 23?", agent=an_agent(), engine_tools=[calculator()])
    status, result = peer.result(script)
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "It is 391"), result.error
    first, second = script.asked
    assert [(m.role, m.content[0].text) for m in first.messages] == [
        (common_pb2.ROLE_SYSTEM, "Be exact."),
        (common_pb2.ROLE_USER, "What is 17 * 23?"),
    ]
    assert first.model == "default"
    assert [t.name for t in first.tools] == ["calculate"]
    assert first.tools[0].parameters.fields["required"].list_value.values[0].string_value == "expression"
    assert second.messages[-1].tool_call_id == "c1"
    assert second.messages[-1].content[0].text == "391"
    assert script.tools[0].tool_call_id == "c1" and json.loads(script.tools[0].arguments) == {"expression": "17*23"}
    assert b"".join(peer.events(f.Event.TEXT)) == b"Itis391"
    step = result.result.framework_specific_data.fields["intermediate_steps"].list_value.values[0].struct_value
    assert (step.fields["tool"].string_value, step.fields["result"].string_value) == ("calculate", "391")


def test_history_and_preferences_reach_the_model(langchain: Start) -> None:
    peer = langchain()
    peer.bind(agent=an_agent())
    task = task_pb2.AgentTask(description="And now?")
    for role, text in ((common_pb2.ROLE_USER, "Hi"), (common_pb2.ROLE_ASSISTANT, "Hello")):
        task.context.conversation_history.add(role=role).content.add(text=text)
    task.context.user_preferences.update({"language": "Finnish"})
    task.requirements.expected_output = "one word"
    script = Script(peer, chat_response("Moi"))
    peer.execute(task=task, agent=an_agent())
    assert peer.result(script)[1].result.output == "Moi"
    messages = script.asked[0].messages
    assert [m.content[0].text for m in messages][1:] == ["Hi", "Hello", "And now?"]
    system = messages[0].content[0].text
    assert "one word" in system and "Finnish" in system


def test_a_tool_of_the_worker_is_bracketed_with_its_replay_class(langchain: Start, project: Path) -> None:
    peer = langchain()
    ready = peer.bind(project=project, tools=["lc_code:double"], agent=an_agent())
    assert [t.name for t in ready.tools] == ["double"]
    for fence, recorded, expected in ((1, {}, "8"), (2, {"double": "80"}, "80")):
        script = Script(peer, chat_response(tool_calls=[("c1", "double", '{"n": 4}')]), chat_response("done"))
        script.recorded = recorded
        peer.execute("double it", agent=an_agent(), fence=fence)
        status, result = peer.result(script)
        assert status == f.Status.SUCCEEDED, result.error
        begin = script.begun[0]
        assert (begin.name, begin.arguments, begin.replay) == ("double", '{"n":4}', common_pb2.TOOL_REPLAY_JOURNALED)
        assert script.asked[1].messages[-1].content[0].text == expected
        assert [e.content for e in script.ended] == ([] if recorded else ["8"])


def test_a_tool_that_raises_becomes_text_for_the_model(langchain: Start, project: Path) -> None:
    peer = langchain()
    peer.bind("lc_code:agent", project, agent=an_agent())
    script = Script(peer, chat_response(tool_calls=[("c1", "fail", '{"why": "broken"}')]), chat_response("I could not."))
    peer.execute("try", agent=an_agent())
    status, result = peer.result(script)
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "I could not."), result.error
    assert "broken" in script.asked[1].messages[-1].content[0].text
    assert script.ended[0].is_error


def test_wrong_arguments_are_told_to_the_model(langchain: Start, project: Path) -> None:
    peer = langchain()
    peer.bind("lc_code:agent", project, agent=an_agent())
    script = Script(peer, chat_response(tool_calls=[("c1", "fail", '{"wrong": 1}')]), chat_response("Sorry."))
    peer.execute("try", agent=an_agent())
    assert peer.result(script)[1].result.output == "Sorry."
    assert "why" in script.asked[1].messages[-1].content[0].text


@pytest.mark.parametrize(
    ("entrypoint", "model", "text"),
    [("build", "other", b"fine"), ("sync_graph", "default", b""), ("streaming_graph", "default", b"fine")],
)
def test_graphs_of_the_users_own(langchain: Start, project: Path, entrypoint: str, model: str, text: bytes) -> None:
    peer = langchain()
    peer.bind(f"lc_code:{entrypoint}", project, agent=an_agent())
    script = Script(peer, chat_response("fine"))
    peer.execute("go", agent=an_agent())
    status, result = peer.result(script)
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "fine"), result.error
    assert script.asked[0].model == model
    assert b"".join(peer.events(f.Event.TEXT)) == text


def test_structured_output(langchain: Start) -> None:
    peer = langchain()
    peer.bind(agent=an_agent())
    task = task_pb2.AgentTask(description="Who?")
    task.requirements.output_schema.update({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
    script = Script(peer, chat_response(tool_calls=[("c1", "answer", '{"name": "Ada"}')]))
    peer.execute(task=task, agent=an_agent())
    status, result = peer.result(script)
    assert status == f.Status.SUCCEEDED, result.error
    assert result.result.structured_output.struct_value.fields["name"].string_value == "Ada"
    assert script.asked[0].tool_choice == "required"


@pytest.mark.parametrize(("max_steps", "limited"), [(3, False), (2, True)])
def test_the_step_limit_counts_model_calls_and_is_said(langchain: Start, max_steps: int, limited: bool) -> None:
    peer = langchain()
    peer.bind(agent=an_agent())
    again = chat_response("thinking", tool_calls=[("c1", "calculate", '{"expression": "1"}')])
    script = Script(peer, again, again, chat_response("at last"))
    task = task_pb2.AgentTask(description="loop")
    task.execution_hints.max_steps = max_steps
    peer.execute(task=task, agent=an_agent(), engine_tools=[calculator()])
    status, result = peer.result(script)
    assert status == f.Status.SUCCEEDED, result.error
    assert len(script.asked) == max_steps
    if limited:
        assert (result.result.limit_reached, result.result.status) == ("max_steps", task_pb2.RESULT_STATUS_PARTIAL)
        assert result.result.output == "thinking"
    else:
        assert (result.result.limit_reached, result.result.output) == ("", "at last")


def test_the_engines_refusal_keeps_its_reason(langchain: Start) -> None:
    peer = langchain()
    peer.bind(agent=an_agent())
    peer.execute("x", agent=an_agent())
    status, result = peer.result(lambda call: peer.refuse(call, "PROVIDER_QUOTA", "no money"))
    assert (status, result.error.reason) == (f.Status.FAILED, "PROVIDER_QUOTA")


def test_parts_that_have_not_come_are_told_to_the_model(langchain: Start, project: Path) -> None:
    peer = langchain()
    peer.bind("lc_code:with_memory", project, agent=an_agent())
    script = Script(
        peer, chat_response(tool_calls=[("c1", "distributed_memory", '{"op": "get", "key": "x"}')]), chat_response("ok")
    )
    peer.execute("remember", agent=an_agent())
    assert peer.result(script)[1].result.output == "ok"
    assert "CAPABILITY_PENDING" in script.asked[1].messages[-1].content[0].text
    assert {t.name for t in script.asked[0].tools} == {
        "distributed_memory",
        "ai_provider_federation",
        "performance_optimization",
    }


@pytest.mark.parametrize("where", ["model", "tool"])
def test_cancel(langchain: Start, project: Path, where: str) -> None:
    peer = langchain()
    peer.bind("lc_code:agent", project, agent=an_agent())
    peer.execute("go", agent=an_agent())
    call = peer.expect(f.Type.CALL, skip_events=True)
    if where == "tool":
        peer.reply(call, chat_response(tool_calls=[("c1", "slow_sync", '{"seconds": 0.5}')]).SerializeToString())
        peer.reply(peer.expect(f.Type.CALL, skip_events=True), b"")
    began = time.monotonic()
    peer.send(f.Type.CANCEL, call_id=5000, fence=1)
    status, _ = peer.result()
    assert status == f.Status.CANCELLED
    assert time.monotonic() - began < 1.0
    assert [c.kind for c in peer.seen if c.type == f.Type.CALL].count(f.Call.CHAT) == 1


def test_one_worker_serves_many_tasks(langchain: Start) -> None:
    peer = langchain()
    peer.bind(agent=an_agent())
    for fence in range(1, 30):
        script = Script(peer, chat_response(tool_calls=[("c", "calculate", "{}")]), chat_response(f"n{fence}"))
        peer.execute("x", fence=fence, agent=an_agent(), engine_tools=[calculator()], want_text=False)
        assert peer.result(script)[1].result.output == f"n{fence}"


def test_the_public_names_lead_to_langchain_only_when_asked() -> None:
    import singularity_agents

    assert singularity_agents.SingularityLangChainAgent.__module__ == "singularity_agents.adapters.langchain._seed"


@pytest.mark.parametrize(
    ("entrypoint", "told", "offered"),
    [("lc_code:by_name", "Options: ['configurable']", {"double"}), ("lc_code:by_type", "By type.", set())],
)
def test_a_factory_gets_what_its_parameters_name(
    langchain: Start, project: Path, entrypoint: str, told: str, offered: set[str]
) -> None:
    peer = langchain()
    peer.bind(entrypoint, project, ["lc_code:double"], an_agent())
    script = Script(peer, chat_response("fine"))
    peer.execute("go", agent=an_agent())
    status, result = peer.result(script)
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "fine"), result.error
    assert told in script.asked[0].messages[0].content[0].text and {t.name for t in script.asked[0].tools} == offered


@pytest.mark.parametrize("reference", ["langgraph.json:built", "langgraph.json"])
def test_a_project_of_langgraph_is_used_as_it_is(langchain: Start, project: Path, reference: str) -> None:
    graphs = {"built": {"path": "./lc_code.py:build"}}
    if ":" in reference:
        graphs["other"] = {"path": "./missing.py:graph"}
    (project / "langgraph.json").write_text(json.dumps({"dependencies": ["."], "graphs": graphs, "env": "./.env"}))
    peer = langchain()
    peer.bind(reference, project, agent=an_agent())
    script = Script(peer, chat_response("fine"))
    peer.execute("go", agent=an_agent())
    assert peer.result(script)[1].result.output == "fine" and script.asked[0].model == "other"


@pytest.mark.parametrize(
    ("reference", "why"),
    [("langgraph.json:nothing", "it has: built"), ("lc_code:unknown", '"nonsense" is not known')],
)
def test_an_entry_that_cannot_be_used_is_told_when_the_worker_starts(
    langchain: Start, project: Path, reference: str, why: str
) -> None:
    (project / "langgraph.json").write_text(json.dumps({"graphs": {"built": "./lc_code.py:build"}}))
    peer = langchain()
    peer.hello()
    peer.init(reference, project, agent=an_agent())
    ready = peer.expect(f.Type.READY)
    assert ready.flags & f.FLAG_ERROR and why in worker_pb2.Error.FromString(ready.payload).message
