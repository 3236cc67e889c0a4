"""The live tree of a plan: what it says of each step, and that it fits the screen."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from singularity_agents._models import Event, Task, TaskError
from singularity_agents.cli._live import PlanView

NOW = datetime(2026, 11, 24, 8, 0, 10, tzinfo=timezone.utc)


def at(second: int) -> str:
    return f"2026-11-24T08:00:{second:02}.123456789Z"


def step(name: str, state: str = "", runs: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    return {"id": name, "executor": "native", "state": f"TASK_STATE_{state}" if state else "", "runs": runs or [], **more}


def run(executor: str = "native", **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": "3", "output_tokens": "4"}
    return {"executor": executor, "start_time": at(1), "end_time": at(3), "usage": usage, "cost_micros": "1500", **more}


def view(*steps: dict[str, Any], state: str = "RUNNING", **more: Any) -> PlanView:
    return PlanView(Task(id="t", state=state, plan={"steps": list(steps)}, **more))


def started(name: str) -> Event:
    return Event(kind="step_started", data={"name": name}, time=datetime(2026, 11, 24, 8, 0, 5, tzinfo=timezone.utc))


def test_each_step_says_its_executor_state_time_tokens_and_cost() -> None:
    seen = view(
        step("facts", "SUCCEEDED", [run("langchain", attempts=2)]),
        step("draft", "RUNNING", needs=["facts"]),
        step("end", "QUEUED", needs=["draft"]),
    )
    seen.take(started("draft"))
    head, facts, draft, end = seen.lines(120, 24, NOW, spin=0)
    assert head == "running   1 succeeded, 1 running, 1 queued"
    assert facts.split() == ["✓", "facts", "langchain", "succeeded", "2", "s", "7", "tok", "$0.001500", "2", "tries"]
    assert "⠋" in draft and "running  5 s" in draft and draft.index("draft") > facts.index("facts")
    assert "·" in end and "queued" in end
    assert "⠋" not in "".join(seen.lines(120, 24, NOW))


def test_failures_skipped_and_undone_steps_are_told_apart() -> None:
    error = {"reason": "TOOL_FAILED"}
    seen = view(
        step("book", "SUCCEEDED", [run()]),
        step("maybe", "SUCCEEDED", [run(skipped=True)]),
        step("fails", "FAILED", [run(error=error)]),
        step("never"),
        state="FAILED",
        error=TaskError(reason="TOOL_FAILED", metadata={"undone": "book", "step": "fails"}),
    )
    _, book, maybe, fails, never = seen.lines(120, 24, NOW)
    assert "undone" in book and "skipped" in maybe and "TOOL_FAILED" in fails and "did not run" in never


def test_a_step_over_a_list_is_one_line_with_its_items() -> None:
    seen = view(step("each", "RUNNING", [run()] * 120, for_each="[" + ",".join(["1"] * 300) + "]"))
    seen.take(started("each"))
    _, line = seen.lines(120, 24, NOW, spin=1)
    assert "120/300 items" in line and "840 tok" in line


@pytest.mark.parametrize(("width", "height"), [(79, 24), (24, 10), (200, 6), (14, 4)])
def test_three_hundred_steps_fit_any_screen_and_what_matters_is_shown(width: int, height: int) -> None:
    names = [f"step-with-a-long-name-{n}" for n in range(300)]
    states = ["SUCCEEDED"] * 150 + ["FAILED"] + ["RUNNING"] * 2 + ["QUEUED"] * 147
    seen = view(*(step(name, state) for name, state in zip(names, states, strict=True)))
    for name, state in zip(names, states, strict=True):
        if state == "RUNNING":
            seen.take(started(name))
    lines = seen.lines(width, height, NOW, spin=0)
    assert len(lines) <= max(3, height) and all(len(line) <= width for line in lines)
    assert any("✗" in line for line in lines) and "…" in lines[-1]


def test_an_ephemeral_plan_is_known_by_its_events_alone() -> None:
    seen = view(step("a"), step("b"))
    assert seen.state(step("b", "RUNNING")) == "queued"
    for event in (started("a"), Event(kind="step_finished", data={"name": "a", "status": "succeeded"}), started("b")):
        assert seen.take(event)
    assert [seen.state(s) for s in (step("a"), step("b"))] == ["succeeded", "running"]
    assert not seen.take(Event(kind="tool_call", data={"name": "b"}))
