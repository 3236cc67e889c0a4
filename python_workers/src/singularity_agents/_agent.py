"""`@agent`: a function that does tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, overload

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: Agents by name, as their modules were imported.
REGISTERED: dict[str, AgentFunction[..., Any]] = {}


class AgentFunction(Generic[_P, _R]):
    """A function that takes a task and, if it wants, the engine. Called like the function."""

    def __init__(self, function: Callable[_P, _R], name: str, description: str) -> None:
        self.function = function
        self.name = name
        self.description = description
        self.__name__ = name
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return self.function(*args, **kwargs)


@overload
def agent(name: Callable[_P, _R], /) -> AgentFunction[_P, _R]: ...


@overload
def agent(
    name: str | None = None, /, *, description: str | None = None
) -> Callable[[Callable[_P, _R]], AgentFunction[_P, _R]]: ...


def agent(name: Any = None, /, *, description: str | None = None) -> Any:
    """Makes a function an agent.

    The function takes the task, and as second parameter the engine. It is async, sync (then it runs in a thread and its
    engine waits), or a generator whose pieces are the answer's text as it comes. It gives text, or JSON-like data.

    >>> @agent("shout")
    ... async def shout(task, engine):
    ...     return (await engine.chat(task.description)).upper()
    """

    def wrap(function: Callable[..., Any]) -> AgentFunction[..., Any]:
        text = description if description is not None else inspect.getdoc(function) or ""
        made = AgentFunction(function, name if isinstance(name, str) else function.__name__, text)
        REGISTERED[made.name] = made
        return made

    return wrap(name) if callable(name) else wrap
