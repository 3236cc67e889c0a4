"""Fixtures of the worker's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .peer import Peer


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the user's code."""
    (tmp_path / "user_code.py").write_text((Path(__file__).parent / "sample_agents.py").read_text(), "utf-8")
    return tmp_path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    """Starts workers; they are ended with the test."""
    peers: list[Peer] = []

    def make(framework: str = "custom") -> Peer:
        peer = Peer(framework, cwd=tmp_path)
        peers.append(peer)
        return peer

    yield make
    for peer in peers:
        peer.close()
