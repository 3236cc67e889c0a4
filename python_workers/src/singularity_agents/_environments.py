"""Makes the Python environments of frameworks and of projects from exact locks; the command line and the node both use it.

Standard library only: a node starts ``python -m singularity_agents._environments`` with whatever interpreter the machine has.
One that is made lies in a folder named by what is in it: ``langchain``, ``langchain-3f2a9c1b0d4e`` (with a project's packages),
``langchain-py3.12``. A lock of several at once is kept by a file, so that no two make the same.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from . import _interpreters
from ._locks import COPY, STAMP, UV_LOCK, Pin, WrongLock, digest, masked, merge, normal, parse, write

#: Packages that are published as source alone.
SOURCE_ONLY: Final = {"semantic_kernel": ("pybars4", "pymeta3")}
#: Letters of a lock's hash in the name of a folder.
SHORT: Final = 12
#: Seconds for one environment.
TIMEOUT: Final = 1800.0
#: Lines of uv and pip that say how far they are.
_PROGRESS: Final = re.compile(r"(Resolved|Prepared|Installed|Uninstalled|Bytecode compiled|Building|Collecting|Installing)\b.*")


class Failed(Exception):
    """An environment could not be made; the message says why and what to do."""


class Place(NamedTuple):
    """Where locks are read and environments are made."""

    locks: Path
    environments: Path
    #: None: environments are made by pip, which takes longer.
    uv: str | None


class Wanted(NamedTuple):
    """An environment: of a framework, with the packages of a project, on a version of Python."""

    framework: str
    #: Lock of the project's packages.
    requirements: Path | None = None
    #: As in "3.12"; empty: whichever this machine has first.
    python: str = ""

    def files(self, there: Place) -> list[Path]:
        """The locks that it is made from."""
        return [there.locks / f"{self.framework}.txt", *filter(None, [self.requirements])]

    def digest(self, there: Place) -> str:
        """What it is known by."""
        return digest(*self.files(there))

    def name(self, there: Place) -> str:
        """Name of its folder."""
        return folder_name(self.framework, self.digest(there) if self.requirements else "", self.python)


def folder_name(framework: str, lock: str, python: str) -> str:
    """Of a framework, the hash of a lock that is not the framework's own, and a version of Python; the last two may be empty."""
    return "-".join([framework, *([lock[:SHORT]] if lock else []), *([f"py{python}"] if python else [])])


def is_installed(there: Place, wanted: Wanted) -> bool:
    """Whether the environment is whole and made from the locks as they are now."""
    try:
        return (there.environments / wanted.name(there) / STAMP).read_text("ascii").strip() == wanted.digest(there)
    except (OSError, ValueError):
        return False


def make(there: Place, wanted: Wanted, say: Callable[[str], None], *, force: bool = False, timeout: float = TIMEOUT) -> bool:
    """Makes an environment unless it is there; False: it was. Interrupted, it has no stamp, and the next call begins again.

    Raises Failed and WrongLock.
    """
    name = wanted.name(there)
    there.environments.mkdir(parents=True, exist_ok=True)
    with _alone(there.environments / f".{name}.lock", say):
        if is_installed(there, wanted) and not force:
            return False
        _build(there, wanted, there.environments / name, _Run(name, say, timeout))
    return True


