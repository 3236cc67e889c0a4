"""`EngineSaver`: LangGraph's checkpoints as records of the running task.

A task is run by one attempt at a time, so what a graph has saved is held in this process as LangGraph's own `InMemorySaver` holds it,
and each change is on disk before the call that makes it returns. The next attempt of the task reads it back and goes on from there;
a fenced one can write nothing more. Threads are the task's: they go with it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import ormsgpack
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.memory import InMemorySaver

from ...worker._engine import Engine
from ...worker._memory import Record
from ...worker._scope import CURRENT, Scope

#: Under which a task's saver lies in the notes of its run.
_NOTE: Final = "langgraph_saver"
#: First parts of the keys of records: checkpoints, writes, values of channels. Their order is that of reading, which does not matter.
_CHECKPOINT, _WRITE, _BLOB = "c", "w", "b"
#: Type of the value of a channel that is empty.
_EMPTY: Final = "empty"


class EngineSaver(BaseCheckpointSaver[str]):
    """Checkpoints of the running task, kept by the engine. One object serves all tasks of a worker."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    # --- what is held ---------------------------------------------------------------------------------------------

    async def opened(self) -> InMemorySaver:
        """The checkpoints of the running task, read from the engine where that was not done yet."""
        held = self._held()
        return held if held is not None else self._loaded(await self._engine.kept() if _scope().attempt > 1 else ())

    def _opened(self) -> InMemorySaver:
        held = self._held()
        return held if held is not None else self._loaded(self._engine.kept_blocking() if _scope().attempt > 1 else ())

    def _held(self) -> InMemorySaver | None:
        held: InMemorySaver | None = _scope().notes.get(_NOTE)
        if held is not None:
            held.serde = self.serde
        return held

    def _loaded(self, records: Sequence[tuple[str, bytes]]) -> InMemorySaver:
        made = InMemorySaver(serde=self.serde)
        for key, data in records:
            _put(made, json.loads(key), ormsgpack.unpackb(data))
        # Two may have read at the same time; nothing was written before the first had.
        held: InMemorySaver = _scope().notes.setdefault(_NOTE, made)
        return held

    # --- reading --------------------------------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """A checkpoint: the one that is named, or the newest of its thread."""
        return self._opened().get_tuple(config)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """A checkpoint: the one that is named, or the newest of its thread."""
        return (await self.opened()).get_tuple(config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, the newest first."""
        yield from self._opened().list(config, filter=filter, before=before, limit=limit)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Checkpoints, the newest first."""
        for found in (await self.opened()).list(config, filter=filter, before=before, limit=limit):
            yield found

    def get_delta_channel_history(self, *, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, DeltaChannelHistory]:
        """What the checkpoints before this one added to channels that keep only changes."""
        return self._opened().get_delta_channel_history(config=config, channels=channels)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What the checkpoints before this one added to channels that keep only changes."""
        return (await self.opened()).get_delta_channel_history(config=config, channels=channels)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """The version of a channel after this one."""
        return InMemorySaver.get_next_version(_VERSIONS, current, channel)

    # --- writing --------------------------------------------------------------------------------------------------

    def put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions
    ) -> RunnableConfig:
        """Writes a checkpoint, and of its channels those that have changed."""
        saved, records = self._put(self._opened(), config, checkpoint, metadata, new_versions)
        self._engine.keep_blocking(records)
        return saved

    async def aput(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions
    ) -> RunnableConfig:
        """Writes a checkpoint, and of its channels those that have changed."""
        saved, records = self._put(await self.opened(), config, checkpoint, metadata, new_versions)
        await self._engine.keep(records)
        return saved

    @staticmethod
    def _put(
        held: InMemorySaver,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> tuple[RunnableConfig, Sequence[Record]]:
        thread, space = str(config["configurable"]["thread_id"]), config["configurable"].get("checkpoint_ns", "")
        given: RunnableConfig = {
            **config,
            "configurable": {**config["configurable"], "thread_id": thread, "checkpoint_ns": space},
        }
        saved = held.put(given, checkpoint, metadata, new_versions)
        places: list[tuple[Any, ...]] = [(_BLOB, thread, space, name, version) for name, version in new_versions.items()]
        # The checkpoint comes last: where it is, its values are.
        return saved, _records(held, [*places, (_CHECKPOINT, thread, space, checkpoint["id"])])

    def put_writes(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        """Writes what a node gave, beside the checkpoint that it ran from."""
        self._engine.keep_blocking(self._put_writes(self._opened(), config, writes, task_id, task_path))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Writes what a node gave, beside the checkpoint that it ran from."""
        await self._engine.keep(self._put_writes(await self.opened(), config, writes, task_id, task_path))

    @staticmethod
    def _put_writes(
        held: InMemorySaver, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> Sequence[Record]:
        held.put_writes(config, writes, task_id, task_path)
        given = config["configurable"]
        place = (str(given["thread_id"]), given.get("checkpoint_ns", ""), given["checkpoint_id"], task_id)
        return _records(held, [(_WRITE, *place, WRITES_IDX_MAP.get(name, n)) for n, (name, _) in enumerate(writes)])

    # --- threads --------------------------------------------------------------------------------------------------

    def delete_thread(self, thread_id: str) -> None:
        """Deletes a thread."""
        self._engine.keep_blocking(_changed(self._opened(), lambda held: held.delete_thread(thread_id)))

    async def adelete_thread(self, thread_id: str) -> None:
        """Deletes a thread."""
        await self._engine.keep(_changed(await self.opened(), lambda held: held.delete_thread(thread_id)))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Deletes the checkpoints that these runs have made."""
        self._engine.keep_blocking(_changed(self._opened(), lambda held: _delete_for_runs(held, run_ids)))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Deletes the checkpoints that these runs have made."""
        await self._engine.keep(_changed(await self.opened(), lambda held: _delete_for_runs(held, run_ids)))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copies a thread, with everything before its newest checkpoint."""
        self._engine.keep_blocking(_changed(self._opened(), lambda held: _copy(held, source_thread_id, target_thread_id)))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copies a thread, with everything before its newest checkpoint."""
        await self._engine.keep(_changed(await self.opened(), lambda held: _copy(held, source_thread_id, target_thread_id)))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Deletes threads ("delete"), or their older checkpoints ("keep_latest") but for those that channels of changes need."""
        self._engine.keep_blocking(_changed(self._opened(), lambda held: _prune(held, thread_ids, strategy)))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Deletes threads ("delete"), or their older checkpoints ("keep_latest") but for those that channels of changes need."""
        await self._engine.keep(_changed(await self.opened(), lambda held: _prune(held, thread_ids, strategy)))


#: For its numbering alone.
_VERSIONS: Final = InMemorySaver()


def _scope() -> Scope:
    scope = CURRENT.get()
    if scope is None:
        raise RuntimeError("checkpoints are those of a running task; there is none here")
    return scope


# --- records: a place is the key as a list, its value what InMemorySaver has there -----------------------------------


def _put(held: InMemorySaver, place: Sequence[Any], value: Sequence[Any]) -> None:
    kind, thread, space, *rest = place
    if kind == _CHECKPOINT:
        checkpoint_type, checkpoint, metadata_type, metadata, parent = value
        held.storage[thread][space][rest[0]] = ((checkpoint_type, checkpoint), (metadata_type, metadata), parent)
    elif kind == _WRITE:
        checkpoint_id, task_id, number = rest
        channel, value_type, data, path = value
        held.writes[thread, space, checkpoint_id][task_id, number] = (task_id, channel, (value_type, data), path)
    else:
        held.blobs[thread, space, rest[0], rest[1]] = (value[0], value[1])


def _value(held: InMemorySaver, place: Sequence[Any]) -> list[Any]:
    kind, thread, space, *rest = place
    if kind == _CHECKPOINT:
        checkpoint, metadata, parent = held.storage[thread][space][rest[0]]
        return [*checkpoint, *metadata, parent]
    if kind == _WRITE:
        _, channel, value, path = held.writes[thread, space, rest[0]][rest[1], rest[2]]
        return [channel, *value, path]
    return list(held.blobs[thread, space, rest[0], rest[1]])


def _records(held: InMemorySaver, places: Sequence[tuple[Any, ...]]) -> list[Record]:
    return [(_key(place), ormsgpack.packb(_value(held, place))) for place in places]


def _key(place: Sequence[Any]) -> str:
    return json.dumps(place, ensure_ascii=False, separators=(",", ":"))


def _places(held: InMemorySaver) -> dict[tuple[Any, ...], Any]:
    """All that is held, by place. Values are never changed in place, so their identity says whether they are the same."""
    found: dict[tuple[Any, ...], Any] = {(_BLOB, *key): value for key, value in held.blobs.items()}
    for (thread, space, checkpoint_id), writes in held.writes.items():
        found.update(((_WRITE, thread, space, checkpoint_id, *key), value) for key, value in writes.items())
    for thread, spaces in held.storage.items():
        for space, checkpoints in spaces.items():
            found.update(((_CHECKPOINT, thread, space, checkpoint_id), value) for checkpoint_id, value in checkpoints.items())
    return found


def _changed(held: InMemorySaver, change: Callable[[InMemorySaver], None]) -> list[Record]:
    """Changes what is held, and gives the records that say so: what goes before what comes, checkpoints last."""
    before = _places(held)
    change(held)
    after = _places(held)
    gone: list[Record] = [(_key(place), None) for place in before if place not in after]
    return gone + _records(held, [place for place, value in after.items() if before.get(place) is not value])


# --- threads ---------------------------------------------------------------------------------------------------------


def _delete_for_runs(held: InMemorySaver, run_ids: Sequence[str]) -> None:
    wanted = set(run_ids)
    for thread in list(held.storage):
        for space, checkpoints in held.storage[thread].items():
            for checkpoint_id, (_, metadata, _) in list(checkpoints.items()):
                if held.serde.loads_typed(metadata).get("run_id") in wanted:
                    _forget(held, thread, space, checkpoint_id)
        _sweep(held, thread)


def _copy(held: InMemorySaver, source: str, target: str) -> None:
    for space, checkpoints in list(held.storage[source].items()):
        held.storage[target][space].update(checkpoints)
    for (thread, space, checkpoint_id), writes in list(held.writes.items()):
        if thread == source:
            held.writes[target, space, checkpoint_id].update(writes)
    for (thread, space, channel, version), value in list(held.blobs.items()):
        if thread == source:
            held.blobs[target, space, channel, version] = value


def _prune(held: InMemorySaver, threads: Sequence[str], strategy: str) -> None:
    if strategy not in ("keep_latest", "delete"):
        raise ValueError(f'strategy is "{strategy}", must be keep_latest or delete')
    for thread in threads:
        if strategy == "delete":
            held.delete_thread(thread)
            continue
        for space, checkpoints in held.storage[thread].items():
            needed = _needed(held, thread, space)
            for checkpoint_id in [one for one in checkpoints if one not in needed]:
                _forget(held, thread, space, checkpoint_id)
        _sweep(held, thread)


def _needed(held: InMemorySaver, thread: str, space: str) -> set[str]:
    """The newest checkpoint, and those before it from which channels that keep only changes are made."""
    checkpoints = held.storage[thread][space]
    if not checkpoints:
        return set()
    current: str | None = max(checkpoints)
    metadata = held.serde.loads_typed(checkpoints[max(checkpoints)][1])
    open_channels = set(metadata.get("counters_since_delta_snapshot") or ())
    needed: set[str] = set()
    while current is not None and current in checkpoints:
        needed.add(current)
        versions = held.serde.loads_typed(checkpoints[current][0])["channel_versions"]
        open_channels = {
            name for name in open_channels if held.blobs.get((thread, space, name, versions.get(name)), (_EMPTY,))[0] == _EMPTY
        }
        if not open_channels:
            break
        current = checkpoints[current][2]
    return needed


def _forget(held: InMemorySaver, thread: str, space: str, checkpoint_id: str) -> None:
    del held.storage[thread][space][checkpoint_id]
    held.writes.pop((thread, space, checkpoint_id), None)


def _sweep(held: InMemorySaver, thread: str) -> None:
    """Deletes values of channels that no checkpoint of a thread names any more."""
    named = {
        (space, channel, version)
        for space, checkpoints in held.storage[thread].items()
        for checkpoint, _, _ in checkpoints.values()
        for channel, version in held.serde.loads_typed(checkpoint)["channel_versions"].items()
    }
    for key in [key for key in held.blobs if key[0] == thread and key[1:] not in named]:
        del held.blobs[key]
