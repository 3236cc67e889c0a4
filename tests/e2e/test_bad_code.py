"""Users' code that is bad: a typed error that says what is wrong, no process left behind, and a node that serves the next task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import eventually

from singularity_agents import Client
from singularity_agents._local_node import LocalNode

HERE = Path(__file__).resolve().parent
AGENTS = (
    "computes_in_c",
    "multiplies",
    "bomb",
    "bomb_of_sessions",
    "raises",
    "escapes",
    "closes_its_channel",
    "exits",
    "talks",
    "gives_an_object",
    "gives_a_day",
    "not_there",
)
#: Files that cannot be imported, and what the error must say.
FILES = {
    "no_syntax": ("def agent(:\n", "SyntaxError"),
    "no_import": ("import no_such_package_of_anybody\n", "no_such_package_of_anybody"),
    "no_end": ("raise RuntimeError('the module says no')\n", "the module says no"),
}
AGENT = '[agents.{name}]\nframework = "custom:bad"\nproject = "{project}"\nentrypoint = "{module}:{name}"\n'
NODE = """
[providers.echo]
dialect = "echo"
[workers]
max_per_framework = 2
block_grace = "2s"
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("bad")
    agent = AGENT
    config = NODE + agent.format(name="shout", project=HERE, module="e2e_agents")
    config += "".join(agent.format(name=name, project=HERE, module="e2e_bad_code") for name in AGENTS)
    for name, (text, _) in FILES.items():
        (folder / f"{name}.py").write_text(text)
        config += agent.format(name=name, project=folder, module=name)
    with LocalNode(config) as node:
        yield node.address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, max_retries=0, timeout="120s") as client:
        yield client
        assert client.execute("still here", agent="shout").output == "STILL HERE"


def fails(client: Client, agent: str) -> tuple[str, str]:
    """Reason and words of the task's end."""
    task = client.submit("x", agent=agent, max_attempts=1).wait("60s")
    assert task.state == "FAILED" and task.error is not None, (task.state, task.result)
    assert str(HERE) not in task.error.message
    return task.error.reason, task.error.message


@pytest.mark.parametrize("name", FILES)
def test_a_module_that_cannot_be_imported_says_why(client: Client, name: str) -> None:
    reason, message = fails(client, name)
    assert reason == "WORKER_START_FAILED" and FILES[name][1] in message, (reason, message)


def test_an_entry_point_that_is_not_there_is_named(client: Client) -> None:
    reason, message = fails(client, "not_there")
    assert reason == "WORKER_START_FAILED" and "not_there" in message, (reason, message)


@pytest.mark.parametrize("agent", ["closes_its_channel", "exits"])
def test_a_worker_that_cuts_itself_off_is_ended(client: Client, agent: str) -> None:
    reason, message = fails(client, agent)
    assert reason in ("WORKER_CRASHED", "WORKER_PROTOCOL_ERROR", "POISON_TASK"), (reason, message)


def test_a_loop_in_c_code_is_taken_for_hung_and_can_be_cancelled(client: Client) -> None:
    reason, message = fails(client, "computes_in_c")
    assert reason in ("WORKER_HUNG", "POISON_TASK"), (reason, message)
    handle = client.submit("x", agent="computes_in_c", max_attempts=1)
    eventually(lambda: client.get(handle.id).worker_pid)
    answer = client.cancel(handle.id, grace="0s")
    assert answer.task.state == "CANCELLED" and answer.proof.witness and not answer.proof.survivors


def test_a_worker_that_multiplies_is_ended_with_all_its_children(client: Client) -> None:
    reason, message = fails(client, "multiplies")
    assert (reason, "max_processes" in message) == ("WORKER_PROCESS_LIMIT", True), (reason, message)
    eventually(lambda: not [p for p in Path("/proc").glob("[0-9]*") if is_child(p)])


