"""The steps around a framework: an answer that is given again, and when it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CountingModel, KillableNode, eventually, openai_provider

from singularity_agents import Client

HERE = Path(__file__).resolve().parent
PRICES = '[[models.scripted.prices]]\nvalid_from = "2026-01-01"\ninput = "1.00"\noutput = "1.00"\n'

MakeNode = Callable[..., KillableNode]


def configured(counting: CountingModel, project: Path | str = HERE, tools: str = "[]") -> str:
    model = openai_provider("scripted", counting.model.base_url, "scripted") + PRICES
    model += '[models.asked]\nendpoints = [{ provider = "scripted", name = "scripted" }]\n'
    return f'{model}[agents.chain]\nframework = "langchain"\nmodel = "asked"\nproject = "{project}"\ntools = {tools}\n'


def notes(client: Client, task_id: str) -> list[str]:
    return [e.data["message"] for e in client.watch(task_id) if e.kind == "log" and e.data.get("source") == "task_cache"]


@pytest.mark.parametrize("durability", ["durable", "ephemeral"])
def test_an_equal_task_is_answered_again_free_and_marked(killable: MakeNode, counting: CountingModel, durability: Any) -> None:
    with Client(killable(configured(counting)).address, max_retries=0, timeout="60s") as client:

        def ask(question: str = "step 1", **options: Any) -> Any:
            return client.submit(question, agent="chain", durability=durability, **options).wait("60s")

        first, again = ask(cache="use"), ask(cache="use", labels={"another": "label"})
        assert first.result.output == again.result.output == "a1" and counting.counts["step 1"] == 1
        assert not first.result.metrics.cache_hit and first.result.metrics.cost_micros > 0
        assert again.result.metrics.cache_hit and again.result.metrics.cost_micros == 0
        assert (again.state, again.result.executor, again.result.task_id) == (first.state, "langchain", again.id)
        assert again.result.metrics.provider_calls == 0
        [note] = notes(client, again.id)
        assert "given again" in note

        ask()
        assert counting.counts["step 1"] == 2, "nobody said that this task may be answered so"
        ask(cache="refresh")
        assert counting.counts["step 1"] == 3
        ask("step 2", cache="use")
        assert counting.counts["step 2"] == 1, "another question"
        assert ask(cache="use").result.metrics.cache_hit and counting.counts["step 1"] == 3


def test_an_agent_whose_tool_may_have_an_effect_works_each_time(killable: MakeNode, counting: CountingModel) -> None:
    node = killable(configured(counting, tools='["e2e_agents:multiply"]'))
    with Client(node.address, max_retries=0, timeout="60s") as client:
        tasks = [client.submit("step 1", agent="chain", cache="use").wait("60s") for _ in range(2)]
        assert [t.attempts for t in tasks] == [1, 1] and tasks[1].worker_pid
        [note] = notes(client, tasks[1].id)
        assert "e2e_agents:multiply" in note and "SAFE" in note


def test_what_the_agent_is_made_of_is_part_of_the_question(killable: MakeNode, counting: CountingModel, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "notes.txt").write_text("one")
    with Client(killable(configured(counting, project)).address, max_retries=0, timeout="60s") as client:

        def hit(**who: Any) -> bool:
            # A kept task makes no call; a kept call is one.
            return client.execute("step 1", cache="use", **who).metrics.provider_calls == 0

        assert [hit(agent="chain"), hit(agent="chain")] == [False, True]
        (project / "notes.txt").write_text("another length")
        eventually(lambda: not hit(agent="chain"), within_s=10)
        assert [hit(agent="chain", model="scripted/scripted") for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    "switch",
    [
        '[agent_execution]\nperformance_optimization = "off"\n',
        "[native_capabilities]\nperformance_optimization = false\n",
        '[task_cache]\nmax_bytes = "8B"\n',
        '[task_cache]\nttl = "1ms"\n',
    ],
)
def test_switched_off_too_small_or_over_it_gives_nothing_again(killable: MakeNode, counting: CountingModel, switch: str) -> None:
    with Client(killable(configured(counting) + switch).address, max_retries=0, timeout="60s") as client:
        tasks = [client.submit("step 1", agent="chain", cache="use").wait("60s") for _ in range(2)]
        assert [len([e for e in client.watch(t.id) if e.kind == "worker_assigned"]) for t in tasks] == [1, 1]
