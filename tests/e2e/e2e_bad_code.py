"""Agents of the end-to-end tests whose code is bad, each in its way."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import datetime
import enum
import itertools
import os
import subprocess
from dataclasses import dataclass
from typing import Any

from singularity_agents import agent

#: Children of `multiplies`: some times more than a worker may have, and no more than a machine without limits bears.
CHILDREN = 400
#: Of prctl.
PR_SET_NAME = 15
#: Bytes that `talks` prints.
TALK = 100_000_000


@agent("computes_in_c")
def computes_in_c(task: Any, engine: Any) -> str:
    """Never comes back from one call, and never gives the interpreter's lock."""
    return str(sum(itertools.repeat(0)))


@agent("multiplies")
def multiplies(task: Any, engine: Any) -> str:
    """Starts children, each in a session of its own, and waits for none."""
    for _ in range(CHILDREN):
        subprocess.Popen(["sleep", "984"], start_new_session=True)
    return "all are there"


def _take_a_name() -> None:
    """What `ps` shows of this thread, and of whatever it forks."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"e2e_bomb")


@agent("bomb")
def bomb(task: Any, engine: Any) -> str:
    """Every process doubles itself, for ever."""
    _take_a_name()
    while True:
        with contextlib.suppress(OSError):
            os.fork()


@agent("bomb_of_sessions")
def bomb_of_sessions(task: Any, engine: Any) -> str:
    """The same, each in a session and a group of its own."""
    _take_a_name()
    while True:
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                os.setsid()


@agent("closes_its_channel")
async def closes_its_channel(task: Any, engine: Any) -> str:
    os.close(3)
    os.close(4)
    await asyncio.sleep(3600)
    return "never"


@agent("exits")
async def exits(task: Any, engine: Any) -> str:
    os._exit(0)


@agent("raises")
async def raises(task: Any, engine: Any) -> str:
    """Ends its run as the task says."""
    match task.description:
        case "exception":
            raise ValueError("the agent says no")
        case "exit":
            raise SystemExit("the agent leaves")
        case "interrupt":
            raise KeyboardInterrupt
        case "recursion":
            return _again()
        case "half a character":
            raise ValueError("\udcff")
        case "half an answer":
            return "\udcff"
        case _:
            raise Strange


def _again() -> str:
    return _again()


class Strange(Exception):
    """Says nothing, and not even that in peace."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def _leave_a_daemon() -> None:
    """Forked twice, in a session of its own, with nothing that ties it to us."""
    if (first := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 64)
            os.execv("/bin/sleep", ["sleep", "983"])
        os._exit(0)
    os.waitpid(first, 0)


@agent("escapes")
async def escapes(task: Any, engine: Any) -> str:
    """Leaves a daemon behind, and goes or stays itself."""
    _leave_a_daemon()
    if task.description == "wait":
        engine.text("it is out")
        await asyncio.sleep(3600)
    return "it is out"


@agent("talks")
def talks(task: Any, engine: Any) -> str:
    line = "x" * 9_999
    for _ in range(TALK // 10_000):
        print(line)
    return "said it"


@agent("gives_an_object")
async def gives_an_object(task: Any, engine: Any) -> Any:
    return {"lock": asyncio.Lock()}


class Mood(enum.Enum):
    """Of the day."""

    GOOD = "good"


@dataclass
class Day:
    """What is data, though JSON has no word for it."""

    date: datetime.date
    mood: Mood


@agent("gives_a_day")
async def gives_a_day(task: Any, engine: Any) -> Any:
    return [Day(datetime.date(2026, 1, 2), Mood.GOOD)]
