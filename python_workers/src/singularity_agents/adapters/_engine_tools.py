"""Tools that are the engine itself, for a model of any framework: an agent has the ones that its `tools` name.

What they ask is recorded where it is asked, so an agent that runs again is told the same by each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from .._tool import Tool
from .._tool import tool as as_tool
from ..worker import _runtime

#: Name of the tool that reads and writes the engine's memory.
MEMORY_TOOL: Final = "distributed_memory"
#: What the model reads of it.
MEMORY_TEXT: Final = (
    "Reads and writes memory that outlives this task. op: get (key), set (key, value), delete (key), list (key: how keys begin), "
    "search (query)."
)
#: What it reads of the tool that asks a model.
FEDERATION_TEXT: Final = "Asks a model for a prompt. model: which one; left out, the engine chooses the best."
#: What it reads of the tool that gives work away.
PERFORMANCE_TEXT: Final = (
    "Has others do a part of the task. goal: parallel (each line of task is done by itself, all at once), cache (what was answered before "
    "is given again), or what matters most."
)


def memory_tool() -> Tool[..., Any]:
    """`distributed_memory`: the memory of the task's namespace. What a call gave is recorded: nothing is written twice."""

    @as_tool(name=MEMORY_TOOL, description=MEMORY_TEXT, replay="journaled")
    async def distributed_memory(op: str, key: str = "", value: str = "", query: str = "") -> str:
        return await _runtime.engine().memory(op, key=key, value=value, query=query)

    return distributed_memory


def federation_tool() -> Tool[..., Any]:
    """`ai_provider_federation`: one model call of the task."""

    @as_tool(name="ai_provider_federation", description=FEDERATION_TEXT, replay="safe")
    async def ai_provider_federation(prompt: str, model: str = "") -> str:
        return await _runtime.engine().chat(prompt, model=model or None)

    return ai_provider_federation


def performance_tool() -> Tool[..., Any]:
    """`performance_optimization`: subtasks, see `Engine.optimize`."""

    @as_tool(name="performance_optimization", description=PERFORMANCE_TEXT, replay="safe")
    async def performance_optimization(task: str, goal: str = "") -> str:
        return await _runtime.engine().optimize(task, goal)

    return performance_optimization


#: How each is made, by its name among an agent's `tools`.
ENGINE_TOOLS: Final[Mapping[str, Callable[[], Tool[..., Any]]]] = {
    MEMORY_TOOL: memory_tool,
    "ai_provider_federation": federation_tool,
    "performance_optimization": performance_tool,
}
