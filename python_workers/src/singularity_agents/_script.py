"""The engine for code outside of workers: a plain script that uses the framework classes of this package against a node.

Model calls, memory, subtasks and the choice of a provider go to the node as a client's calls: under no task, so nothing is recorded
for a replay, and what is spent is billed to the client's tenant.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, cast

from google.protobuf.message import Message

from ._calls import raw_memory, raw_select
from ._errors import SingularityError
from ._local import LocalCalls, NoEvents
from .worker import _frames as f
from .worker import _runtime
from .worker._calls import Calls
from .worker._engine import Engine
from .worker._events import Events
from .worker._scope import CURRENT, Scope
from .worker._wire import error_message, from_struct, memory, providers, tasks, to_value, worker

if TYPE_CHECKING:
    from ._client import Client

#: What `task_id` says in a script.
SCRIPT_ID: Final = "script"
#: Namespace of a script's memory where none is named.
NAMESPACE: Final = "default"
#: Calls of memory that a node answers to a client, with the message of the answer.
_MEMORY: Final[Mapping[str, tuple[str, type[Message]]]] = {
    "put": ("PutMemory", memory.MemoryItem),
    "get": ("GetMemory", memory.MemoryItem),
    "delete": ("DeleteMemory", memory.DeleteMemoryResponse),
    "list": ("ListMemories", memory.ListMemoriesResponse),
    "batch": ("BatchMemory", memory.BatchMemoryResponse),
    "search": ("SearchMemories", memory.SearchMemoriesResponse),
    "append": ("AppendMessages", memory.AppendMessagesResponse),
    "messages": ("ListMessages", memory.ListMessagesResponse),
}

_lock = threading.Lock()
_engine: Engine | None = None


def engine(client: Client | None = None) -> Engine:
    """The engine of this process: the worker's inside of one, else one on `client`, or on the environment's node.

    The first caller in a script decides the client. Opens no connection before the first call.
    """
    global _engine
    with _lock:
        if _runtime.is_attached():
            return _runtime.engine()
        if _engine is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="singularity-script", daemon=True)
            thread.start()
            _engine = Engine(cast("Calls", ScriptCalls(client)), cast("Events", NoEvents()), loop, thread.ident)
        _runtime.attach(_engine)
        return _engine


class ScriptCalls(LocalCalls):
    """Answers as a node would answer a worker, with a client behind it."""

    def __init__(self, client: Client | None) -> None:
        super().__init__(None, client)
        self._scope = Scope(0, 1, want_text=False)
        self._scope.task_id = SCRIPT_ID

    def scope(self) -> Scope:  # type: ignore[override]
        """The one of the script."""
        return CURRENT.get() or self._scope

    def call_blocking(self, kind: f.Call, payload: bytes) -> bytes:
        """One call. Raises the node's error, CapabilityPending for what a script cannot have."""
        if kind == f.Call.MEMORY:
            return self._memory(payload)
        if kind == f.Call.DELEGATE:
            return self._delegate(worker.DelegateRequest.FromString(payload))
        if kind == f.Call.SELECT_PROVIDER:
            asked = providers.SelectProviderRequest.FromString(payload)
            return self._node().run(raw_select(asked)).SerializeToString()
        return super().call_blocking(kind, payload)

    def _node(self) -> Client:
        from ._remote import default_client

        return self._client or default_client()

    def _memory(self, payload: bytes) -> bytes:
        asked = worker.MemoryRequest.FromString(payload)
        kind = asked.WhichOneof("operation") or ""
        if kind not in _MEMORY:
            return super().call_blocking(f.Call.MEMORY, payload)
        method, answer = _MEMORY[kind]
        request = getattr(asked, kind)
        request.namespace = request.namespace or NAMESPACE
        return self._node().run(raw_memory(method, request, answer)).SerializeToString()

    def _delegate(self, asked: worker.DelegateRequest) -> bytes:
        """Tasks of their own, side by side: here is none that they could be a part of."""
        with ThreadPoolExecutor(max_workers=len(asked.subtasks) or 1) as threads:
            return worker.DelegateReply(ends=list(threads.map(self._subtask, asked.subtasks))).SerializeToString()

    def _subtask(self, subtask: worker.Subtask) -> worker.SubtaskEnd:
        wanted = subtask.requirements
        given: dict[str, Any] = {
            "framework": subtask.executor or "native",
            "agent": subtask.agent_id,
            "model": wanted.model,
            "max_tokens": wanted.max_tokens,
            "output_schema": from_struct(wanted.output_schema),
            "max_duration": subtask.timeout.ToTimedelta(),
        }
        try:
            done = self._node().execute(
                subtask.description, **cast("Any", {name: value for name, value in given.items() if value})
            )
        except SingularityError as error:
            return worker.SubtaskEnd(error=error_message(error))
        end = worker.SubtaskEnd(result=tasks.AgentResult(output=done.output, executor=done.executor))
        if done.structured_output is not None:
            end.result.structured_output.CopyFrom(to_value(done.structured_output))
        return end
