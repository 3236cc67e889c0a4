"""Users' own crews, teams, pipelines, orchestrations and workflows, in real workers against a node on a socket."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from singularity_agents._proto.singularity.agents.v1 import agent_service_pb2, task_pb2
from singularity_agents._proto.singularity.worker.v1 import worker_pb2
from singularity_agents.worker import _frames as f

from ..worker.peer import Peer, chat_response
from .conftest import ENVIRONMENTS
from .script import Script

Start = Callable[[str], Peer]


def bound(start: Start, tmp_path: Path, framework: str, entrypoint: str = "") -> Peer:
    """A worker with the user's code."""
    for name in ("entries", "asking"):
        shutil.copy(Path(__file__).parent / f"sample_{name}.py", tmp_path / f"{name}.py")
    peer = start(framework)
    peer.bind(
        entrypoint if ":" in entrypoint else f"entries:{entrypoint}" if entrypoint else "",
        tmp_path,
        agent=agent_service_pb2.Agent(id="users", framework=framework),
        storage_dir=tmp_path,
    )
    return peer


def steps(peer: Peer, kind: str) -> list[str]:
    """Names of the steps that began."""
    events = [worker_pb2.StepEvent.FromString(payload) for payload in peer.events(f.Event.STEP)]
    return [event.name for event in events if event.started and event.kind == kind]


def run(peer: Peer, *answers: Any, fence: int = 1, task: task_pb2.AgentTask | None = None, **recorded: str) -> tuple[Script, Any]:
    """One task to its successful end."""
    script = Script(peer, *answers)
    script.recorded = recorded
    peer.execute("the moon", fence=fence, task=task)
    status, result = peer.result(script)
    assert status == f.Status.SUCCEEDED, result.error
    return script, result.result


def measures(what: str = "height", name: str = "measure") -> Any:
    """A model's wish to call the user's own tool."""
    return chat_response(tool_calls=[("c1", name, f'{{"what": "{what}"}}')])


def test_a_crew_of_the_users_own(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "crewai", "crew")
    task = task_pb2.AgentTask(description="the moon")
    task.context.framework_specific_data.update({"inputs": {"topic": "the moon"}})
    script, result = run(peer, measures(), chat_response("facts"), chat_response("a text"), task=task)
    assert result.output == "a text"
    assert [b.name for b in script.begun] == ["measure"] and script.ended[0].content == "height: 1"
    assert "Read about the moon" in str(script.asked[0].messages)
    data = result.framework_specific_data.fields
    outputs = data["task_outputs"].list_value.values
    assert [o.struct_value.fields["output"].string_value for o in outputs] == ["facts", "a text"]
    assert data["crew_metrics"].struct_value.fields["successful_requests"].number_value == 3
    assert {"Reader", "Writer"} <= set(steps(peer, "agent"))
    # Again, with a record: the tool does not run.
    script, _ = run(peer, measures(), chat_response("x"), chat_response("y"), fence=2, task=task, measure="known")
    assert "known" in str(script.asked[1].messages) and not script.ended


@pytest.mark.parametrize("process", ["sequential", "hierarchical"])
def test_a_crew_of_plain_data(start: Start, tmp_path: Path, process: str) -> None:
    peer = bound(start, tmp_path, "crewai")
    task = task_pb2.AgentTask(description="the moon")
    config: dict[str, Any] = {
        "agents": [
            {"role": "Reader", "goal": "Read", "backstory": "Reads"},
            {"role": "Writer", "goal": "Write", "backstory": "Writes"},
        ],
        "tasks": [
            {"description": "Read about {description}", "agent_index": 0},
            {"description": "Write", "expected_output": "a text", "agent_index": 1},
        ],
        "process": process,
    }
    task.context.framework_specific_data.update({"crew_config": config})
    script, result = run(peer, chat_response("facts"), chat_response("a text"), task=task)
    assert result.output == "a text" and "Read about the moon" in str(script.asked[0].messages)
    offered = {tool.name for tool in script.asked[0].tools}
    assert offered == ({"delegate_work_to_coworker", "ask_question_to_coworker"} if process == "hierarchical" else set())
    if process == "hierarchical":
        return
    for change, field in (
        ({"agents": []}, "crew_config.agents"),
        ({"tasks": [{"description": "x", "agent_index": 7}]}, "crew_config.tasks[0].agent_index"),
        ({"agents": [{"role": "a", "goal": "b", "tools": ["os:system"]}]}, "crew_config.agents[0].tools"),
        ({"target": "os:system"}, "crew_config.target"),
        ({"process": "chaos"}, "crew_config.process"),
    ):
        task.context.framework_specific_data.update({"crew_config": {**config, **change}})
        peer.execute(task=task, fence=9)
        status, failed = peer.result()
        assert (status, failed.error.reason, failed.error.metadata["field"]) == (f.Status.FAILED, "INVALID_FIELD", field)


