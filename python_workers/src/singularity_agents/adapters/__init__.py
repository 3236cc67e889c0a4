"""Adapters: what makes a framework's agent a worker of the engine. Found by entry point, so that others can add theirs."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Final

from ._base import Adapter
from ._pins import environment

#: Group of entry points.
GROUP: Final = "singularity_agents.adapters"
_OWN: Final = ("agent_framework", "autogen", "crewai", "custom", "haystack", "langchain", "semantic_kernel")
_loaded: dict[str, Adapter] = {}


def load(framework: str) -> Adapter:
    """The adapter of a framework, its framework imported. Starts no thread, loop or socket, so that a process may fork after it.

    Raises LookupError for a framework without adapter, ImportError where the framework is not installed or not the locked one.
    """
    name = environment(framework)
    if name not in _loaded:
        _loaded[name] = _find(name)
    return _loaded[name]


def _find(name: str) -> Adapter:
    if name in _OWN:
        adapter: Adapter = import_module(f".{name}", __name__).load()
        return adapter
    for point in entry_points(group=GROUP, name=name):
        found: Adapter = point.load()()
        return found
    raise LookupError(f'no adapter for framework "{name}" is installed here')