@contextlib.contextmanager
def _alone(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another installer is making it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(there: Place, wanted: Wanted, target: Path, run: _Run) -> None:
    python = _interpreters.find(wanted.python)
    if python is None:
        have = ", ".join(_interpreters.present()) or "none of 3.11 to 3.13"
        raise Failed(
            f"there is no Python {wanted.python or '3.11 to 3.13'} on this machine; there is {have}. Install it, or name another"
        )
    lock, stamp = _lock(there, wanted, run), wanted.digest(there)
    _keep_old(there, wanted, target)
    (target / STAMP).unlink(missing_ok=True)
    own = str(target / "bin" / "python")
    wheels = ["--only-binary", ":all:"]
    for package in SOURCE_ONLY.get(wanted.framework, ()):
        wheels += ["--no-binary", package]
    run.say(f"making it with {lock.count('==')} packages")
    if there.uv is not None:
        run([there.uv, "venv", "-q", "--clear", "--no-project", "--python", python, str(target)])
    else:
        run([python, "-m", "venv", "--clear", str(target)])
    (target / COPY).write_text(lock, "utf-8")
    rules = ["--require-hashes", "--no-deps", *wheels, "-r", str(target / COPY)]
    if there.uv is not None:
        # Without bytecode the first import of the large ones takes ten seconds.
        run([there.uv, "pip", "install", "--python", own, "--compile-bytecode", *rules])
    else:
        run([own, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", *rules])
    new = target / f"{STAMP}.new"
    new.write_text(stamp + "\n", "ascii")
    new.replace(target / STAMP)


def _lock(there: Place, wanted: Wanted, run: _Run) -> str:
    """What is installed, as one lock."""
    ours = there.locks / f"{wanted.framework}.txt"
    text = ours.read_text("utf-8")
    if wanted.requirements is None:
        return text
    theirs = wanted.requirements
    if theirs.name == UV_LOCK:
        if there.uv is None:
            raise Failed(f"{theirs} can be read by uv alone, and uv is not there; install it")
        rules = ["--frozen", "--no-emit-project", "--no-dev", "--no-header", "--no-annotate", "--format", "requirements-txt"]
        exported = run([there.uv, "export", "-q", *rules, "--project", str(theirs.parent)])
    else:
        exported = theirs.read_text("utf-8")
    return write(merge(wanted.framework, parse(text, ours.name), _of_project(exported, theirs), theirs.name))


def _of_project(text: str, source: Path) -> dict[str, Pin]:
    """A project's packages without ourselves: the node brings its own."""
    pins = parse(text, source.name)
    return {name: pin for name, pin in pins.items() if name != normal("singularity-agents")}


def _keep_old(there: Place, wanted: Wanted, target: Path) -> None:
    """An environment of an earlier lock steps aside under its hash: open tasks may have begun in it. `gc` deletes it."""
    try:
        old = (target / STAMP).read_text("ascii").strip()
    except (OSError, ValueError):
        return
    aside = there.environments / folder_name(wanted.framework, old, wanted.python)
    if old != wanted.digest(there) and not target.is_symlink() and not aside.exists():
        target.rename(aside)


class _Run:
    """Runs programs, tells how far they are, and ends them with all that they started when the time is over."""

    def __init__(self, name: str, say: Callable[[str], None], timeout: float) -> None:
        self._name, self.say, self._timeout = name, say, timeout
        self._overdue = threading.Event()

    def __call__(self, command: Sequence[str]) -> str:
        """What it wrote. Raises Failed with its last lines."""
        said: list[str] = []
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,
        ) as process:  # fmt: skip
            clock = threading.Timer(self._timeout, self._end, [process])
            clock.start()
            reader = threading.Thread(target=self._read, args=[process, said], daemon=True)
            reader.start()
            try:
                assert process.stdout is not None
                out = process.stdout.read()
                process.wait()
                reader.join()
            finally:
                clock.cancel()
                self._kill(process)
        if self._overdue.is_set():
            raise Failed(f"{self._name} was not made within {self._timeout:.0f} s")
        if process.returncode != 0:
            raise Failed(f"{self._name} could not be made: " + masked(" / ".join(said[-5:]) or out[-500:]))
        return out

    def _read(self, process: subprocess.Popen[str], said: list[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if text := line.strip():
                said.append(text)
                if match := _PROGRESS.match(text):
                    self.say(match[0][:120])

    def _end(self, process: subprocess.Popen[str]) -> None:
        self._overdue.set()
        self._kill(process)

    @staticmethod
    def _kill(process: subprocess.Popen[str]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def uv_program(environments: Path) -> str | None:
    """uv: of the set-up beside the environments or of this checkout, else of PATH."""
    places = [environments, *(folder / "_build" / "venvs" for folder in Path(__file__).resolve().parents)]
    for folder in places:
        if (program := folder / "uv" / "bin" / "uv").is_file():
            return str(program)
    return shutil.which("uv")


def main(arguments: Sequence[str] | None = None) -> int:
    """The installer of a node: progress as lines, the end on the descriptor that its guard reads, or the reason as the last line."""
    parser = argparse.ArgumentParser(prog="singularity_agents._environments")
    for name in ("locks", "into", "framework"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--requirements", type=Path)
    parser.add_argument("--python", default="")
    options = parser.parse_args(arguments)
    there = Place(Path(options.locks), Path(options.into), uv_program(Path(options.into)))
    wanted = Wanted(options.framework, options.requirements, options.python)

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        made = make(there, wanted, say)
    except (Failed, WrongLock, OSError) as error:
        say(str(error))
        return 1
    fd = int(os.environ.get("SINGULARITY_READY_FD", "1"))
    os.write(fd, json.dumps({"name": wanted.name(there), "lock": wanted.digest(there), "made": made}).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
