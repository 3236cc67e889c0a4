"""AutoGen: AgentChat agents and teams whose models and tools are the engine's.

>>> from singularity_agents.adapters.autogen import EngineChatCompletionClient
>>> writer = AssistantAgent("writer", EngineChatCompletionClient())
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from .. import _lazy, _pins
from .._base import Adapter

if TYPE_CHECKING:
    from ._model import EngineChatCompletionClient
    from ._tools import EngineWorkbench

__all__ = ["EngineChatCompletionClient", "EngineWorkbench", "load"]

__getattr__ = _lazy.names(__name__, {"EngineChatCompletionClient": "_model", "EngineWorkbench": "_tools"})


def load() -> Adapter:
    """The adapter, the framework imported with its tracing off."""
    _pins.versions("autogen")
    os.environ["AUTOGEN_DISABLE_RUNTIME_TRACING"] = "true"
    adapter: Adapter = import_module("._adapter", __name__).AutoGenAdapter()
    return adapter
