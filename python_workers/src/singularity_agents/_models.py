"""Results as typed, immutable values, made from the protobuf messages of the same names.

Enums are their short names ("SUCCEEDED", "APPROVAL"; "" where unset), so that a newer engine's value does not break
an older client. A field that is None is unknown or was not set; it is never a pretended zero.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message as Proto
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


def _seconds(value: object) -> object:
    """A duration's JSON form, "1.5s"."""
    if isinstance(value, str) and value.endswith("s"):
        return timedelta(seconds=float(value[:-1]))
    return value


#: A duration; "1.5s" in JSON.
Duration = Annotated[
    timedelta,
    BeforeValidator(_seconds),
    PlainSerializer(lambda value: f"{value.total_seconds():g}s", return_type=str, when_used="json"),
]


class Value(BaseModel):
    """Base of all results."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ToolCall(Value):
    """A call of a tool, as a model asked for it."""

    id: str = ""
    name: str = ""
    arguments: str = ""


class ContentPart(Value):
    """A part of a message; text, or something else kept as data."""

    text: str = ""
    image: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None


class Message(Value):
    """One message of a conversation."""

    role: str
    content: list[ContentPart] = []
    tool_calls: list[ToolCall] = []
    tool_call_id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content)


class Usage(Value):
    """Tokens."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens


class FieldProblem(Value):
    """A wrong field of a request."""

    field: str = ""
    description: str = ""


class TaskError(Value):
    """How a task ended without a result."""

    reason: str = "INTERNAL"
    message: str = ""
    metadata: dict[str, str] = {}
    code: int = 0
    field_violations: list[FieldProblem] = []


class Artifact(Value):
    """A file or data; `inline` is base64 in JSON."""

    name: str = ""
    media_type: str = ""
    size: int = 0
    sha256: str = ""
    inline: str | None = None
    reference: str | None = None


class ResultStep(Value):
    """Something that was done."""

    kind: str = ""
    name: str = ""
    input: str = ""
    output: str = ""
    is_error: bool = False
    start_time: datetime | None = None
    end_time: datetime | None = None


class ExecutionMetrics(Value):
    """The engine's own meter."""

    queue_time: Duration | None = None
    execution_time: Duration | None = None
    tokens_used: Usage = Usage()
    provider_calls: int = 0
    provider_calls_replayed: int = 0
    tool_calls: int = 0
    memory_used: int | None = None
    cost_micros: int | None = None
    cache_hit: bool = False


class AgentResult(Value):
    """What a task gave."""

    task_id: str = ""
    status: str = ""
    output: str = ""
    structured_output: Any = None
    artifacts: list[Artifact] = []
    steps: list[ResultStep] = []
    metrics: ExecutionMetrics = ExecutionMetrics()
    executor: str = ""
    limit_reached: str = ""
    framework_specific_data: dict[str, Any] = {}


class CancellationProof(Value):
    """What a cancel can prove."""

    witness: str = ""
    host_pid: int = 0
    signals: list[dict[str, Any]] = []
    confirmed_dead: bool = False
    survivors: list[int] = []
    fenced_at: datetime | None = None
    duration: Duration | None = None


class RouteParts(Value):
    """What a candidate's score is made of: points of its rule, and what is taken from them. `samples`: ends that history speaks of."""

    rule: float = 0.0
    success: float = 0.0
    latency: float = 0.0
    cost: float = 0.0
    queue: float = 0.0
    samples: float = 0.0


class RouteCandidate(Value):
    """An executor that was looked at; `refused` says why not, `rule` what speaks for it."""

    executor: str = ""
    score: float = 0.0
    refused: str = ""
    rule: str = ""
    parts: RouteParts | None = None


class Route(Value):
    """Why a task runs where it runs."""

    executor: str = ""
    reason: str = ""
    candidates: list[RouteCandidate] = []
    #: It was tried in place of the best candidate, to learn about it.
    explored: bool = False
    #: Share of such tasks that are tried elsewhere; `check` never draws.
    exploration: float = 0.0


class InputRequested(Value):
    """What a task asks."""

    input_id: str = ""
    kind: str = ""
    prompt: str = ""
    payload: dict[str, Any] | None = None
    expire_time: datetime | None = None


class InputAnswer(Value):
    """What was answered."""

    input_id: str = ""
    approve: bool | None = None
    input: str | None = None
    tool_result: str | None = None
    expired: bool | None = None
    payload: dict[str, Any] | None = None
    comment: str = ""
    request_id: str = ""
    time: datetime | None = None


