"""What an agent asks of people and clients: questions end the attempt, answers begin the next one.

The run starts again from its beginning; its model calls and tools are answered by the journal, its questions by their names.
Names are therefore made of what is the same in every attempt: the number of the question, or the tool and its arguments.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ._wire import from_struct, tasks, to_struct

#: Places by their checksum; the bits below count calls.
_PLACES: Final = 0x7FFFFF00


class InputNeeded(BaseException):
    """Ends the run until its questions are answered. No `Exception`: users' own handlers must not take it for a failure."""

    def __init__(self, inputs: Sequence[tasks.InputRequested]) -> None:
        super().__init__(f"{len(inputs)} questions wait for an answer")
        self.inputs = inputs


def question(
    input_id: str, kind: str, prompt: str, payload: Mapping[str, Any] | None = None, expires_in_s: float | None = None
) -> tasks.InputRequested:
    """A question; `kind` is approval, question or client_tool. It waits for so long at most."""
    made = tasks.InputRequested(input_id=input_id, kind=kind, prompt=prompt)
    if payload:
        made.payload.CopyFrom(to_struct(payload))
    if expires_in_s is not None:
        made.expire_time.FromMilliseconds(int((time.time() + expires_in_s) * 1000))
    return made


def value(answer: tasks.InputAnswer) -> Any:
    """What the agent gets: the payload if there is one, else whether it was approved, or the words.

    Raises :class:`TimeoutError` where nobody answered in time.
    """
    if answer.expired:
        raise TimeoutError(f"{answer.input_id} was not answered in time")
    if answer.HasField("payload"):
        return from_struct(answer.payload)
    which = answer.WhichOneof("answer")
    return getattr(answer, which) if which else None


def input_name(place: str, number: int) -> str:
    """Name of a question by its number, from 1, in its place; the whole run is one place where the run starts again from its top."""
    return f"ask-{_short(place)}-{number}" if place else f"input-{number}"


def occurrence_in(place: str, number: int) -> int:
    """Which of several equal calls of a tool it is, where a run that is resumed does not come by all of them again."""
    return (zlib.crc32(place.encode()) & _PLACES) + number if place else number


def _short(place: str) -> str:
    return hashlib.sha256(place.encode()).hexdigest()[:12]


def tool_input_id(name: str, arguments: str, occurrence: int) -> str:
    """Name of the question what to do with a tool's call that nobody knows the end of."""
    return f"tool-{name}-{hashlib.sha256(arguments.encode()).hexdigest()[:8]}-{occurrence}"
