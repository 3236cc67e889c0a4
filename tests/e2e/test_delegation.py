"""Parts of a task that its agent gives to others: inside the task, on its account, kept, and ended with it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import SCRIPTED_BY_DEFAULT, CountingModel, KillableNode, eventually, openai_provider
from test_faults import sleepers
from test_storage import cli

from singularity_agents import Client, TaskFailed
from singularity_agents._local_node import LocalNode

HERE = Path(__file__).resolve().parent
AGENTS = (
    "asks_natively",
    "splits",
    "dies_behind",
    "deeper",
    "gives_a_loop",
    "optimizes",
    "Universal",
    "gives_files",
    "asks_too_much",
)
#: The nodes of `killable` have it already.
LOOP = f'[agents.loop]\nframework = "custom:e2e"\nproject = "{HERE}"\nentrypoint = "e2e_agents:loop"\n'
PRICES = '[[models.scripted.prices]]\nvalid_from = "2026-01-01"\ninput = "1.00"\noutput = "1.00"\n'


def configured(model: CountingModel) -> str:
    agents = "".join(
        f'[agents.{name}]\nframework = "custom:e2e"\nproject = "{HERE}"\nentrypoint = "e2e_delegates:{name}"\n' for name in AGENTS
    )
    provider = openai_provider("scripted", model.model.base_url, "scripted") + PRICES
    return provider + agents + LOOP + "[workers]\nmax_per_framework = 2\n"


@pytest.fixture(scope="module")
def model() -> Iterator[CountingModel]:
    counting = CountingModel()
    with counting.model:
        yield counting


@pytest.fixture(scope="module")
def node(model: CountingModel) -> Iterator[LocalNode]:
    with LocalNode(configured(model) + SCRIPTED_BY_DEFAULT) as node:
        yield node


@pytest.fixture
def asks(node: LocalNode) -> Iterator[Client]:
    with Client(node.address, max_retries=0, timeout="60s") as client:
        yield client


def test_a_subtask_is_part_of_the_task_and_of_its_bill(asks: Client, model: CountingModel) -> None:
    done = asks.submit("step n", agent="asks_natively").wait("60s")
    assert done.result is not None and done.result.output == "told: an"
    assert (model.counts["step n"], done.result.metrics.provider_calls) == (1, 1)
    assert done.result.metrics.cost_micros
    steps = [e for e in asks.watch(done.id) if e.kind in ("step_started", "step_finished")]
    assert [e.kind for e in steps] == ["step_started", "step_finished"] and steps[0].data["name"].startswith("sub-")
    [call] = [e for e in asks.watch(done.id) if e.kind == "provider_call"]
    assert call.step_id == steps[0].data["name"], "whose call it was"


def test_subtasks_run_side_by_side_each_with_its_own_end(asks: Client) -> None:
    done = asks.execute("step a; chain step b; step c", agent="splits")
    assert done.output == "aa; ab; ac"


def test_what_cannot_run_is_said_of_the_subtask_alone(asks: Client) -> None:
    for asked in ("parallel: ", "parallel: " + "\n".join(["x"] * 65)):
        with pytest.raises(TaskFailed, match=r"subtasks: .* must be 1 to 64") as refused:
            asks.execute(asked, agent="optimizes")
        assert refused.value.reason == "INVALID_FIELD"


def test_an_agent_that_runs_again_is_told_the_same_by_its_subtasks(asks: Client, model: CountingModel) -> None:
    task = asks.submit("step q", agent="dies_behind").wait("60s")
    assert task.result is not None, task.error
    assert task.attempts == 2
    assert task.result.output == "aq x+aq y+aq z"
    assert [model.counts[f"step q {part}"] for part in "xyz"] == [1, 1, 1], "a kept end is not asked for again"


def test_a_step_that_is_tried_again_is_told_the_same_by_its_subtasks(asks: Client, model: CountingModel) -> None:
    plan = {"steps": [{"id": "one", "executor": "custom:e2e", "agent_id": "dies_behind", "input": "step r"}]}
    task = asks.submit("x", plan=plan).wait("60s")
    assert task.result is not None, task.error
    assert (task.attempts, task.result.output) == (1, "ar x+ar y+ar z")
    assert [model.counts[f"step r {part}"] for part in "xyz"] == [1, 1, 1]


def test_requests_beyond_those_that_may_be_open_are_refused(asks: Client) -> None:
    answered, _, refused = asks.execute("x", agent="asks_too_much").output.partition(" ")
    assert int(answered) >= 16 and refused == "{'OVERLOADED'}"


def test_four_levels_run_with_two_workers_and_the_fifth_is_refused(asks: Client) -> None:
    """Both workers wait for subtasks of their own framework: what they wait for has workers all the same."""
    tasks = [asks.submit("go", agent="deeper") for _ in range(2)]
    assert [task.wait("60s").result.output for task in tasks] == ["....DELEGATION_TOO_DEEP"] * 2  # type: ignore[union-attr]
    eventually(lambda: len(asks.frameworks.get("custom:e2e").workers) <= 2)


def test_a_cancel_ends_the_subtask_with_its_children_and_proves_it(asks: Client) -> None:
    task = asks.submit("go", agent="gives_a_loop")
    eventually(lambda: sleepers())
    proof = asks.cancel(task.id, grace="0s").proof
    # The agent itself may end by the refusal of its call; what it gave the task to ends by nothing but a kill.
    assert proof.confirmed_dead and [s for s in proof.signals if s["name"] == "KILL"]
    assert asks.get(task.id).state == "CANCELLED"
    eventually(lambda: not sleepers())


def test_what_suits_a_goal(asks: Client, model: CountingModel) -> None:
    parallel = asks.execute("parallel: step d\nstep e", agent="optimizes").structured_output
    assert parallel == {"text": '["ad", "ae"]', "provider": "scripted/scripted"}
    for _ in range(2):
        assert asks.execute("cache: step f", agent="optimizes").structured_output["text"] == "af"
    assert model.counts["step f"] == 1
    assert asks.execute("speed: step g", agent="optimizes").structured_output["text"].startswith("ag")


def test_the_methods_of_the_vision(asks: Client) -> None:
    assert asks.execute("go", agent="Universal").output == "aone atwo scripted/scripted"


def test_files_come_with_the_answer(asks: Client, node: LocalNode, tmp_path: Path) -> None:
    done = asks.execute("go", agent="gives_files")
    written = cli("get", done.task_id, "--artifacts", tmp_path / "files", "--address", node.address)
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "files" / "report.md").read_text() == "# Report"
    assert (tmp_path / "files" / "data.bin").stat().st_size == 256_000
    report, data = done.artifacts
    assert (report.name, report.media_type) == ("report.md", "text/plain; charset=utf-8")
    assert report.inline is not None and base64.b64decode(report.inline) == b"# Report"
    assert data.inline is not None and base64.b64decode(data.inline) == bytes(range(256)) * 1000
    assert (data.name, data.size, len(data.sha256)) == ("data.bin", 256_000, 64)


def test_a_node_that_is_killed_under_a_subtask_asks_only_what_was_not_answered(
    killable: Callable[..., KillableNode], model: CountingModel
) -> None:
    node = killable(configured(model).replace(LOOP, ""))
    model.on_first["step k y"] = node.kill
    with Client(node.address, max_retries=0, timeout="60s") as client:
        task = client.submit("step k", agent="dies_behind")
        eventually(lambda: model.counts["step k y"] == 1)
    node.start()
    with Client(node.address, max_retries=0, timeout="60s") as client:
        done = eventually(lambda: t if (t := client.get(task.id)).state == "SUCCEEDED" else None, within_s=60)
        assert done.result.output == "ak x+ak y+ak z"
    assert model.counts["step k z"] == 1 and model.counts["step k x"] <= 2


def test_a_task_ends_with_its_parent_unless_it_says_otherwise(asks: Client) -> None:
    parent = asks.submit("go", agent="loop")
    eventually(sleepers)
    later = datetime.now(UTC) + timedelta(hours=1)
    child = asks.submit("go", agent="loop", parent_task_id=parent.id)
    waiting = asks.submit("step p", parent_task_id=parent.id, not_before=later)
    freed = asks.submit("step p", parent_task_id=parent.id, on_parent_end="continue", not_before=later)
    eventually(lambda: child.get().state == "RUNNING")
    asks.cancel(parent.id, grace="0s")
    eventually(lambda: [t.get().state for t in (child, waiting)] == ["CANCELLED"] * 2)
    eventually(lambda: not sleepers())
    assert freed.get().state == "WAITING"
    asks.cancel(freed.id)
    # Whoever links a task to one that has ended wants the link alone.
    assert asks.submit("step p", framework="native", parent_task_id=parent.id).wait("60s").state == "SUCCEEDED"


def test_a_parent_that_ended_in_another_life_of_the_node_ends_its_child(killable: Callable[..., KillableNode]) -> None:
    node = killable()
    with Client(node.address, max_retries=0, timeout="60s") as client:
        parent = client.submit("x", framework="native", not_before=datetime.now(UTC) + timedelta(hours=1))
        child = client.submit(
            "x", framework="native", parent_task_id=parent.id, not_before=datetime.now(UTC) + timedelta(seconds=10)
        ).id
    node.kill()
    node.start()
    with Client(node.address, max_retries=0, timeout="60s") as client:
        client.cancel(parent.id)
        assert (
            eventually(lambda: s if (s := client.get(child).state) not in ("WAITING", "QUEUED", "RUNNING") else None)
            == "CANCELLED"
        )
