"""Tools: the engine's and the user's as Haystack tools, and the bracket around tools that an agent brings along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from haystack.tools import Tool, flatten_tools_or_toolsets

from ...worker import _runtime
from ...worker._engine import ToolError
from .._tooling import WorkerTool, recorded, recorded_blocking, worker_tool
from . import _people

#: Marks a function that is, or has, its own bracket.
_BRACKETED = "_singularity_bracketed"


def haystack_tool(tool: Any) -> Tool:
    """A Haystack tool of a `@tool`, a function, or a tool."""
    return tool if isinstance(tool, Tool) else converted(worker_tool(tool))


def converted(tool: WorkerTool) -> Tool:
    """A tool of the engine or the user as Haystack sees it."""

    def run(**arguments: Any) -> str:
        return _said(tool, *tool.call_blocking(arguments))

    async def run_async(**arguments: Any) -> str:
        return _said(tool, *await tool.call(arguments))

    setattr(run, _BRACKETED, True)
    setattr(run_async, _BRACKETED, True)
    return Tool(name=tool.name, description=tool.description, parameters=tool.parameters, function=run, async_function=run_async)


def bracket(agent: Any) -> None:
    """Records the tools of an agent of the user's, and has its confirmations asked through the engine."""
    _people.seat(agent)
    for tool in flatten_tools_or_toolsets(agent.tools):
        if tool.function is not None and not hasattr(tool.function, _BRACKETED):
            tool.function = _blocking(tool.name, tool.function)
        if tool.async_function is not None and not hasattr(tool.async_function, _BRACKETED):
            tool.async_function = _async(tool.name, tool.async_function)


def _blocking(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(**arguments: Any) -> Any:
        if _runtime.in_task() is None:
            return function(**arguments)
        return _value(name, *recorded_blocking(name, arguments, lambda: function(**arguments)))

    setattr(run, _BRACKETED, True)
    return run


def _async(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    async def run(**arguments: Any) -> Any:
        if _runtime.in_task() is None:
            return await function(**arguments)
        return _value(name, *await recorded(name, arguments, lambda: function(**arguments)))

    setattr(run, _BRACKETED, True)
    return run


def _value(name: str, value: Any, said: Any, error: BaseException | None) -> Any:
    if error is not None:
        raise error
    if said.is_error:
        raise ToolError(said.content, reason="TOOL_FAILED", metadata={"tool": name})
    return said.content if value is None else value


def _said(tool: WorkerTool, content: str, is_error: bool) -> str:
    if is_error:
        raise ToolError(content, reason="TOOL_FAILED", metadata={"tool": tool.name})
    return content
