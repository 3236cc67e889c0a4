"""CrewAI: agents and crews whose models and tools are the engine's.

>>> from singularity_agents.adapters.crewai import EngineLLM
>>> writer = Agent(role="Writer", goal="Write", backstory="A writer", llm=EngineLLM())
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import import_module
from typing import TYPE_CHECKING, Final

from .. import _lazy, _pins
from .._base import Adapter

if TYPE_CHECKING:
    from ._model import EngineLLM
    from ._seed import SingularityCrewAIIntegration
    from ._tools import crewai_tool

__all__ = ["EngineLLM", "SingularityCrewAIIntegration", "crewai_tool", "load"]

__getattr__ = _lazy.names(
    __name__, {"EngineLLM": "_model", "SingularityCrewAIIntegration": "_seed", "crewai_tool": "_tools"}
)  # fmt: skip
#: Before the import: nothing is sent anywhere, and no thread is started that would not survive a fork.
_SILENT: Final = {
    "CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false", "OTEL_SDK_DISABLED": "true",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
}  # fmt: skip
for _name, _value in _SILENT.items():
    # A script that imports the names above has no `load`; what it has set itself stays.
    os.environ.setdefault(_name, _value)


def load() -> Adapter:
    """The adapter, the framework imported with its telemetry off."""
    _pins.versions("crewai")
    os.environ.update(_SILENT)
    # The import writes a key file; workers get folders of their own.
    folder = os.environ["CREWAI_STORAGE_DIR"] = tempfile.mkdtemp(prefix="singularity-crewai-")
    try:
        adapter: Adapter = import_module("._adapter", __name__).CrewAIAdapter()
        _lazy.ahead("crewai.hooks.contexts", "crewai.llms.cache", "crewai.skills.tool")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return adapter
