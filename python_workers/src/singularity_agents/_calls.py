"""Every call of the public API as data: what is sent, how the answer is read, and whether it may be repeated.

The two clients only carry these out, so that they cannot differ.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message as Proto
from google.protobuf.struct_pb2 import Value as ProtoValue
from grpc import StatusCode

from . import _models as m
from ._durations import DurationLike
from ._errors import (
    FieldViolation,
    SingularityError,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
    WaitExpired,
    error_class,
)
from ._proto.singularity.agents.v1 import agent_service_pb2 as ag
from ._proto.singularity.agents.v1 import framework_service_pb2 as fr
from ._proto.singularity.agents.v1 import memory_service_pb2 as me
from ._proto.singularity.agents.v1 import provider_service_pb2 as pr
from ._proto.singularity.agents.v1 import schedule_service_pb2 as sc
from ._proto.singularity.agents.v1 import task_pb2 as ta
from ._proto.singularity.agents.v1 import task_service_pb2 as ts
from ._spec import HistoryItem, TaskOptions, TaskSpec, agent_task, duration, enum, message, struct, tool_definition

T = TypeVar("T")
V = TypeVar("V", bound=m.Value)
V2 = TypeVar("V2", bound=Proto)

#: Largest page that the engine gives.
MAX_PAGE = 1000


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call: path, request, how its answer is read."""

    path: str
    request: Proto
    answer: type[Proto]
    read: Callable[[Any], T]
    #: It changes nothing, or its request id makes a second one the same.
    repeatable: bool = True
    #: It waits by itself, so the 30 s of other unary calls do not bind it.
    waits: bool = False
    request_id: str | None = None
    task_id: str | None = None


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page of a list."""

    items: list[T]
    next_token: str


def _path(service: str, method: str) -> str:
    return f"/singularity.agents.v1.{service}/{method}"


def new_request_id() -> str:
    """A fresh request id."""
    return str(uuid.uuid4())


def task_message(task: str | TaskSpec, options: TaskOptions) -> ta.AgentTask:
    """The message of a description, or of a spec whose options the others complete."""
    if isinstance(task, TaskSpec):
        merged: TaskOptions = {**task.options, **options}
        return agent_task(task.description, merged)
    return agent_task(task, options)


def _task(answer: ta.Task) -> m.Task:
    return m.value_of(m.Task, answer)


# Tasks


def submit(task: str | TaskSpec, options: TaskOptions, request_id: str | None) -> Call[m.Task]:
    """SubmitTask."""
    request_id = request_id or new_request_id()
    request = ts.SubmitTaskRequest(task=task_message(task, options), request_id=request_id)
    return Call(_path("TaskService", "SubmitTask"), request, ta.Task, _task, request_id=request_id)


def check(task: str | TaskSpec, options: TaskOptions) -> Call[m.Route]:
    """CheckTask."""

    def read(answer: ts.CheckTaskResponse) -> m.Route:
        return m.value_of(m.Route, answer.route)

    return Call(
        _path("TaskService", "CheckTask"), ts.CheckTaskRequest(task=task_message(task, options)), ts.CheckTaskResponse, read
    )


def execute(task: str | TaskSpec, options: TaskOptions, request_id: str | None, wait: float) -> Call[m.Task]:
    """ExecuteTask: submit and wait."""
    request_id = request_id or new_request_id()
    request = ts.ExecuteTaskRequest(task=task_message(task, options), request_id=request_id, wait=duration(min(wait, 3600.0)))
    return Call(_path("TaskService", "ExecuteTask"), request, ta.Task, _task, waits=True, request_id=request_id)


def batch(tasks: Iterable[str | TaskSpec], options: TaskOptions) -> Call[list[m.BatchOutcome]]:
    """BatchSubmitTasks."""
    requests = [ts.SubmitTaskRequest(task=task_message(task, options), request_id=new_request_id()) for task in tasks]

    def read(answer: ts.BatchSubmitTasksResponse) -> list[m.BatchOutcome]:
        return [m.value_of(m.BatchOutcome, outcome) for outcome in answer.outcomes]

    request = ts.BatchSubmitTasksRequest(requests=requests)
    return Call(_path("TaskService", "BatchSubmitTasks"), request, ts.BatchSubmitTasksResponse, read)


def get_task(task_id: str) -> Call[m.Task]:
    """GetTask."""
    return Call(_path("TaskService", "GetTask"), ts.GetTaskRequest(task_id=task_id), ta.Task, _task, task_id=task_id)


def list_tasks(filter: str, order_by: str, size: int, token: str) -> Call[Page[m.Task]]:
    """ListTasks."""
    request = ts.ListTasksRequest(page_size=size, page_token=token, filter=filter, order_by=order_by)
    return _page("TaskService", "ListTasks", request, ts.ListTasksResponse, "tasks", m.Task)


def list_attempts(task_id: str, size: int, token: str) -> Call[Page[m.Attempt]]:
    """ListAttempts."""
    request = ts.ListAttemptsRequest(task_id=task_id, page_size=size, page_token=token)
    return _page("TaskService", "ListAttempts", request, ts.ListAttemptsResponse, "attempts", m.Attempt)


def watch(task_id: str, after: int, include_text: bool) -> Call[m.Event]:
    """WatchTask; a stream."""
    request = ts.WatchTaskRequest(task_id=task_id, after=after, include_text=include_text, live_text=include_text)
    return Call(_path("TaskService", "WatchTask"), request, ta.TaskEvent, m.event_of, task_id=task_id)


def cancel(task_id: str, grace: DurationLike | None, reason: str) -> Call[m.Cancellation]:
    """CancelTask."""
    request = ts.CancelTaskRequest(task_id=task_id, reason=reason)
    if grace is not None:
        request.grace.CopyFrom(duration(grace))

    def read(answer: ts.CancelTaskResponse) -> m.Cancellation:
        return m.value_of(m.Cancellation, answer)

    return Call(_path("TaskService", "CancelTask"), request, ts.CancelTaskResponse, read, waits=True, task_id=task_id)


def retry(task_id: str, request_id: str | None) -> Call[m.Task]:
    """RetryTask."""
    request_id = request_id or new_request_id()
    request = ts.RetryTaskRequest(task_id=task_id, request_id=request_id)
    path = _path("TaskService", "RetryTask")
    return Call(path, request, ta.Task, _task, request_id=request_id, task_id=task_id)


def cancel_tasks(filter: str, dry_run: bool, limit: int, grace: DurationLike | None, reason: str) -> Call[m.BulkOutcomes]:
    """CancelTasks."""
    request = ts.CancelTasksRequest(filter=filter, dry_run=dry_run, limit=limit, reason=reason)
    if grace is not None:
        request.grace.CopyFrom(duration(grace))

    def read(answer: ts.CancelTasksResponse) -> m.BulkOutcomes:
        return m.value_of(m.BulkOutcomes, answer)

    return Call(_path("TaskService", "CancelTasks"), request, ts.CancelTasksResponse, read, waits=True)


def retry_tasks(filter: str, dry_run: bool, limit: int, request_id: str | None) -> Call[m.BulkOutcomes]:
    """RetryTasks."""
    request_id = request_id or new_request_id()
    request = ts.RetryTasksRequest(filter=filter, dry_run=dry_run, limit=limit, request_id=request_id)

    def read(answer: ts.RetryTasksResponse) -> m.BulkOutcomes:
        return m.value_of(m.BulkOutcomes, answer)

    path = _path("TaskService", "RetryTasks")
    return Call(path, request, ts.RetryTasksResponse, read, waits=True, request_id=request_id)


def fork(task_id: str, after: int, task: str | TaskSpec | None, options: TaskOptions, request_id: str | None) -> Call[m.Task]:
    """ForkTask."""
    if task is None and options:
        raise ValueError("options need a task: without one the fork is the same task")
    request_id = request_id or new_request_id()
    request = ts.ForkTaskRequest(task_id=task_id, after=after, request_id=request_id)
    if task is not None:
        request.task.CopyFrom(task_message(task, options))
    return Call(_path("TaskService", "ForkTask"), request, ta.Task, _task, request_id=request_id, task_id=task_id)


def signal(
    task_id: str,
    input_id: str,
    approve: bool | None,
    input: str | None,
    tool_result: str | None,
    payload: Mapping[str, Any] | None,
    comment: str,
    request_id: str | None = None,
) -> Call[m.Task]:
    """SignalTask."""
    given = sum(value is not None for value in (approve, input, tool_result))
    if given > 1 or (given == 0 and payload is None):
        raise ValueError("give exactly one of approve, input and tool_result, or payload alone")
    request_id = request_id or new_request_id()
    request = ts.SignalTaskRequest(task_id=task_id, input_id=input_id, comment=comment, request_id=request_id)
    if approve is not None:
        request.approve = approve
    if input is not None:
        request.input = input
    if tool_result is not None:
        request.tool_result = tool_result
    if payload is not None:
        request.payload.CopyFrom(struct(payload))
    path = _path("TaskService", "SignalTask")
    return Call(path, request, ta.Task, _task, request_id=request_id, task_id=task_id)


def bundle(task_id: str) -> Call[ts.TaskBundlePart]:
    """GetTaskBundle; a stream."""

    def read(answer: ts.TaskBundlePart) -> ts.TaskBundlePart:
        return answer

    request = ts.GetTaskBundleRequest(task_id=task_id)
    return Call(_path("TaskService", "GetTaskBundle"), request, ts.TaskBundlePart, read, task_id=task_id)


def replay(request_id: str | None) -> Call[m.Task]:
    """ReplayTask; its requests are a stream, of which this is the first without its part."""
    request_id = request_id or new_request_id()
    request = ts.ReplayTaskRequest(request_id=request_id)
    return Call(_path("TaskService", "ReplayTask"), request, ta.Task, _task, waits=True, request_id=request_id)


def delete_task(task_id: str) -> Call[str]:
    """DeleteTask."""
    request = ts.DeleteTaskRequest(task_id=task_id)

    def read(answer: ts.DeleteTaskResponse) -> str:
        return answer.task_id

    path = _path("TaskService", "DeleteTask")
    return Call(path, request, ts.DeleteTaskResponse, read, repeatable=False, task_id=task_id)


def result_of(task: m.Task) -> m.AgentResult:
    """The result of an ended task. Raises TaskFailed, TaskCancelled, TaskTimedOut, or WaitExpired if it goes on."""
    if task.state == "SUCCEEDED":
        return task.result or m.AgentResult(task_id=task.id)
    if not task.ended:
        raise WaitExpired(
            f"the wait ended while the task is {task.state or 'unknown'}; it goes on",
            reason="DEADLINE_EXCEEDED", request_id=task.request_id, task_id=task.id,
        )  # fmt: skip
    kind = {"CANCELLED": TaskCancelled, "TIMED_OUT": TaskTimedOut}.get(task.state, TaskFailed)
    error = task.error or m.TaskError(reason=f"TASK_{task.state}", message=f"the task is {task.state}")
    raise kind(error.message, reason=error.reason, metadata=error.metadata, request_id=task.request_id, task_id=task.id)


def refusal_of(outcome: m.BatchOutcome) -> SingularityError:
    """Why one task of a batch was refused."""
    error = outcome.error or m.TaskError(message="neither accepted nor refused")
    fields = [FieldViolation(problem.field, problem.description) for problem in error.field_violations]
    status = _STATUS_NAMES.get(error.code, "UNKNOWN")
    return error_class(status, error.reason)(error.message, reason=error.reason, metadata=error.metadata, fields=fields)


#: Names of google.rpc.Code by number.
_STATUS_NAMES = {code.value[0]: code.name for code in StatusCode}


# Lists


def _page(service: str, method: str, request: Proto, answer: type[Proto], field: str, kind: type[V]) -> Call[Page[V]]:
    def read(response: Any) -> Page[V]:
        return Page([m.value_of(kind, item) for item in getattr(response, field)], response.next_page_token)

    return Call(_path(service, method), request, answer, read)


def page_sizes(limit: int) -> Callable[[int], int]:
    """How many to ask for when `have` are there."""
    return lambda have: max(1, min(MAX_PAGE, limit - have))


# Agents


def create_agent(agent: Mapping[str, Any], agent_id: str, request_id: str | None) -> Call[m.Agent]:
    """CreateAgent."""
    request_id = request_id or new_request_id()
    request = ag.CreateAgentRequest(agent=ParseDict(dict(agent), ag.Agent()), agent_id=agent_id, request_id=request_id)
    return Call(_path("AgentService", "CreateAgent"), request, ag.Agent, _agent, request_id=request_id)


def _agent(answer: ag.Agent) -> m.Agent:
    return m.value_of(m.Agent, answer)


def get_agent(agent_id: str) -> Call[m.Agent]:
    """GetAgent."""
    return Call(_path("AgentService", "GetAgent"), ag.GetAgentRequest(agent_id=agent_id), ag.Agent, _agent)


def update_agent(agent: Mapping[str, Any]) -> Call[m.Agent]:
    """UpdateAgent."""
    request = ag.UpdateAgentRequest(agent=ParseDict(dict(agent), ag.Agent()))
    return Call(_path("AgentService", "UpdateAgent"), request, ag.Agent, _agent, repeatable=False)


def delete_agent(agent_id: str, etag: str) -> Call[str]:
    """DeleteAgent."""

    def read(answer: ag.DeleteAgentResponse) -> str:
        return answer.agent_id

    request = ag.DeleteAgentRequest(agent_id=agent_id, etag=etag)
    return Call(_path("AgentService", "DeleteAgent"), request, ag.DeleteAgentResponse, read, repeatable=False)


def list_agents(size: int, token: str) -> Call[Page[m.Agent]]:
    """ListAgents."""
    request = ag.ListAgentsRequest(page_size=size, page_token=token)
    return _page("AgentService", "ListAgents", request, ag.ListAgentsResponse, "agents", m.Agent)


def list_agent_types(size: int, token: str) -> Call[Page[m.AgentType]]:
    """ListAgentTypes."""
    request = ag.ListAgentTypesRequest(page_size=size, page_token=token)
    return _page("AgentService", "ListAgentTypes", request, ag.ListAgentTypesResponse, "agent_types", m.AgentType)


# Frameworks


def list_frameworks(size: int, token: str) -> Call[Page[m.Framework]]:
    """ListFrameworks."""
    request = fr.ListFrameworksRequest(page_size=size, page_token=token)
    return _page("FrameworkService", "ListFrameworks", request, fr.ListFrameworksResponse, "frameworks", m.Framework)


def get_framework(framework: str) -> Call[m.Framework]:
    """GetFramework."""

    def read(answer: fr.Framework) -> m.Framework:
        return m.value_of(m.Framework, answer)

    request = fr.GetFrameworkRequest(framework=framework)
    return Call(_path("FrameworkService", "GetFramework"), request, fr.Framework, read)


def restart_workers(framework: str) -> Call[m.Framework]:
    """RestartWorkers."""

    def read(answer: fr.RestartWorkersResponse) -> m.Framework:
        return m.value_of(m.Framework, answer.framework)

    request = fr.RestartWorkersRequest(framework=framework)
    return Call(_path("FrameworkService", "RestartWorkers"), request, fr.RestartWorkersResponse, read)


# Providers


def list_providers(size: int, token: str) -> Call[Page[m.Provider]]:
    """ListProviders."""
    request = pr.ListProvidersRequest(page_size=size, page_token=token)
    return _page("ProviderService", "ListProviders", request, pr.ListProvidersResponse, "providers", m.Provider)


def get_provider(provider: str) -> Call[m.Provider]:
    """GetProvider."""

    def read(answer: pr.Provider) -> m.Provider:
        return m.value_of(m.Provider, answer)

    return Call(_path("ProviderService", "GetProvider"), pr.GetProviderRequest(provider=provider), pr.Provider, read)


def list_models(size: int, token: str) -> Call[Page[m.Model]]:
    """ListModels."""
    request = pr.ListModelsRequest(page_size=size, page_token=token)
    return _page("ProviderService", "ListModels", request, pr.ListModelsResponse, "models", m.Model)


def list_budgets(size: int, token: str) -> Call[Page[m.Budget]]:
    """ListBudgets."""
    request = pr.ListBudgetsRequest(page_size=size, page_token=token)
    return _page("ProviderService", "ListBudgets", request, pr.ListBudgetsResponse, "budgets", m.Budget)


def list_all_budgets(size: int, token: str) -> Call[Page[m.Budget]]:
    """ListBudgets, with the accounts of tasks."""
    request = pr.ListBudgetsRequest(page_size=size, page_token=token, include_tasks=True)
    return _page("ProviderService", "ListBudgets", request, pr.ListBudgetsResponse, "budgets", m.Budget)


def get_spending() -> Call[m.Spending]:
    """What ListBudgets says of the tenant."""

    def read(answer: pr.ListBudgetsResponse) -> m.Spending:
        return m.value_of(m.Spending, answer.spending)

    return Call(_path("ProviderService", "ListBudgets"), pr.ListBudgetsRequest(page_size=1), pr.ListBudgetsResponse, read)


def select_provider(options: TaskOptions) -> Call[m.ProviderChoice]:
    """SelectProvider: a dry run."""

    def read(answer: pr.SelectProviderResponse) -> m.ProviderChoice:
        return m.value_of(m.ProviderChoice, answer)

    request = pr.SelectProviderRequest(requirements=agent_task("", options).requirements)
    return Call(_path("ProviderService", "SelectProvider"), request, pr.SelectProviderResponse, read)


def raw_select(request: pr.SelectProviderRequest) -> Call[pr.SelectProviderResponse]:
    """SelectProvider, answered as protobuf."""
    return Call(_path("ProviderService", "SelectProvider"), request, pr.SelectProviderResponse, lambda given: given)


def chat_request(
    messages: str | Sequence[HistoryItem],
    model: str,
    tools: Sequence[Mapping[str, Any]],
    output_schema: Mapping[str, Any] | None,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
) -> pr.ChatRequest:
    """A model call."""
    items: Sequence[HistoryItem] = [("user", messages)] if isinstance(messages, str) else messages
    request = pr.ChatRequest(
        model=model,
        messages=[message(item) for item in items],
        tools=[tool_definition(tool) for tool in tools],
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
    )
    if output_schema:
        request.output_schema.CopyFrom(struct(output_schema))
    return request


def chat(request: pr.ChatRequest) -> Call[m.ChatResult]:
    """Chat."""

    def read(answer: pr.ChatResponse) -> m.ChatResult:
        return m.value_of(m.ChatResult, answer)

    # A call that was cut may have been paid for: it is not repeated behind the caller's back.
    path = _path("ProviderService", "Chat")
    return Call(path, request, pr.ChatResponse, read, repeatable=False, waits=True)


def raw_chat(request: pr.ChatRequest) -> Call[pr.ChatResponse]:
    """Chat, answered as protobuf."""
    return Call(_path("ProviderService", "Chat"), request, pr.ChatResponse, lambda answer: answer, repeatable=False, waits=True)


def raw_memory(method: str, request: Proto, answer: type[V2]) -> Call[V2]:
    """A call of MemoryService, answered as protobuf."""
    return Call(_path("MemoryService", method), request, answer, lambda given: given, repeatable=False)


def stream_chat(request: pr.ChatRequest) -> Call[m.ChatDelta]:
    """StreamChat; a stream."""

    def read(answer: pr.StreamChatResponse) -> m.ChatDelta:
        return m.value_of(m.ChatDelta, answer)

    path = _path("ProviderService", "StreamChat")
    return Call(path, pr.StreamChatRequest(request=request), pr.StreamChatResponse, read, repeatable=False)


def embed(input: Sequence[str], model: str, dimensions: int) -> Call[m.Embeddings]:
    """Embed."""

    def read(answer: pr.EmbedResponse) -> m.Embeddings:
        vectors = [list(embedding.values) for embedding in answer.embeddings]
        usage = m.value_of(m.Usage, answer.usage)
        return m.Embeddings(vectors=vectors, usage=usage, provider=answer.provider, model=answer.model)

    request = pr.EmbedRequest(model=model, input=input, dimensions=dimensions)
    return Call(_path("ProviderService", "Embed"), request, pr.EmbedResponse, read, repeatable=False, waits=True)


# Memory and schedules


def put_memory(
    namespace: str, key: str, value: Any, expected_version: int | None, ttl: DurationLike | None
) -> Call[m.MemoryItem]:
    """PutMemory."""
    request_id = new_request_id()
    request = me.PutMemoryRequest(
        namespace=namespace, key=key, value=ParseDict(value, ProtoValue()), expected_version=expected_version,
        request_id=request_id,
    )  # fmt: skip
    if ttl is not None:
        request.ttl.CopyFrom(duration(ttl))
    return Call(_path("MemoryService", "PutMemory"), request, me.MemoryItem, _memory, request_id=request_id)


def _memory(answer: me.MemoryItem) -> m.MemoryItem:
    return m.value_of(m.MemoryItem, answer)


def get_memory(namespace: str, key: str) -> Call[m.MemoryItem]:
    """GetMemory."""
    request = me.GetMemoryRequest(namespace=namespace, key=key)
    return Call(_path("MemoryService", "GetMemory"), request, me.MemoryItem, _memory)


def delete_memory(namespace: str, key: str, expected_version: int | None) -> Call[int]:
    """DeleteMemory."""

    def read(answer: me.DeleteMemoryResponse) -> int:
        return int(answer.version)

    request = me.DeleteMemoryRequest(namespace=namespace, key=key, expected_version=expected_version)
    return Call(_path("MemoryService", "DeleteMemory"), request, me.DeleteMemoryResponse, read, repeatable=False)


def list_memories(namespace: str, prefix: str, size: int, token: str) -> Call[Page[m.MemoryItem]]:
    """ListMemories."""
    request = me.ListMemoriesRequest(namespace=namespace, prefix=prefix, page_size=size, page_token=token)
    return _page("MemoryService", "ListMemories", request, me.ListMemoriesResponse, "items", m.MemoryItem)


def list_memory_versions(namespace: str, key: str, size: int, token: str) -> Call[Page[m.MemoryItem]]:
    """ListMemoryVersions."""
    request = me.ListMemoryVersionsRequest(namespace=namespace, key=key, page_size=size, page_token=token)
    return _page("MemoryService", "ListMemoryVersions", request, me.ListMemoryVersionsResponse, "versions", m.MemoryItem)


def append_messages(namespace: str, conversation_id: str, messages: Sequence[HistoryItem]) -> Call[int]:
    """AppendMessages."""

    def read(answer: me.AppendMessagesResponse) -> int:
        return int(answer.length)

    request_id = new_request_id()
    request = me.AppendMessagesRequest(
        namespace=namespace, conversation_id=conversation_id, messages=[message(item) for item in messages], request_id=request_id
    )
    path = _path("MemoryService", "AppendMessages")
    return Call(path, request, me.AppendMessagesResponse, read, request_id=request_id)


def list_messages(namespace: str, conversation_id: str, size: int, token: str) -> Call[Page[m.Message]]:
    """ListMessages."""
    request = me.ListMessagesRequest(namespace=namespace, conversation_id=conversation_id, page_size=size, page_token=token)
    return _page("MemoryService", "ListMessages", request, me.ListMessagesResponse, "messages", m.Message)


def search_memories(namespace: str, query: str, limit: int) -> Call[list[tuple[float, m.MemoryItem]]]:
    """SearchMemories."""

    def read(answer: me.SearchMemoriesResponse) -> list[tuple[float, m.MemoryItem]]:
        return [(match.score, _memory(match.item)) for match in answer.matches]

    request = me.SearchMemoriesRequest(namespace=namespace, query=query, limit=limit)
    return Call(_path("MemoryService", "SearchMemories"), request, me.SearchMemoriesResponse, read)


def _schedule(answer: sc.Schedule) -> m.Schedule:
    return m.value_of(m.Schedule, answer)


def create_schedule(
    task: str | TaskSpec,
    options: TaskOptions,
    cron: str | None,
    every: DurationLike | None,
    time_zone: str,
    overlap: str,
    catch_up: DurationLike | None,
    schedule_id: str,
) -> Call[m.Schedule]:
    """CreateSchedule."""
    if (cron is None) == (every is None):
        raise ValueError("give exactly one of cron and every")
    schedule = sc.Schedule(task=task_message(task, options), time_zone=time_zone)
    if overlap:
        schedule.overlap = enum(sc.OverlapPolicy, "OVERLAP_POLICY_", overlap, "overlap")  # type: ignore[assignment]
    if catch_up is not None:
        schedule.catch_up.CopyFrom(duration(catch_up))
    if cron is not None:
        schedule.cron = cron
    if every is not None:
        schedule.interval.CopyFrom(duration(every))
    request_id = new_request_id()
    request = sc.CreateScheduleRequest(schedule=schedule, schedule_id=schedule_id, request_id=request_id)
    return Call(_path("ScheduleService", "CreateSchedule"), request, sc.Schedule, _schedule, request_id=request_id)


def get_schedule(schedule_id: str) -> Call[m.Schedule]:
    """GetSchedule."""
    request = sc.GetScheduleRequest(schedule_id=schedule_id)
    return Call(_path("ScheduleService", "GetSchedule"), request, sc.Schedule, _schedule)


def list_schedules(size: int, token: str) -> Call[Page[m.Schedule]]:
    """ListSchedules."""
    request = sc.ListSchedulesRequest(page_size=size, page_token=token)
    return _page("ScheduleService", "ListSchedules", request, sc.ListSchedulesResponse, "schedules", m.Schedule)


def pause_schedule(schedule_id: str) -> Call[m.Schedule]:
    """PauseSchedule."""
    request = sc.PauseScheduleRequest(schedule_id=schedule_id)
    return Call(_path("ScheduleService", "PauseSchedule"), request, sc.Schedule, _schedule)


def resume_schedule(schedule_id: str) -> Call[m.Schedule]:
    """ResumeSchedule."""
    request = sc.ResumeScheduleRequest(schedule_id=schedule_id)
    return Call(_path("ScheduleService", "ResumeSchedule"), request, sc.Schedule, _schedule)


def trigger_schedule(schedule_id: str) -> Call[m.Task]:
    """TriggerSchedule."""

    def read(answer: sc.TriggerScheduleResponse) -> m.Task:
        return _task(answer.task)

    request_id = new_request_id()
    request = sc.TriggerScheduleRequest(schedule_id=schedule_id, request_id=request_id)
    path = _path("ScheduleService", "TriggerSchedule")
    return Call(path, request, sc.TriggerScheduleResponse, read, request_id=request_id)


def delete_schedule(schedule_id: str) -> Call[str]:
    """DeleteSchedule."""

    def read(answer: sc.DeleteScheduleResponse) -> str:
        return answer.schedule_id

    request = sc.DeleteScheduleRequest(schedule_id=schedule_id)
    return Call(_path("ScheduleService", "DeleteSchedule"), request, sc.DeleteScheduleResponse, read, repeatable=False)
