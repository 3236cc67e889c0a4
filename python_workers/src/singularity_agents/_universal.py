"""`UniversalAgent`: an agent as a class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._task import Task
    from .worker._engine import Engine


@dataclass(frozen=True)
class AgentCapabilities:
    """What an agent can do."""

    #: Types of task it is made for; empty: all.
    task_types: tuple[str, ...] = ()
    #: Names of its tools.
    tools: tuple[str, ...] = ()
    #: It gives text as it comes.
    streaming: bool = False
    #: It may stop to ask a person.
    interrupts: bool = False
    #: It can answer by a JSON schema.
    structured_output: bool = False
    #: Tasks at once in one process.
    max_parallel_tasks: int = 1
    #: Tokens of context that it can use; 0: not known.
    context_tokens: int = 0


class UniversalAgent(ABC):
    """Base class of agents that are objects: one per worker, used for task after task.

    >>> class Summarise(UniversalAgent):
    ...     async def execute(self, task):
    ...         return await self.engine.chat(f"Summarise: {task.description}")
    """

    _engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine; there inside a worker."""
        if self._engine is None:
            raise RuntimeError("the engine is there inside a worker only; outside use singularity_agents.AsyncClient")
        return self._engine

    def attach(self, engine: Engine) -> None:
        """Gives the agent its engine; the worker does."""
        self._engine = engine

    @abstractmethod
    async def execute(self, task: Task) -> Any:
        """Does a task: gives text, or JSON-like data."""

    def capabilities(self) -> AgentCapabilities:
        """What the agent can do."""
        return AgentCapabilities()

    async def execute_native(self, task: str) -> str:
        """Has a task done by the engine's own agent."""
        return await self._elsewhere(task, framework="native")

    async def execute_with_framework(self, task: str, framework: str) -> str:
        """Has a task done by a framework."""
        return await self._elsewhere(task, framework=framework)

    async def _elsewhere(self, task: str, **how: Any) -> str:
        if self._engine is not None:
            return await self._engine.delegate(task, **how)
        from ._async_client import AsyncClient

        async with AsyncClient() as client:
            return (await client.execute(task, **how)).output

    async def access_memory(self, op: str, **arguments: Any) -> str:
        """Reads or writes the engine's memory."""
        return await self.engine.memory(op, **arguments)

    async def select_provider(self, **requirements: Any) -> str:
        """Which provider and model the engine would choose, without spending."""
        return await self.engine.select_provider(**requirements)
