"""Bundles: everything a task was made of, in one file that any node can run again without a model.

The file is a zip; `docs/bundles.md` describes it. Its manifest names every member with its length and SHA-256, so that damage is
found here, by name, before a node sees any of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message as Proto

from . import _models as m
from ._errors import InvalidRequest
from ._proto.singularity.agents.v1 import agent_service_pb2 as ag
from ._proto.singularity.agents.v1 import task_pb2 as ta
from ._proto.singularity.agents.v1 import task_service_pb2 as ts

P = TypeVar("P", bound=Proto)

#: Name and version of the format.
FORMAT, VERSION = "singularity-bundle", 1
#: Of all members together, unpacked, in bytes.
MAX_BYTES = 256 * 1024 * 1024
_MANIFEST = "manifest.json"
#: Members: the part that each line of one is, in the order in which they are sent.
_MEMBERS: dict[str, tuple[str, type[Proto]]] = {
    "header.jsonl": ("header", ts.TaskBundleHeader),
    "task.jsonl": ("task", ta.Task),
    "agents.jsonl": ("agent", ag.Agent),
    "attempts.jsonl": ("attempt", ta.Attempt),
    "journal.jsonl": ("entry", ts.JournalEntry),
    "events.jsonl": ("event", ta.TaskEvent),
}


class Bundle:
    """What `client.bundle(TASK)` gives and `client.replay(BUNDLE)` takes."""

    def __init__(self, parts: Iterable[ts.TaskBundlePart]) -> None:
        """Of the parts that the engine gave; `Bundle.read` is for files."""
        self._parts = list(parts)
        if [part.WhichOneof("part") for part in self._parts[:2]] != ["header", "task"]:
            raise _invalid("it does not begin with a header and a task")

    def __repr__(self) -> str:
        return f"Bundle({self.task.id!r})"

    @property
    def engine_version(self) -> str:
        """Of the engine that wrote it."""
        return str(self._parts[0].header.engine_version)

    @property
    def task(self) -> m.Task:
        """The task as it ended."""
        return m.value_of(m.Task, self._parts[1].task)

    @property
    def attempts(self) -> list[m.Attempt]:
        """Its attempts, oldest first."""
        return [m.value_of(m.Attempt, part.attempt) for part in self._of("attempt")]

    @property
    def agents(self) -> list[m.Agent]:
        """The agents that it named, as they were defined when the bundle was written."""
        return [m.value_of(m.Agent, part.agent) for part in self._of("agent")]

    @property
    def events(self) -> list[m.Event]:
        """What happened to it."""
        return [m.event_of(part.event) for part in self._of("event")]

    @property
    def journal(self) -> list[dict[str, Any]]:
        """What it was answered, and the ends of its plan's steps."""
        return [MessageToDict(part.entry, preserving_proto_field_name=True) for part in self._of("entry")]

    def _of(self, kind: str) -> Iterator[ts.TaskBundlePart]:
        return (part for part in self._parts if part.WhichOneof("part") == kind)

    def requests(self, request_id: str) -> Iterator[ts.ReplayTaskRequest]:
        """What ReplayTask is sent. Events and agents say nothing to it."""
        for part in self._parts:
            if part.WhichOneof("part") not in ("event", "agent"):
                yield ts.ReplayTaskRequest(request_id=request_id, part=part)
                request_id = ""

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, for its owner alone: it holds what was asked and answered."""
        members = {name: self._member(kind) for name, (kind, _) in _MEMBERS.items()}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "task_id": self.task.id,
            "engine_version": self.engine_version,
            "files": {name: {"bytes": len(data), "sha256": _sha(data)} for name, data in members.items()},
        }
        target = Path(path)
        made = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with (
                open(os.open(made, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file,
                zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
            ):
                archive.writestr(_MANIFEST, json.dumps(manifest, indent=2))
                for name, data in members.items():
                    archive.writestr(name, data)
            made.replace(target)
        finally:
            made.unlink(missing_ok=True)

    def _member(self, kind: str) -> bytes:
        lines = (
            json.dumps(MessageToDict(getattr(part, kind), preserving_proto_field_name=True), ensure_ascii=False)
            for part in self._of(kind)
        )
        return "".join(line + "\n" for line in lines).encode()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Bundle:
        """Reads a file. Raises InvalidRequest with BUNDLE_INVALID, which names what is wrong, and OSError."""
        try:
            with zipfile.ZipFile(path) as archive:
                members = _members(archive)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise _invalid(f"it is no bundle, or damaged: {error}") from None
        parts: list[ts.TaskBundlePart] = []
        for name, (kind, message) in _MEMBERS.items():
            for number, line in enumerate(members[name].splitlines(), 1):
                parts.append(ts.TaskBundlePart(**{kind: _parsed(message, line, name, number)}))  # type: ignore[arg-type]
        return cls(parts)


def _invalid(why: str, **metadata: str) -> InvalidRequest:
    return InvalidRequest(why, reason="BUNDLE_INVALID", metadata=metadata)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parsed(message: type[P], line: bytes, name: str, number: int) -> P:
    try:
        return ParseDict(json.loads(line), message())
    except (ParseError, ValueError) as error:
        # The kind of error alone: its text may hold what was asked.
        raise _invalid(f"line {number} of {name} cannot be read ({type(error).__name__})", path=name) from None


def _members(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """The checked members. What the manifest does not name is none of ours."""
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    if _MANIFEST not in sizes:
        raise _invalid(f"it has no {_MANIFEST}: it is no bundle of an engine", path=_MANIFEST)
    if (size := sum(sizes.values())) > MAX_BYTES:
        raise _invalid(f"it has {size} bytes unpacked, at most {MAX_BYTES} are allowed")
    try:
        manifest = json.loads(archive.read(_MANIFEST))
        known, version, files = manifest["format"], manifest["version"], manifest["files"]
        expected = {name: (str(files[name]["sha256"]), int(files[name]["bytes"])) for name in _MEMBERS if name in files}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _invalid(f"its {_MANIFEST} cannot be read", path=_MANIFEST) from None
    if known != FORMAT:
        raise _invalid(f"its format is not {FORMAT}", path=_MANIFEST)
    if version != VERSION:
        raise _invalid(f"its format has version {version}, this program reads {VERSION}", path=_MANIFEST)
    members: dict[str, bytes] = {}
    for name in _MEMBERS:
        if name not in expected or name not in sizes:
            raise _invalid(f"{name} is missing", path=name)
        data = archive.read(name)
        if (_sha(data), len(data)) != expected[name]:
            raise _invalid(f"{name} is not what the manifest says: its SHA-256 or its length differs", path=name)
        members[name] = data
    return members
