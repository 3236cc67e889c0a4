"""Fixtures of the adapters' tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..worker.peer import Peer

ROOT = Path(__file__).resolve().parents[3]
#: Where the set-up puts the environments of frameworks.
ENVIRONMENTS = Path(os.environ.get("SINGULARITY_ENVIRONMENTS", ROOT / "_build" / "venvs"))


@pytest.fixture
def langchain(tmp_path: Path) -> Iterator[Callable[[], Peer]]:
    """Starts LangChain workers in their own environment."""
    python = ENVIRONMENTS / "langchain" / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} is missing; run: make setup")
    peers: list[Peer] = []

    def make() -> Peer:
        peer = Peer("langchain", str(python), tmp_path)
        peers.append(peer)
        return peer

    yield make
    for peer in peers:
        peer.close()
