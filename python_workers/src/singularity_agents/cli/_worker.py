"""`worker`: this machine's processes run tasks of a node on another one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .._attach import Place, attach
from .._errors import InvalidRequest, WrongState
from ..adapters import _pins
from . import _environments
from ._main import OK, Context
from ._node import tool

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ._main import Parser

_MAX_COUNT: Final = 256
_MIB: Final = 1024 * 1024
_DEFAULT_MEMORY_MIB: Final = 1024
_MAX_PROCESSES: Final = 64


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the command."""
    worker = commands.add_parser("worker", parents=[shared], help="run tasks of a node on another machine, here")
    worker.description = (
        "example: singularity worker --address node:50151 --framework langchain --key-file worker.key --project ."
    )
    worker.add_argument("--framework", required=True, metavar="F", help="framework whose environment is installed here")
    worker.add_argument("--key-file", metavar="FILE", help="key of [workers] remote_keys of the node (SINGULARITY_API_KEY)")
    worker.add_argument("--count", type=int, default=1, metavar="N", help="processes (default 1)")
    worker.add_argument(
        "--project", action="append", default=[], metavar="DIR", help="user code that tasks may import; repeatable"
    )
    worker.add_argument(
        "--max-memory-mib", type=int, default=_DEFAULT_MEMORY_MIB, metavar="N", help="of a worker and its children (default 1024)"
    )
    worker.set_defaults(run=work)


def work(ctx: Context) -> int:
    """Holds workers attached until it is interrupted."""
    args, target = ctx.args, ctx.target
    if not 1 <= args.count <= _MAX_COUNT:
        raise InvalidRequest(f"--count must be 1 to {_MAX_COUNT}", reason="INVALID_FIELD", metadata={"field": "count"})
    if args.key_file:
        target = replace(target, api_key=Path(args.key_file).read_text().strip())
    attach(target, _place(args.framework, args.project, args.max_memory_mib * _MIB), args.count, ctx.io.say)
    return OK


def _place(framework: str, projects: list[str], max_memory: int) -> Place:
    """What workers are made of here. Raises WrongState naming what is missing."""
    environment = _pins.environment(framework)
    if environment not in _environments.SIZES:
        known = ", ".join(_environments.SIZES)
        raise InvalidRequest(
            f"there is no framework {framework}; known are {known}",
            reason="FRAMEWORK_UNAVAILABLE",
            metadata={"field": "framework"},
        )
    there = _environments.place()
    python = there.environments / environment / "bin" / "python"
    if not python.exists():
        raise WrongState(
            f"the Python environment of {environment} is not installed; run: singularity frameworks install {environment}",
            reason="FRAMEWORK_UNAVAILABLE",
        )
    sources = there.locks.parent / "src"
    source = os.environ.get("SINGULARITY_PYTHONPATH") or (str(sources) if sources.is_dir() else "")
    folders = [Path(project).resolve() for project in projects]
    for folder in folders:
        if not folder.is_dir():
            raise InvalidRequest(f"--project {folder} is no folder", reason="INVALID_FIELD", metadata={"field": "project"})
    return Place(tool("port_guard"), python, source, environment, folders, max_memory, _MAX_PROCESSES)
