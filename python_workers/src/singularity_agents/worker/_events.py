"""EVENT frames of the running tasks, in order, with credit; text that waits is joined."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from . import _frames as f
from ._channel import Channel
from ._scope import Scope, outside

#: Bytes up to which text that waits is joined: what is too long for a frame would never leave.
_MAX_JOINED: Final = 512 * 1024


class Events:
    """Sends events from the loop; what finds no credit waits here."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        # Events, and who waits until those before have left.
        self._backlog: deque[tuple[Scope, int, bytes] | asyncio.Future[None]] = deque()
        self._pump: asyncio.Task[None] | None = None

    def emit(self, scope: Scope, kind: f.Event, payload: bytes, *, though_closed: bool = False) -> None:
        """Sends or queues; nothing of a scope whose gate is closed, unless it is told to. On the loop only."""
        if scope.gate is not None and not though_closed:
            return
        if f.HEADER_BYTES + len(payload) > f.MAX_FRAME_BYTES:
            # Said here: in the queue it would end those of others.
            raise f.FrameError(f"an event of {len(payload)} bytes is over the limit of {f.MAX_FRAME_BYTES}")
        # Text is looked at as it comes; all else is in time with the next frame.
        send = self._channel.try_send if kind == f.Event.TEXT else self._channel.try_hold
        if not self.waiting and send(f.Type.EVENT, kind, 0, scope.slot, 0, scope.fence, payload):
            return
        last = self._backlog[-1] if self._backlog else None
        if kind == f.Event.TEXT and isinstance(last, tuple) and last[0] is scope and last[1] == f.Event.TEXT:
            joined = last[2] + payload
            if len(joined) <= _MAX_JOINED:
                self._backlog[-1] = (scope, kind, joined)
                return
        self._backlog.append((scope, kind, payload))
        if self._pump is None:
            # Other tasks' events wait here too: it does not end with the task that made it.
            self._pump = outside(asyncio.get_running_loop(), self._run())

    @property
    def waiting(self) -> bool:
        """Whether something is queued."""
        return self._pump is not None

    async def drain(self) -> None:
        """Waits until what is queued now has left; what neighbours add later is not waited for."""
        if self._pump is not None:
            left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._backlog.append(left)
            await left

    async def _run(self) -> None:
        try:
            while self._backlog:
                next_ = self._backlog.popleft()
                if isinstance(next_, asyncio.Future):
                    if not next_.done():
                        next_.set_result(None)
                    continue
                scope, kind, payload = next_
                await self._channel.send_counted(f.Type.EVENT, kind, 0, scope.slot, 0, scope.fence, payload)
        finally:
            self._pump = None
