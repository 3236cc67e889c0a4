"""Agents that give parts of their task to others."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

from singularity_agents import SingularityError, UniversalAgent, agent, tool


@agent("asks_natively")
async def asks_natively(task: Any, engine: Any) -> str:
    return f"told: {await engine.delegate(task.description)}"


@agent("splits")
async def splits(task: Any, engine: Any) -> str:
    parts = [line.partition("chain ") for line in task.description.split("; ")]
    ends = await engine.delegate_all(
        [
            {"description": last or first, "framework": "langchain" if mark else "native", "model": task.model}
            for first, mark, last in parts
        ]
    )
    return "; ".join(end.output if end.error is None else end.error.reason for end in ends)


@agent("dies_behind")
async def dies_behind(task: Any, engine: Any) -> str:
    """Dies once, behind its subtask and in front of its own model call."""
    model = "scripted/scripted"
    first, second = await engine.delegate_all([{"description": f"{task.description} {part}", "model": model} for part in "xy"])
    # A step of a plan is tried again within the task's first attempt.
    if task.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{first.output}+{second.output}+{await engine.chat(task.description + ' z', model=model)}"


@agent("deeper")
async def deeper(task: Any, engine: Any) -> str:
    """Gives its task to another one of itself, until it is refused."""
    try:
        return "." + await engine.delegate(task.description, framework="custom:e2e", agent="deeper")
    except SingularityError as error:
        return str(error.reason)


@agent("gives_a_loop")
async def gives_a_loop(task: Any, engine: Any) -> str:
    return str(await engine.delegate(task.description, framework="custom:e2e", agent="loop"))


@agent("optimizes")
async def optimizes(task: Any, engine: Any) -> Any:
    goal, _, rest = task.description.partition(": ")
    return {"text": await engine.optimize(rest, goal), "provider": await engine.select_provider()}


class Universal(UniversalAgent):
    """The methods of the vision."""

    async def execute(self, task: Any) -> Any:
        native = await self.execute_native("step one")
        chain = await self.execute_with_framework("step two", "langchain")
        return f"{native} {chain} {await self.select_provider(model='default')}"


@agent("gives_files")
async def gives_files(task: Any, engine: Any) -> str:
    engine.artifact("report.md", "# Report")
    engine.artifact("data.bin", bytes(range(256)) * 1000)
    return "two files"


@agent("says_badly")
async def says_badly(task: Any, engine: Any) -> Any:
    """Text where data was asked for, or data of another form."""
    return {"count": "three"} if task.description == "data" else "There are three."


def _numbered(number: int) -> Callable[..., Any]:
    @tool(name=f"tool_{number}", description=f"Looks up the record number {number}.", replay="safe")
    def look_up() -> str:
        return str(number)

    return look_up


@tool(replay="safe")
def weather_forecast(city: str) -> str:
    """Tells the weather of a city."""
    return "rain"


for _number in range(60):
    globals()[f"tool_{_number}"] = _numbered(_number)


@agent("asks_too_much")
async def asks_too_much(task: Any, engine: Any) -> str:
    """Many requests at once, each of one subtask."""
    ends = await asyncio.gather(*(engine.delegate(f"step {n}") for n in range(40)), return_exceptions=True)
    refused = [end.reason for end in ends if isinstance(end, SingularityError)]
    return f"{len(ends) - len(refused)} {set(refused)}"
