"""What the adapters of agent frameworks share: an agent of the engine's making, or what the user's entry point names, and how it ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

from ..worker._engine import Engine
from ..worker._wire import tasks, worker
from . import _chat, _pins, _project, _prompt, _tooling
from ._base import Health, Loaded, Setup, result_of
from ._entry import Entry

_Agent = TypeVar("_Agent")

#: Agents kept, by what they are made of: building one costs more than running it.
_MAX_KEPT: Final = 64


class Native(NamedTuple):
    """What came back, and whether from an agent of the engine's making; None where a limit ended the run."""

    value: Any
    is_default: bool


class AgentAdapter(ABC, Generic[_Agent]):
    """The steps that are the same in every framework of agents. `_Agent` is the kind that the engine makes."""

    #: Name of the framework and of its environment.
    name: ClassVar[str]
    #: Package whose version is the framework's.
    package: ClassVar[str]
    #: Kinds of objects that run.
    ready: ClassVar[tuple[type, ...]]
    #: Those of them that keep state during a run: tasks side by side need one each.
    stateful: ClassVar[tuple[type, ...]] = ()

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._entry: Entry | None = None
        self._own: list[_tooling.WorkerTool] = []
        self._kept: dict[tuple[Any, ...], _Agent] = {}

    # --- what a framework says ------------------------------------------------------------------------------------

    @abstractmethod
    def model(self) -> Any:
        """The engine's model as the framework's own."""

    @abstractmethod
    def offered(self, tools: Sequence[_tooling.WorkerTool]) -> Any:
        """What an entry point's parameter `tools` is given."""

    @abstractmethod
    def bare(self) -> object:
        """An agent of nothing but a name."""

    def seen(self, entry: Entry) -> list[str]:
        """Looks at the entry point when the worker starts; names tools that cannot be recorded. Raises LookupError if it is of no use."""
        entry.is_factory(*self.ready)
        return []

    # --- the steps ------------------------------------------------------------------------------------------------

    def versions(self) -> dict[str, str]:
        """Versions of the packages that matter."""
        return _pins.versions(self.name)

    async def initialize(self, setup: Setup, engine: Engine) -> Loaded:
        """Imports what the user's entry point names, and tools."""
        self._engine = engine
        _project.add_folder(setup.project)
        self._own = _tooling.own_tools(setup)
        unjournaled: list[str] = []
        if setup.entrypoint:
            tools = self.offered(self._own)
            self._entry = Entry(setup, engine, self.model, lambda: tools)
            self._entry.refuse_shared(*self.stateful)
            unjournaled = self.seen(self._entry)
        return Loaded(tools=_tooling.definitions(self._own), unjournaled=unjournaled)

    async def health_check(self) -> Health:
        """An agent can be built; no model is called."""
        self.bare()
        return Health(True, "", _pins.PINS[self.name][self.package])

    def tools_of(self, execute: worker.Execute) -> list[_tooling.WorkerTool]:
        """The tools of an agent of the engine's making."""
        return [*_tooling.engine_tools(execute), *self._own]

    def kept(self, execute: worker.Execute, build: Callable[[str, int], _Agent]) -> _Agent:
        """The agent of the engine's making that fits, or one built of its system text and the model calls that it may make."""
        told, limit = _prompt.system_text(execute.agent, execute.task), _prompt.max_steps(execute)
        key = (told, limit, *(tool.SerializeToString(deterministic=True) for tool in execute.engine_tools))
        agent = self._kept.get(key)
        if agent is None:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            agent = self._kept[key] = build(told, limit)
        return agent

    async def runs(self, agent: _Agent | None) -> Any:
        """What runs: an agent of the engine's making, or what the entry point names or makes."""
        if agent is not None:
            return agent
        assert self._entry is not None
        made = await self._entry.make(*self.ready)
        if isinstance(made, self.stateful):
            self._entry.refuse_same(made)
        return made

    async def to_its_end(self, run: Awaitable[Any], is_default: bool) -> Native:
        """Awaits the run of an agent, which a limit may end."""
        try:
            return Native(await _chat.settled(run), is_default)
        except _chat.StepLimit:
            return Native(None, True)


def of_default(text: str | None) -> tasks.AgentResult:
    """The result of an agent of the engine's making; None where a limit ended its run."""
    if text is None:
        return result_of(_prompt.outcome(_chat.last_answer(), limit_reached="max_steps"))
    return result_of(_prompt.outcome(text))
