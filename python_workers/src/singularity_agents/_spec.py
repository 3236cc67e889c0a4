"""What a task asks for, as keyword arguments; turned into `agents.v1.AgentTask`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel
from typing_extensions import TypedDict, Unpack

from ._durations import DurationLike, seconds
from ._plan import plan_message
from ._proto.singularity.agents.v1 import common_pb2, task_pb2

Method: TypeAlias = Literal["auto", "native", "framework", "hybrid"]
Durability: TypeAlias = Literal["durable", "ephemeral"]
Cache: TypeAlias = Literal["bypass", "use", "refresh"]
StreamPolicy: TypeAlias = Literal["error", "restart", "resume"]
OnBudgetEnd: TypeAlias = Literal["fail", "wait", "cheaper_model"]
Role: TypeAlias = Literal["user", "assistant", "system", "tool"]

#: A message of the history: (role, text), or a mapping with the fields of `Message`.
HistoryItem: TypeAlias = tuple[Role, str] | Mapping[str, Any]


class TaskOptions(TypedDict, total=False):
    """Everything of a task besides its description; what is absent is the engine's default."""

    agent: str
    agent_type: str
    task_type: str
    framework: str
    labels: Mapping[str, str]
    #: Steps with needs between them, see docs/plans.md: {"steps": [{"id": ..., "executor": ..., "needs": [...]}]}.
    plan: Mapping[str, Any]
    # context
    history: Sequence[HistoryItem]
    tools: Sequence[Mapping[str, Any]]
    memory_namespace: str
    user_preferences: Mapping[str, Any]
    environment: Mapping[str, str]
    framework_data: Mapping[str, Any]
    # requirements
    capabilities: Sequence[str]
    expected_output: str
    output_schema: Mapping[str, Any] | type[BaseModel]
    model: str
    allowed_providers: Sequence[str]
    denied_providers: Sequence[str]
    data_tags: Sequence[str]
    min_quality: float
    max_cost_micros: int
    max_tokens: int
    max_duration: DurationLike
    max_attempt_duration: DurationLike
    max_queue_duration: DurationLike
    on_budget_end: OnBudgetEnd
    # hints
    method: Method
    planning: Literal["off", "model"]
    max_plan_steps: int
    max_plan_depth: int
    fallback_frameworks: Sequence[str]
    process: Literal["sequential", "hierarchical"]
    priority: int
    durability: Durability
    cache: Cache
    temperature: float
    seed: int
    max_steps: int
    max_parallel: int
    max_attempts: int
    initial_backoff: DurationLike
    max_backoff: DurationLike
    backoff_multiplier: float
    non_retryable: Sequence[str]
    not_before: datetime
    heartbeat_timeout: DurationLike
    block_grace: DurationLike
    stream_text: bool
    stream_policy: StreamPolicy
    hedge: bool
    allow_replay: bool
    # family
    parent_task_id: str
    on_parent_end: Literal["cancel", "continue"]


class TaskSpec:
    """A task that is not submitted yet, for batches.

    >>> TaskSpec("Summarise the report", agent="researcher", priority=7)
    """

    __slots__ = ("description", "options")

    def __init__(self, description: str, **options: Unpack[TaskOptions]) -> None:
        self.description = description
        self.options = options

    def __repr__(self) -> str:
        return f"TaskSpec({len(self.description)} characters, {', '.join(sorted(self.options)) or 'defaults'})"


def duration(value: DurationLike) -> Duration:
    """A protobuf duration."""
    total = seconds(value)
    message = Duration()
    message.FromNanoseconds(round(total * 1e9))
    return message


def struct(value: Mapping[str, Any]) -> Struct:
    """A protobuf struct of JSON-like data."""
    message = Struct()
    ParseDict(dict(value), message)
    return message


def _timestamp(value: datetime) -> Timestamp:
    message = Timestamp()
    # A naive time is local time, as everywhere in Python.
    message.FromDatetime(value.astimezone(timezone.utc))
    return message


def enum(kind: Any, prefix: str, name: str, field: str) -> int:
    """Number of an enum's value by its short name. Raises ValueError naming the values there are."""
    wanted = f"{prefix}{name.upper()}"
    if wanted in kind.keys():  # noqa: SIM118 - an enum wrapper is no mapping
        return int(kind.Value(wanted))
    known = ", ".join(key.removeprefix(prefix).lower() for key in kind.keys() if not key.endswith("UNSPECIFIED"))  # noqa: SIM118
    raise ValueError(f'{field} is "{name}", must be one of {known}')


def message(item: HistoryItem) -> common_pb2.Message:
    """A conversation message."""
    if isinstance(item, tuple):
        item = {"role": item[0], "content": item[1]}
    role = enum(common_pb2.Role, "ROLE_", str(item.get("role", "user")), "role")
    made = common_pb2.Message(
        role=role,  # type: ignore[arg-type]
        tool_call_id=str(item.get("tool_call_id", "")),
        name=str(item.get("name", "")),
    )
    content = item.get("content", "")
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str):
            if part:
                made.content.add(text=part)
        else:
            ParseDict(part, made.content.add())
    for call in item.get("tool_calls", ()):
        ParseDict(call, made.tool_calls.add())
    return made


