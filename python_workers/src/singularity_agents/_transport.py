"""Addresses, channels, errors and retries: what the two clients share below their calls."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from ._errors import (
    DOMAIN,
    ConnectionFailed,
    FieldViolation,
    Overloaded,
    SingularityError,
    Unavailable,
    error_class,
)

#: Where a node listens unless its configuration says otherwise.
DEFAULT_ADDRESS = "127.0.0.1:50151"
#: Of a whole call with its retries, in seconds.
DEFAULT_TIMEOUT = 600.0
#: Seconds that a call which waits at the engine may take longer than its wait.
WAIT_MARGIN = 5.0
#: Further tries after the first.
DEFAULT_RETRIES = 2
#: Largest message either way, in bytes.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
#: First and largest pause between tries, in seconds.
FIRST_BACKOFF, MAX_BACKOFF = 0.1, 10.0

_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True)
class Tls:
    """Files for TLS; `ca` absent: the system's roots. `cert` and `key` go together."""

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a channel. Raises OSError where a file cannot be read."""
        read = [Path(path).read_bytes() if path else None for path in (self.ca, self.key, self.cert)]
        return grpc.ssl_channel_credentials(*read)


@dataclass(frozen=True)
class Target:
    """Where and as whom to connect."""

    address: str
    api_key: str | None = None
    tls: Tls | None = None

    @classmethod
    def of(cls, address: str | None, api_key: str | None, tls: Tls | bool | None) -> Target:
        """From arguments, then SINGULARITY_ADDRESS, SINGULARITY_API_KEY and SINGULARITY_CA, then the defaults."""
        if tls is None:
            ca = os.environ.get("SINGULARITY_CA")
            tls = Tls(ca) if ca else None
        return cls(
            address or os.environ.get("SINGULARITY_ADDRESS") or DEFAULT_ADDRESS,
            api_key or os.environ.get("SINGULARITY_API_KEY") or None,
            (Tls() if tls else None) if isinstance(tls, bool) else tls,
        )

    def __repr__(self) -> str:
        return f"Target({self.address!r}, api_key={'redacted' if self.api_key else None}, tls={self.tls is not None})"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    @staticmethod
    def options() -> list[tuple[str, Any]]:
        """Channel options. Retries are ours, so that their budget and RetryInfo count."""
        return [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
        ]


class RetryBudget:
    """Bounds the retries of a client: each costs a token, each success earns a tenth.

    A node in trouble is thus not met by three times the load of its clients.
    """

    SIZE = 10.0
    EARNED = 0.1

    def __init__(self) -> None:
        self._tokens = self.SIZE

    def succeeded(self) -> None:
        """A call went well."""
        self._tokens = min(self.SIZE, self._tokens + self.EARNED)

    def take(self) -> bool:
        """Takes a token, if there is one."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def backoff(error: SingularityError, attempt: int, repeatable: bool) -> float | None:
    """Seconds to wait before try `attempt` + 1, or None if the error must be raised.

    `repeatable` says that the call changes nothing, or carries a request id that makes the second one the same.
    """
    known_undone = isinstance(error, Overloaded) or error.reason == "DRAINING"
    if not (known_undone or (repeatable and isinstance(error, Unavailable)) or _ambiguous(error, repeatable)):
        return None
    if error.reason in ("QUOTA_EXCEEDED", "BUDGET_EXHAUSTED"):
        return None
    pause: float = min(MAX_BACKOFF, FIRST_BACKOFF * 2.0**attempt) * random.uniform(0.5, 1.0)
    return max(pause, error.retry_after or 0.0)


def _ambiguous(error: SingularityError, repeatable: bool) -> bool:
    return repeatable and error.reason == "COMMIT_AMBIGUOUS"


def error_of(error: grpc.RpcError, target: Target, request_id: str | None = None, task_id: str | None = None) -> SingularityError:
    """The typed error of a failed call."""
    code: grpc.StatusCode = error.code()
    trailing: Iterable[Any] = error.trailing_metadata() or ()
    status = status_pb2.Status()
    for key, value in trailing:
        if key == _DETAILS:
            status.ParseFromString(value)
    return _typed(code, str(error.details() or ""), status, target, request_id, task_id)


def _typed(
    code: grpc.StatusCode,
    text: str,
    status: status_pb2.Status,
    target: Target,
    request_id: str | None,
    task_id: str | None,
) -> SingularityError:
    reason: str | None = None
    metadata: Mapping[str, str] = {}
    retry_after: float | None = None
    fields: list[FieldViolation] = []
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            fields += [FieldViolation(f.field, f.description) for f in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    kind: type[SingularityError] = error_class(code.name, reason or "")
    if reason is None and code is grpc.StatusCode.UNAVAILABLE:
        kind, text = ConnectionFailed, f"no node answers at {target.address} ({text})"
    return kind(
        status.message or text,
        reason=reason or code.name,
        metadata=metadata,
        fields=fields,
        retry_after=retry_after,
        request_id=request_id,
        task_id=task_id or metadata.get("task_id"),
    )
