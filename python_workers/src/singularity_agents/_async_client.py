"""The asynchronous client: the methods of `Client`, awaited."""

from __future__ import annotations

import asyncio
import builtins
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio
from typing_extensions import Self, Unpack

from . import _calls as calls
from . import _models as m
from ._async_resources import AsyncAgents, AsyncFrameworks, AsyncMemory, AsyncProviders, AsyncSchedules
from ._bundle import Bundle
from ._durations import DurationLike, seconds
from ._errors import SingularityError, Unavailable
from ._otel import task_span
from ._proto.singularity.agents.v1 import task_pb2 as ta
from ._proto.singularity.agents.v1 import task_service_pb2 as ts
from ._reading import Reading
from ._spec import TaskOptions, TaskSpec
from ._transport import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT,
    WAIT_MARGIN,
    RetryBudget,
    Target,
    Tls,
    backoff,
    error_of,
)

T = TypeVar("T")


class AsyncTaskHandle:
    """A submitted task: its id, and what one does with it."""

    def __init__(self, client: AsyncClient, task: m.Task) -> None:
        self._client = client
        #: The task as it was submitted; `get()` asks again.
        self.task = task

    @property
    def id(self) -> str:
        """The task's id."""
        return self.task.id

    def __repr__(self) -> str:
        return f"AsyncTaskHandle({self.id!r})"

    async def get(self) -> m.Task:
        """The task as it is now."""
        return await self._client.get(self.id)

    def watch(self, *, after: int = 0, include_text: bool = True) -> AsyncIterator[m.Event]:
        """Events from a cursor, then live, until the end."""
        return self._client.watch(self.id, after=after, include_text=include_text)

    async def wait(self, timeout: DurationLike | None = None) -> m.Task:
        """The task once it has ended, or as it is when the time is over."""
        return await self._client.wait(self.id, timeout=timeout)

    async def result(self, timeout: DurationLike | None = None) -> m.AgentResult:
        """The result. Raises TaskFailed, or WaitExpired when the time is over."""
        return calls.result_of(await self.wait(timeout))

    async def cancel(self, *, grace: DurationLike | None = None, reason: str = "") -> m.Cancellation:
        """Ends the task and answers with the proof."""
        return await self._client.cancel(self.id, grace=grace, reason=reason)


