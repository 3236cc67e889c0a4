"""Fixtures for pytest, taken in by `pytest_plugins = ["singularity_agents.testing.plugin"]`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from . import Node, ScriptedModel


@pytest.fixture(scope="module")
def singularity_node() -> Iterator[Callable[..., Node]]:
    """Starts nodes that end with the module: `node = singularity_node(my_agent, model=ScriptedModel("hello"))`."""
    with contextlib.ExitStack() as nodes:

        def start(*agents: Any, model: ScriptedModel | None = None, config: str = "") -> Node:
            return nodes.enter_context(Node(*agents, model=model, config=config))

        yield start
