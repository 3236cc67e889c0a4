"""`frameworks install`, `lock` and `gc`: the Python environments of frameworks and projects, from exact locks, beside the node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .. import _environments as made
from .. import _interpreters
from .._environments import Place, Wanted
from .._errors import ConnectionFailed, InvalidRequest, WrongState
from .._locks import PROJECT_LOCK, STAMP, WrongLock, digest, project_lock
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
#: What `lock` reads where nothing is named, the first that is there.
_SOURCES: Final = ("pyproject.toml", "requirements.in", "requirements.txt")
#: States of a task that may run again.
_OPEN: Final = ("QUEUED", "RUNNING", "WAITING")


def add(make: Callable[[str, str], Parser]) -> None:
    """Adds the commands to their group."""
    install = make("install", "make the Python environments of frameworks and of agents, from exact locks")
    install.description = "example: singularity frameworks install crewai"
    install.add_argument("names", nargs="*", metavar="FRAMEWORK|AGENT", help=f"default: all of {', '.join(SIZES)}")
    _from_config(install)
    install.add_argument("--python", default="", metavar="VERSION", choices=("", *_interpreters.VERSIONS), help="as in 3.12")
    install.add_argument("--force", action="store_true", help="make them new although they are as the locks say")
    install.set_defaults(run=install_frameworks)
    lock = make("lock", "write the lock of an agent's own packages, which fits its framework's")
    lock.description = "example: singularity frameworks lock support --from agents/pyproject.toml"
    lock.add_argument("name", metavar="AGENT")
    lock.add_argument(
        "--from", dest="source", metavar="FILE", help=f"default: the project's {', '.join(_SOURCES)}, the first there is"
    )
    _from_config(lock)
    lock.set_defaults(run=lock_project)
    gc = make("gc", "delete environments that are not whole or of an earlier lock, unless open tasks need them")
    gc.description = "example: singularity frameworks gc --dry-run"
    gc.add_argument("--offline", action="store_true", help="ask no node: whoever says so knows that no open task needs them")
    gc.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")
    gc.set_defaults(run=collect)


def _from_config(parser: Parser) -> None:
    parser.add_argument("--config", default=os.environ.get("SINGULARITY_CONFIG"), metavar="FILE", help="where agents stand")


def place() -> Place:
    """Of the checkout that this package lies in, or of the release that SINGULARITYD names. Raises WrongState saying what is missing."""
    chosen = os.environ.get("SINGULARITY_ENVS")
    for folder in Path(__file__).resolve().parents:
        if (folder / "scripts" / "setup").is_file():
            environments = Path(chosen or folder / "_build" / "venvs")
            return Place(folder / "python_workers" / "locks", environments, made.uv_program(environments))
    if program := os.environ.get("SINGULARITYD") or shutil.which("singularityd"):
        root = Path(program).resolve().parent.parent
        if (root / "python" / "locks").is_dir():
            environments = Path(chosen or root / "envs")
            return Place(root / "python" / "locks", environments, made.uv_program(environments))
    raise WrongState(
        "no locks found: set SINGULARITYD to bin/singularityd of a release, or run from a checkout", reason="NODE_NOT_INSTALLED"
    )


def install_frameworks(ctx: Context) -> int:
    """`frameworks install`."""
    there = place()
    names = list(dict.fromkeys(ctx.args.names)) or list(SIZES)
    rows: list[dict[str, str]] = []
    for wanted in dict.fromkeys(_wanted(ctx, name) for name in names):
        name = wanted.name(there)
        started = time.monotonic()
        if made.is_installed(there, wanted) and not ctx.args.force:
            state = "there already"
        else:
            ctx.io.say(f"{name}: {SIZES[wanted.framework]} into {there.environments / name}")
            state = "installed" if _make(ctx, there, wanted) else "there already"
        took = f"{time.monotonic() - started:.0f}"
        rows.append(
            {
                "environment": name,
                "framework": wanted.framework,
                "state": state,
                "seconds": took,
                "lock": wanted.digest(there)[:12],
            }
        )
    shown = ((row["environment"], row["state"], row["seconds"], row["lock"]) for row in rows)
    ctx.io.rows("environments", rows, ("ENVIRONMENT", "STATE", "SECONDS", "LOCK"), shown)
    return OK


def _make(ctx: Context, there: Place, wanted: Wanted) -> bool:
    try:
        return made.make(there, wanted, lambda text: ctx.io.say(f"  {text}"), force=ctx.args.force)
    except (made.Failed, WrongLock) as error:
        raise WrongState(str(error), reason="ENVIRONMENT_FAILED", metadata={"framework": wanted.framework}) from None


def _wanted(ctx: Context, name: str) -> Wanted:
    """The environment of a framework or of an agent of the configuration."""
    if (environment := _pins.environment(name)) in SIZES:
        return Wanted(environment, None, ctx.args.python)
    agents = _agents(ctx)
    ctx.known = [*SIZES, *agents]
    if name not in agents:
        where = f" or agent of {ctx.args.config}" if ctx.args.config else "; agents are found with --config FILE"
        raise InvalidRequest(f'"{name}" has no environment; there is no such framework{where}. Frameworks: {", ".join(SIZES)}',
                             reason="INVALID_FIELD")  # fmt: skip
    agent = agents[name]
    framework = _pins.environment(str(agent.get("framework") or "auto"))
    if framework not in SIZES:
        raise InvalidRequest(
            f'[agents.{name}] framework = "{framework}" has no environment; name a framework', reason="INVALID_FIELD"
        )
    try:
        lock = project_lock(str(agent.get("project") or ""), str(agent.get("requirements") or ""))
    except WrongLock as error:
        remedy = f"run: singularity frameworks lock {name}"
        raise WrongState(f"[agents.{name}] {error}; {remedy}", reason="ENVIRONMENT_FAILED") from None
    return Wanted(framework, lock, ctx.args.python or str(agent.get("python") or _python_of(ctx, str(agent.get("framework")))))


def _configuration(ctx: Context) -> dict[str, Any]:
    """The configuration as the node's own checker reads it. Raises WrongState with its faults."""
    from ._node import tool

    if not ctx.args.config:
        return {}
    done = subprocess.run([str(tool("singularity_config")), "show", ctx.args.config], capture_output=True, text=True)
    if done.returncode != 0:
        raise WrongState(done.stderr.strip(), reason="INVALID_FIELD")
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def _agents(ctx: Context) -> dict[str, dict[str, Any]]:
    return dict(_configuration(ctx).get("agents", {}))


