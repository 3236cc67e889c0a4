"""What tasks print, where several run side by side: each line becomes a log event of the task whose code printed it.

The pipe that the guard reads cannot tell whose line it is. What no task has printed goes there as ever: the worker's own words, code that
runs after its task's end, threads and processes that users start by themselves, and whatever is written past `sys.stdout`.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, TextIO

from . import _frames as f
from ._events import Events
from ._scope import CURRENT, Scope, outside
from ._wire import worker

#: Longest line, in bytes; the rest of it is left out. So are empty lines.
MAX_LINE_BYTES: Final = 16 * 1024
#: Lines of a task that wait to be sent, and their bytes; what comes beyond them is dropped, and counted.
MAX_LINES: Final = 10_000
MAX_WAITING_BYTES: Final = 4 * 1024 * 1024
#: Lines that are sent when their task has ended: the results of its neighbours wait behind them, half a millisecond for each.
MAX_AT_END: Final = 500
#: Under which the lines stand among the task's logs.
_SOURCE: Final = "worker"


class _Line:
    """A line that has not ended yet."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Takes more of it, as far as there is room."""
        room = MAX_LINE_BYTES - self._size
        if room > 0 and text:
            self._parts.append(text[:room])
            self._size += min(len(text), room)

    def take(self) -> bytes:
        """The line so far; it begins anew."""
        data = "".join(self._parts).encode("utf-8", "replace")
        self._parts.clear()
        self._size = 0
        return data if len(data) <= MAX_LINE_BYTES else data[:MAX_LINE_BYTES].decode("utf-8", "ignore").encode()


class _Printed:
    """What one task has printed and is not sent yet."""

    __slots__ = ("bytes", "dropped", "moving", "open", "waiting")

    def __init__(self) -> None:
        self.open: dict[str, _Line] = {}
        self.waiting: deque[tuple[str, bytes]] = deque()
        self.bytes = 0
        self.dropped = 0
        #: Whether somebody is on the way to send what waits.
        self.moving = False

    def add(self, level: str, text: str) -> None:
        """Takes text of a stream."""
        line = self.open.setdefault(level, _Line())
        start = 0
        while (end := text.find("\n", start)) >= 0:
            # A slice of what is kept, and no more: a text may be larger than all that is.
            line.add(text[start : min(end, start + MAX_LINE_BYTES)])
            self._end(level, line)
            start = end + 1
        line.add(text[start : start + MAX_LINE_BYTES])

    def _end(self, level: str, line: _Line) -> None:
        data = line.take().rstrip(b"\r")
        if not data:
            return
        if len(self.waiting) >= MAX_LINES or self.bytes + len(data) > MAX_WAITING_BYTES:
            self.dropped += 1
            return
        self.waiting.append((level, data))
        self.bytes += len(data)

    def next(self) -> tuple[str, bytes]:
        """The line that has waited longest."""
        level, data = self.waiting.popleft()
        self.bytes -= len(data)
        return level, data

    def rest(self) -> Iterator[tuple[str, bytes]]:
        """All that is left when the task ends, lines without an end among it, and how much was dropped."""
        for level, line in self.open.items():
            self._end(level, line)
        while len(self.waiting) > MAX_AT_END:
            self.next()
            self.dropped += 1
        while self.waiting:
            yield self.next()
        if self.dropped:
            yield "warning", f"{self.dropped} lines of output were dropped: more was printed than could be sent".encode()


class Output:
    """Tells the tasks' prints apart, and sends them."""

    def __init__(self, events: Events, loop: asyncio.AbstractEventLoop) -> None:
        self._events = events
        self._loop = loop
        self._tasks: dict[Scope, _Printed] = {}
        # One that may be entered again: a print in a finalizer can come in the middle of another.
        self._lock = threading.RLock()

    def install(self) -> None:
        """Puts itself in the place of `sys.stdout` and `sys.stderr`."""
        sys.stdout = TaskStream(sys.stdout, self, "info")
        sys.stderr = TaskStream(sys.stderr, self, "warning")
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """A process that a task forks has no loop that sends, and perhaps a lock that nobody gives back: it prints to the pipe."""
        self._tasks = {}
        self._lock = threading.RLock()

    def begin(self, scope: Scope) -> None:
        """From now on what this task prints is its own."""
        with self._lock:
            self._tasks[scope] = _Printed()

    def end(self, scope: Scope) -> None:
        """Hands over all that is left, before the RESULT. On the loop only."""
        with self._lock:
            printed = self._tasks.pop(scope, None)
            left = list(printed.rest()) if printed is not None else []
        for level, data in left:
            self._emit(scope, level, data)

    def take(self, scope: Scope, level: str, text: str) -> bool:
        """Takes what a task prints; False where the task has ended. From any thread."""
        with self._lock:
            printed = self._tasks.get(scope)
            if printed is None:
                return False
            printed.add(level, text)
            begins = bool(printed.waiting) and not printed.moving
            printed.moving = printed.moving or begins
        if begins:
            self._loop.call_soon_threadsafe(self._move, scope, printed)
        return True

    def _move(self, scope: Scope, printed: _Printed) -> None:
        if self._moved(scope, printed):
            outside(self._loop, self._move_on(scope, printed))

    async def _move_on(self, scope: Scope, printed: _Printed) -> None:
        await self._events.drain()
        while self._moved(scope, printed):
            await self._events.drain()

    def _moved(self, scope: Scope, printed: _Printed) -> bool:
        """Sends as far as there is credit; whether something is left."""
        while True:
            with self._lock:
                # Taken out of the task it was all handed over at its end.
                if not printed.waiting or self._tasks.get(scope) is not printed:
                    printed.moving = False
                    return False
                if self._events.waiting:
                    return True
                level, data = printed.next()
            self._emit(scope, level, data)

    def _emit(self, scope: Scope, level: str, data: bytes) -> None:
        event = worker.LogEvent(level=level, source=_SOURCE, message=data.decode())
        # A run that stops for an answer has a closed gate, and what it has printed was before that.
        self._events.emit(scope, f.Event.LOG, event.SerializeToString(), though_closed=not scope.cancelled)


class TaskStream(io.TextIOBase):
    """A text stream whose text belongs to the task that writes it."""

    # What a task's text becomes; the base class has None here, which users' code does not expect of a standard stream.
    encoding = "utf-8"
    errors = "replace"

    def __init__(self, real: TextIO, output: Output, level: str) -> None:
        self._real = real
        self._output = output
        self._level = level

    def write(self, text: str, /) -> int:
        """Takes text."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        scope = CURRENT.get()
        if scope is None or not self._output.take(scope, self._level, text):
            self._real.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the real one; a task's lines leave by themselves."""
        self._real.flush()

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The real one's: processes that a task starts write there."""
        return self._real.fileno()

    def __getattr__(self, name: str) -> Any:
        """What is not of text as such, `buffer` for example, is the real one's."""
        return getattr(self._real, name)
