"""CALL frames that wait for their REPLY."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from .._errors import SingularityError
from . import _frames as f
from ._channel import Channel
from ._scope import CURRENT, Scope
from ._wire import error_of

# A chunk, or the last payload, or an error.
_Item = tuple[bool, bytes | SingularityError]
_NO_TASK: Final = "the engine can be called from the code of a running task only"


class Calls:
    """Sends calls of the running tasks and hands replies to whoever waits. Ids are unique in the process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._next = 0
        self._single: dict[int, tuple[Scope, asyncio.Future[bytes]]] = {}
        self._streams: dict[int, tuple[Scope, asyncio.Queue[_Item]]] = {}

    @staticmethod
    def scope() -> Scope:
        """The running task. Raises outside of one, and when its gate is closed."""
        scope = CURRENT.get()
        if scope is None:
            raise SingularityError(_NO_TASK, reason="WRONG_STATE")
        if scope.gate is not None:
            raise scope.gate
        return scope

    def _id(self) -> int:
        self._next += 1
        return self._next

    async def call(self, kind: f.Call, payload: bytes) -> bytes:
        """One call and its one answer. Raises the engine's error."""
        scope = self.scope()
        call_id = self._id()
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._single[call_id] = (scope, future)
        try:
            if not self._channel.try_send(f.Type.CALL, kind, 0, scope.slot, call_id, scope.fence, payload):
                await self._channel.send_counted(f.Type.CALL, kind, 0, scope.slot, call_id, scope.fence, payload)
            return await future
        finally:
            del self._single[call_id]

    def call_blocking(self, kind: f.Call, payload: bytes) -> bytes:
        """The same for synchronous code on the loop's own thread: frames are read here until the answer is there."""
        scope = self.scope()
        call_id = self._id()
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._single[call_id] = (scope, future)
        try:
            while not self._channel.try_send(f.Type.CALL, kind, 0, scope.slot, call_id, scope.fence, payload):
                self._channel.read_now()
            while not future.done():
                self._channel.read_now()
            return future.result()
        finally:
            del self._single[call_id]

    async def tell(self, kind: f.Call, payload: bytes) -> None:
        """A call that wants no answer (id 0). What is sent after it is dealt with after it."""
        scope = self.scope()
        await self._channel.send_counted(f.Type.CALL, kind, 0, scope.slot, 0, scope.fence, payload)

    def tell_blocking(self, kind: f.Call, payload: bytes) -> None:
        """The same for synchronous code on the loop's own thread."""
        scope = self.scope()
        while not self._channel.try_send(f.Type.CALL, kind, 0, scope.slot, 0, scope.fence, payload):
            self._channel.read_now()

    async def stream(self, kind: f.Call, payload: bytes) -> AsyncIterator[tuple[bool, bytes]]:
        """A call with chunks: `(False, chunk)` as they come, then `(True, answer)`."""
        scope = self.scope()
        call_id = self._id()
        queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._streams[call_id] = (scope, queue)
        try:
            await self._channel.send_counted(f.Type.CALL, kind, f.FLAG_STREAM, scope.slot, call_id, scope.fence, payload)
            while True:
                last, item = await queue.get()
                if isinstance(item, SingularityError):
                    raise item
                yield last, item
                if last:
                    return
        finally:
            del self._streams[call_id]

    def replied(self, frame: f.Frame) -> None:
        """A REPLY or REPLY_CHUNK came. One that nobody waits for any more is dropped."""
        last = frame.type == f.Type.REPLY
        failed = bool(frame.flags & f.FLAG_ERROR)
        single = self._single.get(frame.call_id)
        if single is not None and last:
            future = single[1]
            if future.done():
                return
            if failed:
                future.set_exception(error_of(frame.payload))
            else:
                future.set_result(frame.payload)
        elif (stream := self._streams.get(frame.call_id)) is not None:
            stream[1].put_nowait((last, error_of(frame.payload) if failed else frame.payload))

    def fail_all(self, scope: Scope, error: SingularityError) -> None:
        """Every open call of a task ends with this error; those of its neighbours go on."""
        for owner, future in list(self._single.values()):
            if owner is scope and not future.done():
                future.set_exception(error)
        for owner, queue in list(self._streams.values()):
            if owner is scope:
                queue.put_nowait((True, error))
