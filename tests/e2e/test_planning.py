"""Plans that a model makes: asked for, repaired once, run as any plan, and given up for one step."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import MANY, KillableNode, eventually, openai_provider

from singularity_agents import Client, SingularityError, TaskCancelled, TaskFailed
from singularity_agents.testing import Asked, ScriptedModel

GOOD = json.dumps(
    {
        "steps": [
            {"id": "one", "task": "do one"},
            {"id": "two", "task": "do two"},
            {"id": "three", "task": "do three", "needs": ["one"]},
        ]
    }
)


class Planner:
    """A model that plans as the test says, and does any other step by its first word or two."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.plans = [GOOD]
        self.on_first: dict[str, Callable[[], object]] = {}
        self.seen: dict[str, str] = {}
        self.model = ScriptedModel(*[self._answer] * MANY)

    def _answer(self, asked: Asked) -> str:
        kinds = {"Make a plan": "plan", "You were asked for a plan": "repair", "Write the final answer": "answer"}
        kinds |= {f"do {step}": step for step in ("one", "two", "three")}
        kind = next((name for start, name in kinds.items() if asked.last.startswith(start)), asked.last)
        self.counts[kind] += 1
        self.seen[kind] = asked.last
        if self.counts[kind] == 1 and kind in self.on_first:
            self.on_first[kind]()
        if kind in ("plan", "repair"):
            return self.plans[0 if kind == "plan" else -1]
        return f"<{kind}>"


@pytest.fixture
def planner() -> Iterator[Planner]:
    planner = Planner()
    with planner.model:
        yield planner


@pytest.fixture
def planned(killable: Callable[[str], KillableNode], planner: Planner) -> Iterator[tuple[KillableNode, Client]]:
    priced = '[models.priced]\nprices = [{ valid_from = "2026-01-01", input = "1.00", output = "1.00" }]\n'
    priced += 'endpoints = [{ provider = "planning", name = "planned" }]\n'
    node = killable(openai_provider("planning", planner.model.base_url, "planned") + priced)
    with Client(node.address, max_retries=0) as client:
        yield node, client


def submit(client: Client, **options: Any) -> Any:
    return client.submit("the whole", planning="model", **{"model": "planned", **options})


def plan_of(client: Client, task_id: str) -> dict[str, Any]:
    plan = client.get(task_id).plan
    assert plan is not None
    return plan


def test_a_made_plan_runs_and_its_results_are_put_together(planned: tuple[KillableNode, Client], planner: Planner) -> None:
    _, client = planned
    handle = submit(client)
    result = handle.result()
    assert result.output == "<answer>" and result.metrics.provider_calls == 5
    assert planner.counts == {"plan": 1, "one": 1, "two": 1, "three": 1, "answer": 1}
    assert "Result of one:\n<one>" in planner.seen["three"] and "Result of three:\n<three>" in planner.seen["answer"]
    plan = plan_of(client, handle.id)
    assert plan["planning"]["origin"] == "MODEL"
    assert [(s["id"], s["state"]) for s in plan["steps"]] == [
        (step, "SUCCEEDED") for step in ("plan", "one", "two", "three", "answer")
    ]


def test_a_bad_plan_is_repaired_once(planned: tuple[KillableNode, Client], planner: Planner) -> None:
    _, client = planned
    planner.plans = ["I would rather not", GOOD]
    handle = submit(client)
    assert handle.result().output == "<answer>"
    assert planner.counts["repair"] == 1 and "it is not JSON" in planner.seen["repair"]
    assert plan_of(client, handle.id)["planning"]["origin"] == "REPAIRED"


ENDLESS = json.dumps({"steps": [{"id": f"s{n}", "task": "x"} for n in range(10_001)]})
UNKNOWN = json.dumps({"steps": [{"id": "one", "task": "x", "tools": ["rm"], "executor": "crewai"}]})


@pytest.mark.parametrize("bad", ["no", ENDLESS, UNKNOWN], ids=["no_json", "endless", "unknown"])
def test_a_plan_that_stays_bad_becomes_one_step_and_says_so(
    planned: tuple[KillableNode, Client], planner: Planner, bad: str
) -> None:
    _, client = planned
    planner.plans = [bad]
    handle = submit(client)
    told = [str(e.data.get("message")) for e in handle.watch() if e.kind == "log"]
    assert handle.result().output == "<the whole>"
    assert any("the task runs as one step" in text for text in told), told
    assert planner.counts == {"plan": 1, "repair": 1, "the whole": 1}
    made = plan_of(client, handle.id)["planning"]
    assert made["origin"] == "FALLBACK" and len(made["faults"]) >= 2


@pytest.mark.parametrize("step", ["plan", "repair", "one", "answer"])
def test_a_node_killed_while_it_plans_and_after_repeats_no_answered_call(
    planned: tuple[KillableNode, Client], planner: Planner, step: str
) -> None:
    node, client = planned
    killed: list[bool] = []
    planner.plans = ["no", GOOD]
    planner.on_first[step] = lambda: (node.kill(), killed.append(True))
    task_id = submit(client).id
    eventually(lambda: killed)
    node.start()
    with Client(node.address, max_retries=0) as again:
        task = again.wait(task_id, timeout="60s")
        assert task.result is not None, task.error
        assert task.result.output == "<answer>"
        assert plan_of(again, task_id)["planning"]["origin"] == "REPAIRED"
    # Steps "one" and "two" run side by side: either may have been under way.
    under_way = {"one", "two"} if step == "one" else {step}
    assert {name for name, count in planner.counts.items() if count > 1} <= under_way
    assert planner.counts[step] == 2