def tool_definition(value: Mapping[str, Any] | str) -> common_pb2.ToolDefinition:
    """A tool: name, description, parameters (JSON Schema), kind, replay; or the name alone of one that the engine or the agent has."""
    if isinstance(value, str):
        return common_pb2.ToolDefinition(name=value)
    if not isinstance(value, Mapping) or "name" not in value:
        raise TypeError("tools: each is a name or a mapping with a name")
    made = common_pb2.ToolDefinition(
        name=str(value["name"]),
        description=str(value.get("description", "")),
        kind=enum(common_pb2.ToolKind, "TOOL_KIND_", str(value.get("kind", "unspecified")), "kind"),  # type: ignore[arg-type]
        replay=enum(common_pb2.ToolReplay, "TOOL_REPLAY_", str(value.get("replay", "unspecified")), "replay"),  # type: ignore[arg-type]
    )
    if parameters := value.get("parameters"):
        ParseDict(dict(parameters), made.parameters)
    return made


_CONTEXT = ("memory_namespace",)
_REQUIREMENTS = (
    "capabilities", "expected_output", "model", "allowed_providers", "denied_providers", "data_tags", "min_quality",
    "max_cost_micros", "max_tokens",
)  # fmt: skip
_REQUIREMENT_DURATIONS = ("max_duration", "max_attempt_duration", "max_queue_duration")
_HINTS = (
    "fallback_frameworks", "priority", "temperature", "seed", "max_steps", "max_parallel", "stream_text", "hedge",
    "allow_replay", "max_plan_steps", "max_plan_depth",
)  # fmt: skip
_HINT_DURATIONS = ("heartbeat_timeout", "block_grace")
_HINT_ENUMS = (
    ("method", task_pb2.ExecutionMethod, "EXECUTION_METHOD_"),
    ("planning", task_pb2.PlanningMode, "PLANNING_MODE_"),
    ("process", task_pb2.CrewProcess, "CREW_PROCESS_"),
    ("durability", task_pb2.Durability, "DURABILITY_"),
    ("cache", task_pb2.CacheMode, "CACHE_MODE_"),
    ("stream_policy", task_pb2.StreamPolicy, "STREAM_POLICY_"),
)


def agent_task(description: str, options: TaskOptions) -> task_pb2.AgentTask:
    """The message of a description and its options. Raises TypeError on an unknown option, ValueError on a wrong value."""
    given: dict[str, Any] = dict(options)
    if unknown := given.keys() - TaskOptions.__annotations__.keys():
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    task = task_pb2.AgentTask(description=description)
    for option, field in (
        ("agent", "agent_id"), ("agent_type", "agent_type"), ("task_type", "task_type"),
        ("framework", "preferred_framework"), ("parent_task_id", "parent_task_id"),
    ):  # fmt: skip
        if option in given:
            setattr(task, field, given[option])
    task.labels.update(given.get("labels", {}))
    if "on_parent_end" in given:
        task.on_parent_end = enum(  # type: ignore[assignment]
            task_pb2.OnParentEnd, "ON_PARENT_END_", given["on_parent_end"], "on_parent_end"
        )
    _context(task, given)
    _requirements(task, given)
    _hints(task, given)
    if "plan" in given:
        task.plan.CopyFrom(plan_message(given["plan"]))
    return task


def _fill(target: Any, names: Sequence[str], given: Mapping[str, Any]) -> None:
    for name in names:
        if name not in given:
            continue
        if isinstance(given[name], (list, tuple)):
            getattr(target, name).extend(given[name])
        else:
            setattr(target, name, given[name])


def _context(task: task_pb2.AgentTask, given: Mapping[str, Any]) -> None:
    for item in given.get("history", ()):
        task.context.conversation_history.append(message(item))
    for tool in given.get("tools", ()):
        task.context.available_tools.append(tool_definition(tool))
    _fill(task.context, _CONTEXT, given)
    if data := given.get("user_preferences"):
        task.context.user_preferences.CopyFrom(struct(data))
    if data := given.get("framework_data"):
        task.context.framework_specific_data.CopyFrom(struct(data))
    if data := given.get("environment"):
        task.context.environment_variables.update(data)


def _requirements(task: task_pb2.AgentTask, given: Mapping[str, Any]) -> None:
    _fill(task.requirements, _REQUIREMENTS, given)
    for name in _REQUIREMENT_DURATIONS:
        if name in given:
            getattr(task.requirements, name).CopyFrom(duration(given[name]))
    if schema := given.get("output_schema"):
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            schema = schema.model_json_schema()
        task.requirements.output_schema.CopyFrom(struct(schema))
    if "on_budget_end" in given:
        task.requirements.on_budget_end = enum(  # type: ignore[assignment]
            task_pb2.OnBudgetEnd, "ON_BUDGET_END_", given["on_budget_end"], "on_budget_end"
        )


def _hints(task: task_pb2.AgentTask, given: Mapping[str, Any]) -> None:
    hints = task.execution_hints
    _fill(hints, _HINTS, given)
    for name, kind, prefix in _HINT_ENUMS:
        if name in given:
            setattr(hints, name, enum(kind, prefix, given[name], name))
    for name in _HINT_DURATIONS:
        if name in given:
            getattr(hints, name).CopyFrom(duration(given[name]))
    if "max_attempts" in given:
        hints.retry.max_attempts = given["max_attempts"]
    for name in ("initial_backoff", "max_backoff"):
        if name in given:
            getattr(hints.retry, name).CopyFrom(duration(given[name]))
    if "backoff_multiplier" in given:
        hints.retry.multiplier = given["backoff_multiplier"]
    hints.retry.non_retryable.extend(given.get("non_retryable", ()))
    if "not_before" in given:
        hints.not_before.CopyFrom(_timestamp(given["not_before"]))
