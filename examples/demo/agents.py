"""Agents of `make demo`: a tool, an agent that never ends, and one that takes its time."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

from singularity_agents import agent, tool


@tool(replay="safe")
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


@agent("loop")
def loop(task: Any, engine: Any) -> str:
    """Never ends, ignores everything, and has a child in a session of its own."""
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print(f"looping, with a child of my own ({child.args})", flush=True)
    while True:
        pass


@agent("pay")
async def pay(task: Any, engine: Any) -> str:
    """Pays if somebody approves; until then it is a row, without a process."""
    return "paid" if await engine.approve(f"Shall I pay {task.description}?") else "not paid"


@agent("count")
async def count(task: Any, engine: Any) -> str:
    """Counts to five, half a second each, and says every number."""
    said = []
    for number in range(1, 6):
        await asyncio.sleep(0.5)
        said.append(str(number))
        engine.text(f"{number} ")
    return " ".join(said)
