"""Entry points: a ready object, or a factory whose parameters are known by name or annotation and given the engine's own."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from ..worker._engine import Engine
from ..worker._memory import Memory
from . import _project
from ._base import Setup

#: Names of parameters that mean the framework's chat client.
MODEL_NAMES = ("model", "llm", "client", "chat_client", "model_client", "service", "generator", "chat_generator")


class Entry:
    """What an entry point names."""

    def __init__(
        self,
        setup: Setup,
        engine: Engine,
        model: Callable[[], Any],
        tools: Callable[[], Any],
        found: Any = None,
        more: Mapping[str, Callable[[], Any]] | None = None,
    ) -> None:
        self.reference = setup.entrypoint
        self._concurrency = setup.concurrency
        #: What the factory has made and somebody still holds.
        self._made: WeakValueDictionary[int, Any] = WeakValueDictionary()
        #: What it names; resolved here unless the adapter has.
        self.found = _project.resolve(setup.entrypoint) if found is None else found
        self._given: Mapping[str, Callable[[], Any]] = {
            **dict.fromkeys(MODEL_NAMES, model), "tools": tools, "engine": lambda: engine, "config": lambda: dict(setup.config),
            "memory": lambda: Memory(engine), **(more or {}),
        }  # fmt: skip

    def is_factory(self, *ready: type) -> bool:
        """Whether it makes the agent, and is none itself. Raises LookupError if it is neither."""
        if isinstance(self.found, ready):
            return False
        if callable(self.found):
            return True
        raise LookupError(self._wrong(self.found, ready))

    def refuse_shared(self, *stateful: type) -> None:
        """Raises LookupError for a ready object of these kinds where several tasks run side by side: they would run in its one state."""
        if self._concurrency > 1 and isinstance(self.found, stateful):
            raise LookupError(self._one(f'"{self.reference}" is one object'))

    def refuse_same(self, made: Any) -> None:
        """Raises LookupError for an object that the factory has made for another task, where several run side by side."""
        if self._concurrency > 1:
            if self._made.get(id(made)) is made:
                raise LookupError(self._one(f'"{self.reference}" gives the same object again'))
            self._made[id(made)] = made

    def _one(self, what: str) -> str:
        return (
            f"{what}, and concurrency = {self._concurrency} runs {self._concurrency} tasks side by side: "
            "name a function that makes one for each task"
        )

    async def make(self, *ready: type) -> Any:
        """The ready object, or what the factory makes now. Raises LookupError for anything else, or an unknown parameter."""
        if not self.is_factory(*ready):
            return self.found
        arguments: dict[str, Any] = {}
        hints = _hints(self.found)
        for number, (name, parameter) in enumerate(inspect.signature(self.found).parameters.items()):
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if name in self._given:
                arguments[name] = self._given[name]()
            elif (meant := self._by_type(hints.get(name))) is not None:
                arguments[name] = meant
            elif parameter.default is parameter.empty:
                if number > 0 or len(inspect.signature(self.found).parameters) > 1:
                    known = ", ".join(sorted(self._given))
                    raise LookupError(f'"{self.reference}": parameter "{name}" is not known; known are: {known}')
                arguments[name] = self._given["engine"]()
        made = self.found(**arguments)
        made = await made if inspect.isawaitable(made) else made
        if not isinstance(made, ready):
            raise LookupError(self._wrong(made, ready))
        return made

    def _by_type(self, hint: Any) -> Any:
        """The engine, its model or its memory, where an annotation is the class of one; None otherwise."""
        if not inspect.isclass(hint) or hint is object:
            return None
        return next(
            (
                made
                for key in ("engine", "model", "memory", "checkpointer", "store")
                if key in self._given and _is(made := self._given[key](), hint)
            ),
            None,
        )

    def _wrong(self, found: Any, ready: tuple[type, ...]) -> str:
        names = ", ".join(sorted(kind.__name__ for kind in ready))
        return f'"{self.reference}" is or makes a {type(found).__name__}; it must be one of {names}, or a function that makes one'


def _hints(function: Any) -> dict[str, Any]:
    """Annotations as objects; none where one cannot be read."""
    try:
        return typing.get_type_hints(function if inspect.isroutine(function) else function.__init__)
    except (NameError, TypeError, AttributeError):
        return {}


def _is(made: Any, hint: type) -> bool:
    try:
        return isinstance(made, hint)
    except TypeError:
        # A protocol that cannot be asked, for example.
        return False
