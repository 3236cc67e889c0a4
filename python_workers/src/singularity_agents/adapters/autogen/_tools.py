"""Tools: the engine's and the user's as a workbench, and the bracket around the workbenches of agents that bring their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from autogen_agentchat.agents import UserProxyAgent
from autogen_core.tools import TextResultContent, ToolResult, ToolSchema, Workbench
from pydantic import BaseModel

from ...worker import _runtime
from .._tooling import WorkerTool, recorded, worker_tool
from . import _people

#: Marks a workbench that has its bracket.
_BRACKETED = "_singularity_bracketed"


class ToolError(Exception):
    """A tool said that it failed; its words are what the model reads."""


class EngineWorkbench(Workbench):
    """Tools that the engine runs, or records. Made of `@tool` functions, or of plain ones."""

    component_type = "workbench"
    component_config_schema = BaseModel

    def __init__(self, tools: Iterable[Any]) -> None:
        made = [tool if isinstance(tool, WorkerTool) else worker_tool(tool) for tool in tools]
        self._tools = {tool.name: tool for tool in made}

    async def list_tools(self) -> list[ToolSchema]:
        """Their schemas."""
        return [
            ToolSchema(name=tool.name, description=tool.description, parameters=_parameters(tool))
            for tool in self._tools.values()
        ]

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        cancellation_token: Any = None,
        call_id: str | None = None,
    ) -> ToolResult:
        """Runs one."""
        tool = self._tools.get(name)
        if tool is None:
            return _result(name, f"there is no tool {name}; there are: {', '.join(self._tools)}", True)
        said = await tool.call(arguments or {}, call_id or "")
        return _result(name, said.content, said.is_error)

    async def start(self) -> None:
        """Nothing."""

    async def stop(self) -> None:
        """Nothing."""

    async def reset(self) -> None:
        """Nothing."""

    async def save_state(self) -> Mapping[str, Any]:
        """There is none."""
        return {}

    async def load_state(self, state: Mapping[str, Any]) -> None:
        """There is none."""


def bracket(agent: Any) -> list[str]:
    """Records the tools of an agent, or of all agents of a team, and gives its user proxies a way to ask.

    Gives the names of agents whose tools it cannot reach.
    """
    left: list[str] = []
    members: Sequence[Any] = getattr(agent, "_participants", ())
    for member in members:
        left += bracket(member)
    if members or getattr(agent, _BRACKETED, False):
        return left
    if isinstance(agent, UserProxyAgent):
        _people.seat(agent)
    benches = getattr(agent, "_workbench", None)
    if benches is None:
        return [agent.name] if type(agent).__module__.partition(".")[0] != "autogen_agentchat" else []
    for bench in benches:
        if not isinstance(bench, EngineWorkbench) and not getattr(bench, _BRACKETED, False):
            _wrap(bench)
    return left


def _wrap(bench: Any) -> None:
    call = bench.call_tool
    stream: Any = getattr(bench, "call_tool_stream", None)

    async def call_tool(
        name: str, arguments: Mapping[str, Any] | None = None, cancellation_token: Any = None, call_id: str | None = None
    ) -> ToolResult:
        if _runtime.in_task() is None:
            return await call(name, arguments, cancellation_token, call_id)
        made: list[ToolResult] = []

        async def body() -> str:
            made.append(await call(name, arguments, cancellation_token, call_id))
            return _said(made[0])

        _, said, _ = await recorded(name, arguments or {}, body, call_id or "")
        return made[0] if made else _result(name, said.content, said.is_error)

    async def call_tool_stream(
        name: str, arguments: Mapping[str, Any] | None = None, cancellation_token: Any = None, call_id: str | None = None
    ) -> AsyncGenerator[Any, None]:
        made: list[Any] = []

        async def body() -> str:
            made.extend([item async for item in stream(name, arguments, cancellation_token, call_id)])
            return _said(made[-1])

        if _runtime.in_task() is None:
            await body()
        else:
            _, said, _ = await recorded(name, arguments or {}, body, call_id or "")
            if not made:
                made.append(_result(name, said.content, said.is_error))
        for item in made:
            yield item

    bench.call_tool = call_tool
    if stream is not None:
        bench.call_tool_stream = call_tool_stream
    setattr(bench, _BRACKETED, True)


def _said(result: ToolResult) -> str:
    text = result.to_text()
    if result.is_error:
        raise ToolError(text)
    return text


def _result(name: str, content: str, is_error: bool) -> ToolResult:
    return ToolResult(name=name, result=[TextResultContent(content=content)], is_error=is_error)


def _parameters(tool: WorkerTool) -> Any:
    return {"type": "object", "properties": {}, "required": [], **tool.parameters}
