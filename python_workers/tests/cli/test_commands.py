"""The command line against a scripted node over a real socket: output, exit codes, what is sent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import grpc
import pytest
import yaml

from singularity_agents._models import Artifact
from singularity_agents._proto.singularity.agents.v1 import agent_service_pb2 as ag
from singularity_agents._proto.singularity.agents.v1 import framework_service_pb2 as fr
from singularity_agents._proto.singularity.agents.v1 import provider_service_pb2 as pr
from singularity_agents._proto.singularity.agents.v1 import task_pb2 as ta
from singularity_agents._proto.singularity.agents.v1 import task_service_pb2 as ts
from singularity_agents.cli import main
from singularity_agents.cli._doctor import _SECRET
from singularity_agents.cli._files import write_artifacts

from ..sdk.scripted_node import Refusal, ScriptedNode

TASK_ID = "0198f3ab-6c1e-7d20-8a4f-52be9c41e7d0"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SINGULARITY_ADDRESS", "SINGULARITY_API_KEY", "SINGULARITY_CA", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def task(state: ta.TaskState = ta.TASK_STATE_SUCCEEDED) -> ta.Task:
    made = ta.Task(id=TASK_ID, state=state, attempts=1)
    made.spec.description = "Capital of France?"
    if state == ta.TASK_STATE_SUCCEEDED:
        made.result.output, made.result.executor = "Paris", "native"
        made.result.metrics.provider_calls = 1
    if state == ta.TASK_STATE_FAILED:
        made.error.reason, made.error.message = "TOOL_FAILED", "calculate: division by zero"
    return made


def events(state: ta.TaskState) -> list[ta.TaskEvent]:
    return [
        ta.TaskEvent(sequence=1, tool_call=ta.ToolCallEvent(name="calculate", arguments='{"expression":"1/0"}')),
        ta.TaskEvent(sequence=2, state_changed=ta.StateChanged(state=state)),
    ]


def scripted(node: ScriptedNode, state: ta.TaskState) -> None:
    node.script("SubmitTask", task(ta.TASK_STATE_QUEUED))
    node.script("WatchTask", events(state))
    node.script("GetTask", task(state))


def test_run_prints_the_answer_on_stdout_and_talk_on_stderr(node: ScriptedNode, capsys: Captured) -> None:
    scripted(node, ta.TASK_STATE_SUCCEEDED)
    assert main(["--address", node.address, "run", "Capital of France?", "--agent-type", "researcher", "--ephemeral"]) == 0
    out, err = capsys.readouterr()
    assert out == "Paris\n"
    assert "tool calculate" in err and "native" in err and "1 model call" in err and "cost unknown" in err
    sent = node.sent("SubmitTask")[0].task
    assert (sent.agent_type, sent.execution_hints.durability) == ("researcher", ta.DURABILITY_EPHEMERAL)


def test_quiet_leaves_data_and_errors(node: ScriptedNode, capsys: Captured) -> None:
    scripted(node, ta.TASK_STATE_SUCCEEDED)
    assert main(["run", "x", "-q", "--address", node.address]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("Paris\n", "")


def test_a_failed_task_ends_with_1_and_its_reason(node: ScriptedNode, capsys: Captured) -> None:
    scripted(node, ta.TASK_STATE_FAILED)
    assert main(["run", "x", "--address", node.address]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "TOOL_FAILED: calculate: division by zero" in err


def test_nobody_there_ends_with_3_and_the_next_command(capsys: Captured) -> None:
    assert main(["list", "--address", "127.0.0.1:9", "--max-retries", "0"]) == 3
    assert "next: singularity up" in capsys.readouterr().err


def test_a_refusal_ends_with_4_and_a_close_name(node: ScriptedNode, capsys: Captured) -> None:
    refusal = Refusal(grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND", 'no agent "reasearcher"', metadata={"agent": "reasearcher"})
    node.script("SubmitTask", refusal)
    node.script("ListAgents", ag.ListAgentsResponse(agents=[ag.Agent(id="researcher")]))
    assert main(["run", "x", "--agent", "reasearcher", "--address", node.address]) == 4
    err = capsys.readouterr().err
    assert 'Did you mean "researcher"?' in err and "next: singularity agents list" in err


@pytest.mark.parametrize(
    "arguments", [["run"], ["frobnicate"], ["run", "x", "--max-duration", "soon"], ["call", "TaskService.GetTusk"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: Captured) -> None:
    try:
        code = main(arguments)
    except SystemExit as exit:
        code = exit.code  # type: ignore[assignment]
    assert code == 2 and capsys.readouterr().err


def test_list_in_three_forms(node: ScriptedNode, capsys: Captured) -> None:
    node.script("ListTasks", ts.ListTasksResponse(tasks=[task(), task(ta.TASK_STATE_FAILED)]))
    arguments = ["list", "--address", node.address, "--filter", "state=FAILED"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "9c41e7d0" in out and TASK_ID not in out and "\x1b[" not in out
    assert main([*arguments, "-o", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [t["id"] for t in data["tasks"]] == [TASK_ID, TASK_ID]
    assert data["tasks"][0]["result"]["metrics"]["cost_micros"] is None
    assert main([*arguments, "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == data
    assert node.sent("ListTasks")[0].filter == "state=FAILED"


def test_cancel_shows_the_proof_honestly(node: ScriptedNode, capsys: Captured) -> None:
    answer = ts.CancelTaskResponse(task=task(ta.TASK_STATE_CANCELLED))
    answer.proof.witness = ta.PROOF_WITNESS_UNCONFIRMED
    answer.proof.survivors.append(4711)
    node.script("CancelTask", answer)
    assert main(["cancel", "9c41e7d0", "--grace", "0s", "--address", node.address]) == 0
    out = capsys.readouterr().out
    assert "NOT confirmed dead" in out and "4711" in out
    sent = node.sent("CancelTask")[0]
    assert sent.HasField("grace") and sent.grace.seconds == 0


def test_call_reaches_any_method(node: ScriptedNode, capsys: Captured) -> None:
    node.script("GetTask", task())
    assert main(["call", "TaskService.GetTask", '{"task_id": "9c41e7d0"}', "--address", node.address]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["output"] == "Paris"
    assert main(["call"]) == 0
    listed = capsys.readouterr().out.split()
    assert {"TaskService.WatchTask", "MemoryService.PutMemory", "grpc.health.v1.Health.Check"} <= set(listed)
    assert main(["call", "MemoryService.GetMemory", "--address", node.address]) == 4
    assert "CAPABILITY_PENDING" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["memory", "get", "n", "k"], ["schedules"], ["route", "explain", "x"]])
def test_what_has_not_come_yet_ends_with_4(node: ScriptedNode, arguments: list[str], capsys: Captured) -> None:
    assert main([*arguments, "--address", node.address]) == 4
    assert "CAPABILITY_PENDING" in capsys.readouterr().err


def test_chat_streams(node: ScriptedNode, capsys: Captured) -> None:
    final = pr.ChatResponse(provider="local", model="smollm2-135m")
    pieces = [pr.StreamChatResponse(text_delta=t) for t in ("Hel", "lo")]
    node.script("StreamChat", [*pieces, pr.StreamChatResponse(final=final)])
    assert main(["chat", "hi", "--system", "be kind", "--address", node.address]) == 0
    out, err = capsys.readouterr()
    assert out == "Hello\n" and "local/smollm2-135m" in err
    assert len(node.sent("StreamChat")[0].request.messages) == 2


def test_top_without_a_terminal_looks_once(node: ScriptedNode, capsys: Captured) -> None:
    worker = fr.Worker(name="langchain-3", host_pid=77, state="busy", task_id=TASK_ID)
    framework = fr.Framework(name="langchain", state=fr.FRAMEWORK_STATE_READY, workers=[worker])
    node.script("ListFrameworks", fr.ListFrameworksResponse(frameworks=[framework]))
    node.script("ListTasks", ts.ListTasksResponse(tasks=[task(ta.TASK_STATE_RUNNING)]))
    assert main(["top", "--address", node.address]) == 0
    out = capsys.readouterr().out
    assert "1 running" in out and "langchain-3" in out and "9c41e7d0" in out


def test_doctor_says_what_to_do_and_skips_what_needs_the_node(capsys: Captured) -> None:
    assert main(["doctor", "python", "node", "store", "--address", "127.0.0.1:9", "-o", "json"]) == 1
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert found["python"]["status"] == "ok"
    assert found["node"]["status"] == "FAIL" and found["node"]["fix"] == "singularity up"
    assert found["store"]["status"] == "-"


def test_a_report_holds_no_secret() -> None:
    text = 'api_key = "sk-1"\nkeys = [{ file = "x" }]\nmodel = "m"\n'
    assert _SECRET.sub(r"\1<redacted>", text) == 'api_key = <redacted>\nkeys = <redacted>\nmodel = "m"\n'


def test_bash_completion_completes(tmp_path: Path, capsys: Captured) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    ask = "COMP_WORDS=(singularity agents cr); COMP_CWORD=2; _singularity; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f". {script}; {ask}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "create"


def test_files_of_an_answer_have_plain_names_or_are_not_written(tmp_path: Path) -> None:
    artifacts = [Artifact(name="a.txt", inline="YQ=="), Artifact(name="far", reference="steps/far")]
    assert write_artifacts(artifacts, tmp_path / "out") == [tmp_path / "out" / "a.txt"]
    for name in ("../a", "/etc/a", "..", "x/y"):
        with pytest.raises(ValueError, match="no plain name"):
            write_artifacts([*artifacts, Artifact(name=name, inline="YQ==")], tmp_path / "other")
        assert not (tmp_path / "other").exists()