def test_a_crew_of_the_integration_uses_the_engines_parts(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "crewai", "integrated_crew")
    wants = [
        chat_response(tool_calls=[("c1", "calculate", '{"expression": "17*23"}')]),
        chat_response(tool_calls=[("c2", "second_opinion", '{"prompt": "Is it so?"}')]),
        chat_response("It is so."),
        measures(),
        chat_response("facts"),
    ]
    script, result = run(peer, *wants)
    assert result.output == "facts"
    assert {t.name for t in script.asked[0].tools} == {"calculate", "second_opinion", "measure", "distributed_memory"}
    assert [t.arguments for t in script.tools] == ['{"expression":"17*23"}']
    assert script.asked[2].model == "clever" and script.asked[2].messages[0].content[0].text == "Is it so?"
    assert "It is so." in str(script.asked[3].messages) and [b.name for b in script.begun] == ["measure"]
    # The model's own count is of the crew's calls alone.
    metrics = result.framework_specific_data.fields["crew_metrics"].struct_value.fields
    assert metrics["successful_requests"].number_value == 4


def crewai_project(folder: Path, *packages: str) -> None:
    """What `crewai create crew` makes, from the template of the framework's own package."""
    template = next((ENVIRONMENTS / "crewai").glob("lib/python3*/site-packages/crewai_cli/templates/crew"))
    for package in packages:
        made = folder / "src" / package
        shutil.copytree(template, made, ignore=shutil.ignore_patterns("__pycache__"))
        for file in [*made.glob("*.py"), *made.glob("*/*.py")]:
            text = file.read_text().replace("{{crew_name}}", package.title()).replace("{{folder_name}}", package)
            file.write_text(text)
        agents = made / "config" / "agents.yaml"
        agents.write_text(agents.read_text().replace("researcher:\n", "researcher:\n  llm: anthropic/claude-opus-5\n"))


@pytest.mark.parametrize("entrypoint", ["", "crew.py", "crew.py:Travel"])
def test_a_project_folder_of_crewai_is_used_as_it_is(start: Start, tmp_path: Path, entrypoint: str) -> None:
    crewai_project(tmp_path, "travel", *(["other"] if ":" in entrypoint else []))
    peer = start("crewai")
    peer.bind(entrypoint, tmp_path, agent=agent_service_pb2.Agent(id="users", framework="crewai"), storage_dir=tmp_path)
    task = task_pb2.AgentTask(description="the moon")
    task.context.framework_specific_data.update({"inputs": {"topic": "lunar travel", "current_year": "2026"}})
    for fence in (1, 2):
        script, result = run(peer, chat_response("facts"), chat_response("a report"), task=task, fence=fence)
        assert result.output == "a report" and [r.model for r in script.asked] == ["default", "default"]
        assert "lunar travel Senior Data Researcher" in str(script.asked[0].messages) and "facts" in str(script.asked[1].messages)


@pytest.mark.parametrize(
    ("packages", "entrypoint", "why"),
    [(("travel", "other"), "", "has Other, Travel; name one"), ((), "crew.py", "has no src/<package>/crew.py")],
)
def test_a_project_folder_that_does_not_say_which_crew_is_refused(
    start: Start, tmp_path: Path, packages: tuple[str, ...], entrypoint: str, why: str
) -> None:
    crewai_project(tmp_path, *packages)
    peer = start("crewai")
    peer.hello()
    peer.init(entrypoint, tmp_path, storage_dir=tmp_path)
    ready = peer.expect(f.Type.READY)
    assert ready.flags & f.FLAG_ERROR and why in worker_pb2.Error.FromString(ready.payload).message


