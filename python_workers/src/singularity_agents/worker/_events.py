"""EVENT frames of the running task, in order, with credit; text that waits is joined."""

from __future__ import annotations

import asyncio
from collections import deque

from . import _frames as f
from ._channel import Channel
from ._scope import Scope


class Events:
    """Sends events from the loop; what finds no credit waits here."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._backlog: deque[tuple[Scope, int, bytes]] = deque()
        self._pump: asyncio.Task[None] | None = None

    def emit(self, scope: Scope, kind: f.Event, payload: bytes) -> None:
        """Sends or queues. On the loop only."""
        if scope.gate is not None:
            return
        # Text is looked at as it comes; all else is in time with the next frame.
        send = self._channel.try_send if kind == f.Event.TEXT else self._channel.try_hold
        if not self._backlog and send(f.Type.EVENT, kind, 0, scope.slot, 0, scope.fence, payload):
            return
        if self._backlog and kind == f.Event.TEXT:
            last_scope, last_kind, last = self._backlog[-1]
            if last_scope is scope and last_kind == f.Event.TEXT:
                self._backlog[-1] = (scope, kind, last + payload)
                return
        self._backlog.append((scope, kind, payload))
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._run())

    @property
    def waiting(self) -> bool:
        """Whether something is queued."""
        return self._pump is not None

    async def drain(self) -> None:
        """Waits until nothing is queued."""
        if self._pump is not None:
            await asyncio.shield(self._pump)

    async def _run(self) -> None:
        try:
            while self._backlog:
                scope, kind, payload = self._backlog.popleft()
                await self._channel.send_counted(f.Type.EVENT, kind, 0, scope.slot, 0, scope.fence, payload)
        finally:
            self._pump = None