class Task(Value):
    """A task as the engine knows it."""

    id: str
    request_id: str = ""
    spec: dict[str, Any] = {}
    state: str = ""
    waiting_for: str = ""
    cancel_requested: bool = False
    plan: dict[str, Any] | None = None
    attempts: int = 0
    fencing_token: int = 0
    node: str = ""
    worker_pid: int = 0
    route: Route | None = None
    unjournaled_tools: list[str] = []
    result: AgentResult | None = None
    error: TaskError | None = None
    retry_of: str = ""
    fork_of: str = ""
    parent_task_id: str = ""
    create_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    etag: str = ""
    cancellation_proof: CancellationProof | None = None
    durability: str = ""
    pending_inputs: list[InputRequested] = []
    answers: list[InputAnswer] = []
    #: Name of the key it was submitted with, whose budget pays for it.
    key_id: str = ""
    #: The task of the bundle that this one was run from; empty: it is no replay.
    replay_of: str = ""
    #: SHA-256 of the locks of the Python environments that its attempts ran in.
    environment_lock_hashes: list[str] = []

    @property
    def ended(self) -> bool:
        """Whether the state is a terminal one."""
        return self.state in TERMINAL_STATES

    @property
    def output(self) -> str:
        """Text of the result; empty while there is none."""
        return self.result.output if self.result else ""


#: States that a task never leaves.
TERMINAL_STATES = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"})


class Attempt(Value):
    """One run of a task."""

    number: int = 0
    fence: int = 0
    node: str = ""
    node_epoch: int = 0
    worker: str = ""
    host_pid: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    outcome: str = ""
    cause: str = ""
    peak_rss: int | None = None
    cpu_time: Duration | None = None
    environment_lock_hash: str = ""
    executor: str = ""
    run_time: Duration | None = None


class Event(Value):
    """Something that happened to a task; `kind` names it ("text_delta"), `data` holds it."""

    #: From 1, without gaps; 0: text ahead of its numbered batch.
    sequence: int = 0
    time: datetime | None = None
    attempt: int = 0
    step_id: str = ""
    kind: str = ""
    data: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """The new text of a `text_delta`; else empty."""
        return str(self.data.get("text", "")) if self.kind == "text_delta" else ""


class Cancellation(Value):
    """What CancelTask answers."""

    task: Task
    proof: CancellationProof = CancellationProof()


class BatchOutcome(Value):
    """Outcome of one task of a batch: a task, or why it was refused."""

    task: Task | None = None
    error: TaskError | None = None


class BulkOutcome(Value):
    """What became of one of many tasks."""

    task_id: str = ""
    state: str = ""
    new_task_id: str = ""
    error: TaskError | None = None


class BulkOutcomes(Value):
    """What CancelTasks and RetryTasks answer; `more`: the filter finds more than the limit."""

    outcomes: list[BulkOutcome] = []
    more: bool = False


class AgentDetails(Value):
    """What an agent can do."""

    task_types: list[str] = []
    tools: list[str] = []
    streaming: bool = False
    interrupts: bool = False
    structured_output: bool = False
    max_parallel: int = 0
    context_tokens: int = 0


class Agent(Value):
    """An agent of the engine."""

    id: str = ""
    agent_type: str = ""
    framework: str = ""
    instructions: str = ""
    model: str = ""
    tools: list[str] = []
    capabilities: AgentDetails = AgentDetails()
    memory_namespace: str = ""
    state: str = ""
    running_tasks: int = 0
    labels: dict[str, str] = {}
    create_time: datetime | None = None
    etag: str = ""
    crew_profile: dict[str, str] | None = None
    configured: bool = False


class AgentType(Value):
    """A type of agent."""

    name: str = ""
    template: Agent = Agent()
    built_in: bool = False


class Worker(Value):
    """A worker of a framework."""

    name: str = ""
    host_pid: int = 0
    state: str = ""
    task_id: str = ""
    rss: int = 0
    start_time: datetime | None = None
    agent_id: str = ""
    #: Of a worker of another machine, as it says itself.
    host: str = ""
    #: Every task that it runs: more than one only where its agent has `concurrency`.
    task_ids: tuple[str, ...] = ()


class FrameworkEnvironment(Value):
    """A Python environment beside the framework's own: requirements of a project, another version of Python."""

    name: str = ""
    state: str = ""
    lock_hash: str = ""
    #: Version that was asked for, as in "3.12".
    python: str = ""
    agent_ids: list[str] = []
    unavailable_reason: str = ""
    progress: str = ""


class Framework(Value):
    """A framework and its workers."""

    name: str = ""
    state: str = ""
    versions: dict[str, str] = {}
    lock_hash: str = ""
    workers: list[Worker] = []
    restarts: int = 0
    isolation: list[str] = []
    unavailable_reason: str = ""
    #: What is being done where it is INSTALLING.
    progress: str = ""
    #: Environments that agents of the configuration have of their own.
    environments: list[FrameworkEnvironment] = []


class Provider(Value):
    """A provider of models."""

    name: str = ""
    dialect: str = ""
    state: str = ""
    breaker: str = ""
    in_flight: int = 0
    latency: Duration | None = None
    error_rates: dict[str, float] = {}
    quarantined_credentials: list[str] = []
    requests: int = 0
    #: Failed calls since the start, by kind.
    errors: dict[str, int] = {}
    #: Tokens since the start.
    tokens: Usage | None = None
    cost_micros: int | None = None
    first_token: Duration | None = None
    limit: int = 0
    #: Faults since the start, by their weight for the breaker.
    faults: float = 0.0


