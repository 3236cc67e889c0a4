"""CrewAI's events as steps of the task: which agent works, and on which of the crew's tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crewai.events import crewai_event_bus
from crewai.events.types.agent_events import AgentExecutionCompletedEvent, AgentExecutionErrorEvent, AgentExecutionStartedEvent
from crewai.events.types.task_events import TaskCompletedEvent, TaskFailedEvent, TaskStartedEvent

from ..._errors import SingularityError
from ...worker import _runtime
from ...worker._engine import Engine

#: Name of a step, in characters.
_MAX_NAME = 80


def install(engine: Engine) -> None:
    """Listens for the length of the process; outside of tasks nothing is shown."""
    on(AgentExecutionStartedEvent, lambda event: show(engine, "agent", role(event)))
    on(AgentExecutionCompletedEvent, lambda event: show(engine, "agent", role(event), started=False))
    on(AgentExecutionErrorEvent, lambda event: show(engine, "agent", role(event), started=False, is_error=True))
    on(TaskStartedEvent, lambda event: show(engine, "task", task(event)))
    on(TaskCompletedEvent, lambda event: show(engine, "task", task(event), started=False))
    on(TaskFailedEvent, lambda event: show(engine, "task", task(event), started=False, is_error=True))


def on(kind: type[Any], handler: Callable[[Any], None]) -> None:
    """One handler; CrewAI calls it in threads of its own, with the context of whoever emitted the event."""

    @crewai_event_bus.on(kind)
    def handle(source: Any, event: Any) -> None:
        handler(event)


def show(engine: Engine, kind: str, name: str, *, started: bool = True, is_error: bool = False) -> None:
    """A step, if the task still runs."""
    if _runtime.in_task() is None:
        return
    try:
        engine.step(kind, name[:_MAX_NAME], started=started, is_error=is_error)
    except SingularityError:
        # It was cancelled meanwhile.
        return


def role(event: Any) -> str:
    """The agent's role."""
    return str(getattr(event.agent, "role", "agent")).strip()


def task(event: Any) -> str:
    """The first line of the task's description."""
    found = getattr(event, "task", None)
    return str(getattr(found, "name", None) or getattr(found, "description", "task")).strip().split("\n")[0]