def test_a_round_robin_team_starts_anew_each_time(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "autogen", "round_robin")
    script, result = run(peer, measures(), chat_response("facts"), chat_response("a text"))
    assert result.output == "a text" and [e.content for e in script.ended] == ["height: 1"]
    assert steps(peer, "agent") == ["reader", "writer"]
    said = result.framework_specific_data.fields["messages"].list_value.values
    assert [m.struct_value.fields["source"].string_value for m in said] == ["user", "reader", "writer"]
    script, result = run(peer, measures(), chat_response("other"), chat_response("more"), fence=2, measure="known")
    assert result.output == "more" and not script.ended
    assert "facts" not in str(script.asked) and "known" in str(script.asked[1].messages)


def test_a_selector_team(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "autogen", "selector")
    _, result = run(peer, chat_response("writer"), chat_response("a text"))
    assert result.output == "a text" and steps(peer, "agent") == ["writer"]


def test_a_swarm(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "autogen", "swarm")
    hands_over = chat_response(tool_calls=[("c1", "transfer_to_writer", "{}")])
    _, result = run(peer, hands_over, *[chat_response("a text")] * 3)
    assert result.output == "a text" and "writer" in steps(peer, "agent")


def test_a_pipeline(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "haystack", "pipeline")
    script, result = run(peer, chat_response("bright"))
    assert result.output == "bright" and script.asked[0].messages[0].content[0].text == "Asked: the moon"
    assert set(steps(peer, "component")) == {"prompt", "model"}


@pytest.mark.parametrize(
    ("framework", "entrypoint", "name"),
    [
        ("haystack", "haystack_agent", "measure"),
        ("semantic_kernel", "kernel_agent", "Lab-measure"),
        ("agent_framework", "maf_agent", "measure"),
    ],
)
def test_tools_of_an_agent_of_the_users_own_are_recorded(
    start: Start, tmp_path: Path, framework: str, entrypoint: str, name: str
) -> None:
    peer = bound(start, tmp_path, framework, entrypoint)
    script, result = run(peer, measures(name=name), chat_response("high"))
    assert result.output == "high"
    assert [b.name for b in script.begun] == [name] and [e.content for e in script.ended] == ["height: 1"]
    script, _ = run(peer, measures(name=name), chat_response("high"), fence=2, **{name: "known"})
    assert script.asked[1].messages[-1].content[0].text == "known" and not script.ended


@pytest.mark.parametrize(("entrypoint", "output"), [("sequential", "two"), ("group_chat", "two"), ("concurrent", "one\n\ntwo")])
def test_orchestrations(start: Start, tmp_path: Path, entrypoint: str, output: str) -> None:
    peer = bound(start, tmp_path, "semantic_kernel", entrypoint)
    script, result = run(peer, chat_response("one"), chat_response("two"))
    assert sorted(result.output.split("\n\n")) == sorted(output.split("\n\n")) and len(script.asked) == 2
    assert sorted(steps(peer, "agent")) == ["reader", "writer"]


def test_a_handoff(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "semantic_kernel", "handoff")
    over = chat_response(tool_calls=[("c1", "Handoff-transfer_to_writer", "{}")])
    done = chat_response(tool_calls=[("c2", "Handoff-complete_task", '{"task_summary": "written"}')])
    script, result = run(peer, over, done)
    assert "written" in result.output and len(script.asked) == 2


def test_a_workflow(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "agent_framework", "workflow")
    script, result = run(peer, chat_response("facts"), chat_response("text"))
    assert result.output == "text" and "facts" in str(script.asked[1].messages)
    assert steps(peer, "executor") == ["reader", "writer"]


def test_an_entry_point_that_cannot_be_used_says_why(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "autogen", "wrong")
    peer.execute()
    status, result = peer.result()
    assert status == f.Status.FAILED and '"nonsense" is not known' in result.error.message
    assert "model" in result.error.message