class Budget(Value):
    """An account of the tenant: what may be spent, and what was."""

    #: tenant, agent, key or task.
    level: str = ""
    name: str = ""
    #: total, day or month; UTC.
    window: str = ""
    #: None: no limit of the configuration.
    limit_micros: int | None = None
    spent_micros: int = 0
    #: What calls under way may spend.
    lent_micros: int = 0
    window_start: datetime | None = None
    resets: datetime | None = None


class Spending(Value):
    """What the tenant's requests to providers have cost since the start of the node."""

    requests: int = 0
    cost_micros: int = 0
    unpriced_requests: int = 0


class Model(Value):
    """A model, or an alias of some."""

    name: str = ""
    endpoints: list[str] = []
    context: int = 0
    capabilities: list[str] = []
    prices: dict[str, int] = {}
    price_source: str = ""
    max_output: int = 0
    family: str = ""


class ProviderCandidate(Value):
    """A provider that was looked at; `refused` says why not."""

    provider: str = ""
    model: str = ""
    score: float = 0.0
    refused: str = ""
    #: Parts of the score by name.
    terms: dict[str, float] = {}


class ProviderChoice(Value):
    """Which provider would serve, and why."""

    provider: str = ""
    model: str = ""
    reason: str = ""
    candidates: list[ProviderCandidate] = []


class ChatResult(Value):
    """A model's answer."""

    message: Message = Message(role="ASSISTANT")
    finish_reason: str = ""
    raw_finish_reason: str = ""
    usage: Usage = Usage()
    provider: str = ""
    model: str = ""
    refusal: str = ""
    reasoning: str = ""
    latency: Duration | None = None
    cost_micros: int | None = None

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.message.text


class ChatDelta(Value):
    """A piece of a streamed answer; the last one holds `final`."""

    text_delta: str = ""
    reasoning_delta: str = ""
    tool_call_delta: dict[str, Any] | None = None
    final: ChatResult | None = None


class Embeddings(Value):
    """Vectors, in the order of the input."""

    vectors: list[list[float]] = Field(default=[])
    usage: Usage = Usage()
    provider: str = ""
    model: str = ""


class MemoryItem(Value):
    """A value in memory."""

    namespace: str = ""
    key: str = ""
    value: Any = None
    version: int = 0
    create_time: datetime | None = None
    update_time: datetime | None = None
    expire_time: datetime | None = None


class Schedule(Value):
    """Tasks by the clock."""

    id: str = ""
    cron: str = ""
    interval: Duration | None = None
    time_zone: str = ""
    overlap: str = ""
    catch_up: Duration | None = None
    task: dict[str, Any] = {}
    next_times: list[datetime] = []
    state: str = ""
    create_time: datetime | None = None
    etag: str = ""
    last_task_id: str = ""
    fired: int = 0
    skipped: int = 0


V = TypeVar("V", bound=Value)


def value_of(kind: type[V], message: Proto) -> V:
    """The typed value of a message."""
    return kind.model_validate(as_dict(message))


def event_of(message: Proto) -> Event:
    """A TaskEvent with its oneof as `kind` and `data`."""
    data = as_dict(message)
    kind = message.WhichOneof("event") or ""
    body = data.pop(kind, {})
    return Event.model_validate({**data, "kind": kind, "data": body})


def as_dict(message: Proto) -> dict[str, Any]:
    """A message as plain data: proto field names, short enum names, int64 as numbers."""
    data: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    _plain(message.DESCRIPTOR, data)
    return data


def _plain(descriptor: Any, data: dict[str, Any]) -> None:
    """Shortens enum names and turns protobuf's JSON strings of 64-bit numbers back into numbers."""
    for name, value in data.items():
        field: FieldDescriptor | None = descriptor.fields_by_name.get(name)
        if field is None:
            continue
        if field.message_type is not None:
            inner = field.message_type
            if inner.GetOptions().map_entry:
                entry = inner.fields_by_name["value"]
                for key in value:
                    value[key] = _scalar(entry, value[key])
            elif inner.file.package.startswith("singularity."):
                for item in value if isinstance(value, list) else [value]:
                    _plain(inner, item)
        elif isinstance(value, list):
            data[name] = [_scalar(field, item) for item in value]
        else:
            data[name] = _scalar(field, value)


_WIDE = frozenset({"int64", "uint64", "sint64", "fixed64", "sfixed64"})
_WIDE_TYPES = frozenset(getattr(FieldDescriptor, f"TYPE_{name.upper()}") for name in _WIDE)


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        if not isinstance(value, str):  # a value of a newer engine
            return str(value)
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        short = value.removeprefix(prefix)
        return "" if short == "UNSPECIFIED" else short
    if field.type in _WIDE_TYPES and isinstance(value, str):
        return int(value)
    return value
