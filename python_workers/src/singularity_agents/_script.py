"""The engine for code outside of workers: a plain script that uses the framework classes of this package against a node.

Model calls, memory, subtasks and the choice of a provider go to the node as a client's calls: under no task, so nothing is recorded
for a replay, and what is spent is billed to the client's tenant.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from google.protobuf.struct_pb2 import Struct

from ._errors import InvalidRequest, NotFound
from ._local import LocalCalls, NoEvents
from .worker import _frames as f
from .worker import _runtime
from .worker._calls import Calls
from .worker._engine import Engine
from .worker._events import Events
from .worker._scope import CURRENT, Scope
from .worker._wire import from_struct

if TYPE_CHECKING:
    from ._client import Client

#: What `task_id` says in a script.
SCRIPT_ID: Final = "script"
#: Namespace of a script's memory where none is named.
NAMESPACE: Final = "default"
#: Items that a listing or a search of memory gives.
_MAX_ITEMS: Final = 50

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
        self._answers: dict[f.Call, Callable[[Mapping[str, Any]], Any]] = {
            f.Call.MEMORY: self._memory, f.Call.DELEGATE: self._delegate, f.Call.SELECT_PROVIDER: self._select,
        }  # fmt: skip

    def scope(self) -> Scope:  # type: ignore[override]
        """The one of the script."""
        return CURRENT.get() or self._scope

    def call_blocking(self, kind: f.Call, payload: bytes) -> bytes:
        """One call. Raises the node's error, CapabilityPending for what a script cannot have."""
        answer = self._answers.get(kind)
        if answer is None:
            return super().call_blocking(kind, payload)
        given = answer(from_struct(Struct.FromString(payload)))
        return (given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)).encode()

    def _node(self) -> Client:
        from ._remote import default_client

        return self._client or default_client()

    def _memory(self, asked: Mapping[str, Any]) -> Any:
        op, key = str(asked.get("op", "")), str(asked.get("key") or "")
        memory, space = self._node().memory, str(asked.get("namespace") or NAMESPACE)
        if op in ("get", "set", "put", "delete") and not key:
            raise InvalidRequest(f"{op} needs a key", reason="INVALID_FIELD", metadata={"field": "key"})
        if op == "get":
            try:
                return memory.get(space, key).value
            except NotFound:
                return ""
        if op in ("set", "put"):
            return {"version": memory.put(space, key, asked.get("value")).version}
        if op == "delete":
            return {"version": memory.delete(space, key)}
        if op == "list":
            return {item.key: item.value for item in memory.list(space, prefix=key, limit=_MAX_ITEMS)}
        if op == "search":
            found = memory.search(space, str(asked.get("query") or ""), limit=_MAX_ITEMS)
            return [{"key": item.key, "value": item.value, "score": score} for score, item in found]
        known = "get, set, delete, list or search"
        raise InvalidRequest(f'op is "{op}", must be {known}', reason="INVALID_FIELD", metadata={"field": "op"})

    def _delegate(self, asked: Mapping[str, Any]) -> Any:
        options = {name: value for name, value in asked.items() if name != "description"}
        return self._node().execute(str(asked["description"]), **cast("Any", options)).output

    def _select(self, asked: Mapping[str, Any]) -> Any:
        return self._node().providers.select(**cast("Any", dict(asked))).model_dump(mode="json")
