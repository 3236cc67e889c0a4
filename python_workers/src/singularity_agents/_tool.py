"""`@tool`: a Python function that a model may call, recorded by the engine so that a retried task does not act twice."""

from __future__ import annotations

import asyncio
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, ParamSpec, TypeVar, overload

_P = ParamSpec("_P")
_R = TypeVar("_R")

_REPLAYS: Final = ("once", "journaled", "safe")
_JSON_TYPES: Final[Mapping[Any, str]] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


class Tool(Generic[_P, _R]):
    """A function with what the engine needs to know of it. Called like the function."""

    def __init__(self, function: Callable[_P, _R], name: str, description: str, replay: str) -> None:
        self.function = function
        self.name = name
        self.description = description
        #: once, journaled or safe.
        self.replay = replay
        #: JSON schema of the arguments.
        self.parameters = _schema(function)
        self.is_async = inspect.iscoroutinefunction(function)
        self._signature = inspect.signature(function)
        self.__name__ = name
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Runs the function; inside a task between TOOL_BEGIN and TOOL_END, outside of one just so."""
        from .worker import _runtime

        engine = _runtime.in_task()
        if engine is None:
            return self.function(*args, **kwargs)
        arguments = self._canonical(args, kwargs)
        if self.is_async:
            return typing.cast(_R, self._run(engine, arguments, args, kwargs))
        result: list[_R] = []

        def body() -> str:
            result.append(self.function(*args, **kwargs))
            return content_of(result[0])

        content, is_error, error = engine.run_tool_blocking(self.name, arguments, self.replay, body)
        return result[0] if result else typing.cast(_R, _recorded(self.name, content, is_error, error))

    async def _run(self, engine: Any, arguments: str, args: Any, kwargs: Any) -> Any:
        result: list[Any] = []

        async def body() -> str:
            result.append(await typing.cast(Any, self.function(*args, **kwargs)))
            return content_of(result[0])

        content, is_error, error = await engine.run_tool(self.name, arguments, self.replay, body)
        return result[0] if result else _recorded(self.name, content, is_error, error)

    def _canonical(self, args: Any, kwargs: Any) -> str:
        from .worker._wire import arguments_text

        bound = self._signature.bind(*args, **kwargs)
        return arguments_text(dict(bound.arguments))

    async def acall(self, arguments: Mapping[str, Any], tool_call_id: str = "") -> tuple[str, bool]:
        """Runs the tool for a model: gives its text and whether it failed, and never raises what the function raised."""
        from .worker import _runtime
        from .worker._wire import arguments_text

        async def body() -> str:
            if self.is_async:
                return content_of(await typing.cast(Any, self.function)(**arguments))
            return content_of(await asyncio.to_thread(typing.cast(Any, self.function), **arguments))

        content, is_error, _ = await _runtime.engine().run_tool(
            self.name, arguments_text(dict(arguments)), self.replay, body, tool_call_id
        )
        return content, is_error

    def definition(self) -> Any:
        """The tool as the engine's `ToolDefinition`."""
        from .worker._engine import REPLAY
        from .worker._wire import common, to_struct

        return common.ToolDefinition(
            name=self.name,
            description=self.description,
            parameters=to_struct(self.parameters),
            kind=common.TOOL_KIND_PYTHON,
            replay=REPLAY[self.replay],
        )


@overload
def tool(function: Callable[_P, _R], /) -> Tool[_P, _R]: ...


@overload
def tool(
    *, name: str | None = None, description: str | None = None, replay: str = "once"
) -> Callable[[Callable[_P, _R]], Tool[_P, _R]]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    replay: str = "once",
) -> Any:
    """Makes a function a tool; its hints and docstring become what the model reads.

    `replay` says what happens when the task runs again: "once" (the default) reuses a recorded result and asks a person when
    it is not known whether the tool acted, "journaled" reuses or runs again, "safe" may always run again and costs no record.
    """
    if replay not in _REPLAYS:
        raise ValueError(f'replay is "{replay}", must be one of {", ".join(_REPLAYS)}')

    def wrap(f: Callable[..., Any]) -> Tool[..., Any]:
        text = description if description is not None else inspect.getdoc(f) or ""
        return Tool(f, name or f.__name__, text, replay)

    return wrap if function is None else wrap(function)


def _recorded(name: str, content: str, is_error: bool, error: BaseException | None) -> Any:
    if error is not None:
        raise error
    if is_error:
        from .worker._engine import ToolError

        raise ToolError(content, reason="TOOL_FAILED", metadata={"tool": name})
    try:
        return json.loads(content)
    except ValueError:
        return content


def content_of(value: Any) -> str:
    """What a tool gives the model: text as it is, other values as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function)
    except Exception:
        hints = {}
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        properties[name] = _type_schema(hints.get(name, Any))
        if parameter.default is parameter.empty:
            required.append(name)
        elif parameter.default is None or isinstance(parameter.default, (str, int, float, bool)):
            properties[name]["default"] = parameter.default
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _type_schema(hint: Any) -> dict[str, Any]:
    if hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        texts = [note for note in args[1:] if isinstance(note, str)]
        return {**_type_schema(args[0]), **({"description": texts[0]} if texts else {})}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type_schema(arg) for arg in args]}
    if origin in (list, set, tuple, frozenset) or hint in (list, tuple, set):
        return {"type": "array", "items": _type_schema(args[0]) if args else {}}
    if origin is dict or hint is dict:
        return {"type": "object"}
    return {}
