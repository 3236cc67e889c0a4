"""The engine of this process, for code that is reached without being handed it: tools and framework classes."""

from __future__ import annotations

from ._engine import Engine
from ._scope import CURRENT

_engine: Engine | None = None


def attach(engine: Engine) -> None:
    """Makes the engine known; once per process."""
    global _engine
    _engine = engine


def engine() -> Engine:
    """The engine. Raises outside of a worker, where nobody has made one for a script."""
    if _engine is None:
        raise RuntimeError(
            "this code runs outside of a worker of the engine; in a script make a SingularityLangChainAgent or a "
            "SingularityCrewAIIntegration first, which bring an engine on a node along"
        )
    return _engine


def is_attached() -> bool:
    """Whether there is one."""
    return _engine is not None


def in_task() -> Engine | None:
    """The engine if the calling code belongs to a running task of it, else None."""
    return _engine if _engine is not None and CURRENT.get() is not None else None
