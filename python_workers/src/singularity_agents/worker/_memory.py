"""The engine's memory as code of a task sees it: values below the task's namespace, conversations, and records of the task itself."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from .._durations import DurationLike, seconds
from .._errors import InvalidRequest, NotFound
from ._wire import common, from_value, memory, to_value, worker

if TYPE_CHECKING:
    from ._engine import Engine

#: Items that a listing or a search in words gives.
_MAX_ITEMS: Final = 50
#: Values of a page.
_PAGE: Final = 1000
#: Bytes of records that one call writes, unless a single one is larger; a frame has 16 MiB.
_MAX_KEEP_BYTES: Final = 8 * 1024 * 1024

_ROLES: Final = {
    "user": common.ROLE_USER, "assistant": common.ROLE_ASSISTANT, "system": common.ROLE_SYSTEM, "tool": common.ROLE_TOOL,
}  # fmt: skip

#: A record of a task: key and bytes, or None to delete it.
Record = tuple[str, bytes | None]


class Memory:
    """Values below the namespace of the running task: the one of its agent or task, `agents/<id>` where neither names one.

    Each write is on disk before it returns, and is refused once the attempt is fenced. A run that starts again reads what is there
    then; what a model was told stays the same only through the tool `distributed_memory`, whose calls are recorded.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def get(self, key: str, default: Any = None, *, namespace: str = "") -> Any:
        """A value, or the default where there is none."""
        request = worker.MemoryRequest(get=memory.GetMemoryRequest(namespace=namespace, key=key))
        try:
            return from_value((await self._engine.memory_raw(request, memory.MemoryItem)).value)
        except NotFound:
            return default

    async def put(
        self,
        key: str,
        value: Any,
        *,
        namespace: str = "",
        expected_version: int | None = None,
        ttl: DurationLike | None = None,
    ) -> int:
        """Writes a JSON-like value; gives its version. With `expected_version` (0: absent) another writer's value is kept."""
        put = memory.PutMemoryRequest(namespace=namespace, key=key, value=to_value(value), expected_version=expected_version)
        if ttl is not None:
            put.ttl.FromNanoseconds(round(seconds(ttl) * 1e9))
        return (await self._engine.memory_raw(worker.MemoryRequest(put=put), memory.MemoryItem)).version

    async def delete(self, key: str, *, namespace: str = "", expected_version: int | None = None) -> int:
        """Deletes a value; gives the version that it had. Raises NotFound where there is none."""
        delete = memory.DeleteMemoryRequest(namespace=namespace, key=key, expected_version=expected_version)
        return (await self._engine.memory_raw(worker.MemoryRequest(delete=delete), memory.DeleteMemoryResponse)).version

    async def list(self, prefix: str = "", *, namespace: str = "", limit: int = _MAX_ITEMS) -> dict[str, Any]:
        """Values by key, of those that begin so."""
        found: dict[str, Any] = {}
        token = ""
        while len(found) < limit:
            listing = memory.ListMemoriesRequest(
                namespace=namespace, prefix=prefix, page_size=min(limit - len(found), _PAGE), page_token=token
            )
            page = await self._engine.memory_raw(worker.MemoryRequest(list=listing), memory.ListMemoriesResponse)
            found.update((item.key, from_value(item.value)) for item in page.items)
            token = page.next_page_token
            if not token:
                break
        return found

    async def append(self, conversation: str, *messages: tuple[str, str], namespace: str = "") -> int:
        """Adds messages, each (role, text), to a conversation; gives its length."""
        append = memory.AppendMessagesRequest(namespace=namespace, conversation_id=conversation)
        for role, text in messages:
            append.messages.add(role=_role(role)).content.add(text=text)
        return (await self._engine.memory_raw(worker.MemoryRequest(append=append), memory.AppendMessagesResponse)).length

    async def messages(
        self, conversation: str = "default", *, namespace: str = "", limit: int = _PAGE
    ) -> builtins.list[tuple[str, str]]:
        """Messages of a conversation, each (role, text), the oldest first."""
        reading = memory.ListMessagesRequest(namespace=namespace, conversation_id=conversation, page_size=min(limit, _PAGE))
        page = await self._engine.memory_raw(worker.MemoryRequest(messages=reading), memory.ListMessagesResponse)
        return [(_role_name(m.role), "".join(part.text for part in m.content)) for m in page.messages]

    async def search(self, query: str, *, namespace: str = "", limit: int = 10) -> builtins.list[dict[str, Any]]:
        """Values that fit a query, the best first."""
        search = memory.SearchMemoriesRequest(namespace=namespace, query=query, limit=limit)
        found = await self._engine.memory_raw(worker.MemoryRequest(search=search), memory.SearchMemoriesResponse)
        return [{"key": m.item.key, "value": from_value(m.item.value), "score": m.score} for m in found.matches]


async def in_words(engine: Engine, op: str, asked: Mapping[str, Any]) -> str:
    """Memory as a model asks for it: an operation, a key, a value; the answer is a value's text, or JSON."""
    key, space = str(asked.get("key") or ""), str(asked.get("namespace") or "")
    if op in ("get", "set", "put", "delete") and not key:
        raise InvalidRequest(f"{op} needs a key", reason="INVALID_FIELD", metadata={"field": "key"})
    values = Memory(engine)
    given: Any
    if op == "get":
        given = await values.get(key, "", namespace=space)
    elif op in ("set", "put"):
        given = {"version": await values.put(key, asked.get("value"), namespace=space)}
    elif op == "delete":
        given = {"version": await values.delete(key, namespace=space)}
    elif op == "list":
        given = await values.list(key, namespace=space)
    elif op == "search":
        given = await values.search(str(asked.get("query") or ""), namespace=space)
    else:
        known = "get, set, delete, list or search"
        raise InvalidRequest(f'op is "{op}", must be {known}', reason="INVALID_FIELD", metadata={"field": "op"})
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def keep_requests(records: Sequence[Record]) -> list[worker.MemoryRequest]:
    """The calls that write records: one, and all or none, unless they are too large for one frame; the last comes last."""
    calls = [worker.MemoryRequest(keep=worker.KeepRecords())]
    size = 0
    for key, data in records:
        more = len(key) + len(data or b"")
        if size and size + more > _MAX_KEEP_BYTES:
            calls.append(worker.MemoryRequest(keep=worker.KeepRecords()))
            size = 0
        size += more
        calls[-1].keep.records.add(key=key, data=data)
    return calls


def read_request(after: str) -> worker.MemoryRequest:
    """The call that reads the records behind a key."""
    return worker.MemoryRequest(kept=worker.ReadRecords(after=after))


def _role(name: str) -> common.Role:
    if name not in _ROLES:
        known = ", ".join(_ROLES)
        raise InvalidRequest(f'role is "{name}", must be one of {known}', reason="INVALID_FIELD", metadata={"field": "role"})
    return _ROLES[name]


def _role_name(role: common.Role) -> str:
    return next((name for name, number in _ROLES.items() if number == role), "")
