"""Fixtures that several folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .sdk import scripted_node


@pytest.fixture
def node() -> Iterator[scripted_node.ScriptedNode]:
    """A scripted node."""
    with scripted_node.running() as started:
        yield started
