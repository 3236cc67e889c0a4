"""Plans of several steps: from mappings and files to `agents.v1.ExecutionPlan`, and back to what people look at."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError

from ._proto.singularity.agents.v1 import task_pb2

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Short names of enums in plan files.
_ON_FAILURE = {"fail": "ON_STEP_FAILURE_FAIL", "skip": "ON_STEP_FAILURE_SKIP"}


def plan_message(value: Mapping[str, Any]) -> task_pb2.ExecutionPlan:
    """The message of a plan as data: `steps`, a list of mappings, and `output`. Raises ValueError that names what is wrong."""
    steps = value.get("steps")
    if not isinstance(steps, (list, tuple)) or not all(isinstance(step, Mapping) for step in steps):
        raise ValueError("plan: steps must be a list of steps ([[steps]] in TOML)")
    plain = {**value, "steps": [_step(dict(step)) for step in steps]}
    try:
        return ParseDict(plain, task_pb2.ExecutionPlan())
    except ParseError as error:
        raise ValueError(f"plan: {error}") from error


def _step(step: dict[str, Any]) -> dict[str, Any]:
    if not step.get("id"):
        raise ValueError("plan: a step has no id")
    if "on_failure" in step:
        name = str(step["on_failure"])
        if name not in _ON_FAILURE:
            raise ValueError(f'plan: on_failure of step {step.get("id", "?")} is "{name}", must be fail or skip')
        step["on_failure"] = _ON_FAILURE[name]
    if isinstance(step.get("for_each"), (list, tuple)):
        step["for_each"] = json.dumps(list(step["for_each"]))
    return step


def read_plan(path: Path) -> tuple[str, dict[str, Any]]:
    """A plan file, TOML or JSON: its `description`, which may be empty, and the plan. Raises OSError, ValueError."""
    text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a plan file holds a table with steps")
    description = str(value.pop("description", ""))
    plan_message(value)
    return description, value


def mermaid(plan: Mapping[str, Any]) -> str:
    """A plan as a Mermaid flowchart."""
    lines = ["flowchart LR"]
    for number, step in enumerate(plan.get("steps", [])):
        lines.append(f'    s{number}["{step["id"]}<br/>{_label(step)}"]')
    return "\n".join([*lines, *(f"    s{a} --> s{b}" for a, b in _edges(plan))])


def dot(plan: Mapping[str, Any]) -> str:
    """A plan as a Graphviz graph."""
    lines = ["digraph plan {", "    rankdir=LR;", "    node [shape=box];"]
    for number, step in enumerate(plan.get("steps", [])):
        lines.append(f'    s{number} [label="{step["id"]}\\n{_label(step)}"];')
    return "\n".join([*lines, *(f"    s{a} -> s{b};" for a, b in _edges(plan)), "}"])


def tree(plan: Mapping[str, Any]) -> list[str]:
    """A plan for a terminal: a line for each step, behind those that it needs, with what became of it."""
    steps = plan.get("steps", [])
    deep = depths(plan)
    width = max((len(str(step["id"])) + 2 * depth for step, depth in zip(steps, deep, strict=True)), default=0)
    order = sorted(range(len(steps)), key=lambda number: (deep[number], number))
    return [
        f"{'  ' * deep[n]}{steps[n]['id']}".ljust(width) + f"   {_label(steps[n])}   {_figures(steps[n])}".rstrip() for n in order
    ]


def depths(plan: Mapping[str, Any]) -> list[int]:
    """How many steps stand before each step of a plan, along its longest way."""
    steps = plan.get("steps", [])
    number = {step["id"]: n for n, step in enumerate(steps)}
    open_needs = [sum(need in number for need in step.get("needs", [])) for step in steps]
    after: dict[int, list[int]] = {}
    for before, behind in _edges(plan):
        after.setdefault(before, []).append(behind)
    deep = [0] * len(steps)
    # What is in a circle stays at the left edge: only a file that was not checked has one.
    free = [n for n, waits in enumerate(open_needs) if waits == 0]
    while free:
        done = free.pop()
        for n in after.get(done, []):
            deep[n] = max(deep[n], deep[done] + 1)
            open_needs[n] -= 1
            if open_needs[n] == 0:
                free.append(n)
    return deep


def _edges(plan: Mapping[str, Any]) -> list[tuple[int, int]]:
    number = {step["id"]: n for n, step in enumerate(plan.get("steps", []))}
    return [(number[need], n) for n, step in enumerate(plan.get("steps", [])) for need in step.get("needs", []) if need in number]


def _label(step: Mapping[str, Any]) -> str:
    runs = step.get("runs", [])
    ran_on = sorted({run.get("executor", "") for run in runs} - {""})
    state = str(step.get("state", "")).removeprefix("TASK_STATE_").lower()
    if runs and all(run.get("skipped") for run in runs):
        state = "skipped"
    return " ".join(part for part in (", ".join(ran_on) or str(step.get("executor", "")), state) if part)


def _figures(step: Mapping[str, Any]) -> str:
    runs = step.get("runs", [])
    tokens = sum(
        int(run.get("usage", {}).get("input_tokens", 0)) + int(run.get("usage", {}).get("output_tokens", 0)) for run in runs
    )
    parts = [f"{len(runs)} runs"] if len(runs) > 1 else []
    if tokens:
        parts.append(f"{tokens} tokens")
    if costs := [int(run["cost_micros"]) for run in runs if "cost_micros" in run]:
        parts.append(f"${sum(costs) / 1e6:.6f}")
    if errors := [run["error"].get("reason", "") for run in runs if run.get("error")]:
        parts.append(errors[0])
    return "   ".join(parts)