@pytest.mark.parametrize(
    ("framework", "entrypoint", "kind", "names"),
    [
        ("langchain", "chain", "node", ["model"]),
        ("langgraph", "graph", "node", ["write"]),
        ("crewai", "crew", "agent", ["Reader", "Writer"]),
        ("autogen", "round_robin", "agent", ["reader", "writer"]),
        ("haystack", "pipeline", "component", ["prompt", "model"]),
        ("semantic_kernel", "sequential", "agent", ["reader", "writer"]),
        ("agent_framework", "workflow", "executor", ["reader", "writer"]),
    ],
)
def test_steps_of_the_framework_begin_and_end(
    start: Start, tmp_path: Path, framework: str, entrypoint: str, kind: str, names: list[str]
) -> None:
    peer = bound(start, tmp_path, framework, entrypoint)
    task = task_pb2.AgentTask(description="the moon")
    task.context.framework_specific_data.update({"inputs": {"topic": "the moon"}} if framework == "crewai" else {})
    _, result = run(peer, chat_response("facts"), chat_response("text"), task=task)
    assert result.output in ("facts", "text")
    events = [worker_pb2.StepEvent.FromString(payload) for payload in peer.events(f.Event.STEP)]
    assert [e.name for e in events if e.started and e.kind == kind] == names
    assert sorted(e.name for e in events if not e.started and e.kind == kind and not e.is_error) == sorted(names)


class Asked(NamedTuple):
    """What a framework asks by its own means, and what comes of the answer."""

    entrypoint: str
    before: list[Any]
    prompt: str
    kind: str
    answer: dict[str, Any]
    after: list[Any]
    output: str


_HANDOFF = chat_response(tool_calls=[("c1", "transfer_to_user", "{}")])
_DONE = chat_response(tool_calls=[("c2", "Handoff-complete_task", '{"task_summary": "well"}')])
_YES: dict[str, Any] = {"approve": True}
_WORDS: dict[str, Any] = {"input": "shorter"}


@pytest.mark.parametrize(
    ("framework", "asked"),
    [
        ("langchain", Asked("careful_chain", [measures()], "measure", "approval", _YES, [chat_response("well")], "well")),
        ("langgraph", Asked("interrupted_graph", [], "Is it good?", "question", _WORDS, [], "well: shorter")),
        ("crewai", Asked("reviewed_crew", [chat_response("long")], "good?", "question", _YES, [], "long")),
        ("crewai", Asked("reviewed_crew", [chat_response("long")], "good?", "question", _WORDS, [chat_response("well")], "well")),
        ("autogen", Asked("proxied", [chat_response("long")], "long", "question", _WORDS, [chat_response("well")], "well")),
        ("autogen", Asked("handed_to_user", [_HANDOFF], "user", "question", _WORDS, [chat_response("well")] * 8, "well")),
        ("haystack", Asked("confirmed", [measures()], "measure", "approval", _YES, [chat_response("well")], "well")),
        ("semantic_kernel", Asked("handoff_to_person", [chat_response("long")], "long", "question", _WORDS, [_DONE], "well")),
        ("agent_framework", Asked("approved_tool", [measures()], "measure", "approval", _YES, [chat_response("well")], "well")),
        ("agent_framework", Asked("asking:workflow", [], "the moon", "question", _WORDS, [], "well: shorter")),
    ],
)
def test_a_person_is_asked_by_the_frameworks_own_means(start: Start, tmp_path: Path, framework: str, asked: Asked) -> None:
    peer = bound(start, tmp_path, framework, asked.entrypoint)
    script = Script(peer, *asked.before)
    peer.execute("the moon")
    status, result = peer.result(script)
    assert status == f.Status.INPUT_REQUESTED, result.error
    question = result.inputs[0]
    if asked.answer is _YES and framework == "crewai":
        assert question.payload.fields["answer"].string_value == "long"
    assert (question.input_id, question.kind) == ("input-1", asked.kind)
    assert asked.prompt in str(question.prompt) + str(question.payload) and not script.ended
    # The answered run starts from the top, as the node makes it do; its calls are answered as before.
    script = Script(peer, *asked.before, *asked.after)
    answers = [task_pb2.InputAnswer(input_id="input-1", **asked.answer)]
    if framework == "crewai" and asked.after:
        # What was worked in is shown once more.
        answers.append(task_pb2.InputAnswer(input_id="input-2", approve=True))
    peer.execute("the moon", fence=2, answers=answers)
    status, result = peer.result(script)
    assert status == f.Status.SUCCEEDED, result.error or result.inputs
    if framework == "autogen" and asked.entrypoint == "proxied":
        # The proxy has the last word of four messages.
        assert "shorter" in str(script.asked[1].messages)
    assert asked.output in result.result.output
    if asked.kind == "approval":
        assert [b.name for b in script.begun] == ["measure"]
