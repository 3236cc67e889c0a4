"""`frameworks install` and `gc`: the Python environments of frameworks, made from exact locks beside the node that uses them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .._errors import InvalidRequest, WrongState
from ..adapters import _pins
from ._main import OK, Context

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._main import Parser

#: Environments of frameworks and what they take on disk, as people are told.
SIZES: Final = {
    "langchain": "100 MB", "crewai": "990 MB", "autogen": "60 MB", "semantic_kernel": "510 MB", "haystack": "200 MB",
    "agent_framework": "50 MB", "custom": "5 MB",
}  # fmt: skip
#: Packages that are published as source alone.
_SOURCE_ONLY: Final = {"semantic_kernel": ("pybars4", "pymeta3")}
#: Written last: an environment without it is not whole.
STAMP: Final = "singularity-lock.sha256"
#: Seconds for one environment.
_TIMEOUT: Final = 1800


class Place(NamedTuple):
    """Where locks are read and environments are made."""

    locks: Path
    environments: Path
    #: None: environments are made by pip, which takes longer.
    uv: str | None


def add(make: Callable[[str, str], Parser]) -> None:
    """Adds the command to its group."""
    install = make("install", "make the Python environments of frameworks, from exact locks")
    install.description = "example: singularity frameworks install crewai"
    install.add_argument("names", nargs="*", metavar="FRAMEWORK", help=f"default: all of {', '.join(SIZES)}")
    install.add_argument("--force", action="store_true", help="make them new although they are as the locks say")
    install.set_defaults(run=install_frameworks)
    gc = make("gc", "delete environments of frameworks that are not whole, or not of the lock as it is now")
    gc.description = "example: singularity frameworks gc --dry-run"
    gc.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")
    gc.set_defaults(run=collect)


def place() -> Place:
    """Of the checkout that this package lies in, or of the release that SINGULARITYD names. Raises WrongState saying what is missing."""
    chosen = os.environ.get("SINGULARITY_ENVS")
    for folder in Path(__file__).resolve().parents:
        if (folder / "scripts" / "setup").is_file():
            own = folder / "_build" / "venvs" / "uv" / "bin" / "uv"
            uv = str(own) if own.is_file() else shutil.which("uv")
            return Place(folder / "python_workers" / "locks", Path(chosen or folder / "_build" / "venvs"), uv)
    if program := os.environ.get("SINGULARITYD") or shutil.which("singularityd"):
        root = Path(program).resolve().parent.parent
        if (root / "python" / "locks").is_dir():
            return Place(root / "python" / "locks", Path(chosen or root / "envs"), shutil.which("uv"))
    raise WrongState(
        "no locks found: set SINGULARITYD to bin/singularityd of a release, or run from a checkout", reason="NODE_NOT_INSTALLED"
    )


def install_frameworks(ctx: Context) -> int:
    """`frameworks install`."""
    there = place()
    ctx.known = list(SIZES)
    names = [_known(name) for name in ctx.args.names] or list(SIZES)
    made: list[dict[str, str]] = []
    for name in dict.fromkeys(names):
        lock = there.locks / f"{name}.txt"
        if is_installed(there, name) and not ctx.args.force:
            state, took = "there already", 0.0
        else:
            ctx.io.say(f"{name}: {SIZES[name]} into {there.environments / name}")
            started = time.monotonic()
            build(there, name, lock)
            state, took = "installed", time.monotonic() - started
        made.append({"framework": name, "state": state, "seconds": f"{took:.0f}", "lock": lock_hash(lock)[:12]})
    rows = ((row["framework"], row["state"], row["seconds"], row["lock"]) for row in made)
    ctx.io.rows("environments", made, ("FRAMEWORK", "STATE", "SECONDS", "LOCK"), rows)
    return OK


def collect(ctx: Context) -> int:
    """`frameworks gc`. Environments that a process of this machine runs from stay, as does whatever `install` does not make."""
    there = place()
    found: list[dict[str, Any]] = []
    for name in SIZES:
        target = there.environments / name
        if target.is_symlink() or not (target / "pyvenv.cfg").is_file() or is_installed(there, name):
            continue
        users = _running_from(target)
        state = f"in use by process {users[0]}" if users else "stale" if ctx.args.dry_run else "deleted"
        size = sum(file.lstat().st_size for file in target.rglob("*") if not file.is_dir())
        if state == "deleted":
            # First of all: what is half deleted must not pass as whole.
            (target / STAMP).unlink(missing_ok=True)
            try:
                shutil.rmtree(target)
            except OSError as error:
                raise WrongState(f"{target} could not be deleted: {error.strerror}", reason="ENVIRONMENT_FAILED") from None
        found.append({"framework": name, "state": state, "bytes": size})
    rows = ((row["framework"], row["state"], f"{row['bytes'] / 1e6:.0f} MB") for row in found)
    ctx.io.rows("environments", found, ("FRAMEWORK", "STATE", "SIZE"), rows)
    return OK


def _running_from(target: Path) -> list[int]:
    """Processes whose program is this environment's interpreter; those of other users cannot be seen everywhere."""
    starts = tuple(os.fsencode(path) + b"/" for path in (target.absolute(), target.resolve()))
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(starts):
                found.append(int(process.name))
        except OSError:
            # It has ended, or is not ours to see.
            continue
    return found


def _known(name: str) -> str:
    environment = _pins.environment(name)
    if environment not in SIZES:
        raise InvalidRequest(f'"{name}" has no environment; there are: {", ".join(SIZES)}', reason="INVALID_FIELD")
    return environment


def lock_hash(lock: Path) -> str:
    """SHA-256 of a lock as hexadecimal text."""
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def is_installed(there: Place, name: str) -> bool:
    """Whether the environment is whole and made from the lock as it is now."""
    try:
        stamp = (there.environments / name / STAMP).read_text("ascii").strip()
    except (OSError, ValueError):
        return False
    return stamp == lock_hash(there.locks / f"{name}.txt")


def build(there: Place, name: str, lock: Path) -> None:
    """Makes an environment new. Interrupted, it has no stamp, and the next call begins again. Raises WrongState."""
    target = there.environments / name
    python = str(target / "bin" / "python")
    (target / STAMP).unlink(missing_ok=True)
    wheels = ["--only-binary", ":all:"]
    for package in _SOURCE_ONLY.get(name, ()):
        wheels += ["--no-binary", package]
    rules = ["--require-hashes", "--no-deps", *wheels, "-r", str(lock)]
    if there.uv is not None:
        _run([there.uv, "venv", "-q", "--clear", "--no-project", "--python", sys.executable, str(target)], name)
        # Without bytecode the first import of the large ones takes ten seconds.
        _run([there.uv, "pip", "install", "-q", "--python", python, "--compile-bytecode", *rules], name)
    else:
        _run([sys.executable, "-m", "venv", "--clear", str(target)], name)
        _run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *rules], name)
    new = target / f"{STAMP}.new"
    new.write_text(lock_hash(lock) + "\n", "ascii")
    new.replace(target / STAMP)


def _run(command: Sequence[str], name: str) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise WrongState(f"{name} was not installed within {_TIMEOUT} s", reason="ENVIRONMENT_FAILED") from None
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise WrongState(f"{name} could not be installed: {last}", reason="ENVIRONMENT_FAILED", metadata={"framework": name})
