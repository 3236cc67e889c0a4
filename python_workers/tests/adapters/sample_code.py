"""The user's tools in the tests of all adapters."""

import contextlib
import socket

from singularity_agents import tool
from singularity_agents.worker._runtime import in_task

RAN = []


@tool(replay="journaled")
def double(n: int) -> int:
    """Doubles a number."""
    RAN.append(n)
    return 2 * n


@tool(replay="safe")
def fails(why: str) -> str:
    """Fails."""
    raise ValueError(why)


@tool
def once(n: int) -> str:
    """Acts once."""
    return f"acted {n}"


@tool(replay="safe")
def dials(port: int) -> str:
    """Calls somebody on the network."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    return "dialled"


@tool(replay="safe")
async def asks() -> str:
    """Asks a person."""
    running = in_task()
    assert running is not None
    return f"the person said {await running.ask('Shall I?')}"
