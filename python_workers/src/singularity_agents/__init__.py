"""Run agents of any framework, or none, on one supervised engine.

>>> from singularity_agents import Client
>>> with Client() as engine:
...     print(engine.execute("What is 17 * 23?").output)

Names are imported when they are first used: a worker that needs `agent` and `tool` loads neither gRPC nor pydantic.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    _HERE = ".".join(str(part) for part in sys.version_info[:3])
    raise ImportError(f"singularity-agents needs Python 3.10 to 3.13, this is {_HERE}.")

if TYPE_CHECKING:
    from ._agent import agent
    from ._async_client import AsyncClient, AsyncTaskHandle
    from ._bundle import Bundle
    from ._client import Client, TaskHandle
    from ._errors import (
        Aborted,
        CapabilityPending,
        ConnectionFailed,
        FieldViolation,
        InvalidRequest,
        NotFound,
        Overloaded,
        PermissionRefused,
        ProviderFailed,
        SingularityError,
        TaskCancelled,
        TaskFailed,
        TaskTimedOut,
        Unavailable,
        WaitExpired,
        WrongState,
    )
    from ._models import Agent, AgentResult, Attempt, Cancellation, ChatResult, Event, Framework, Model, Provider, Task
    from ._spec import TaskSpec
    from ._tool import tool
    from ._transport import Tls
    from ._universal import AgentCapabilities, UniversalAgent
    from .adapters.crewai import SingularityCrewAIIntegration
    from .adapters.langchain import SingularityLangChainAgent

__all__ = [
    "Aborted",
    "Agent",
    "AgentCapabilities",
    "AgentResult",
    "AsyncClient",
    "AsyncTaskHandle",
    "Attempt",
    "Bundle",
    "Cancellation",
    "CapabilityPending",
    "ChatResult",
    "Client",
    "ConnectionFailed",
    "Event",
    "FieldViolation",
    "Framework",
    "InvalidRequest",
    "Model",
    "NotFound",
    "Overloaded",
    "PermissionRefused",
    "Provider",
    "ProviderFailed",
    "SingularityCrewAIIntegration",
    "SingularityError",
    "SingularityLangChainAgent",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskHandle",
    "TaskSpec",
    "TaskTimedOut",
    "Tls",
    "Unavailable",
    "UniversalAgent",
    "WaitExpired",
    "WrongState",
    "agent",
    "tool",
]

#: Where each public name lives.
_HOMES = {
    "Aborted": "_errors",
    "Agent": "_models",
    "AgentCapabilities": "_universal",
    "AgentResult": "_models",
    "AsyncClient": "_async_client",
    "AsyncTaskHandle": "_async_client",
    "Attempt": "_models",
    "Bundle": "_bundle",
    "Cancellation": "_models",
    "CapabilityPending": "_errors",
    "ChatResult": "_models",
    "Client": "_client",
    "ConnectionFailed": "_errors",
    "Event": "_models",
    "FieldViolation": "_errors",
    "Framework": "_models",
    "InvalidRequest": "_errors",
    "Model": "_models",
    "NotFound": "_errors",
    "Overloaded": "_errors",
    "PermissionRefused": "_errors",
    "Provider": "_models",
    "ProviderFailed": "_errors",
    "SingularityCrewAIIntegration": "adapters.crewai",
    "SingularityError": "_errors",
    "SingularityLangChainAgent": "adapters.langchain",
    "Task": "_models",
    "TaskCancelled": "_errors",
    "TaskFailed": "_errors",
    "TaskHandle": "_client",
    "TaskSpec": "_spec",
    "TaskTimedOut": "_errors",
    "Tls": "_transport",
    "Unavailable": "_errors",
    "UniversalAgent": "_universal",
    "WaitExpired": "_errors",
    "WrongState": "_errors",
    "agent": "_agent",
    "tool": "_tool",
}


def __getattr__(name: str) -> Any:
    """Imports the module of a public name (PEP 562)."""
    if home := _HOMES.get(name):
        return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
