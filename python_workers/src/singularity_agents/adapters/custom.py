"""Plain Python agents: `@agent` functions, `UniversalAgent` classes, and objects with `run(description, history)`."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

from .. import __version__
from .._agent import REGISTERED, AgentFunction
from .._task import Task
from .._tool import Tool
from .._universal import UniversalAgent
from ..worker._engine import Engine, SyncEngine
from ..worker._wire import tasks, worker
from . import _project
from ._base import Adapter, Health, Loaded, Setup, result_of

#: A task in, an outcome out.
Runner = Callable[[Task], Awaitable[Any]]


class CustomAdapter:
    """Runs the user's function or object: one for all tasks, also for those that run side by side."""

    name = "custom"

    def __init__(self) -> None:
        self._run: Runner | None = None

    def versions(self) -> dict[str, str]:
        """Versions of the packages that matter."""
        return {"singularity-agents": __version__}

    async def initialize(self, setup: Setup, engine: Engine) -> Loaded:
        """Imports the user's code."""
        _project.add_folder(setup.project)
        wanted = setup.framework.partition(":")[2] or setup.agent.framework.partition(":")[2] or setup.agent.id
        if not setup.entrypoint:
            raise LookupError(
                f'agent "{setup.agent.id}" has no code: set project and entrypoint = "module:object" in [agents.{setup.agent.id}]'
            )
        found = _project.resolve(setup.entrypoint)
        if isinstance(found, ModuleType):
            found = _named(wanted, setup.entrypoint)
        self._run = _runner(await _built(found, engine), engine)
        module = sys.modules[setup.entrypoint.partition(":")[0]]
        own = [value.definition() for value in vars(module).values() if isinstance(value, Tool)]
        return Loaded(tools=own)

    async def health_check(self) -> Health:
        """There is no framework: the loop that answers is the health."""
        return Health(self._run is not None, "" if self._run else "no agent is loaded", __version__)

    def convert_task(self, execute: worker.Execute) -> Task:
        """The task as the user's code sees it."""
        return Task(execute)

    async def execute_framework_task(self, handle: Task) -> Any:
        """Runs the user's code."""
        if self._run is None:
            raise RuntimeError("no agent is loaded")
        return await self._run(handle)

    def convert_result(self, native: Any) -> tasks.AgentResult:
        """What the user's code gave."""
        return result_of("" if native is None else native)


def load() -> Adapter:
    """The adapter."""
    return CustomAdapter()


def _named(name: str, module: str) -> AgentFunction[..., Any]:
    if name in REGISTERED:
        return REGISTERED[name]
    if len(REGISTERED) == 1:
        return next(iter(REGISTERED.values()))
    known = ", ".join(sorted(REGISTERED)) or "none"
    raise LookupError(f'{module} has no agent named "{name}"; it has: {known}. Name one: entrypoint = "{module}:function"')


async def _built(found: Any, engine: Engine) -> Any:
    """An agent of what the entry point names: itself, or what it makes."""
    if isinstance(found, (AgentFunction, UniversalAgent)) or hasattr(found, "run"):
        return found() if inspect.isclass(found) else found
    if inspect.isclass(found):
        return found()
    if not callable(found):
        raise LookupError(f"the entry point is a {type(found).__name__}; it must be an agent, a class or a function")
    parameters = list(inspect.signature(found).parameters)
    if parameters[:1] == ["task"]:
        return AgentFunction(found, found.__name__, "")
    # A factory: it takes the engine, or nothing.
    made = found(engine) if parameters else found()
    return await made if inspect.isawaitable(made) else made


def _runner(agent: Any, engine: Engine) -> Runner:
    if isinstance(agent, UniversalAgent):
        agent.attach(engine)
        return agent.execute
    if isinstance(agent, AgentFunction):
        return function_runner(agent.function, engine)
    if hasattr(agent, "run"):
        return _object_runner(agent.run)
    raise LookupError(f"the entry point gave a {type(agent).__name__}, which is no agent: it has no run(description, history)")


def function_runner(function: Callable[..., Any], engine: Engine) -> Runner:
    """How a function of any kind (async, sync, generator) is run with an engine."""
    takes_engine = len(inspect.signature(function).parameters) > 1
    if inspect.iscoroutinefunction(function):
        return (lambda task: function(task, engine)) if takes_engine else function
    if inspect.isasyncgenfunction(function):

        async def stream(task: Task) -> str:
            pieces: list[str] = []
            async for piece in function(task, engine) if takes_engine else function(task):
                pieces.append(piece)
                engine.text(piece)
                await engine.drain()
            return "".join(pieces)

        return stream
    waiting = SyncEngine(engine)
    is_generator = inspect.isgeneratorfunction(function)

    def blocking(task: Task) -> Any:
        given = function(task, waiting) if takes_engine else function(task)
        if not is_generator:
            return given
        pieces: list[str] = []
        for piece in given:
            pieces.append(piece)
            engine.text(piece)
        return "".join(pieces)

    return lambda task: _in_thread(blocking, task)


def _object_runner(run: Callable[..., Any]) -> Runner:
    takes_history = len(inspect.signature(run).parameters) > 1

    def arguments(task: Task) -> tuple[Any, ...]:
        return (task.description, task.history) if takes_history else (task.description,)

    if inspect.iscoroutinefunction(run):
        return lambda task: run(*arguments(task))
    return lambda task: _in_thread(run, *arguments(task))


async def _in_thread(function: Callable[..., Any], *args: Any) -> Any:
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(None, lambda: context.run(function, *args))
