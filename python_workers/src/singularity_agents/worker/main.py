"""The worker's main program: HELLO, INIT, then EXECUTE after EXECUTE until the channel ends.

Called by the zygote's child after the fork; never returns.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from google.protobuf.message import DecodeError

from .. import __version__
from .._errors import SingularityError
from ..adapters import load
from ..adapters._base import Adapter, Setup
from . import _frames as f
from . import _loop, _runtime, _shim
from ._calls import Calls
from ._channel import Channel
from ._engine import Engine
from ._events import Events
from ._heartbeat import Heartbeat, rss_bytes
from ._inputs import InputNeeded
from ._output import Output
from ._scope import CURRENT, Scope, TrackedThreads, outside, task_factory
from ._wire import error_message, tasks, words, worker

#: Objects that may be made before the collector looks at the young ones.
_GC_YOUNG: Final = 20_000
#: Descriptor of the channel, where the guard puts it.
CHANNEL_FD: Final = 3

# What the import took, in ms, where it was done before the fork.
_preload_ms = 0


class Worker:
    """One process, one agent; one task at a time, or as many side by side as INIT says."""

    def __init__(self, fd: int, worker_id: str, framework: str, adapter: Adapter, import_ms: int) -> None:
        self._id = worker_id
        self._framework = framework
        self._adapter = adapter
        self._import_ms = import_ms
        self._channel = Channel(fd, self._frame)
        self._calls = Calls(self._channel)
        self._events = Events(self._channel)
        self._threads = TrackedThreads()
        self._scopes: dict[int, Scope] = {}
        self._concurrency = 1
        # What tasks print; None: there is one at a time, and the guard's pipe is its own.
        self._output: Output | None = None
        # Results that wait for credit.
        self._unsent = 0
        self._background: set[asyncio.Task[None]] = set()
        self._loaded = False
        self._draining = False
        self._handlers: dict[int, Callable[[f.Frame], None]] = {
            f.Type.EXECUTE: self._execute,
            f.Type.REPLY: self._calls.replied,
            f.Type.REPLY_CHUNK: self._calls.replied,
            f.Type.CANCEL: self._cancel,
            f.Type.INIT: lambda frame: self._spawn(self._init(frame)),
            f.Type.HEALTH: lambda frame: self._spawn(self._health()),
            f.Type.DRAIN: self._drain,
            f.Type.GOODBYE: self._goodbye,
        }

    async def serve(self) -> NoReturn:
        """Runs until the process ends."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_task_factory(task_factory)  # type: ignore[arg-type]
        self._loop.set_default_executor(self._threads)
        self._engine = Engine(self._calls, self._events, self._loop)
        _runtime.attach(self._engine)
        self._channel.start(self._loop)
        hello = worker.Hello(
            worker_id=self._id,
            framework=self._framework,
            versions=self._adapter.versions(),
            python_version=".".join(map(str, sys.version_info[:3])),
            lock_hash=_lock_hash(),
            import_ms=self._import_ms,
            rss_bytes=rss_bytes(),
        )
        self._channel.send(f.Type.HELLO, payload=hello.SerializeToString())
        Heartbeat(self._channel, lambda: len(self._scopes)).start(self._loop)
        await self._loop.create_future()
        raise AssertionError("unreachable")

    def _spawn(self, coro: Any) -> None:
        task: asyncio.Task[None] = outside(self._loop, coro)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _frame(self, frame: f.Frame) -> None:
        handler = self._handlers.get(frame.type)
        if handler is not None:
            handler(frame)

    def _goodbye(self, _: f.Frame) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def _drain(self, _: f.Frame) -> None:
        """Takes no more; the node ends the process once it has said GOODBYE."""
        self._draining = True
        self._drained()

    def _drained(self) -> None:
        if self._draining and not self._scopes and not self._unsent:
            sys.stdout.flush()
            sys.stderr.flush()
            self._channel.send(f.Type.GOODBYE)

    # --- INIT, HEALTH ---------------------------------------------------------------------------------------------

    async def _init(self, frame: f.Frame) -> None:
        try:
            init = worker.Init.FromString(frame.payload)
            setup = Setup(
                framework=init.agent.framework or self._framework,
                agent=init.agent,
                tenant=init.tenant,
                entrypoint=init.entrypoint,
                project=init.project,
                storage_dir=init.storage_dir,
                tools=tuple(init.tools),
                config=json.loads(init.config_json or "{}"),
                concurrency=init.concurrency or 1,
            )
            self._side_by_side(setup.concurrency)
            loaded = await self._adapter.initialize(setup, self._engine)
        except (Exception, SystemExit) as error:
            payload = error_message(error, "WORKER_START_FAILED").SerializeToString()
            self._channel.send(f.Type.READY, flags=f.FLAG_ERROR, payload=payload)
            return
        self._loaded = True
        _shim.serve(self._engine, self._loop, lambda: list(self._scopes.values()), self._concurrency)
        # What is there now stays: the collector need not look at it again, and its pages stay shared with the zygote.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_YOUNG, 20, 50)
        ready = worker.Ready(unjournaled_tools=loaded.unjournaled, tools=loaded.tools)
        self._channel.send(f.Type.READY, payload=ready.SerializeToString())

    def _side_by_side(self, concurrency: int) -> None:
        """Prepares for several tasks, before any code of the user's is imported: it may keep the streams that it finds."""
        if concurrency > 1:
            self._concurrency = concurrency
            self._threads = TrackedThreads(concurrency)
            self._loop.set_default_executor(self._threads)
            self._output = Output(self._events, self._loop)
            self._output.install()

    async def _health(self) -> None:
        try:
            health = await self._adapter.health_check()
            reply = worker.HealthReply(ok=health.ok, detail=health.detail, framework_version=health.version)
        except Exception as error:
            reply = worker.HealthReply(ok=False, detail=f"{type(error).__name__}: {error}")
        self._channel.send(f.Type.HEALTH_REPLY, payload=reply.SerializeToString())

    # --- EXECUTE --------------------------------------------------------------------------------------------------

    def _execute(self, frame: f.Frame) -> None:
        scope = Scope(frame.slot, frame.fence, bool(frame.flags & f.FLAG_WANT_TEXT))
        execute = worker.Execute()
        try:
            execute.ParseFromString(frame.payload)
        except DecodeError:
            self._end(scope, SingularityError("the task cannot be read", reason="WORKER_PROTOCOL_ERROR"))
            return
        if self._draining:
            self._end(scope, SingularityError("the worker is being drained", reason="DRAINING"))
            return
        if (why := self._no_place(frame.slot)) is not None:
            self._end(scope, SingularityError(why, reason="WORKER_PROTOCOL_ERROR"))
            return
        scope.task_id = execute.task_id
        scope.model = execute.model
        scope.description = execute.task.description
        scope.tool_limit = execute.tool_limit
        scope.attempt = execute.attempt
        scope.answers = {answer.input_id: answer for answer in execute.answers}
        self._scopes[frame.slot] = scope
        if self._output is not None:
            self._output.begin(scope)
        token = CURRENT.set(scope)
        try:
            scope.work = self._loop.create_task(self._run(execute, scope))
        finally:
            CURRENT.reset(token)
        scope.work.add_done_callback(lambda work: self._ran(scope, work))

    def _no_place(self, slot: int) -> str | None:
        """Why no task can run in a slot; None: one can."""
        if not self._loaded:
            return "no agent is loaded"
        if slot >= self._concurrency:
            return f"there is no slot {slot}: concurrency = {self._concurrency}"
        return "a task runs in this slot" if slot in self._scopes else None

    async def _run(self, execute: worker.Execute, scope: Scope) -> tasks.AgentResult:
        adapter = self._adapter
        try:
            native = await adapter.execute_framework_task(adapter.convert_task(execute))
            result = adapter.convert_result(native)
        except (SystemExit, KeyboardInterrupt) as error:
            # The loop would end with these; the user's code may fail, not the worker.
            raise RuntimeError(f"the agent raised {type(error).__name__}({words(error)})") from error
        result.task_id = execute.task_id
        result.artifacts.extend(scope.artifacts.values())
        return result

    def _ran(self, scope: Scope, work: asyncio.Task[tasks.AgentResult]) -> None:
        if scope.cancelled:
            return
        if all(task.done() for task in scope.born):
            self._finish(scope, work)
        else:
            # What the run left behind does not outlive it.
            self._spawn(self._settle(scope, work))

    async def _settle(self, scope: Scope, work: asyncio.Task[tasks.AgentResult]) -> None:
        await scope.cancel(self._threads)
        if not scope.cancelled:
            self._finish(scope, work)

    def _finish(self, scope: Scope, work: asyncio.Task[tasks.AgentResult]) -> None:
        if work.cancelled():
            self._end(scope, SingularityError("the agent cancelled itself", reason="FRAMEWORK_ERROR"))
        elif (error := work.exception()) is not None:
            self._end(scope, error)
        else:
            self._end(scope, work.result())

    def _cancel(self, frame: f.Frame) -> None:
        scope = self._scopes.get(frame.slot)
        if scope is None or scope.fence != frame.fence or scope.cancelled:
            return
        scope.close()
        if scope.gate is not None:
            self._calls.fail_all(scope, scope.gate)
        self._spawn(self._cancelled(scope))

    async def _cancelled(self, scope: Scope) -> None:
        # If something cannot be ended this waits for ever, and the node kills the process.
        await scope.cancel(self._threads)
        work = scope.work
        if work is not None and work.done() and not work.cancelled() and work.exception() is None:
            self._end(scope, work.result())
        else:
            self._end(scope, scope.gate or SingularityError("cancelled", reason="TASK_CANCELLED"))

    def _end(self, scope: Scope, outcome: tasks.AgentResult | BaseException) -> None:
        """Sends the one RESULT."""
        if isinstance(outcome, InputNeeded):
            status = f.Status.INPUT_REQUESTED
            result = worker.Result(inputs=outcome.inputs, unjournaled_tools=scope.unjournaled)
        elif isinstance(outcome, BaseException):
            status = f.Status.CANCELLED if scope.cancelled else f.Status.FAILED
            result = worker.Result(error=error_message(outcome), unjournaled_tools=scope.unjournaled)
        else:
            status = f.Status.SUCCEEDED
            result = worker.Result(result=outcome, unjournaled_tools=scope.unjournaled)
        payload = result.SerializeToString()
        if len(payload) + f.HEADER_BYTES > f.MAX_FRAME_BYTES:
            status = f.Status.FAILED
            too_large = SingularityError(
                f"the result has {len(payload)} bytes, at most 16 MiB are allowed", reason="PAYLOAD_TOO_LARGE"
            )
            payload = worker.Result(error=error_message(too_large)).SerializeToString()
        if self._scopes.get(scope.slot) is scope:
            del self._scopes[scope.slot]
        if self._output is not None:
            self._output.end(scope)
        # A cancelled task has no more to say, and waits for nobody: its grace is short.
        waits = self._events.waiting and not scope.cancelled
        if waits or not self._channel.try_send(f.Type.RESULT, status, 0, scope.slot, 0, scope.fence, payload):
            self._unsent += 1
            self._spawn(self._send_result(scope, status, payload))
        else:
            self._drained()

    async def _send_result(self, scope: Scope, status: int, payload: bytes) -> None:
        if not scope.cancelled:
            await self._events.drain()
        await self._channel.send_counted(f.Type.RESULT, status, 0, scope.slot, 0, scope.fence, payload)
        self._unsent -= 1
        self._drained()


def _lock_hash() -> str:
    try:
        return Path(sys.prefix, "singularity-lock.sha256").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def preload(framework: str) -> dict[str, str]:
    """Imports what workers of a framework need, before the fork; gives the versions that matter.

    Starts no thread, loop or socket. What was imported is kept out of the collector's way, so that its pages stay shared.
    """
    started = time.monotonic()
    versions = load(framework).versions()
    global _preload_ms
    _preload_ms = int((time.monotonic() - started) * 1000)
    gc.collect()
    gc.freeze()
    return versions


def run(fd: int, worker_id: str, framework: str) -> NoReturn:
    """Serves the channel on `fd` until it ends; then the process ends."""
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    started = time.monotonic()
    try:
        adapter = load(framework)
        import_ms = _preload_ms or int((time.monotonic() - started) * 1000)
        served = Worker(fd, worker_id, framework, adapter, import_ms)
        with asyncio.Runner(loop_factory=_loop.new) as runner:
            runner.run(served.serve())
    except BaseException as error:
        sys.stderr.write(f"the worker ends: {type(error).__name__}: {error} (version {__version__})\n")
        sys.stderr.flush()
    finally:
        os._exit(1)


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2], sys.argv[3])
