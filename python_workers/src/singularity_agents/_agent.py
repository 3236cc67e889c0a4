"""`@agent`: a function that does tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._client import Client, TaskHandle
    from ._models import AgentResult
    from ._spec import TaskOptions
    from .testing import ScriptedModel

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

    def local(
        self, task: str, /, *, scripted: ScriptedModel | None = None, client: Client | None = None, **options: Unpack[TaskOptions]
    ) -> Any:
        """Runs the function here, in this process, and gives what it gives: for a debugger and for quick tests.

        Its engine's model calls go to `scripted`, or to the node of `client` (default: the one of the environment). Nothing is
        recorded, limited or retried. Raises what the function raises; WrongState inside a running event loop.
        """
        from ._local import run

        return run(self, task, scripted, client, options)

    def submit(self, task: str, /, *, client: Client | None = None, **options: Unpack[TaskOptions]) -> TaskHandle:
        """Submits a task to the agent of this name on a node; the handle watches, waits and cancels.

        The node must know it (`[agents.NAME]` in its configuration): code is never sent. Raises NotFound with the lines to add.
        """
        from ._remote import submit

        return submit(self, task, client, options)

    def map(
        self,
        tasks: Iterable[str],
        /,
        *,
        client: Client | None = None,
        concurrency: int = 8,
        return_exceptions: bool = False,
        **options: Unpack[TaskOptions],
    ) -> list[AgentResult | BaseException]:
        """Does many tasks on a node, at most `concurrency` at a time; results in the order of the tasks.

        The first error ends it and is raised, tasks under way are cancelled; with `return_exceptions` errors stand in the list.
        """
        from ._remote import submit_all

        return submit_all(self, tasks, client, concurrency, return_exceptions, options)


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
