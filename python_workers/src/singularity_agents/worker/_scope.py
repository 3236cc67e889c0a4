"""The scope of one EXECUTE: what was born in it, whether its gate is open, and how it is cancelled.

Cancelling the awaited task alone is not enough: frameworks swallow it. Every asyncio task born under :data:`CURRENT` is
recorded by the loop's task factory and cancelled until none is alive; threads are reached by the gate, and those that are not
by the node, which kills the process.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from .._errors import SingularityError, TaskCancelled
from .._proto.singularity.agents.v1 import task_pb2 as tasks

_T = TypeVar("_T")

#: Rounds of cancelling without a pause; frameworks need one to six.
_QUICK_ROUNDS: Final = 10
#: Seconds between the rounds after those.
_ROUND_S: Final = 0.01
#: Threads for the synchronous code of each of the tasks that run side by side.
_MAX_THREADS: Final = 16


def _one_place() -> str:
    return ""


class Scope:
    """One running task of the engine."""

    __slots__ = (
        "__weakref__", "answers", "artifacts", "asked", "attempt", "begun", "born", "cancelled", "description", "fence", "gate",
        "model", "notes", "place", "slot", "task_id", "tool_limit", "tools_said", "unjournaled", "want_text", "work",
    )  # fmt: skip

    def __init__(self, slot: int, fence: int, want_text: bool) -> None:
        self.slot = slot
        self.fence = fence
        self.want_text = want_text
        self.task_id = ""
        self.model = ""
        #: What is to be done.
        self.description = ""
        #: Tools that a model is shown at most; 0: all. And whether that was said.
        self.tool_limit = 0
        self.tools_said = False
        #: From 1.
        self.attempt = 1
        #: Why calls are refused now; None: they are not.
        self.gate: SingularityError | None = None
        self.cancelled = False
        self.work: asyncio.Task[Any] | None = None
        self.born: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        #: Where the code that runs now stands, for adapters whose runs are resumed in the middle; the same in each attempt.
        self.place: Callable[[], str] = _one_place
        #: How often a tool was called with equal arguments, by place.
        self.begun: Counter[tuple[str, str, str]] = Counter()
        self.unjournaled: set[str] = set()
        #: What was answered before this attempt, by the names of the questions.
        self.answers: dict[str, tasks.InputAnswer] = {}
        #: Files that go with the answer, by name.
        self.artifacts: dict[str, tasks.Artifact] = {}
        #: Questions that this run has asked so far, by place.
        self.asked: Counter[str] = Counter()
        #: What an adapter keeps for the length of the run.
        self.notes: dict[str, Any] = {}

    def close(self) -> None:
        """No call of the task goes out any more."""
        self.cancelled = True
        self.gate = TaskCancelled("the task is being cancelled", reason="TASK_CANCELLED", task_id=self.task_id or None)

    async def cancel(self, threads: TrackedThreads) -> None:
        """Cancels what was born, again until none is alive and no thread runs the task's code. May never return."""
        turn = 0
        while alive := [task for task in self.born if not task.done()]:
            for task in alive:
                task.cancel()
            await asyncio.sleep(0 if turn < _QUICK_ROUNDS else _ROUND_S)
            turn += 1
        await threads.idle(self)


#: The task whose code runs; set around each run and carried into its tasks and threads.
CURRENT: ContextVar[Scope | None] = ContextVar("singularity_task", default=None)


def task_factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, _T], **options: Any) -> asyncio.Task[_T]:
    """Makes asyncio tasks that belong to the scope they are born in."""
    task: asyncio.Task[_T] = asyncio.Task(coro, loop=loop, **options)
    if (scope := CURRENT.get()) is not None:
        scope.born.add(task)
    return task


def outside(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Makes an asyncio task of the worker's own, whoever asks for it: no end of a scope ends it."""
    token = CURRENT.set(None)
    try:
        return loop.create_task(coro)
    finally:
        CURRENT.reset(token)


class TrackedThreads(ThreadPoolExecutor):
    """The loop's executor, which knows how many of its threads run code of which task."""

    def __init__(self, concurrency: int = 1) -> None:
        super().__init__(max_workers=_MAX_THREADS * concurrency, thread_name_prefix="agent")
        self._busy: Counter[Scope | None] = Counter()
        self._mutex = threading.Lock()
        self._waiters: dict[Scope | None, tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = {}

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Runs a function in a thread."""
        scope = CURRENT.get()
        with self._mutex:
            self._busy[scope] += 1
        try:
            future = super().submit(fn, *args, **kwargs)
        except BaseException:
            self._left(scope)
            raise
        future.add_done_callback(lambda _: self._left(scope))
        return future

    def _left(self, scope: Scope | None) -> None:
        with self._mutex:
            self._busy[scope] -= 1
            waiter = None
            if self._busy[scope] == 0:
                del self._busy[scope]
                waiter = self._waiters.get(scope)
        if waiter is not None:
            loop, future = waiter
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(None))

    async def idle(self, scope: Scope) -> None:
        """Waits until no thread runs code of a task."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._mutex:
            if scope not in self._busy:
                return
            self._waiters[scope] = (loop, future)
        try:
            await future
        finally:
            self._waiters.pop(scope, None)
