"""An agent whose tasks run side by side in one process; the words of a task say what it does."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from typing import Any

from singularity_agents import agent

#: Who has come to which room of this process.
_rooms: defaultdict[str, set[str]] = defaultdict(set)
_news = asyncio.Condition()


async def _enter(room: str, task_id: str) -> None:
    async with _news:
        _rooms[room].add(task_id)
        _news.notify_all()


async def _until(room: str, size: int) -> None:
    async with _news:
        await _news.wait_for(lambda: len(_rooms[room]) >= size)


@agent("mixed")
async def mixed(task: Any, engine: Any) -> str:
    """Gives the pid of its process, once it has done what it was told."""
    what, *words = task.description.split()
    if what == "meets":
        await _enter(words[0], task.id)
        await _until(words[0], int(words[1]))
        print(f"{task.id} has met")
    elif what == "asks":
        await engine.chat("what is it?")
        await _enter(words[0], task.id)
        # Again in the next process, which finds the answer in the journal.
        if task.attempt == 1:
            await asyncio.sleep(3600)
    elif what == "awaits":
        await _until(words[0], 1)
    elif what == "stays":
        await asyncio.sleep(3600)
    elif what == "swallows":
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
    elif what == "dies":
        if task.attempt == 1:
            await _until(words[0], 1)
        os._exit(9)
    return str(os.getpid())
