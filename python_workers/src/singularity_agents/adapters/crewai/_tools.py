"""Tools: the engine's and the user's as CrewAI tools, and the bracket around tools that a crew brings along."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from crewai.tools import BaseTool
from crewai.utilities.pydantic_schema_utils import create_model_from_schema
from pydantic import BaseModel, PrivateAttr

from ..._errors import SingularityError
from ...worker import _runtime
from ...worker._engine import ToolError
from .._tooling import WorkerTool, recorded_blocking, worker_tool

#: Models of arguments by schema: making one takes milliseconds.
_models: dict[str, type[BaseModel]] = {}
_MAX_MODELS = 500
#: Marks a tool that has its bracket.
_BRACKETED = "_singularity_bracketed"


class EngineTool(BaseTool):
    """A tool that the engine runs, or records."""

    _tool: WorkerTool = PrivateAttr()

    def _run(self, **arguments: Any) -> str:
        said = self._tool.call_blocking(_given(arguments))
        if said.is_error:
            raise ToolError(said.content, reason="TOOL_FAILED", metadata={"tool": self.name})
        return said.content


def crewai_tool(tool: Any) -> BaseTool:
    """A CrewAI tool of a `@tool`, a function, or a tool."""
    return tool if isinstance(tool, BaseTool) else converted(worker_tool(tool))


def converted(tool: WorkerTool) -> BaseTool:
    """A tool of the engine or the user as CrewAI sees it."""
    made = EngineTool(
        name=tool.name, description=tool.description, args_schema=_model(tool), cache_function=_never_cached
    )  # fmt: skip
    made._tool = tool
    return made


def bracket(tools: Iterable[Any]) -> list[str]:
    """Records the runs of a crew's own tools; gives the names of those that it cannot."""
    left: list[str] = []
    for tool in tools:
        if isinstance(tool, EngineTool):
            continue
        if not isinstance(tool, BaseTool):
            left.append(str(getattr(tool, "name", type(tool).__name__)))
        elif _BRACKETED not in tool.__dict__:
            function = getattr(tool, "func", None)
            if callable(function):
                object.__setattr__(tool, "func", _bracketed(tool.name, function))
            else:
                tool.__dict__["_run"] = _bracketed(tool.name, tool._run)
            tool.__dict__[_BRACKETED] = True
    return left


def _bracketed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if _runtime.in_task() is None:
            return function(*args, **kwargs)
        arguments = {**kwargs, **({"args": list(args)} if args else {})}
        value, said, error = recorded_blocking(name, arguments, lambda: function(*args, **kwargs))
        if error is not None:
            raise error
        if said.is_error:
            raise SingularityError(said.content, reason="TOOL_FAILED", metadata={"tool": name})
        return said.content if value is None else value

    run.__name__ = getattr(function, "__name__", name)
    return run


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the model gave: optional arguments that it left out come as None."""
    return {key: value for key, value in arguments.items() if value is not None}


def _model(tool: WorkerTool) -> type[BaseModel]:
    key = tool.definition.SerializeToString(deterministic=True).hex()
    if key not in _models:
        if len(_models) >= _MAX_MODELS:
            _models.clear()
        _models[key] = create_model_from_schema(tool.parameters, model_name=f"{tool.name}_arguments")
    return _models[key]


def _never_cached(*_: Any) -> bool:
    return False