def _python_of(ctx: Context, framework: str) -> str:
    """`[frameworks] NAME = { python = … }`."""
    frameworks = _configuration(ctx).get("frameworks", {})
    own = frameworks.get(framework) or frameworks.get(_pins.environment(framework)) or {}
    return str(own.get("python") or "")


def lock_project(ctx: Context) -> int:
    """`frameworks lock`."""
    there, agents, name = place(), _agents(ctx), ctx.args.name
    ctx.known = list(agents)
    if name not in agents:
        where = ctx.args.config or "a configuration; name it by --config"
        raise InvalidRequest(f'there is no agent "{name}" in {where}', reason="INVALID_FIELD")
    if there.uv is None:
        raise WrongState("a lock is made by uv, which is not there; install it", reason="ENVIRONMENT_FAILED")
    agent = agents[name]
    framework = _pins.environment(str(agent.get("framework") or "auto"))
    folder = Path(str(agent.get("project") or "."))
    sources = [Path(ctx.args.source)] if ctx.args.source else [folder / source for source in _SOURCES]
    source = next((source for source in sources if source.is_file()), None)
    if framework not in SIZES or source is None:
        looked = ", ".join(map(str, sources))
        raise InvalidRequest(f"[agents.{name}] needs a framework and one of {looked}", reason="INVALID_FIELD")
    target = folder / PROJECT_LOCK
    python = str(agent.get("python") or _python_of(ctx, str(agent.get("framework"))))
    command = [there.uv, "pip", "compile", "-q", "--generate-hashes", "--no-header", "--no-annotate", "--only-binary", ":all:",
               "-c", str(there.locks / f"{framework}.txt"), "--python", _interpreters.find(python) or "3.11",
               "-o", str(target), str(source)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise WrongState(f"{source} could not be locked: {done.stderr.strip()[-1500:]}", reason="ENVIRONMENT_FAILED")
    ctx.io.value(
        {"agent": name, "lock": str(target), "sha256": digest(target)}, f"{target}   next: singularity frameworks install {name}"
    )
    return OK


def collect(ctx: Context) -> int:
    """`frameworks gc`. What a process of this machine runs from stays, as does whatever `install` does not make and what is needed."""
    there = place()
    needed = _Needed(ctx)
    found: list[dict[str, Any]] = []
    for target in sorted(there.environments.glob("*")):
        framework, _, rest = target.name.partition("-")
        if framework not in SIZES or target.is_symlink() or not (target / "pyvenv.cfg").is_file():
            continue
        python = target.name.rpartition("-py")[2] if "-py" in target.name else ""
        if rest in ("", f"py{python}") and made.is_installed(there, Wanted(framework, None, python)):
            continue
        users = _running_from(target)
        why = needed.why(target) if not users else f"in use by process {users[0]}"
        state = why or ("stale" if ctx.args.dry_run else "deleted")
        if why != _Needed.CONFIGURED:
            found.append({"environment": target.name, "framework": framework, "state": state, "bytes": _size(target)})
        if state == "deleted":
            _delete(target)
    rows = ((row["environment"], row["state"], f"{row['bytes'] / 1e6:.0f} MB") for row in found)
    ctx.io.rows("environments", found, ("ENVIRONMENT", "STATE", "SIZE"), rows)
    return OK


class _Needed:
    """Whether the node or an open task of it needs an environment."""

    CONFIGURED: Final = "an agent of the node runs in it"

    def __init__(self, ctx: Context) -> None:
        self._asks = not ctx.args.offline
        self._names: set[str] = set()
        self._unknown: str | None = None
        if not self._asks:
            return
        if os.environ.get("SINGULARITY_API_KEY"):
            self._unknown = "a key shows the tasks of one tenant alone"
        self._client = ctx.client()
        try:
            self._names = {e.name for f in self._client.frameworks.list() for e in f.environments}
        except ConnectionFailed:
            self._unknown = "no node answers"

    def why(self, target: Path) -> str | None:
        """Why it stays; None: nobody needs it."""
        try:
            lock = (target / STAMP).read_text("ascii").strip()
        except (OSError, ValueError):
            # Nothing runs in what is not whole.
            return None
        if not self._asks:
            return None
        if target.name in self._names:
            return self.CONFIGURED
        if self._unknown is not None:
            return f"kept: {self._unknown}, and open tasks may need it; --offline deletes it all the same"
        for state in _OPEN:
            if tasks := self._client.list(f"state={state} environment={lock}", limit=1):
                return f"needed by the open task {tasks[0].id}"
        return None


def _size(target: Path) -> int:
    return sum(file.lstat().st_size for file in target.rglob("*") if not file.is_dir())


def _delete(target: Path) -> None:
    # First of all: what is half deleted must not pass as whole.
    (target / STAMP).unlink(missing_ok=True)
    try:
        shutil.rmtree(target)
        (target.parent / f".{target.name}.lock").unlink(missing_ok=True)
    except OSError as error:
        raise WrongState(f"{target} could not be deleted: {error.strerror}", reason="ENVIRONMENT_FAILED") from None


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