@pytest.mark.parametrize("agent", ["bomb", "bomb_of_sessions"])
def test_a_fork_bomb_is_ended_whole(client: Client, agent: str) -> None:
    """Every process of it doubles, so their number does too until the guard looks again."""
    before = {p.name for p in Path("/proc").glob("[0-9]*")}
    handle = client.submit("x", agent=agent, max_attempts=1)
    task = handle.wait("60s")
    assert task.error is not None and task.error.reason == "WORKER_PROCESS_LIMIT", task.error
    assert "[workers] max_processes allows 64" in task.error.message
    assert (task.error.metadata["key"], task.error.metadata["limit"]) == ("workers.max_processes", "64")
    [lost] = [e.data for e in client.watch(handle.id) if e.kind == "worker_lost"]
    assert lost["cause"] == "WORKER_PROCESS_LIMIT"
    eventually(lambda: not [p for p in Path("/proc").glob("[0-9]*") if p.name not in before and is_worker(p)])


@pytest.mark.parametrize("agent", ["bomb"])
def test_a_fork_bomb_is_ended_without_a_namespace(tmp_path: Path, agent: str) -> None:
    """One whose processes stay in their group; sessions of their own are best effort there."""
    config = NODE + 'isolation = "plain"\n' + AGENT.format(name=agent, project=HERE, module="e2e_bad_code")
    config += AGENT.format(name="shout", project=HERE, module="e2e_agents")
    before = {p.name for p in Path("/proc").glob("[0-9]*")}
    with LocalNode(config) as node, Client(node.address, max_retries=0, timeout="120s") as client:
        assert fails(client, agent)[0] == "WORKER_PROCESS_LIMIT"
        assert client.execute("still here", agent="shout").output == "STILL HERE"
    eventually(lambda: not [p for p in Path("/proc").glob("[0-9]*") if p.name not in before and is_worker(p)])


def is_worker(process: Path) -> bool:
    """Whether it is part of a bomb, which has given itself a name."""
    try:
        return (process / "comm").read_text() == "e2e_bomb\n"
    except OSError:
        return False


def is_child(process: Path) -> bool:
    """Whether it is a child of `multiplies`."""
    try:
        return (process / "cmdline").read_bytes() == b"sleep\x00984\x00"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("exception", "ValueError: the agent says no"),
        ("exit", "SystemExit(the agent leaves)"),
        ("interrupt", "KeyboardInterrupt"),
        ("recursion", "RecursionError"),
        ("strange", "Strange: (its text could not be made: RuntimeError)"),
        ("half a character", "ValueError: ?"),
        ("half an answer", "UnicodeEncodeError"),
    ],
)
def test_whatever_a_run_raises_is_an_error_of_the_framework(client: Client, how: str, says: str) -> None:
    task = client.submit(how, agent="raises", max_attempts=1).wait("60s")
    assert task.error is not None and task.error.reason == "FRAMEWORK_ERROR", (task.state, task.error)
    assert says in task.error.message, task.error


@pytest.mark.parametrize("description", ["wait", "leave"])
def test_a_daemon_that_escaped_ends_with_its_worker(client: Client, description: str) -> None:
    handle = client.submit(description, agent="escapes", max_attempts=1)
    if description == "wait":
        assert any(e.kind == "text_delta" for e in client.watch(handle.id))
        answer = client.cancel(handle.id, grace="0s")
        assert answer.proof.witness and not answer.proof.survivors
    else:
        assert handle.wait("60s").state == "SUCCEEDED"
        # The worker lives on for the next task of the agent; with it ends what it left behind.
        assert [p for p in Path("/proc").glob("[0-9]*") if is_daemon(p)]
        client.frameworks.restart("custom:bad")
    eventually(lambda: not [p for p in Path("/proc").glob("[0-9]*") if is_daemon(p)])


def is_daemon(process: Path) -> bool:
    """Whether it is the daemon of `escapes`."""
    try:
        return (process / "cmdline").read_bytes() == b"sleep\x00983\x00"
    except OSError:
        return False


def test_a_hundred_megabytes_of_output_cost_no_task(client: Client) -> None:
    assert client.execute("x", agent="talks", timeout="110s").output == "said it"


def test_a_result_that_is_no_data_is_refused_with_its_type(client: Client) -> None:
    reason, message = fails(client, "gives_an_object")
    assert reason == "FRAMEWORK_ERROR" and "class Lock" in message, (reason, message)


def test_a_result_of_values_that_say_what_they_are_is_data(client: Client) -> None:
    assert client.execute("x", agent="gives_a_day").structured_output == [{"date": "2026-01-02", "mood": "good"}]
