"""LangChain and LangGraph: agents whose models, tools and tokens are the engine's.

>>> from singularity_agents.adapters.langchain import EngineChatModel
>>> from langchain.agents import create_agent
>>> agent = create_agent(EngineChatModel(), [my_tool])      # named by entrypoint = "module:agent"
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from .. import _lazy
from .._base import Adapter

if TYPE_CHECKING:
    from ._model import EngineChatModel
    from ._seed import SingularityLangChainAgent
    from ._tools import langchain_tool

__all__ = ["EngineChatModel", "SingularityLangChainAgent", "langchain_tool", "load"]

__getattr__ = _lazy.names(
    __name__, {"EngineChatModel": "_model", "SingularityLangChainAgent": "_seed", "langchain_tool": "_tools"}
)


def load() -> Adapter:
    """The adapter, the framework imported with its telemetry off."""
    for name in [name for name in os.environ if name.startswith(("LANGSMITH_", "LANGCHAIN_"))]:
        del os.environ[name]
    os.environ["LANGSMITH_TRACING"] = "false"
    adapter: Adapter = import_module("._adapter", __name__).LangChainAdapter()
    _lazy.ahead("langchain_core.tracers.context", "langchain_core.tracers.run_collector", "langchain_core.tracers.stdout")
    return adapter