def test_a_cancel_ends_the_planning(planned: tuple[KillableNode, Client], planner: Planner) -> None:
    _, client = planned
    handles: list[Any] = []
    planner.on_first["plan"] = lambda: (eventually(lambda: handles), client.cancel(handles[0].id))
    handles.append(submit(client))
    with pytest.raises(TaskCancelled):
        handles[0].result()
    assert planner.counts == {"plan": 1}


def test_no_money_for_a_plan_is_no_money_for_the_task(planned: tuple[KillableNode, Client], planner: Planner) -> None:
    _, client = planned
    with pytest.raises(TaskFailed) as error:
        submit(client, model="priced", max_cost_micros=1).result()
    assert error.value.reason == "BUDGET_EXHAUSTED" and not planner.counts


def test_money_that_ends_in_the_middle_ends_the_task_with_what_ran(
    planned: tuple[KillableNode, Client], planner: Planner
) -> None:
    _, client = planned
    # Enough for the plan, by the bytes of its question, and not for the first of its steps.
    planner.plans = [GOOD.replace("do one", "do one " + "x" * 6000)]
    with pytest.raises(TaskFailed) as failed:
        submit(client, model="priced", max_cost_micros=4_500, max_tokens=50).result()
    assert failed.value.reason == "BUDGET_EXHAUSTED"
    assert planner.counts["plan"] == 1 and planner.counts["answer"] == 0


def test_an_equal_task_is_not_planned_again_unless_it_says_so(planned: tuple[KillableNode, Client], planner: Planner) -> None:
    _, client = planned
    first, second = submit(client).result(), submit(client).result()
    assert first.output == second.output and planner.counts["plan"] == 1
    assert planner.counts["one"] == planner.counts["answer"] == 2, "what it planned is done again"
    for cache in ("bypass", "refresh"):
        submit(client, cache=cache).result()
    assert planner.counts["plan"] == 3


def test_what_the_subtasks_gave_comes_with_the_answer(planned: tuple[KillableNode, Client]) -> None:
    _, client = planned
    artifacts = submit(client).result().artifacts
    assert [(a.name, a.media_type, base64.b64decode(a.inline or "")) for a in artifacts] == [
        (f"{step}.md", "text/markdown", f"<{step}>".encode()) for step in ("one", "two", "three")
    ]


def test_the_limits_of_a_plan_are_the_tasks(planned: tuple[KillableNode, Client], planner: Planner) -> None:
    _, client = planned
    narrow = submit(client, max_plan_steps=2)
    assert narrow.result().output == "<the whole>"
    assert any("must be 1 to 2" in fault for fault in plan_of(client, narrow.id)["planning"]["faults"])
    flat = submit(client, max_plan_depth=1)
    assert any("must be at most 1" in fault for fault in eventually(lambda: plan_of(client, flat.id)["planning"].get("faults")))
    flat.result()
    for options in ({"max_plan_steps": 65}, {"max_plan_depth": 17}, {"max_plan_steps": 3, "planning": "off"}):
        with pytest.raises(SingularityError) as refused:
            client.submit("x", **{"planning": "model", **options})
        assert refused.value.reason == "INVALID_FIELD" and "max_plan_" in str(refused.value)


def test_the_effort_of_a_subtask_chooses_among_the_endpoints(killable: Callable[[str], KillableNode], planner: Planner) -> None:
    """Two endpoints of one model: a cheap one, and a dear one that is better."""
    price = 'prices = [{{ valid_from = "2026-01-01", input = "{0}", output = "{0}" }}]'
    names = {"cheap": ("0.10", 0.2), "good": ("9.00", 0.95)}
    more = "".join(openai_provider(name, planner.model.base_url, name) for name in names)
    more += "".join(f"[models.{name}]\n{price.format(cost)}\n" for name, (cost, _) in names.items())
    more += "[models.both]\nendpoints = ["
    more += ", ".join(f'{{ provider = "{name}", name = "{name}", quality = {quality} }}' for name, (_, quality) in names.items())
    planner.plans = [
        json.dumps(
            {"steps": [{"id": "one", "task": "do one", "effort": "low"}, {"id": "two", "task": "do two", "effort": "high"}]}
        )
    ]
    with Client(killable(more + "]\n").address, max_retries=0) as client:
        handle = submit(client, model="both")
        assert handle.result().output == "<answer>"
        served = {e.step_id: e.data["provider"] for e in handle.watch() if e.kind == "provider_call"}
        assert (served["one"], served["two"]) == ("cheap", "good"), served


def test_two_plans_at_once_are_refused(planned: tuple[KillableNode, Client]) -> None:
    _, client = planned
    with pytest.raises(SingularityError) as error:
        submit(client, plan={"steps": [{"id": "a", "executor": "native"}]})
    assert "planning" in str(error.value)
    with pytest.raises(SingularityError) as error:
        submit(client, method="framework", framework="crewai")
    assert "planning" in str(error.value)
