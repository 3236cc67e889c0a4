"""The blobs of a store that is a file: content over 64 KiB, in the folder `blobs` beside it, under the names that its rows hold."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

#: The first schema that has blobs.
_SCHEMA = 6
_NAMED = """
    SELECT spec_blob, tenant, id FROM task WHERE spec_blob IS NOT NULL
    UNION ALL SELECT result_blob, tenant, id FROM task WHERE result_blob IS NOT NULL
    UNION ALL SELECT blob, tenant, id FROM journal JOIN task ON id = task_id WHERE blob IS NOT NULL
"""


@dataclass(frozen=True)
class Blob:
    """One that a row names."""

    name: str
    tenant: str
    task: str


def _keyed(key: bytes, content: bytes) -> bytes:
    return hmac.new(key, content, hashlib.sha256).digest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Blobs:
    """Those of a database; while it is entered the node removes none."""

    def __init__(self, store: Path, db: sqlite3.Connection) -> None:
        self._folder = store / "blobs"
        self._db = db
        self._pause: int | None = None

    def __enter__(self) -> Self:
        pause = self._folder / ".pause"
        if pause.exists():
            self._pause = os.open(pause, os.O_RDONLY)
            fcntl.flock(self._pause, fcntl.LOCK_SH)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pause is not None:
            os.close(self._pause)

    def named(self) -> Iterator[Blob]:
        """Every one that a row names, once for each row."""
        if self._db.execute("PRAGMA user_version").fetchone()[0] >= _SCHEMA:
            for address, tenant, task in self._db.execute(_NAMED):
                yield Blob(bytes(address).hex(), str(tenant), str(task))

    def fault(self, blob: Blob) -> str:
        """`missing`, `damaged`, or nothing."""
        try:
            content = (self._folder / blob.name).read_bytes()
        except FileNotFoundError:
            return "missing"
        return "" if self._is(blob, content) else "damaged"

    def copy(self, target: Path) -> int:
        """Puts those that are named into the folder `blobs` beside a copy of the database; how many that names."""
        folder = target / "blobs"
        names = set()
        for blob in self.named():
            if blob.name in names:
                continue
            names.add(blob.name)
            place = folder / blob.name
            # An earlier backup in the same folder has most of them.
            if place.exists() and self._is(blob, place.read_bytes()):
                continue
            if fault := self.fault(blob):
                raise ValueError(f"blob {blob.name} of task {blob.task} is {fault}; see singularity store check")
            folder.mkdir(mode=0o700, exist_ok=True)
            part = place.with_name(f"{blob.name}.part")
            part.touch(mode=0o600)
            part.write_bytes((self._folder / blob.name).read_bytes())
            _sync(part)
            part.rename(place)
        if folder.exists():
            _sync(folder)
            _sync(target)
        return len(names)

    def _is(self, blob: Blob, content: bytes) -> bool:
        secret = bytes(self._db.execute("SELECT data FROM secret WHERE name = 'blobs'").fetchone()[0])
        return hmac.compare_digest(_keyed(_keyed(secret, blob.tenant.encode()), content).hex(), blob.name)
