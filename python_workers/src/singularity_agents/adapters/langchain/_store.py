"""`EngineStore`: LangGraph's long-term store in the engine's memory, below the namespace of the running task."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Mapping
from datetime import timezone
from typing import Any, Final

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    validate_op_namespace,
)

from ..._errors import CapabilityPending, InvalidRequest, NotFound
from ...worker._engine import Engine
from ...worker._wire import from_value, memory, to_value, worker

#: Items of a page.
_PAGE: Final = 500
#: Items that one search looks at; a filter is no index.
_MAX_SCAN: Final = 20_000
#: LangGraph counts the life of a value in minutes.
_MINUTE_NS: Final = 60 * 10**9

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$eq": operator.eq, "$ne": operator.ne, "$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le,
}  # fmt: skip


class EngineStore(BaseStore):
    """Values of the task's memory namespace, which all tasks of that namespace see.

    The reads of a batch come before its writes; of these, those of one namespace are written all or none. A search by meaning
    (`query`) is refused as long as the engine has none. Reading a value does not lengthen its life.
    """

    supports_ttl = True
    __slots__ = ("_engine",)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Several operations, from a thread of the task; on the loop await `abatch`."""
        return self._engine.wait(self.abatch(ops))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Several operations: what each of them gives, in their order."""
        given = list(ops)
        for op in given:
            validate_op_namespace(op)
        results: list[Result] = [await self._read(op) for op in given]
        # The last write of a value counts.
        await self._write({(op.namespace, op.key): op for op in given if isinstance(op, PutOp)})
        return results

    async def _read(self, op: Op) -> Result:
        if isinstance(op, GetOp):
            return await self._get(op)
        if isinstance(op, SearchOp):
            return await self._search(op)
        if isinstance(op, ListNamespacesOp):
            return await self._namespaces(op)
        return None

    async def _get(self, op: GetOp) -> Item | None:
        request = worker.MemoryRequest(get=memory.GetMemoryRequest(namespace=_path(op.namespace), key=op.key))
        try:
            found = await self._engine.memory_raw(request, memory.MemoryItem)
        except NotFound:
            return None
        return Item(**_fields(found))

    async def _search(self, op: SearchOp) -> list[SearchItem]:
        if op.query:
            raise CapabilityPending(
                "the engine has no search by meaning yet; search without query, by filter", reason="CAPABILITY_PENDING",
                metadata={"capability": "memory_search"},
            )  # fmt: skip
        found: list[SearchItem] = []
        token, seen, wanted = "", 0, op.offset + op.limit
        while len(found) < wanted:
            below = worker.MemoriesBelow(namespace=_path(op.namespace_prefix), page_size=_PAGE, page_token=token)
            page = await self._engine.memory_raw(worker.MemoryRequest(below=below), memory.ListMemoriesResponse)
            items = [SearchItem(**_fields(item)) for item in page.items]
            found += [item for item in items if _fits(item.value, op.filter or {})]
            token, seen = page.next_page_token, seen + len(items)
            if not token:
                break
            if seen >= _MAX_SCAN:
                raise InvalidRequest(
                    f"a search looks at {_MAX_SCAN} values at most; name a longer namespace", reason="INVALID_FIELD",
                    metadata={"field": "namespace_prefix"},
                )  # fmt: skip
        return found[op.offset : wanted]

    async def _namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        token, more = "", True
        while more:
            below = worker.NamespacesBelow(page_size=_PAGE, page_token=token)
            page = await self._engine.memory_raw(worker.MemoryRequest(namespaces=below), worker.NamespacesReply)
            # The task's own namespace, which has no name here, is none of LangGraph's.
            paths = [_labels(name) for name in page.namespaces if name]
            fitting = [path for path in paths if all(_matches(condition, path) for condition in op.match_conditions or ())]
            found.update(path[: op.max_depth] for path in fitting)
            token = page.next_page_token
            more = bool(token)
        return sorted(found)[op.offset : op.offset + op.limit]

    async def _write(self, puts: Mapping[tuple[tuple[str, ...], str], PutOp]) -> None:
        batches: dict[str, memory.BatchMemoryRequest] = {}
        for (namespace, key), op in puts.items():
            path = _path(namespace)
            if op.value is None:
                await self._delete(path, key)
                continue
            batch = batches.setdefault(path, memory.BatchMemoryRequest(namespace=path))
            put = batch.operations.add().put
            put.key = key
            put.value.CopyFrom(to_value(dict(op.value)))
            if op.ttl is not None:
                put.ttl.FromNanoseconds(round(op.ttl * _MINUTE_NS))
        for batch in batches.values():
            await self._engine.memory_raw(worker.MemoryRequest(batch=batch), memory.BatchMemoryResponse)

    async def _delete(self, path: str, key: str) -> None:
        request = worker.MemoryRequest(delete=memory.DeleteMemoryRequest(namespace=path, key=key))
        with contextlib.suppress(NotFound):
            await self._engine.memory_raw(request, memory.DeleteMemoryResponse)


def _path(labels: tuple[str, ...]) -> str:
    """Labels as a path of the engine's, where a slash stands between them."""
    return "/".join(label.replace("%", "%25").replace("/", "%2F") for label in labels)


def _labels(path: str) -> tuple[str, ...]:
    return tuple(label.replace("%2F", "/").replace("%25", "%") for label in path.split("/"))


def _fields(item: memory.MemoryItem) -> dict[str, Any]:
    value = from_value(item.value)
    return {
        "namespace": _labels(item.namespace) if item.namespace else (),
        "key": item.key,
        # Values that were not written by a graph need be no dictionaries.
        "value": value if isinstance(value, dict) else {"value": value},
        "created_at": item.create_time.ToDatetime(timezone.utc),
        "updated_at": item.update_time.ToDatetime(timezone.utc),
    }


def _matches(condition: MatchCondition, path: tuple[str, ...]) -> bool:
    wanted = condition.path
    part = path[: len(wanted)] if condition.match_type == "prefix" else path[-len(wanted) :]
    return len(path) >= len(wanted) and all(w in ("*", p) for w, p in zip(wanted, part, strict=True))


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value has what a filter says: equal values, or comparisons by `$` operators, at any depth."""
    if not isinstance(wanted, Mapping):
        return bool(value == wanted)
    if any(str(key).startswith("$") for key in wanted):
        return all(_compares(value, str(key), operand) for key, operand in wanted.items())
    return isinstance(value, Mapping) and all(_fits(value.get(key), inner) for key, inner in wanted.items())


def _compares(value: Any, name: str, operand: Any) -> bool:
    if name not in _OPERATORS:
        raise ValueError(f'"{name}" is no operator of a filter; there are {", ".join(_OPERATORS)}')
    try:
        return _OPERATORS[name](value, operand)
    except TypeError:
        # Not to be compared: a text with a number, or nothing.
        return False
