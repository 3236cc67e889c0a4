"""Haystack: agents and pipelines whose chat generators and tools are the engine's.

>>> from singularity_agents.adapters.haystack import EngineChatGenerator
>>> agent = Agent(chat_generator=EngineChatGenerator(), tools=[...])
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .. import _pins
from .._base import Adapter

if TYPE_CHECKING:
    from ._model import EngineChatGenerator
    from ._tools import haystack_tool

__all__ = ["EngineChatGenerator", "haystack_tool", "load"]

_HOMES = {"EngineChatGenerator": "_model", "haystack_tool": "_tools"}


def __getattr__(name: str) -> Any:
    """Imports the framework when it is first needed."""
    if home := _HOMES.get(name):
        return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load() -> Adapter:
    """The adapter, the framework imported with its telemetry off."""
    _pins.versions("haystack")
    os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    adapter: Adapter = import_module("._adapter", __name__).HaystackAdapter()
    return adapter
