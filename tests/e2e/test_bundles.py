"""Bundles: what a task was made of goes to another node and runs there again, without a model and without a second effect."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CountingModel, KillableNode, config, eventually, openai_provider

from singularity_agents import AsyncClient, Bundle, Client, SingularityError, Task, TaskFailed

PLAN = {
    "steps": [
        {"id": "facts", "executor": "auto", "input": "step 1"},
        {"id": "draft", "executor": "langchain", "needs": ["facts"], "input": "step 3"},
        {"id": "loud", "executor": "custom:e2e", "agent_id": "shout", "needs": ["draft"], "input": "${steps.draft.output}"},
        {"id": "each", "executor": "native", "needs": ["loud"], "for_each": ["4", "5"], "input": "step ${item}"},
        {
            "id": "answer",
            "executor": "native",
            "needs": ["each", "loud"],
            "input": "step ${steps.each.output}${steps.loud.output}",
        },
    ]
}
ANSWER = 'a["a4","a5"]A3'

#: Description, options, output, model calls.
TASKS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "native": ("step 1", {"framework": "native"}, "a1", 1),
    "langchain with a tool": ("step 6", {"agent": "calculator"}, "42", 2),
    "code with effects": ("x", {"agent": "steps"}, "a1 a2 a3 a4 done 1done 2", 4),
    "plan": ("x", {"plan": PLAN}, ANSWER, 5),
    "a crew": ("step 7", {"framework": "crewai"}, "a7", 1),
    "subtasks": ("step 8; chain step 9", {"agent": "splits"}, "a8; a9", 2),
}

HERE = Path(__file__).resolve().parent
#: An agent that gives its task away, here with the model that the provider has.
SPLITS = f"""
[agents.splits]
framework = "custom:e2e"
project = "{HERE}"
entrypoint = "e2e_delegates:splits"
model = "counted"
"""


@pytest.fixture
def node(killable: Callable[[str], KillableNode], counting: CountingModel) -> KillableNode:
    return killable(openai_provider("counting", counting.model.base_url, "counted") + SPLITS)


@pytest.fixture
def other(killable: Callable[..., KillableNode]) -> KillableNode:
    """A fresh node that has no provider of the model."""
    return killable(SPLITS)


def run(node: KillableNode, text: str, **options: Any) -> Task:
    with Client(node.address, max_retries=0) as client:
        return client.submit(text, model="counted", **options).wait("60s")


def bundle_of(node: KillableNode, task: Task, path: Path) -> Path:
    with Client(node.address, max_retries=0) as client:
        client.bundle(task.id).write(path)
    return path


def replayed(node: KillableNode, bundle: Path | Bundle) -> Task:
    with Client(node.address, max_retries=0) as client:
        return client.replay(bundle).wait("60s")


def edited(
    bundle: Path, name: str, change: Callable[[bytes], bytes], *, manifest: Callable[[dict[str, Any]], object] | None = None
) -> Path:
    """The same file with one member changed; its manifest tells the truth about it if that is changed too."""
    with zipfile.ZipFile(bundle) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members[name] = change(members[name])
    if manifest is not None:
        said = json.loads(members["manifest.json"])
        said["files"] = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in members.items()
            if name in said["files"]
        }
        manifest(said)
        members["manifest.json"] = json.dumps(said).encode()
    made = bundle.with_name("edited.zip")
    with zipfile.ZipFile(made, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return made


def effects(node: KillableNode, task: Task) -> list[str]:
    with Client(node.address, max_retries=0) as client:
        lines = (str(e.data["message"]) for e in client.watch(task.id) if e.kind == "log")
        return [line for line in lines if line.startswith("effect")]


def test_tasks_run_again_on_a_node_without_their_provider(
    node: KillableNode, other: KillableNode, counting: CountingModel, tmp_path: Path
) -> None:
    for name, (text, options, output, model_calls) in TASKS.items():
        first = run(node, text, **options)
        assert first.output == output, (name, first.error)
        asked = sum(counting.counts.values())
        file = bundle_of(node, first, tmp_path / f"{name}.zip")
        again = replayed(other, file)
        assert again.output == output, (name, again.error)
        assert again.replay_of == first.id and again.id != first.id
        assert again.result is not None and first.result is not None
        assert again.result.executor == first.result.executor
        assert again.result.metrics.provider_calls == again.result.metrics.provider_calls_replayed == model_calls, name
        assert sum(counting.counts.values()) == asked, name
        if name == "code with effects":
            assert effects(node, first) and not effects(other, again)


def test_a_bundle_shows_what_the_task_was_made_of(node: KillableNode, tmp_path: Path) -> None:
    environment = {"TOKEN": "canary-in-the-environment"}
    task = run(node, "x", agent="steps", environment=environment)
    file = bundle_of(node, task, tmp_path / "task.bundle")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    bundle = Bundle.read(file)
    assert bundle.task.output == task.output and bundle.engine_version
    assert [attempt.outcome for attempt in bundle.attempts] == ["succeeded"] and bundle.attempts[0].environment_lock_hash
    assert [agent.id for agent in bundle.agents] == ["steps"]
    assert sorted(entry["kind"] for entry in bundle.journal) == ["JOURNAL_KIND_CHAT"] * 4 + ["JOURNAL_KIND_TOOL"] * 2
    assert [event.sequence for event in bundle.events] == list(range(1, len(bundle.events) + 1))
    with zipfile.ZipFile(file) as archive:
        whole = b"".join(archive.read(info) for info in archive.infolist())
    assert b"TOKEN" in whole and b"canary-in-the-environment" not in whole


def test_a_call_that_is_not_in_the_record_is_refused_and_names_its_step(
    node: KillableNode, other: KillableNode, counting: CountingModel, tmp_path: Path
) -> None:
    file = bundle_of(node, run(node, "x", plan=PLAN), tmp_path / "plan.zip")

    def without_drafts(lines: bytes) -> bytes:
        return b"".join(line for line in lines.splitlines(keepends=True) if b'"a3"' not in line)

    shorter = edited(file, "journal.jsonl", without_drafts, manifest=lambda said: None)
    asked = sum(counting.counts.values())
    for where in (other, node):  # the node that has the provider asks it as little
        task = replayed(where, shorter)
        assert task.state == "FAILED" and task.error is not None
        assert task.error.reason == "REPLAY_MISSING" and task.error.metadata["step"] == "draft", task.error
        assert task.attempts == 1
    assert sum(counting.counts.values()) == asked


def test_a_tool_that_is_not_in_the_record_does_not_run(node: KillableNode, other: KillableNode, tmp_path: Path) -> None:
    file = bundle_of(node, run(node, "x", agent="steps"), tmp_path / "steps.zip")

    def without_tools(lines: bytes) -> bytes:
        return b"".join(line for line in lines.splitlines(keepends=True) if b"KIND_TOOL" not in line)

    task = replayed(other, edited(file, "journal.jsonl", without_tools, manifest=lambda said: None))
    assert task.state == "FAILED" and task.error is not None and task.error.reason == "REPLAY_MISSING", task.error
    assert not effects(other, task)


def test_a_replay_that_is_cut_by_a_kill_goes_on_from_the_record(node: KillableNode, other: KillableNode, tmp_path: Path) -> None:
    file = bundle_of(node, run(node, "x", agent="steps"), tmp_path / "steps.zip")
    with Client(other.address, max_retries=0) as client:
        task_id = client.replay(file).id
    other.kill()
    other.start()
    with Client(other.address, max_retries=0) as client:
        task = client.wait(task_id, timeout="60s")
    assert task.output == "a1 a2 a3 a4 done 1done 2", task.error


def test_what_people_answered_is_answered_again(node: KillableNode, other: KillableNode, tmp_path: Path) -> None:
    with Client(node.address, max_retries=0) as client:
        handle = client.submit("x", agent="asks_people", model="counted")
        for answer in ({"input": "Ana"}, {"approve": True}):
            asked = eventually(lambda: client.get(handle.id).pending_inputs, within_s=60)
            client.signal(handle.id, input_id=asked[0].input_id, **answer)
            eventually(lambda asked=asked: client.get(handle.id).pending_inputs != asked)
        first = handle.wait("60s")
    assert first.output == "a1 Ana pays, done 1", first.error
    again = replayed(other, bundle_of(node, first, tmp_path / "asked.zip"))
    assert again.output == first.output and again.attempts == 1, again.error


def test_the_bundle_of_a_failed_task_fails_as_it_did(node: KillableNode, other: KillableNode, tmp_path: Path) -> None:
    failed = run(node, "x", agent="raises")
    assert failed.error is not None
    again = replayed(other, bundle_of(node, failed, tmp_path / "failed.zip"))
    assert again.state == "FAILED" and again.error is not None and again.error.reason == failed.error.reason


@pytest.mark.parametrize(
    ("member", "change", "manifest", "said"),
    [
        ("journal.jsonl", lambda b: b[:-2] + b"x\n", None, "journal.jsonl is not what the manifest says"),
        ("task.jsonl", lambda b: b"{\n", lambda said: None, "line 1 of task.jsonl"),
        ("manifest.json", lambda b: b"{}", None, "manifest.json cannot be read"),
        ("events.jsonl", lambda b: b, lambda said: said.update(version=2), "version 2"),
        ("events.jsonl", lambda b: b, lambda said: said.update(format="other"), "its format is not"),
        ("events.jsonl", lambda b: b, lambda said: said["files"].pop("task.jsonl"), "task.jsonl is missing"),
        ("header.jsonl", lambda b: b.replace(b'"version": 1', b'"version": 9'), lambda said: None, "version 9"),
        ("task.jsonl", lambda b: b.replace(b'"id": "', b'"id": "0'), lambda said: None, "not the one of its header"),
        ("journal.jsonl", lambda b: b.replace(b'"hash": "', b'"hash": "AAAA'), lambda said: None, "hash of 32 bytes"),
    ],
)
def test_a_damaged_bundle_is_refused_and_the_damage_is_named(
    damaged: tuple[KillableNode, Path], member: str, change: Any, manifest: Any, said: str
) -> None:
    node, good = damaged
    with Client(node.address, max_retries=0) as client, pytest.raises(SingularityError) as error:
        client.replay(edited(good, member, change, manifest=manifest))
    assert error.value.reason == "BUNDLE_INVALID" and said in str(error.value)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, bad_provider: str) -> Any:
    """A node and a good bundle, to be damaged."""
    folder = tmp_path_factory.mktemp("damaged")
    node = KillableNode(folder / "node", config(bad_provider))
    node.start()
    with Client(node.address, max_retries=0) as client:
        handle = client.submit("hello", framework="native")
        handle.result()
        client.bundle(handle.id).write(folder / "good.zip")
    yield node, folder / "good.zip"
    node.stop()


def test_what_is_no_bundle_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive:
        archive.writestr("readme", "hello")
    for name, said in (("text", "no bundle"), ("foreign.zip", "no manifest.json")):
        with pytest.raises(SingularityError) as error:
            Bundle.read(tmp_path / name)
        assert error.value.reason == "BUNDLE_INVALID" and said in str(error.value)


def test_only_the_tenant_of_an_ended_durable_task_is_given_its_bundle(
    killable: Callable[..., KillableNode], tmp_path: Path
) -> None:
    tenants, names = "", ("ana", "ben")
    for name in names:
        (tmp_path / f"{name}.key").write_text(f"{name}-key-0123456789abcdef")
        tenants += f'[tenants.{name}]\nkeys = [{{ file = "{tmp_path}/{name}.key" }}]\n'
    node = killable(tenants)
    ana, ben = (Client(node.address, api_key=f"{name}-key-0123456789abcdef", max_retries=0) for name in names)
    with ana, ben:
        handle = ana.submit("mine", framework="native")
        handle.result()
        assert ana.bundle(handle.id).task.output == "mine"
        with pytest.raises(SingularityError) as error:
            ben.bundle(handle.id)
        assert error.value.reason == "TASK_NOT_FOUND"
        # What somebody is given they may run: the copy is theirs.
        assert ben.replay(ana.bundle(handle.id)).result("30s").output == "mine"
        forgetful = ana.submit("soon gone", framework="native", durability="ephemeral")
        forgetful.result()
        with pytest.raises(SingularityError) as error:
            ana.bundle(forgetful.id)
        assert "ephemeral" in str(error.value)
        with pytest.raises(SingularityError) as error:
            ana.bundle(ana.submit("later", agent="loop").id)
        assert error.value.reason == "WRONG_STATE"


def test_tools_outside_the_record_are_no_replay(node: KillableNode, tmp_path: Path) -> None:
    file = bundle_of(node, run(node, "step 1", framework="native"), tmp_path / "one.zip")

    def with_tools(line: bytes) -> bytes:
        return json.dumps({**json.loads(line), "unjournaled_tools": ["send_mail"]}).encode() + b"\n"

    with Client(node.address, max_retries=0) as client, pytest.raises(SingularityError) as error:
        client.replay(edited(file, "task.jsonl", with_tools, manifest=lambda said: None))
    assert error.value.reason == "REPLAY_NOT_ALLOWED" and error.value.metadata["tools"] == "send_mail"


def test_the_command_line_writes_and_replays_a_bundle(node: KillableNode, other: KillableNode, tmp_path: Path) -> None:
    task = run(node, "step 1", framework="native")
    file = tmp_path / "one.bundle"

    def singularity(where: KillableNode, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "singularity_agents.cli", "--address", where.address, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    wrote = singularity(node, "get", task.id, "--bundle", str(file))
    assert wrote.returncode == 0 and "1 recorded answer" in wrote.stdout, wrote.stderr
    ran = singularity(other, "run", "--replay", str(file))
    assert ran.returncode == 0 and ran.stdout.strip() == "a1", ran.stderr
    both = singularity(other, "run", "other words", "--replay", str(file))
    assert both.returncode == 2 and "takes no TEXT" in both.stderr
    file.write_bytes(file.read_bytes()[:-40])
    broken = singularity(other, "run", "--replay", str(file))
    assert broken.returncode != 0 and "BUNDLE_INVALID" in broken.stderr


def test_the_async_client_does_the_same(node: KillableNode, other: KillableNode) -> None:
    task = run(node, "step 1", framework="native")

    async def both() -> str:
        async with AsyncClient(node.address) as here, AsyncClient(other.address) as there:
            handle = await there.replay(await here.bundle(task.id))
            return (await handle.result()).output

    assert asyncio.run(both()) == "a1"


def test_a_request_id_gives_the_same_replay_and_a_replay_a_bundle_of_its_own(
    node: KillableNode, other: KillableNode, tmp_path: Path
) -> None:
    file = bundle_of(node, run(node, "step 1", framework="native"), tmp_path / "one.zip")
    with Client(other.address, max_retries=0) as client:
        first = client.replay(file, request_id="once")
        assert client.replay(file, request_id="once").id == first.id
        first.result("30s")
        assert client.replay(client.bundle(first.id)).result("30s").output == "a1"
    with pytest.raises(TaskFailed) as error, Client(other.address, max_retries=0) as client:
        client.retry(first.id).result("30s")  # a retry is a task like any other: there is no such model here
    assert error.value.reason != "REPLAY_MISSING"
