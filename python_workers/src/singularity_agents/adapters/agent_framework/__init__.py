"""Microsoft Agent Framework: agents and workflows whose chat clients and tools are the engine's.

>>> from singularity_agents.adapters.agent_framework import EngineChatClient
>>> agent = Agent(EngineChatClient(), "You write.", name="writer")
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from .. import _lazy, _pins
from .._base import Adapter

if TYPE_CHECKING:
    from ._model import EngineChatClient
    from ._tools import function_tool

__all__ = ["EngineChatClient", "function_tool", "load"]

__getattr__ = _lazy.names(__name__, {"EngineChatClient": "_model", "function_tool": "_tools"})


def load() -> Adapter:
    """The adapter, the framework imported with its instrumentation off."""
    _pins.versions("agent_framework")
    for name in [name for name in os.environ if name.startswith("OTEL_") or name == "ENABLE_SENSITIVE_DATA"]:
        del os.environ[name]
    os.environ.update(ENABLE_INSTRUMENTATION="false", AGENT_FRAMEWORK_USER_AGENT_DISABLED="true")
    adapter: Adapter = import_module("._adapter", __name__).AgentFrameworkAdapter()
    _lazy.ahead("agent_framework._harness._tool_approval", "agent_framework._mcp", "urllib.request")
    return adapter
