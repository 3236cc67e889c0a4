"""Protobuf of the worker: the generated modules under short names, and errors in both directions.

One import for the whole package, so that nothing is looked up per task.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value

from .._errors import CapabilityPending, ProviderFailed, SingularityError, TaskCancelled, error_class
from .._proto.singularity.agents.v1 import agent_service_pb2 as agents
from .._proto.singularity.agents.v1 import common_pb2 as common
from .._proto.singularity.agents.v1 import memory_service_pb2 as memory
from .._proto.singularity.agents.v1 import provider_service_pb2 as providers
from .._proto.singularity.agents.v1 import task_pb2 as tasks
from .._proto.singularity.worker.v1 import worker_pb2 as worker

__all__ = [
    "agents",
    "arguments_text",
    "common",
    "error_message",
    "error_of",
    "from_struct",
    "from_value",
    "memory",
    "providers",
    "tasks",
    "to_struct",
    "to_value",
    "worker",
]

#: Longest traceback sent, in characters; its end is kept.
_MAX_TRACEBACK: Final = 8000
#: Longest message of an error, in characters.
_MAX_MESSAGE: Final = 4000
#: Frames of these folders are not the user's.
_OURS: Final = str(Path(__file__).resolve().parent.parent)

# Names of google.rpc.Code by number.
_STATUS: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


def error_of(payload: bytes) -> SingularityError:
    """The exception of an ERROR reply; a payload that cannot be read is an error too."""
    message = worker.Error()
    try:
        message.ParseFromString(payload)
    except Exception:
        return SingularityError("the engine sent an error that cannot be read", reason="WORKER_PROTOCOL_ERROR")
    if message.reason == "TASK_CANCELLED":
        cls: type[SingularityError] = TaskCancelled
    elif message.reason == "CAPABILITY_PENDING":
        cls = CapabilityPending
    else:
        cls = error_class(_STATUS[message.code] if 0 <= message.code < len(_STATUS) else "UNKNOWN", message.reason)
    return cls(message.message, reason=message.reason or "INTERNAL", metadata=dict(message.metadata))


def error_message(error: BaseException, reason: str = "FRAMEWORK_ERROR") -> worker.Error:
    """The typed error of an exception: the engine's own reason where there is one, else the user's type, text and frames."""
    if isinstance(error, SingularityError):
        return worker.Error(
            reason=error.reason,
            message=_sendable(error.message)[:_MAX_MESSAGE],
            metadata={_sendable(key): _sendable(value) for key, value in error.metadata.items()},
            retryable=isinstance(error, ProviderFailed) and error.retry_after is not None,
        )
    name = type(error).__qualname__
    return worker.Error(
        reason=reason,
        message=_sendable(f"{name}: {words(error)}")[:_MAX_MESSAGE],
        metadata={"type": name},
        traceback=_sendable(_users_frames(error))[-_MAX_TRACEBACK:],
    )


def words(error: BaseException) -> str:
    """What an exception says; one that cannot even say it must not take its task's end with it."""
    try:
        return str(error)
    except Exception as worse:
        return f"(its text could not be made: {type(worse).__name__})"


def _sendable(text: str) -> str:
    """Halves of characters, as in names of files that are no UTF-8, have no place in a message."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _users_frames(error: BaseException) -> str:
    summary = traceback.TracebackException.from_exception(error, limit=-40)
    while summary.stack and summary.stack[0].filename.startswith(_OURS):
        del summary.stack[0]
    return "".join(summary.format())


def to_struct(data: Mapping[str, Any]) -> Struct:
    """A Struct of JSON-like data; what JSON does not know becomes text."""
    try:
        struct = Struct()
        struct.update(data)
    except (TypeError, ValueError):
        struct = Struct()
        struct.update(json.loads(json.dumps(data, default=str)))
    return struct


def to_value(data: Any) -> Value:
    """A Value of JSON-like data; what JSON does not know becomes text."""
    return json_format.ParseDict(json.loads(json.dumps(data, default=str)), Value())


def from_struct(struct: Struct) -> dict[str, Any]:
    """Plain data of a Struct; whole numbers become int."""
    return {key: from_value(value) for key, value in struct.fields.items()}


def from_value(value: Value) -> Any:
    """Plain data of a Value; whole numbers become int."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [from_value(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return None if kind in (None, "null_value") else getattr(value, kind)


def arguments_text(arguments: Any) -> str:
    """Canonical JSON text of a tool's arguments: sorted keys, no spaces."""
    return json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
