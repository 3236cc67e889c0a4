"""The worker's end of the data channel: one socket, one lock, one loop.

Frames may be written from any thread (the heartbeat must go out while the loop is blocked), so the socket is ours and not an
asyncio transport's. Counted frames wait for credit on the loop *before* they are written; a write itself never waits long,
since credit is smaller than what both sides buffer.

Events that nobody waits for are held for up to 2 ms and leave with the next frame, whoever sends it: each write wakes the node, and a
model call that follows a tool costs one waking instead of three.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from . import _frames as f

#: Bytes asked from the socket at once.
_READ_BYTES = 256 * 1024
#: Seconds that an event may wait for a frame to leave with. While the loop is blocked the heartbeat takes it along.
_HOLD_S: Final = 0.002
#: Exit code of a worker whose channel ended: nobody is there to hear more.
EXIT_CHANNEL_ENDED = 0
EXIT_PROTOCOL = 70


class Channel:
    """Reads frames on the loop, writes them from anywhere."""

    def __init__(self, fd: int, on_frame: Callable[[f.Frame], None]) -> None:
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)
        self._on_frame = on_frame
        self._decoder = f.Decoder()
        self._out = f.SendCredit()
        self._in = f.ReceiveCredit()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[bytes, asyncio.Future[None]]] = deque()
        self._held: list[bytes] = []
        # That of the worker itself, in which no task runs.
        self._context = contextvars.copy_context()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to read; a thread of its own ends the process at end-of-file, whatever the loop is doing."""
        loop.add_reader(self._sock.fileno(), self._readable)
        threading.Thread(target=self._watch_end, name="channel-end", daemon=True).start()

    def _watch_end(self) -> None:
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLRDHUP)
        poll.poll()
        os._exit(EXIT_CHANNEL_ENDED)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            os._exit(EXIT_CHANNEL_ENDED)
        if not data:
            os._exit(EXIT_CHANNEL_ENDED)
        try:
            frames = self._decoder.feed(data)
        except f.FrameError:
            os._exit(EXIT_PROTOCOL)
        for frame in frames:
            if frame.type == f.Type.CREDIT:
                self._granted(frame.call_id, frame.fence)
                continue
            if frame.type in f.COUNTED:
                owed = self._in.consumed(f.HEADER_BYTES + len(frame.payload))
                if owed is not None:
                    self.send(f.Type.CREDIT, call_id=owed[0], fence=owed[1])
            self._on_frame(frame)

    def read_now(self) -> None:
        """Waits for bytes and takes them: for synchronous code that needs an answer on the loop's own thread."""
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        poll.poll()
        # Frames of other tasks come as well: what begins with one is not of the task that waits here.
        self._context.run(self._readable)

    def _granted(self, frames: int, size: int) -> None:
        self._out.granted(frames, size)
        while self._waiting and self._out.may_send(len(self._waiting[0][0]) - 4):
            frame, future = self._waiting.popleft()
            if not future.done():
                self._out.sent(len(frame) - 4)
                # Here and not by who waits: a loop that is blocked until more credit comes would never get to it.
                self._write(frame)
                future.set_result(None)

    def send(
        self, type_: int, kind: int = 0, flags: int = 0, slot: int = 0, call_id: int = 0, fence: int = 0, payload: bytes = b""
    ) -> None:
        """Writes a frame that costs no credit. From any thread."""
        self._write(f.encode(type_, kind, flags, slot, call_id, fence, payload))

    def try_send(self, type_: int, kind: int, flags: int, slot: int, call_id: int, fence: int, payload: bytes) -> bool:
        """Writes a counted frame if there is credit now. On the loop only."""
        size = f.HEADER_BYTES + len(payload)
        if self._waiting or not self._out.may_send(size):
            return False
        frame = f.encode(type_, kind, flags, slot, call_id, fence, payload)
        self._out.sent(size)
        self._write(frame)
        return True

    def try_hold(self, type_: int, kind: int, flags: int, slot: int, call_id: int, fence: int, payload: bytes) -> bool:
        """As try_send, for a frame that may wait for the next one. On the loop only."""
        size = f.HEADER_BYTES + len(payload)
        if self._waiting or not self._out.may_send(size):
            return False
        frame = f.encode(type_, kind, flags, slot, call_id, fence, payload)
        self._out.sent(size)
        with self._lock:
            self._held.append(frame)
            first = len(self._held) == 1
        if first:
            asyncio.get_running_loop().call_later(_HOLD_S, self._let_go)
        return True

    def _let_go(self) -> None:
        if self._held:
            self._write(b"")

    async def send_counted(self, type_: int, kind: int, flags: int, slot: int, call_id: int, fence: int, payload: bytes) -> None:
        """Writes a counted frame as soon as there is credit, in the order of the calls. On the loop only."""
        if self.try_send(type_, kind, flags, slot, call_id, fence, payload):
            return
        frame = f.encode(type_, kind, flags, slot, call_id, fence, payload)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((frame, future))
        await future

    def _write(self, frame: bytes) -> None:
        with self._lock:
            if self._held:
                frame = b"".join((*self._held, frame))
                self._held.clear()
            view = memoryview(frame)
            while view:
                try:
                    view = view[self._sock.send(view) :]
                except (BlockingIOError, InterruptedError):
                    poll = select.poll()
                    poll.register(self._sock.fileno(), select.POLLOUT)
                    poll.poll()
                except OSError:
                    os._exit(EXIT_CHANNEL_ENDED)
