"""Tools: the engine's own as LangChain tools, and the bracket around every tool that runs in the worker.

`BaseTool.run` and `BaseTool.arun` are replaced on the class: that reaches `create_agent`, tool nodes in any subgraph, and direct
calls alike. Plain functions called in a node are not seen.
"""

from __future__ import annotations

import json
from typing import Any, Final

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.tools import Tool as SingleInputTool
from langgraph.errors import GraphBubbleUp
from pydantic import ValidationError

from ..._errors import SingularityError
from ..._tool import Tool, content_of
from ...worker import _runtime
from ...worker._wire import arguments_text, common, from_struct

#: Key of a tool's `metadata` that says what happens when a task runs again.
REPLAY: Final = "replay"

_arun = BaseTool.arun
_run = BaseTool.run
# Names that the model gives, by tool object: what LangGraph injects is not part of a call's identity.
_visible: dict[int, tuple[BaseTool, frozenset[str]]] = {}


class EngineTool(BaseTool):
    """A tool that the engine runs. Its arguments are checked there."""

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """One frame there, one back."""
        call_id = input.get("id") if isinstance(input, dict) and input.get("type") == "tool_call" else None
        arguments = input["args"] if call_id is not None else input
        content, failed = await _runtime.engine().tool_raw(self.name, arguments_text(arguments), call_id or "")
        if call_id is None:
            return content
        return ToolMessage(content, tool_call_id=call_id, name=self.name, status="error" if failed else "success")

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        content, _ = _runtime.engine().tool_raw_blocking(self.name, arguments_text(kwargs))
        return content

    async def _arun(self, *args: Any, **kwargs: Any) -> Any:
        content, _ = await _runtime.engine().tool_raw(self.name, arguments_text(kwargs))
        return content


def engine_tool(definition: common.ToolDefinition) -> BaseTool:
    """A tool of the engine as LangChain sees it."""
    return EngineTool(
        name=definition.name,
        description=definition.description,
        args_schema=from_struct(definition.parameters),
    )


def langchain_tool(tool: Any) -> BaseTool:
    """A LangChain tool of a `@tool`, a function, or a tool."""
    if isinstance(tool, BaseTool):
        return tool
    replay = "once"
    if isinstance(tool, Tool):
        name, description, function, replay = tool.name, tool.description, tool.function, tool.replay
        made = StructuredTool.from_function(
            func=None if tool.is_async else function,
            coroutine=function if tool.is_async else None,
            name=name,
            description=description or name,
        )
    else:
        made = StructuredTool.from_function(tool)
    made.metadata = {REPLAY: replay}
    return made


def install() -> None:
    """Brackets the tools of this process. Outside of tasks they run as always."""
    BaseTool.arun = _bracketed_async  # type: ignore[method-assign]
    BaseTool.run = _bracketed  # type: ignore[method-assign]
    for kind in (StructuredTool, SingleInputTool):
        kind.ainvoke = _on_the_loop(kind.ainvoke)  # type: ignore[method-assign]


def _on_the_loop(ainvoke: Any) -> Any:
    """A synchronous function's thread gets the function alone. LangChain would take the whole call there, and each word of the bracket
    would change threads on its way to the engine and back."""

    async def invoked(self: BaseTool, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        if _runtime.in_task() is None:
            return await ainvoke(self, input, config, **kwargs)
        return await BaseTool.ainvoke(self, input, config, **kwargs)

    return invoked


async def _bracketed_async(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
    engine = _runtime.in_task()
    if engine is None or isinstance(self, EngineTool):
        return await _arun(self, tool_input, *args, **kwargs)
    call_id = kwargs.get("tool_call_id") or ""
    result: list[Any] = []

    async def body() -> str:
        result.append(await _arun(self, tool_input, *args, **kwargs))
        return _content(result[0])

    given = await engine.run_tool(self.name, _arguments(self, tool_input), _replay(self), body, call_id, _passes)
    return _ended(self, result, call_id, *given)


def _bracketed(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
    engine = _runtime.in_task()
    if engine is None or isinstance(self, EngineTool):
        return _run(self, tool_input, *args, **kwargs)
    call_id = kwargs.get("tool_call_id") or ""
    result: list[Any] = []

    def body() -> str:
        result.append(_run(self, tool_input, *args, **kwargs))
        return _content(result[0])

    given = engine.run_tool_blocking(self.name, _arguments(self, tool_input), _replay(self), body, call_id, _passes)
    return _ended(self, result, call_id, *given)


def _passes(error: BaseException) -> bool:
    """Whether an error is no result of the tool: an interrupt runs again by design, the engine's refusals end the task."""
    return isinstance(error, GraphBubbleUp) or (isinstance(error, SingularityError) and error.reason == "TASK_CANCELLED")


def _ended(tool: BaseTool, result: list[Any], call_id: str, content: str, is_error: bool, error: BaseException | None) -> Any:
    if isinstance(error, ValidationError):
        # LangGraph words wrong arguments for the model itself.
        raise error
    if error is not None and not call_id:
        raise error
    if result:
        return result[0]
    if call_id:
        return ToolMessage(content, tool_call_id=call_id, name=tool.name, status="error" if is_error else "success")
    try:
        return json.loads(content)
    except ValueError:
        return content


def _replay(tool: BaseTool) -> str:
    replay = (tool.metadata or {}).get(REPLAY, "once")
    return replay if replay in ("once", "journaled", "safe") else "once"


def _content(result: Any) -> str:
    return str(result.text) if isinstance(result, ToolMessage) else content_of(result)


def _arguments(tool: BaseTool, tool_input: Any) -> str:
    if not isinstance(tool_input, dict):
        return arguments_text({"input": tool_input})
    known = _visible.get(id(tool))
    if known is None or known[0] is not tool:
        known = (tool, frozenset(_names(tool)))
        _visible[id(tool)] = known
    return arguments_text({name: value for name, value in tool_input.items() if name in known[1]})


def _names(tool: BaseTool) -> list[str]:
    schema = tool.tool_call_schema
    if isinstance(schema, dict):
        return list(schema.get("properties", {}))
    fields: dict[str, Any] = getattr(schema, "model_fields", None) or getattr(schema, "__fields__", {})
    return list(fields)
