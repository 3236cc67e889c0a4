"""Semantic Kernel: agents and orchestrations whose chat services and functions are the engine's.

>>> from singularity_agents.adapters.semantic_kernel import EngineChatCompletion
>>> agent = ChatCompletionAgent(service=EngineChatCompletion(), name="writer")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .. import _lazy, _pins
from .._base import Adapter

if TYPE_CHECKING:
    from ._model import EngineChatCompletion
    from ._people import ask_person
    from ._tools import kernel_plugin

__all__ = ["EngineChatCompletion", "ask_person", "kernel_plugin", "load"]

__getattr__ = _lazy.names(__name__, {"EngineChatCompletion": "_model", "ask_person": "_people", "kernel_plugin": "_tools"})


def load() -> Adapter:
    """The adapter, the framework imported with its meters off: they would keep every function that is ever built."""
    _pins.versions("semantic_kernel")
    metrics = import_module("opentelemetry.metrics")
    metrics.set_meter_provider(metrics.NoOpMeterProvider())
    adapter: Adapter = import_module("._adapter", __name__).SemanticKernelAdapter()
    _lazy.ahead(
        "semantic_kernel.connectors.ai.function_call_choice_configuration",
        "semantic_kernel.template_engine.protocols.code_renderer",
        "semantic_kernel.template_engine.protocols.text_renderer",
    )
    return adapter
