"""Semantic Kernel: agents and orchestrations whose chat services and functions are the engine's.

>>> from singularity_agents.adapters.semantic_kernel import EngineChatCompletion
>>> agent = ChatCompletionAgent(service=EngineChatCompletion(), name="writer")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .. import _pins
from .._base import Adapter

if TYPE_CHECKING:
    from ._model import EngineChatCompletion
    from ._tools import kernel_plugin

__all__ = ["EngineChatCompletion", "kernel_plugin", "load"]

_HOMES = {"EngineChatCompletion": "_model", "kernel_plugin": "_tools"}


def __getattr__(name: str) -> Any:
    """Imports the framework when it is first needed."""
    if home := _HOMES.get(name):
        return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load() -> Adapter:
    """The adapter, the framework imported with its meters off: they would keep every function that is ever built."""
    _pins.versions("semantic_kernel")
    metrics = import_module("opentelemetry.metrics")
    metrics.set_meter_provider(metrics.NoOpMeterProvider())
    adapter: Adapter = import_module("._adapter", __name__).SemanticKernelAdapter()
    return adapter
