"""Groups of calls of `Client`: agents, frameworks, providers, memory, schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from typing_extensions import Unpack

from . import _calls as calls
from . import _models as m
from ._durations import DurationLike
from ._spec import HistoryItem, TaskOptions, TaskSpec

T = TypeVar("T")


class Runner(Protocol):
    """What a group needs of its client."""

    def run(self, call: calls.Call[T]) -> T:
        """Carries a call out."""

    def stream(self, call: calls.Call[T]) -> Iterator[T]:
        """Carries a streaming call out."""

    def pages(self, page: Callable[[int, str], calls.Call[calls.Page[T]]], limit: int) -> list[T]:
        """Follows the pages of a list."""


class Agents:
    """Configured and created agents."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def create(self, agent_type: str, *, agent_id: str = "", request_id: str | None = None, **fields: Any) -> m.Agent:
        """Makes an agent of a type; `fields` are those of `Agent` (framework, instructions, model, tools, ...)."""
        return self._runner.run(calls.create_agent({"agent_type": agent_type, **fields}, agent_id, request_id))

    def get(self, agent_id: str) -> m.Agent:
        """One agent."""
        return self._runner.run(calls.get_agent(agent_id))

    def list(self, *, limit: int = 50) -> list[m.Agent]:
        """Agents of the tenant."""
        return self._runner.pages(calls.list_agents, limit)

    def update(self, agent_id: str, *, etag: str, **fields: Any) -> m.Agent:
        """Changes a created agent; `etag` must be current."""
        return self._runner.run(calls.update_agent({"id": agent_id, "etag": etag, **fields}))

    def delete(self, agent_id: str, *, etag: str = "") -> str:
        """Forgets a created agent."""
        return self._runner.run(calls.delete_agent(agent_id, etag))

    def types(self) -> Sequence[m.AgentType]:
        """Built-in and configured types."""
        return self._runner.pages(calls.list_agent_types, calls.MAX_PAGE)


class Frameworks:
    """Frameworks and their workers."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def list(self) -> list[m.Framework]:
        """All frameworks with an adapter."""
        return self._runner.pages(calls.list_frameworks, calls.MAX_PAGE)

    def get(self, framework: str) -> m.Framework:
        """Health, versions, workers, and why it is unavailable."""
        return self._runner.run(calls.get_framework(framework))

    def restart(self, framework: str) -> m.Framework:
        """Ends the workers of a framework as they become idle."""
        return self._runner.run(calls.restart_workers(framework))


class Providers:
    """Models behind one door."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def list(self) -> list[m.Provider]:
        """Configured providers."""
        return self._runner.pages(calls.list_providers, calls.MAX_PAGE)

    def get(self, provider: str) -> m.Provider:
        """Health, breaker, load."""
        return self._runner.run(calls.get_provider(provider))

    def models(self) -> Sequence[m.Model]:
        """Models and aliases."""
        return self._runner.pages(calls.list_models, calls.MAX_PAGE)

    def budgets(self, *, include_tasks: bool = False) -> Sequence[m.Budget]:
        """What the tenant may spend, and has spent."""
        return self._runner.pages(calls.list_all_budgets if include_tasks else calls.list_budgets, calls.MAX_PAGE)

    def spending(self) -> m.Spending:
        """What the tenant's requests have cost since the start of the node."""
        return self._runner.run(calls.get_spending())

    def select(self, **requirements: Unpack[TaskOptions]) -> m.ProviderChoice:
        """Which provider would serve, and why; nothing is called."""
        return self._runner.run(calls.select_provider(requirements))

    def chat(
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
        return self._runner.run(calls.chat(request))

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
    ) -> Iterator[m.ChatDelta]:
        """The same as it comes; the last piece holds the whole answer."""
        request = calls.chat_request(messages, model, tools, output_schema, temperature, max_tokens, seed)
        return self._runner.stream(calls.stream_chat(request))

    def embed(self, input: Sequence[str], *, model: str = "", dimensions: int = 0) -> m.Embeddings:
        """Embeddings of texts."""
        return self._runner.run(calls.embed(input, model, dimensions))


class Memory:
    """Memory of agents: values with versions, and conversations. Search answers CAPABILITY_PENDING until that part is there."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def put(
        self, namespace: str, key: str, value: Any, *, expected_version: int | None = None, ttl: DurationLike | None = None
    ) -> m.MemoryItem:
        """Writes a value."""
        return self._runner.run(calls.put_memory(namespace, key, value, expected_version, ttl))

    def get(self, namespace: str, key: str) -> m.MemoryItem:
        """Reads a value."""
        return self._runner.run(calls.get_memory(namespace, key))

    def delete(self, namespace: str, key: str, *, expected_version: int | None = None) -> int:
        """Deletes a value; gives the version that is no more."""
        return self._runner.run(calls.delete_memory(namespace, key, expected_version))

    def versions(self, namespace: str, key: str, *, limit: int = 50) -> list[m.MemoryItem]:
        """Versions of a value, newest first; one without a value and create time was a deletion."""
        return self._runner.pages(lambda size, token: calls.list_memory_versions(namespace, key, size, token), limit)

    def append(self, namespace: str, conversation_id: str, *messages: HistoryItem) -> int:
        """Adds to a conversation; gives its length. `"default"` is the one that tasks with this `memory_namespace` go on with."""
        return self._runner.run(calls.append_messages(namespace, conversation_id, messages))

    def messages(self, namespace: str, conversation_id: str = "default", *, limit: int = 50) -> list[m.Message]:
        """A conversation, oldest first."""
        return self._runner.pages(lambda size, token: calls.list_messages(namespace, conversation_id, size, token), limit)

    def search(self, namespace: str, query: str, *, limit: int = 10) -> list[tuple[float, m.MemoryItem]]:
        """Values by meaning and words, best first, with their scores."""
        return self._runner.run(calls.search_memories(namespace, query, limit))

    def list(self, namespace: str, *, prefix: str = "", limit: int = 50) -> list[m.MemoryItem]:
        """Values of a namespace."""
        return self._runner.pages(lambda size, token: calls.list_memories(namespace, prefix, size, token), limit)


class Schedules:
    """Tasks by the clock."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def create(
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
        return self._runner.run(calls.create_schedule(task, options, cron, every, time_zone, overlap, catch_up, schedule_id))

    def get(self, schedule_id: str) -> m.Schedule:
        """One schedule."""
        return self._runner.run(calls.get_schedule(schedule_id))

    def list(self, *, limit: int = 50) -> list[m.Schedule]:
        """Schedules of the tenant."""
        return self._runner.pages(calls.list_schedules, limit)

    def pause(self, schedule_id: str) -> m.Schedule:
        """Stops it for a while."""
        return self._runner.run(calls.pause_schedule(schedule_id))

    def resume(self, schedule_id: str) -> m.Schedule:
        """Goes on."""
        return self._runner.run(calls.resume_schedule(schedule_id))

    def trigger(self, schedule_id: str) -> m.Task:
        """Submits its task now."""
        return self._runner.run(calls.trigger_schedule(schedule_id))

    def delete(self, schedule_id: str) -> str:
        """Ends it."""
        return self._runner.run(calls.delete_schedule(schedule_id))
