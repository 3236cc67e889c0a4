"""Two beats in one frame, every 250 ms: the thread's says that the interpreter lives, the loop's that it turns."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from . import _frames as f
from ._channel import Channel

#: Seconds between heartbeats.
INTERVAL_S: Final = 0.25
_PAGE = os.sysconf("SC_PAGE_SIZE")


def rss_bytes() -> int:
    """Resident memory of this process in bytes, 0 where the kernel does not say."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


class Heartbeat:
    """Sends the beats from a daemon thread; the loop beats by itself."""

    def __init__(self, channel: Channel, in_flight: Callable[[], int]) -> None:
        self._channel = channel
        self._in_flight = in_flight
        self._loop_beat = 0
        self._lag_us = 0
        self._due = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts both beats."""
        self._due = loop.time()
        self._turn(loop)
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._lag_us = int(max(0.0, now - self._due) * 1e6)
        self._loop_beat += 1
        self._due = now + INTERVAL_S
        loop.call_at(self._due, self._turn, loop)

    def _run(self) -> None:
        beat = 0
        while True:
            beat += 1
            payload = f.heartbeat(beat, self._loop_beat, self._lag_us, self._in_flight(), rss_bytes())
            self._channel.send(f.Type.HEARTBEAT, payload=payload)
            time.sleep(INTERVAL_S)
