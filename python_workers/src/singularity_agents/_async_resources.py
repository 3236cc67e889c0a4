"""Groups of calls of `AsyncClient`: agents, frameworks, providers, memory, schedules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from typing_extensions import Unpack

from . import _calls as calls
from . import _models as m
from ._durations import DurationLike
from ._spec import HistoryItem, TaskOptions, TaskSpec

T = TypeVar("T")


class AsyncRunner(Protocol):
    """What a group needs of its client."""

    async def run(self, call: calls.Call[T]) -> T:
        """Carries a call out."""

    def stream(self, call: calls.Call[T]) -> AsyncIterator[T]:
        """Carries a streaming call out."""

    async def pages(self, page: Callable[[int, str], calls.Call[calls.Page[T]]], limit: int) -> list[T]:
        """Follows the pages of a list."""


class AsyncAgents:
    """Configured and created agents."""

    def __init__(self, runner: AsyncRunner) -> None:
        self._runner = runner

    async def create(self, agent_type: str, *, agent_id: str = "", request_id: str | None = None, **fields: Any) -> m.Agent:
        """Makes an agent of a type; `fields` are those of `Agent` (framework, instructions, model, tools, ...)."""
        return await self._runner.run(calls.create_agent({"agent_type": agent_type, **fields}, agent_id, request_id))

    async def get(self, agent_id: str) -> m.Agent:
        """One agent."""
        return await self._runner.run(calls.get_agent(agent_id))

    async def list(self, *, limit: int = 50) -> list[m.Agent]:
        """Agents of the tenant."""
        return await self._runner.pages(calls.list_agents, limit)

    async def update(self, agent_id: str, *, etag: str, **fields: Any) -> m.Agent:
        """Changes a created agent; `etag` must be current."""
        return await self._runner.run(calls.update_agent({"id": agent_id, "etag": etag, **fields}))

    async def delete(self, agent_id: str, *, etag: str = "") -> str:
        """Forgets a created agent."""
        return await self._runner.run(calls.delete_agent(agent_id, etag))

    async def types(self) -> Sequence[m.AgentType]:
        """Built-in and configured types."""
        return await self._runner.pages(calls.list_agent_types, calls.MAX_PAGE)


class AsyncFrameworks:
    """Frameworks and their workers."""

    def __init__(self, runner: AsyncRunner) -> None:
        self._runner = runner

    async def list(self) -> list[m.Framework]:
        """All frameworks with an adapter."""
        return await self._runner.pages(calls.list_frameworks, calls.MAX_PAGE)

    async def get(self, framework: str) -> m.Framework:
        """Health, versions, workers, and why it is unavailable."""
        return await self._runner.run(calls.get_framework(framework))

    async def restart(self, framework: str) -> m.Framework:
        """Ends the workers of a framework as they become idle."""
        return await self._runner.run(calls.restart_workers(framework))


class AsyncProviders:
    """Models behind one door."""

    def __init__(self, runner: AsyncRunner) -> None:
        self._runner = runner

    async def list(self) -> list[m.Provider]:
        """Configured providers."""
        return await self._runner.pages(calls.list_providers, calls.MAX_PAGE)

    async def get(self, provider: str) -> m.Provider:
        """Health, breaker, load."""
        return await self._runner.run(calls.get_provider(provider))

    async def models(self) -> Sequence[m.Model]:
        """Models and aliases."""
        return await self._runner.pages(calls.list_models, calls.MAX_PAGE)

    async def budgets(self, *, include_tasks: bool = False) -> Sequence[m.Budget]:
        """What the tenant may spend, and has spent."""
        return await self._runner.pages(calls.list_all_budgets if include_tasks else calls.list_budgets, calls.MAX_PAGE)

    async def spending(self) -> m.Spending:
        """What the tenant's requests have cost since the start of the node."""
        return await self._runner.run(calls.get_spending())

    async def select(self, **requirements: Unpack[TaskOptions]) -> m.ProviderChoice:
        """Which provider would serve, and why; nothing is called."""
        return await self._runner.run(calls.select_provider(requirements))

    async def chat(
        self,
        messages: str | Sequence[HistoryItem],
        *,
        model: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
        output_schema: Mapping[str, Any] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> m.ChatResult:
        """One model call outside of any task."""
        request = calls.chat_request(messages, model, tools, output_schema, temperature, max_tokens, seed)
        return await self._runner.run(calls.chat(request))

    def stream_chat(
        self,
        messages: str | Sequence[HistoryItem],
        *,
        model: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
        output_schema: Mapping[str, Any] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> AsyncIterator[m.ChatDelta]:
        """The same as it comes; the last piece holds the whole answer."""
        request = calls.chat_request(messages, model, tools, output_schema, temperature, max_tokens, seed)
        return self._runner.stream(calls.stream_chat(request))

    async def embed(self, input: Sequence[str], *, model: str = "", dimensions: int = 0) -> m.Embeddings:
        """Embeddings of texts."""
        return await self._runner.run(calls.embed(input, model, dimensions))


class AsyncMemory:
    """Memory of agents: values with versions, and conversations. Search answers CAPABILITY_PENDING until that part is there."""

    def __init__(self, runner: AsyncRunner) -> None:
        self._runner = runner

    async def put(
        self, namespace: str, key: str, value: Any, *, expected_version: int | None = None, ttl: DurationLike | None = None
    ) -> m.MemoryItem:
        """Writes a value."""
        return await self._runner.run(calls.put_memory(namespace, key, value, expected_version, ttl))

    async def get(self, namespace: str, key: str) -> m.MemoryItem:
        """Reads a value."""
        return await self._runner.run(calls.get_memory(namespace, key))

    async def delete(self, namespace: str, key: str, *, expected_version: int | None = None) -> int:
        """Deletes a value; gives the version that is no more."""
        return await self._runner.run(calls.delete_memory(namespace, key, expected_version))

    async def versions(self, namespace: str, key: str, *, limit: int = 50) -> list[m.MemoryItem]:
        """Versions of a value, newest first; one without a value and create time was a deletion."""
        return await self._runner.pages(lambda size, token: calls.list_memory_versions(namespace, key, size, token), limit)

    async def append(self, namespace: str, conversation_id: str, *messages: HistoryItem) -> int:
        """Adds to a conversation; gives its length. `"default"` is the one that tasks with this `memory_namespace` go on with."""
        return await self._runner.run(calls.append_messages(namespace, conversation_id, messages))

    async def messages(self, namespace: str, conversation_id: str = "default", *, limit: int = 50) -> list[m.Message]:
        """A conversation, oldest first."""
        return await self._runner.pages(lambda size, token: calls.list_messages(namespace, conversation_id, size, token), limit)

    async def search(self, namespace: str, query: str, *, limit: int = 10) -> list[tuple[float, m.MemoryItem]]:
        """Values by meaning and words, best first, with their scores."""
        return await self._runner.run(calls.search_memories(namespace, query, limit))

    async def list(self, namespace: str, *, prefix: str = "", limit: int = 50) -> list[m.MemoryItem]:
        """Values of a namespace."""
        return await self._runner.pages(lambda size, token: calls.list_memories(namespace, prefix, size, token), limit)


class AsyncSchedules:
    """Tasks by the clock."""

    def __init__(self, runner: AsyncRunner) -> None:
        self._runner = runner

    async def create(
        self,
        task: str | TaskSpec,
        *,
        cron: str | None = None,
        every: DurationLike | None = None,
        time_zone: str = "",
        overlap: str = "",
        catch_up: DurationLike | None = None,
        schedule_id: str = "",
        **options: Unpack[TaskOptions],
    ) -> m.Schedule:
        """Makes a schedule, by cron (five fields, in `time_zone`) or by interval.

        `overlap` says what happens when the last task still runs: SKIP (default), QUEUE, CANCEL_OLD or ALLOW. Times that were missed are
        made up for if they are younger than `catch_up` (60 s).
        """
        return await self._runner.run(
            calls.create_schedule(task, options, cron, every, time_zone, overlap, catch_up, schedule_id)
        )

    async def get(self, schedule_id: str) -> m.Schedule:
        """One schedule."""
        return await self._runner.run(calls.get_schedule(schedule_id))

    async def list(self, *, limit: int = 50) -> list[m.Schedule]:
        """Schedules of the tenant."""
        return await self._runner.pages(calls.list_schedules, limit)

    async def pause(self, schedule_id: str) -> m.Schedule:
        """Stops it for a while."""
        return await self._runner.run(calls.pause_schedule(schedule_id))

    async def resume(self, schedule_id: str) -> m.Schedule:
        """Goes on."""
        return await self._runner.run(calls.resume_schedule(schedule_id))

    async def trigger(self, schedule_id: str) -> m.Task:
        """Submits its task now."""
        return await self._runner.run(calls.trigger_schedule(schedule_id))

    async def delete(self, schedule_id: str) -> str:
        """Ends it."""
        return await self._runner.run(calls.delete_schedule(schedule_id))
