"""Commands about the file of a node's store: `store check` and `store backup`, also while the node runs."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ._blobs import Blobs
from ._io import size
from ._main import OK, REFUSED, Context

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ._main import Parser

#: States as the table `task` numbers them (TaskState of the protocol).
_STATES = ("", "QUEUED", "RUNNING", "WAITING", "SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT")


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the commands."""
    store = commands.add_parser("store", parents=[shared], help="check or back up the store of a node on this machine")
    store.description = "example: singularity store backup /backups/tasks.db --data-dir /var/lib/singularity"
    verbs = store.add_subparsers(dest="verb", metavar="VERB", required=True)
    check = verbs.add_parser("check", parents=[shared], help="read every page, every index and every blob")
    check.set_defaults(run=check_store)
    backup = verbs.add_parser("backup", parents=[shared], help="a consistent copy; the node may run")
    target = "must not exist; blobs are put into the folder blobs beside it. Started with, it takes the place of singularity.db"
    backup.add_argument("target", metavar="FILE", help=target)
    backup.set_defaults(run=backup_store)
    for parser in (check, backup):
        parser.add_argument("--data-dir", metavar="DIR", help='of the node (SINGULARITY_DATA_DIR; default "data")')
        parser.add_argument("--file", metavar="FILE", help="the database itself, where [store] url names another one")


def _database(ctx: Context) -> Path:
    url = os.environ.get("SINGULARITY_STORE_URL", "")
    if url.startswith(("postgres:", "postgresql:")) and not ctx.args.file:
        raise ValueError("the store is on PostgreSQL, which has its own tools: pg_dump for a backup, pg_amcheck for a check")
    folder = ctx.args.data_dir or os.environ.get("SINGULARITY_DATA_DIR") or "data"
    path = Path(ctx.args.file) if ctx.args.file else Path(folder) / (url.removeprefix("sqlite:") or "singularity.db")
    if not path.is_file():
        raise ValueError(f"there is no database {path}; name the folder with --data-dir, or the file with --file")
    return path


def _reading(path: Path) -> closing[sqlite3.Connection]:
    """Read-only: it writes nothing and moves no log, so that the node stays the only writer."""
    return closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True))


def _faults(db: sqlite3.Connection) -> list[str]:
    found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(20)")]
    return [] if found == ["ok"] else found


def _blob_faults(blobs: Blobs) -> Iterator[str]:
    """What a task needs and is not there, or is not what it was."""
    for blob in blobs.named():
        if fault := blobs.fault(blob):
            yield f"blob {blob.name} of task {blob.task} is {fault}"


def check_store(ctx: Context) -> int:
    """`store check`: exit code 4 when something is damaged."""
    path = _database(ctx)
    try:
        with _reading(path) as db, Blobs(path.parent, db) as blobs:
            schema = db.execute("PRAGMA user_version").fetchone()[0]
            faults = _faults(db) or list(_blob_faults(blobs))
            rows = [] if faults else db.execute("SELECT state, count(*) FROM task GROUP BY state ORDER BY state").fetchall()
    except sqlite3.DatabaseError as error:
        schema, faults, rows = 0, [str(error)], []
    tasks = {_STATES[state]: count for state, count in rows}
    found = {"file": str(path), "bytes": path.stat().st_size, "schema": schema, "tasks": tasks, "faults": faults}
    said = (
        "\n".join(["damaged:", *faults])
        if faults
        else f"whole   schema {schema}   {size(path.stat().st_size)}   {sum(tasks.values())} tasks"
    )
    ctx.io.value(found, f"{path}   {said}")
    return REFUSED if faults else OK


def backup_store(ctx: Context) -> int:
    """`store backup`: the copy is read back before the command says that it is there."""
    path, target = _database(ctx), Path(ctx.args.target)
    if target.exists():
        raise ValueError(f"{target} exists already")
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        # What was collected while the copy is made would be missing from it.
        with _reading(path) as source, closing(sqlite3.connect(part)) as copy, Blobs(path.parent, copy) as blobs:
            # In one step: what is written meanwhile is not seen, and cannot make it begin again.
            source.backup(copy, pages=-1)
            copy.execute("PRAGMA journal_mode = DELETE")
            if faults := _faults(copy):
                raise ValueError(f"{path} is damaged: {faults[0]}; see singularity store check")
            copied = blobs.copy(target.parent)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    found = {"file": str(target), "bytes": target.stat().st_size, "blobs": copied}
    ctx.io.value(found, f"{target}   {size(target.stat().st_size)}   {copied} blobs")
    return OK
