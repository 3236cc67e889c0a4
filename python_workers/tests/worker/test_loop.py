"""The worker's loop: it looks at its sockets when it would wait, and now and then while it works."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from singularity_agents.worker import _loop


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with contextlib.closing(ours), contextlib.closing(theirs):
        yield ours, theirs


def test_news_come_while_the_loop_never_rests(pair: tuple[socket.socket, socket.socket]) -> None:
    async def work() -> float:
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(pair[0].fileno(), came.set)
        await asyncio.sleep(0)
        pair[1].send(b"x")
        began = time.monotonic()
        while not came.is_set():
            await asyncio.sleep(0)
            assert time.monotonic() - began < 5
        loop.remove_reader(pair[0].fileno())
        return time.monotonic() - began

    with asyncio.Runner(loop_factory=_loop.new) as runner:
        runner.run(work())


def test_a_selector_with_work_at_hand_asks_once_in_a_while(pair: tuple[socket.socket, socket.socket]) -> None:
    with contextlib.closing(_loop.Selector()) as selector:
        selector.register(pair[0], 1)
        assert selector.select(0) == []
        pair[1].send(b"x")
        assert len(selector.select(None)) == 1, "who waits is told at once"
        assert selector.select(0) == [], "it was asked a moment ago"
        end = time.monotonic() + 5
        while not selector.select(0):
            assert time.monotonic() < end


def test_a_thread_wakes_it() -> None:
    async def work() -> str:
        return await asyncio.to_thread(lambda: "done")

    with asyncio.Runner(loop_factory=_loop.new) as runner:
        assert runner.run(work()) == "done"
