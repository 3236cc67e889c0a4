"""AutoGen: AgentChat agents and teams whose models and tools are the engine's.

>>> from singularity_agents.adapters.autogen import EngineChatCompletionClient
>>> writer = AssistantAgent("writer", EngineChatCompletionClient())
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .. import _pins
from .._base import Adapter

if TYPE_CHECKING:
    from ._model import EngineChatCompletionClient
    from ._tools import EngineWorkbench

__all__ = ["EngineChatCompletionClient", "EngineWorkbench", "load"]

_HOMES = {"EngineChatCompletionClient": "_model", "EngineWorkbench": "_tools"}


def __getattr__(name: str) -> Any:
    """Imports the framework when it is first needed."""
    if home := _HOMES.get(name):
        return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load() -> Adapter:
    """The adapter, the framework imported with its tracing off."""
    _pins.versions("autogen")
    os.environ["AUTOGEN_DISABLE_RUNTIME_TRACING"] = "true"
    adapter: Adapter = import_module("._adapter", __name__).AutoGenAdapter()
    return adapter
