"""The worker's event loop. A framework's run takes some forty turns of it, and each of them would ask the kernel for news."""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Final

#: Seconds in which turns with work at hand do not look at the sockets again.
BUSY_S: Final = 0.001


class Selector(selectors.EpollSelector):
    """Asks the kernel whenever the loop would wait, and while it has work to do once a millisecond."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; nothing, where the loop has work and was told a moment ago."""
        is_busy = timeout is not None and timeout <= 0
        now = time.monotonic()
        if is_busy and now - self._asked < BUSY_S:
            return []
        found = super().select(timeout)
        self._asked = now if is_busy else time.monotonic()
        return found


def new() -> asyncio.AbstractEventLoop:
    """A loop of this kind."""
    return asyncio.SelectorEventLoop(Selector())