class AsyncClient:
    """A connection to a node.

    >>> async with AsyncClient() as engine:
    ...     (await engine.execute("Hi")).output

    A call takes `timeout` seconds at most, its retries included (600 s by default), and is repeated `max_retries`
    times (2 by default) where that cannot do harm: overload, a node that cannot serve, an unknown outcome of a call
    with a request id. It belongs to the event loop that made it.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        tls: Tls | bool | None = None,
        timeout: DurationLike = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_RETRIES,
    ) -> None:
        self._target = Target.of(address, api_key, tls)
        self._timeout = seconds(timeout)
        self._max_retries = max_retries
        self._budget = RetryBudget()
        credentials = self._target.tls.credentials() if self._target.tls else None
        self._channel: grpc.aio.Channel = (
            grpc.aio.secure_channel(self._target.address, credentials, self._target.options())
            if credentials
            else grpc.aio.insecure_channel(self._target.address, self._target.options())
        )
        self.agents = AsyncAgents(self)
        self.frameworks = AsyncFrameworks(self)
        self.providers = AsyncProviders(self)
        self.memory = AsyncMemory(self)
        self.schedules = AsyncSchedules(self)

    @property
    def address(self) -> str:
        """Where it connects to."""
        return self._target.address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    # Tasks

    async def execute(
        self,
        task: str | TaskSpec,
        *,
        request_id: str | None = None,
        timeout: DurationLike | None = None,
        max_retries: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> m.AgentResult:
        """Submits a task and waits for its result. Raises TaskFailed, or WaitExpired: then the task goes on."""
        wait = self._timeout if timeout is None else seconds(timeout)
        call = calls.execute(task, options, request_id, wait)
        with task_span(call) as span:
            ended = await self.run(call, timeout=wait + WAIT_MARGIN, max_retries=max_retries)
            span.ended(ended)
            return calls.result_of(ended)

    async def submit(
        self,
        task: str | TaskSpec,
        *,
        request_id: str | None = None,
        timeout: DurationLike | None = None,
        max_retries: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> AsyncTaskHandle:
        """Puts a task on stable storage; when this returns, it is there."""
        call = calls.submit(task, options, request_id)
        with task_span(call) as span:
            accepted = await self.run(call, timeout=timeout, max_retries=max_retries)
            span.ended(accepted)
            return AsyncTaskHandle(self, accepted)

    async def submit_many(
        self, tasks: Iterable[str | TaskSpec], **options: Unpack[TaskOptions]
    ) -> list[AsyncTaskHandle | SingularityError]:
        """Submits up to 1,000 tasks in one call; each has its own outcome, in order."""
        outcomes = await self.run(calls.batch(tasks, options))
        return [AsyncTaskHandle(self, outcome.task) if outcome.task else calls.refusal_of(outcome) for outcome in outcomes]

    async def check(self, task: str | TaskSpec, **options: Unpack[TaskOptions]) -> m.Route:
        """What would run a task now, and why; nothing runs. Raises as `submit` would, with every fault at once."""
        return await self.run(calls.check(task, options))

    async def get(self, task_id: str) -> m.Task:
        """One task, by its id or a unique suffix of it."""
        return await self.run(calls.get_task(task_id))

    async def handle(self, task_id: str) -> AsyncTaskHandle:
        """A handle of a task that is there."""
        return AsyncTaskHandle(self, await self.get(task_id))

    async def list(self, filter: str = "", *, order_by: str = "", limit: int = 50) -> list[m.Task]:
        """Tasks by filter, for example "state=FAILED agent=researcher"; the newest first."""
        return await self.pages(lambda size, token: calls.list_tasks(filter, order_by, size, token), limit)

    async def attempts(self, task_id: str) -> Iterable[m.Attempt]:
        """Attempts of a task, oldest first."""
        return await self.pages(lambda size, token: calls.list_attempts(task_id, size, token), calls.MAX_PAGE)

    async def watch(self, task_id: str, *, after: int = 0, include_text: bool = True) -> AsyncIterator[m.Event]:
        """Events from a cursor, then live, until the end; it reconnects where the connection was lost.

        Text comes as it is made: an event ahead of its numbered batch has the sequence 0, and the batch only what is new."""
        failures = 0
        reading = Reading(after)
        while True:
            try:
                async for event in self.stream(calls.watch(task_id, reading.after, include_text)):
                    failures = 0
                    yield reading.take(event)
                return
            except Unavailable as error:
                failures += 1
                pause = backoff(error, failures - 1, True)
                if failures > self._max_retries or pause is None:
                    raise
                await asyncio.sleep(pause)

    async def wait(self, task_id: str, *, timeout: DurationLike | None = None) -> m.Task:
        """The task once it has ended, or as it is when the time is over."""
        limit = self._timeout if timeout is None else seconds(timeout)
        deadline = time.monotonic() + limit
        task = await self.get(task_id)
        while not task.ended and (left := deadline - time.monotonic()) > 0:
            try:
                async for event in self.stream(calls.watch(task.id, 0, False), timeout=left):
                    if event.kind == "state_changed" and event.data.get("state") in m.TERMINAL_STATES:
                        break
            except SingularityError as error:
                if error.reason != "DEADLINE_EXCEEDED":
                    raise
            task = await self.get(task.id)
        return task

    async def cancel(self, task_id: str, *, grace: DurationLike | None = None, reason: str = "") -> m.Cancellation:
        """Ends a task and answers with the proof."""
        return await self.run(calls.cancel(task_id, grace, reason))

    async def retry(self, task_id: str, *, request_id: str | None = None) -> AsyncTaskHandle:
        """A new task like an ended one, linked to it."""
        return AsyncTaskHandle(self, await self.run(calls.retry(task_id, request_id)))

    async def cancel_all(
        self, filter: str, *, dry_run: bool = False, limit: int = 1000, grace: DurationLike | None = None, reason: str = ""
    ) -> m.BulkOutcomes:
        """Cancels the open tasks that a filter finds; with `dry_run` says which it would."""
        return await self.run(calls.cancel_tasks(filter, dry_run, limit, grace, reason))

    async def retry_all(
        self, filter: str, *, dry_run: bool = False, limit: int = 1000, request_id: str | None = None
    ) -> m.BulkOutcomes:
        """Retries the ended tasks that a filter finds; with `dry_run` says which it would."""
        return await self.run(calls.retry_tasks(filter, dry_run, limit, request_id))

    async def fork(
        self,
        task_id: str,
        task: str | TaskSpec | None = None,
        *,
        after: int = 0,
        request_id: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> AsyncTaskHandle:
        """A new task that is given the answers another one had at its event number `after` (0: all of them).

        Without a `task` it is the same one. The first question that differs goes to the model.
        """
        return AsyncTaskHandle(self, await self.run(calls.fork(task_id, after, task, options, request_id)))

    async def bundle(self, task_id: str) -> Bundle:
        """Everything that an ended durable task was made of; `write` it to a file."""
        return Bundle([part async for part in self.stream(calls.bundle(task_id))])

    async def replay(
        self, bundle: Bundle | str | os.PathLike[str], *, request_id: str | None = None, timeout: DurationLike | None = None
    ) -> AsyncTaskHandle:
        """A new task from a bundle or its file: it is answered from the record alone, no provider is called and no tool runs."""
        given = bundle if isinstance(bundle, Bundle) else Bundle.read(bundle)
        call = calls.replay(request_id)
        method = self._channel.stream_unary(call.path, ts.ReplayTaskRequest.SerializeToString, ta.Task.FromString)
        limit = self._timeout if timeout is None else seconds(timeout)
        try:
            answer = await method(given.requests(call.request_id or ""), timeout=limit, metadata=self._target.metadata)
        except grpc.RpcError as failure:
            raise error_of(failure, self._target, call.request_id, call.task_id) from None
        return AsyncTaskHandle(self, call.read(answer))

    async def signal(
        self,
        task_id: str,
        *,
        input_id: str = "",
        approve: bool | None = None,
        input: str | None = None,
        tool_result: str | None = None,
        payload: dict[str, Any] | None = None,
        comment: str = "",
        request_id: str | None = None,
    ) -> m.Task:
        """Answers what a task asks: one of approve, input and tool_result, or payload alone; it runs again after the last answer.

        `input_id` names the question (`pending_inputs` of the task) where there are several, or one that is still to come.
        Sent again with the same `request_id` it changes nothing.
        """
        return await self.run(calls.signal(task_id, input_id, approve, input, tool_result, payload, comment, request_id))

    async def delete(self, task_id: str) -> str:
        """Forgets an ended task."""
        return await self.run(calls.delete_task(task_id))

    # Carrying calls out

    async def run(self, call: calls.Call[T], *, timeout: DurationLike | None = None, max_retries: int | None = None) -> T:
        """Carries a call out, with retries inside its timeout."""
        deadline = time.monotonic() + (self._timeout if timeout is None else seconds(timeout))
        retries = self._max_retries if max_retries is None else max_retries
        method = self._channel.unary_unary(call.path, type(call.request).SerializeToString, call.answer.FromString)
        attempt = 0
        while True:
            try:
                left = max(0.0, deadline - time.monotonic())
                answer = await method(call.request, timeout=left, metadata=self._target.metadata)
                self._budget.succeeded()
                return call.read(answer)
            except grpc.RpcError as failure:
                error = error_of(failure, self._target, call.request_id, call.task_id)
            pause = backoff(error, attempt, call.repeatable) if attempt < retries else None
            if pause is None or time.monotonic() + pause >= deadline or not self._budget.take():
                raise error from None
            attempt += 1
            await asyncio.sleep(pause)

    async def stream(self, call: calls.Call[T], *, timeout: DurationLike | None = None) -> AsyncIterator[T]:
        """Carries a streaming call out, once."""
        method = self._channel.unary_stream(call.path, type(call.request).SerializeToString, call.answer.FromString)
        limit = None if timeout is None else seconds(timeout)
        answers = method(call.request, timeout=limit, metadata=self._target.metadata)
        try:
            async for answer in answers:
                yield call.read(answer)
        except grpc.RpcError as failure:
            raise error_of(failure, self._target, call.request_id, call.task_id) from None
        finally:
            answers.cancel()

    async def pages(self, page: Callable[[int, str], calls.Call[calls.Page[T]]], limit: int) -> builtins.list[T]:
        """Follows the pages of a list until `limit` items are there."""
        items: list[T] = []
        size, token = calls.page_sizes(limit), ""
        while len(items) < limit:
            got = await self.run(page(size(len(items)), token))
            items += got.items
            token = got.next_token
            if not token:
                break
        return items[:limit]
