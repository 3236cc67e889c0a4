"""Tools as all adapters see them: name, schema, and a call that is recorded, whether the engine runs it or this worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .._tool import Tool, content_of
from .._tool import tool as as_tool
from ..worker import _runtime
from ..worker._inputs import InputNeeded
from ..worker._wire import arguments_text, common, from_struct, worker
from . import _chat, _project
from ._base import Setup
from ._engine_tools import ENGINE_TOOLS


class Said(NamedTuple):
    """What a tool gives the model."""

    content: str
    is_error: bool


class WorkerTool:
    """One tool, for conversion into a framework's own type."""

    __slots__ = ("_own", "definition", "parameters")

    def __init__(self, definition: common.ToolDefinition, own: Tool[..., Any] | None = None) -> None:
        self.definition = definition
        #: JSON schema of the arguments.
        self.parameters = from_struct(definition.parameters) or {"type": "object", "properties": {}}
        self._own = own

    @property
    def name(self) -> str:
        """Name."""
        return self.definition.name

    @property
    def description(self) -> str:
        """What the model reads."""
        return self.definition.description or self.definition.name

    async def call(self, arguments: Mapping[str, Any], call_id: str = "") -> Said:
        """Runs it; what the function raised is text for the model."""
        try:
            if self._own is not None:
                return Said(*await self._own.acall(arguments, call_id))
            return Said(*await _runtime.engine().tool_raw(self.name, arguments_text(dict(arguments)), call_id))
        except InputNeeded as needed:
            _chat.wait_for_answer(needed)
            raise

    def call_blocking(self, arguments: Mapping[str, Any], call_id: str = "") -> Said:
        """The same in a thread of the task."""
        return _runtime.engine().wait(self.call(arguments, call_id))


def engine_tools(execute: worker.Execute) -> list[WorkerTool]:
    """The tools of a task that the engine runs."""
    return [WorkerTool(definition) for definition in execute.engine_tools]


def own_tools(setup: Setup) -> list[WorkerTool]:
    """The user's functions that the configuration names as `module:function`, and the engine's own tools by their names.

    Raises LookupError where one is missing.
    """
    named = [_project.resolve(name) for name in setup.tools if ":" in name]
    ours = [ENGINE_TOOLS[name]() for name in setup.tools if name in ENGINE_TOOLS]
    return [worker_tool(tool) for tool in (*named, *ours)]


def worker_tool(found: Any) -> WorkerTool:
    """A `@tool`, or a plain function as one."""
    made: Tool[..., Any] = found if isinstance(found, Tool) else as_tool(found)
    return WorkerTool(made.definition(), made)


def definitions(tools: Sequence[WorkerTool]) -> list[common.ToolDefinition]:
    """What READY says of tools of this worker."""
    return [tool.definition for tool in tools]


async def recorded(
    name: str, arguments: Mapping[str, Any], body: Callable[[], Awaitable[Any]], call_id: str = "", replay: str = "once"
) -> tuple[Any, Said, BaseException | None]:
    """Runs a framework's own tool between TOOL_BEGIN and TOOL_END: its value (None: it did not run now), its text, its error."""
    value: list[Any] = []

    async def run() -> str:
        value.append(await body())
        return content_of(value[0])

    try:
        content, is_error, error = await _runtime.engine().run_tool(name, arguments_text(dict(arguments)), replay, run, call_id)
    except InputNeeded as needed:
        _chat.wait_for_answer(needed)
        raise
    return (value[0] if value else None), Said(content, is_error), error


def recorded_blocking(
    name: str, arguments: Mapping[str, Any], body: Callable[[], Any], call_id: str = "", replay: str = "once"
) -> tuple[Any, Said, BaseException | None]:
    """The same for synchronous tools."""
    value: list[Any] = []

    def run() -> str:
        value.append(body())
        return content_of(value[0])

    engine = _runtime.engine()
    try:
        content, is_error, error = engine.run_tool_blocking(name, arguments_text(dict(arguments)), replay, run, call_id)
    except InputNeeded as needed:
        _chat.wait_for_answer(needed)
        raise
    return (value[0] if value else None), Said(content, is_error), error
