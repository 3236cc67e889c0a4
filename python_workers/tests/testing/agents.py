"""Agents that the tests of the test kit run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from singularity_agents import agent, tool


@tool
def double(n: int) -> int:
    """Doubles a number."""
    return 2 * n


@agent("asks")
async def asks(task: Any, engine: Any) -> str:
    """Asks the model once."""
    return f"{await engine.chat(task.description, system='be brief')}!"


@agent("uses_a_tool")
async def uses_a_tool(task: Any, engine: Any) -> str:
    """Lets the model call a tool."""
    reply = await engine.chat(task.description, tools=[double])
    (call,) = reply.tool_calls
    return f"{call['name']} {call['arguments']} {double(n=21)}"


@agent("waits")
def waits(task: Any, engine: Any) -> Iterator[str]:
    """Synchronous, in pieces."""
    yield "one "
    yield str(engine.chat(task.description))


@agent("remembers")
async def remembers(task: Any, engine: Any) -> str:
    """Wants what only a task on a node has."""
    return str(await engine.memory("get", key="x"))


@agent("fails")
async def fails(task: Any) -> str:
    """Raises."""
    raise ValueError(task.description)
