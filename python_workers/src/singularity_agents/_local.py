"""`.local()` of an `@agent` function: the worker's own engine object, with a model here or on a node behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

from ._errors import CapabilityPending, InvalidRequest, SingularityError, WrongState
from ._spec import TaskOptions, agent_task
from ._task import Task
from .worker import _frames as f
from .worker import _runtime
from .worker._calls import Calls
from .worker._engine import Engine
from .worker._events import Events
from .worker._inputs import InputNeeded
from .worker._scope import CURRENT, Scope, task_factory
from .worker._wire import providers, worker

if TYPE_CHECKING:
    from ._agent import AgentFunction
    from ._client import Client
    from .testing import ScriptedModel

#: What `task.id` says of a run outside of the engine.
LOCAL_ID = "local"


def run(
    agent: AgentFunction[..., Any], task: str, model: ScriptedModel | None, client: Client | None, options: TaskOptions
) -> Any:
    """Runs the agent's function; see `AgentFunction.local`."""
    if not isinstance(task, str):
        raise InvalidRequest(f"task is {type(task).__name__}, must be text", reason="INVALID_FIELD")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_run(agent, task, model, client, options))
    raise WrongState("local() runs an event loop of its own, and one is running here: call it in a thread", reason="WRONG_STATE")


async def _run(
    agent: AgentFunction[..., Any], task: str, model: ScriptedModel | None, client: Client | None, options: TaskOptions
) -> Any:
    from .adapters.custom import function_runner

    loop = asyncio.get_running_loop()
    loop.set_task_factory(task_factory)  # type: ignore[arg-type]
    engine = Engine(cast("Calls", LocalCalls(model, client)), cast("Events", NoEvents()), loop)
    execute = worker.Execute(task_id=LOCAL_ID, task=agent_task(task, options), attempt=1, model=options.get("model", ""))
    scope = Scope(0, 1, want_text=False)
    scope.task_id = LOCAL_ID
    scope.model = execute.model
    before = _runtime.in_task()
    if before is not None:
        raise WrongState("local() was called inside of a task", reason="WRONG_STATE")
    _runtime.attach(engine)
    token = CURRENT.set(scope)
    try:
        return await function_runner(agent.function, engine)(Task(execute))
    except InputNeeded as asked:
        raise CapabilityPending(
            f'the agent asks a person ("{asked.inputs[0].prompt}"), which needs a task on a node; use submit() instead of local()',
            reason="CAPABILITY_PENDING",
            metadata={"capability": "input"},
        ) from asked
    finally:
        CURRENT.reset(token)


class LocalCalls:
    """Answers here what a node would answer: model calls, and the brackets of tools, which always run."""

    def __init__(self, model: ScriptedModel | None, client: Client | None) -> None:
        self._model = model
        self._client = client

    @staticmethod
    def scope() -> Scope:
        """The running function."""
        return Calls.scope()

    async def call(self, kind: f.Call, payload: bytes) -> bytes:
        """One call. Raises the model's or the node's error, CapabilityPending for what only a task on a node has."""
        return await asyncio.to_thread(self.call_blocking, kind, payload)

    def call_blocking(self, kind: f.Call, payload: bytes) -> bytes:
        """The same for synchronous code."""
        if kind == f.Call.CHAT:
            return self._chat(providers.ChatRequest.FromString(payload)).SerializeToString()
        if kind == f.Call.TOOL_BEGIN:
            return worker.ToolBeginReply().SerializeToString()
        name = f.Call(kind).name.lower()
        raise CapabilityPending(
            f"calls of kind {name} need a task on a node; use submit() instead of local()",
            reason="CAPABILITY_PENDING",
            metadata={"capability": name},
        )

    async def tell(self, kind: f.Call, payload: bytes) -> None:
        """Nothing is recorded here."""

    def tell_blocking(self, kind: f.Call, payload: bytes) -> None:
        """Nothing is recorded here."""

    async def stream(self, kind: f.Call, payload: bytes) -> AsyncIterator[tuple[bool, bytes]]:
        """A streamed call: the text in one piece, then the answer."""
        answer = await self.call(kind, payload)
        for part in providers.ChatResponse.FromString(answer).message.content:
            yield False, providers.StreamChatResponse(text_delta=part.text).SerializeToString()
        yield True, answer

    def _chat(self, request: providers.ChatRequest) -> providers.ChatResponse:
        if self._model is not None:
            return self._model.chat(request)
        from ._calls import raw_chat
        from ._remote import default_client

        client = self._client or default_client()
        try:
            return client.run(raw_chat(request))
        except SingularityError as error:
            error.add_note("local() asked the node for a model; pass scripted=ScriptedModel(...) to do without one")
            raise


class NoEvents:
    """Nobody watches."""

    waiting = False

    def emit(self, scope: Scope, kind: f.Event, payload: bytes) -> None:
        """Nothing."""

    async def drain(self) -> None:
        """Nothing waits."""
