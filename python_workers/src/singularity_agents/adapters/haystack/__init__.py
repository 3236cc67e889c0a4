"""Haystack: agents and pipelines whose chat generators and tools are the engine's.

>>> from singularity_agents.adapters.haystack import EngineChatGenerator
>>> agent = Agent(chat_generator=EngineChatGenerator(), tools=[...])
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from .. import _lazy, _pins
from .._base import Adapter

if TYPE_CHECKING:
    from ._model import EngineChatGenerator
    from ._people import EngineConfirmationUI
    from ._tools import haystack_tool

__all__ = ["EngineChatGenerator", "EngineConfirmationUI", "haystack_tool", "load"]

__getattr__ = _lazy.names(
    __name__, {"EngineChatGenerator": "_model", "EngineConfirmationUI": "_people", "haystack_tool": "_tools"}
)


def load() -> Adapter:
    """The adapter, the framework imported with its telemetry off."""
    _pins.versions("haystack")
    os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    adapter: Adapter = import_module("._adapter", __name__).HaystackAdapter()
    return adapter
