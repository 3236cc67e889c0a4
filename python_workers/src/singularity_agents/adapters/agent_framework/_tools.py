"""Tools: the engine's and the user's as function tools, and the bracket around tools that agents bring along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_framework import Content, FunctionMiddleware, FunctionTool

from ...worker import _runtime
from .._tooling import WorkerTool, recorded, worker_tool

#: Name under which a tool is known to record itself.
_OWN = "singularity"


def function_tool(tool: Any) -> FunctionTool:
    """A function tool of a `@tool`, a function, or a tool."""
    return tool if isinstance(tool, FunctionTool) else converted(worker_tool(tool))


def converted(tool: WorkerTool) -> FunctionTool:
    """A tool of the engine or the user as Agent Framework sees it. What it raises is its text: the framework would hide it."""

    async def run(**arguments: Any) -> str:
        return (await tool.call(arguments)).content

    return FunctionTool(
        name=tool.name,
        description=tool.description,
        func=run,
        input_model=tool.parameters,
        approval_mode="never_require",
        additional_properties={_OWN: True},
    )


class Bracket(FunctionMiddleware):
    """Records the tools of an agent of the user's."""

    async def process(self, context: Any, call_next: Any) -> None:
        """Runs one, or gives what it said when it ran before."""
        function = context.function
        if (function.additional_properties or {}).get(_OWN) or _runtime.in_task() is None:
            await call_next()
            return
        arguments = context.arguments if isinstance(context.arguments, Mapping) else dict(context.arguments)

        async def body() -> str:
            await call_next()
            return _text(context.result)

        value, said, error = await recorded(function.name, arguments, body)
        if error is not None:
            raise error
        if value is None:
            context.result = said.content


def bracket(agent: Any) -> None:
    """Puts the bracket first among an agent's middleware."""
    present = list(agent.middleware or ())
    if not any(isinstance(item, Bracket) for item in present):
        agent.middleware = [Bracket(), *present]


def _text(result: Any) -> str:
    if isinstance(result, list):
        return "".join(item.text or "" for item in result if isinstance(item, Content))
    return str(result)
