"""Tools of `make bench`'s matrix."""

from __future__ import annotations

import time

from singularity_agents import tool


@tool(replay="safe")
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


@tool(replay="safe")
def linger() -> str:
    """Never ends by itself."""
    while True:
        time.sleep(60)
