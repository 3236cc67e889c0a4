"""Subtasks that an agent gives to others, on its own task's account: the request, and what comes back of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from .._durations import seconds
from .._errors import SingularityError
from ._inputs import occurrence_in
from ._scope import Scope
from ._wire import error_of, from_value, tasks, to_struct, worker

_CACHE: Final = {
    "bypass": tasks.CACHE_MODE_BYPASS,
    "use": tasks.CACHE_MODE_USE,
    "refresh": tasks.CACHE_MODE_REFRESH,
}
_OPTIONS: Final = frozenset({"description", "framework", "agent", "model", "output_schema", "max_tokens", "timeout"})


class Delegated(NamedTuple):
    """How a subtask ended."""

    #: Its answer as text; empty where it failed.
    output: str
    #: Its answer as data, where a schema was asked for.
    structured: Any = None
    #: What ran it.
    executor: str = ""
    #: Why it failed; None: it did not.
    error: SingularityError | None = None


def request(subtasks: Sequence[str | Mapping[str, Any]], cache: str) -> worker.DelegateRequest:
    """The request of subtasks. Raises TypeError for an option that there is not, ValueError for another `cache`."""
    if cache not in _CACHE:
        raise ValueError(f'cache: "{cache}" is not one of {", ".join(_CACHE)}')
    return worker.DelegateRequest(subtasks=[_subtask(given) for given in subtasks], cache=_CACHE[cache])


def _subtask(given: str | Mapping[str, Any]) -> worker.Subtask:
    options: Mapping[str, Any] = {"description": given} if isinstance(given, str) else given
    if not isinstance(options, Mapping) or not isinstance(options.get("description"), str):
        raise TypeError('a subtask is a text, or a mapping with "description"')
    if unknown := options.keys() - _OPTIONS:
        raise TypeError(f"unknown options of a subtask: {', '.join(sorted(unknown))}; there are {', '.join(sorted(_OPTIONS))}")
    made = worker.Subtask(
        description=options["description"], executor=options.get("framework", ""), agent_id=options.get("agent", "")
    )
    if model := options.get("model"):
        made.requirements.model = model
    if (schema := options.get("output_schema")) is not None:
        made.requirements.output_schema.CopyFrom(to_struct(schema))
    if (tokens := options.get("max_tokens")) is not None:
        made.requirements.max_tokens = tokens
    if (timeout := options.get("timeout")) is not None:
        made.timeout.FromNanoseconds(int(seconds(timeout) * 1e9))
    return made


def numbered(asked: worker.DelegateRequest, scope: Scope) -> bytes:
    """The request with its number among equal ones, which is the same in each attempt."""
    place = scope.place()
    key = (place, "", asked.SerializeToString(deterministic=True).hex())
    asked.occurrence = occurrence_in(place, scope.begun[key])
    scope.begun[key] += 1
    return asked.SerializeToString()


def ends(payload: bytes) -> list[Delegated]:
    """The ends of subtasks, in their order."""
    return [_end(end) for end in worker.DelegateReply.FromString(payload).ends]


def _end(end: worker.SubtaskEnd) -> Delegated:
    if end.HasField("error"):
        return Delegated("", error=error_of(end.error.SerializeToString()))
    result = end.result
    structured = from_value(result.structured_output) if result.HasField("structured_output") else None
    return Delegated(result.output, structured, result.executor)


def output_of(end: Delegated) -> str:
    """Its text. Raises its error."""
    if end.error is not None:
        raise end.error
    return end.output
