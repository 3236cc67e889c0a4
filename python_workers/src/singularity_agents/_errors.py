"""Exceptions: one root, one class per cause that a caller treats differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: `ErrorInfo.domain` of every error of the engine.
DOMAIN = "singularity.agents"


class FieldViolation(NamedTuple):
    """A wrong field of a request."""

    field: str
    description: str


class SingularityError(Exception):
    """Root of everything that this package raises on purpose.

    SingularityError
    +- InvalidRequest      INVALID_FIELD, PAYLOAD_TOO_LARGE, ...   the request is wrong; never retried
    +- NotFound            TASK_NOT_FOUND, AGENT_NOT_FOUND, ...
    +- PermissionRefused   KEY_MISSING, KEY_UNKNOWN, SCOPE_MISSING
    +- WrongState          WRONG_STATE, FRAMEWORK_UNAVAILABLE, ... something else must change first
    +- Aborted             ETAG_MISMATCH, REQUEST_ID_REUSED, ...   somebody was faster
    +- Overloaded          QUEUE_FULL, RATE_LIMITED, ...           `retry_after` is set; retried
    +- Unavailable         DRAINING, STORE_UNAVAILABLE, ...        retried
    |  +- ConnectionFailed                                         no node answered at the address
    +- CapabilityPending   CAPABILITY_PENDING                      this part of the engine has not come yet
    +- ProviderFailed      PROVIDER_QUOTA, MODEL_NOT_FOUND, ...    a model call failed
    +- WaitExpired         DEADLINE_EXCEEDED                       the wait ended; the task goes on
    +- TaskFailed          WORKER_OOM, TOOL_FAILED, ...            the task's own end
       +- TaskCancelled    TASK_CANCELLED
       +- TaskTimedOut     TASK_TIMEOUT, HEARTBEAT_TIMEOUT
    """

    #: UPPER_SNAKE; each has a page under docs/errors.
    reason: str
    #: What the engine says, without the reason.
    message: str
    #: Details by name.
    metadata: Mapping[str, str]
    #: Every wrong field of the request.
    fields: Sequence[FieldViolation]
    #: Seconds after which another try makes sense; None: the engine did not say.
    retry_after: float | None
    #: The request that failed, where it had an id.
    request_id: str | None
    #: The task it is about, where there is one.
    task_id: str | None

    def __init__(
        self,
        message: str,
        *,
        reason: str = "INTERNAL",
        metadata: Mapping[str, str] | None = None,
        fields: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        request_id: str | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.fields = tuple(fields)
        self.retry_after = retry_after
        self.request_id = request_id
        self.task_id = task_id

    def __str__(self) -> str:
        text = f"{self.reason}: {self.message}"
        if self.retry_after is not None:
            text += f", retry after {self.retry_after:.3g} s"
        if self.request_id:
            text += f" [request {self.request_id[-8:]}]"
        return text + "".join(f"\n  {field.field}: {field.description}" for field in self.fields)


class InvalidRequest(SingularityError):
    """The request is wrong; `fields` names every wrong field."""


class NotFound(SingularityError):
    """There is no such task, agent, framework, provider or model for this tenant."""


class PermissionRefused(SingularityError):
    """A key is missing, unknown, expired, or not allowed to do this."""


class WrongState(SingularityError):
    """Something else must change first."""


class Aborted(SingularityError):
    """Somebody else changed it, or the request id was used for something else."""


class Overloaded(SingularityError):
    """The engine or a limit is full; nothing was done."""


class Unavailable(SingularityError):
    """The engine cannot serve now; nothing is known to have been done."""


class ConnectionFailed(Unavailable):
    """No node answered at the address."""


class CapabilityPending(SingularityError):
    """This part of the engine has not come yet; `metadata["capability"]` names it."""


class ProviderFailed(SingularityError):
    """A model call failed; `metadata["kind"]` says how."""


class WaitExpired(SingularityError):
    """The wait ended before the task did; the task goes on, see `task_id`."""


class TaskFailed(SingularityError):
    """The task ended without a result."""


class TaskCancelled(TaskFailed):
    """The task was cancelled."""


class TaskTimedOut(TaskFailed):
    """One of the task's clocks ended it."""


#: What the names of google.rpc.Code mean to a caller, unless the reason says more.
_BY_STATUS: Mapping[str, type[SingularityError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "UNAUTHENTICATED": PermissionRefused,
    "PERMISSION_DENIED": PermissionRefused,
    "FAILED_PRECONDITION": WrongState,
    "ALREADY_EXISTS": Aborted,
    "ABORTED": Aborted,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": Unavailable,
    "UNIMPLEMENTED": CapabilityPending,
    "DEADLINE_EXCEEDED": WaitExpired,
}


def error_class(status: str, reason: str) -> type[SingularityError]:
    """The class for a status name and a reason."""
    if reason.startswith("PROVIDER_") or reason in ("MODEL_NOT_FOUND", "NO_PROVIDER_MATCHES", "CONTEXT_TOO_LONG"):
        return ProviderFailed
    return _BY_STATUS.get(status, SingularityError)
