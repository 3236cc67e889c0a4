"""The five steps of an adapter, and what travels between them."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from ..worker._engine import Engine
from ..worker._wire import agents, tasks, to_struct, to_value, worker

#: Values whose text says all that they are.
_AS_TEXT: Final = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID, pathlib.PurePath)


class Setup(NamedTuple):
    """INIT: what binds a worker to one agent and tenant."""

    framework: str
    agent: agents.Agent
    tenant: str
    entrypoint: str
    project: str
    storage_dir: str
    tools: Sequence[str]
    config: Mapping[str, Any]
    #: Tasks that run side by side in this process.
    concurrency: int = 1


@dataclass
class Loaded:
    """What READY says."""

    #: Tools that run in the worker.
    tools: Sequence[Any] = ()
    #: Tools that cannot be wrapped.
    unjournaled: Sequence[str] = ()


class Health(NamedTuple):
    """What HEALTH_REPLY says."""

    ok: bool
    detail: str
    version: str


@dataclass
class Outcome:
    """The end of a run, before it becomes the engine's result."""

    text: str = ""
    structured: Any = None
    steps: Sequence[tasks.ResultStep] = ()
    #: Name of a limit that ended the run, for example "max_steps".
    limit_reached: str = ""
    #: Details of the framework's own, JSON-like.
    data: Mapping[str, Any] = field(default_factory=dict)


class Adapter(Protocol):
    """A framework behind the engine. `Handle` and `Native` are the adapter's own types.

    Where INIT says so several tasks are in the last three steps at once, on one loop: what belongs to a run stands in its handle or
    in the notes of its scope, never in the adapter.
    """

    #: Name of the framework.
    name: str

    def versions(self) -> dict[str, str]:
        """Versions of the packages that matter."""

    async def initialize(self, setup: Setup, engine: Engine) -> Loaded:
        """Imports the user's code and builds what all tasks share; once per process, after the fork."""

    async def health_check(self) -> Health:
        """A deep check, without a provider call."""

    def convert_task(self, execute: worker.Execute) -> Any:
        """The engine's task as a run handle. Pure."""

    async def execute_framework_task(self, handle: Any) -> Any:
        """Runs it; cancelled by cancelling."""

    def convert_result(self, native: Any) -> tasks.AgentResult:
        """What the framework gave as the engine's result. Pure."""


def _data(given: Any) -> Any:
    """What an agent gave, as JSON says it. Raises TypeError for what would be no more than the name of an object."""
    if hasattr(given, "model_dump"):
        return given.model_dump(mode="json")
    return json.loads(json.dumps(given, default=_plain))


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, _AS_TEXT):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    raise TypeError(
        f"the result holds an object of the class {type(value).__name__}, which is no data: give text, or what JSON can say"
    )


def result_of(outcome: Any) -> tasks.AgentResult:
    """The engine's result of what an agent gave: text, JSON-like data, an :class:`Outcome`, or the message itself."""
    if isinstance(outcome, str):
        return tasks.AgentResult(status=tasks.RESULT_STATUS_COMPLETED, output=outcome)
    if isinstance(outcome, tasks.AgentResult):
        return outcome
    if not isinstance(outcome, Outcome):
        outcome = Outcome(structured=_data(outcome))
    result = tasks.AgentResult(
        status=tasks.RESULT_STATUS_PARTIAL if outcome.limit_reached else tasks.RESULT_STATUS_COMPLETED,
        output=outcome.text,
        steps=outcome.steps,
        limit_reached=outcome.limit_reached,
    )
    structured = outcome.structured
    if structured is not None:
        if hasattr(structured, "model_dump"):
            structured = structured.model_dump(mode="json")
        result.structured_output.CopyFrom(to_value(structured))
        if not result.output:
            result.output = json.dumps(structured, ensure_ascii=False, default=str)
    if outcome.data:
        result.framework_specific_data.CopyFrom(to_struct(outcome.data))
    return result
