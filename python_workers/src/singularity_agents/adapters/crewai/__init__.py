"""CrewAI: agents and crews whose models and tools are the engine's.

>>> from singularity_agents.adapters.crewai import EngineLLM
>>> writer = Agent(role="Writer", goal="Write", backstory="A writer", llm=EngineLLM())
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from .. import _pins
from .._base import Adapter

if TYPE_CHECKING:
    from ._model import EngineLLM
    from ._tools import crewai_tool

__all__ = ["EngineLLM", "crewai_tool", "load"]

_HOMES = {"EngineLLM": "_model", "crewai_tool": "_tools"}
#: Before the import: nothing is sent anywhere, and no thread is started that would not survive a fork.
_SILENT: Final = {
    "CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false", "OTEL_SDK_DISABLED": "true",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports the framework when it is first needed."""
    if home := _HOMES.get(name):
        return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load() -> Adapter:
    """The adapter, the framework imported with its telemetry off."""
    _pins.versions("crewai")
    os.environ.update(_SILENT)
    # The import writes a key file; workers get folders of their own.
    folder = os.environ["CREWAI_STORAGE_DIR"] = tempfile.mkdtemp(prefix="singularity-crewai-")
    try:
        adapter: Adapter = import_module("._adapter", __name__).CrewAIAdapter()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return adapter
