"""The user's tools in the tests of all adapters."""

from singularity_agents import tool

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
