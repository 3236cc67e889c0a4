"""Fixtures of the adapters' tests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from singularity_agents.adapters._pins import environment

from ..worker.peer import Peer

ROOT = Path(__file__).resolve().parents[3]
#: Where the set-up puts the environments of frameworks.
ENVIRONMENTS = Path(os.environ.get("SINGULARITY_ENVIRONMENTS", ROOT / "_build" / "venvs"))


#: Frameworks by adapter, each in the environment of its lock.
FRAMEWORKS = ("langchain", "langgraph", "crewai", "autogen", "haystack", "semantic_kernel", "agent_framework")
#: A module that every worker of these tests imports first: it writes down who is called on the network.
WATCH = Path(__file__).resolve().parent / "watch"
#: Seconds for the import of the slowest framework on a busy machine.
START_S = 60.0


@contextlib.contextmanager
def started(framework: str, folder: Path) -> Iterator[Peer]:
    """A worker of a framework in its own environment."""
    name = environment(framework)
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} is missing; run: singularity frameworks install {name}")
    peer = Peer(framework, str(python), folder, START_S, [WATCH])
    try:
        yield peer
    finally:
        peer.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Peer]]:
    """Starts workers of frameworks."""
    with contextlib.ExitStack() as stack:
        yield lambda framework: stack.enter_context(started(framework, tmp_path))


@pytest.fixture
def langchain(start: Callable[[str], Peer]) -> Callable[[], Peer]:
    """Starts LangChain workers."""
    return lambda: start("langchain")
