"""Locks: requirement files in which every package stands with one version and its hashes, and what is installed beside them.

Standard library only: a zygote reads them before it imports anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Final, NamedTuple

#: Holds the hash of an environment's locks; written last, so that an environment without it is not whole.
STAMP: Final = "singularity-lock.sha256"
#: Holds what was installed, one lock made of the framework's and the project's.
COPY: Final = "singularity-lock.txt"
#: The lock of a project that `singularity frameworks lock` writes.
PROJECT_LOCK: Final = "singularity.lock"
#: The lock that uv itself keeps beside a `pyproject.toml`.
UV_LOCK: Final = "uv.lock"
_PIN: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*==\s*([^\s;]+)\s*(?:;\s*(.*))?$")
_HASH: Final = re.compile(r"--hash[=\s](sha\d+:[0-9a-f]+)")
#: Credentials of an index in its address.
_CREDENTIALS: Final = re.compile(r"(://)[^/\s@]+@")


class WrongLock(Exception):
    """A lock that is none, does not fit another one, or is not that of an environment; the message names what and where."""


class Pin(NamedTuple):
    """A package of a lock."""

    name: str
    version: str
    #: Where it is wanted, as in `sys_platform == 'win32'`; empty: everywhere.
    marker: str
    hashes: frozenset[str]


def masked(text: str) -> str:
    """A text without the credentials of the addresses in it."""
    return _CREDENTIALS.sub(r"\1", text)


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse(text: str, source: str) -> dict[str, Pin]:
    """The packages of a lock. Raises WrongLock with the first line that is no pin with hashes."""
    found: dict[str, Pin] = {}
    for number, line in _lines(text):
        wanted = _HASH.sub("", line).strip()
        match = _PIN.match(wanted)
        hashes = frozenset(_HASH.findall(line))
        if wanted.startswith("-") or match is None:
            # An option may hold the password of an index.
            shown = re.split(r"[\s=]", wanted)[0] if wanted.startswith("-") else masked(wanted)[:80]
            raise WrongLock(f'{source}:{number}: "{shown}" is no package with one version, as in name==1.0')
        if not hashes:
            raise WrongLock(f"{source}:{number}: {match[1]}=={match[2]} has no --hash")
        pin = Pin(normal(match[1]), match[2], (match[3] or "").strip(), hashes)
        if (other := found.get(pin.name)) is not None and other.version != pin.version:
            raise WrongLock(f"{source}:{number}: {pin.name} stands there twice, as {other.version} and as {pin.version}")
        found[pin.name] = pin
    return found


def _lines(text: str) -> Iterable[tuple[int, str]]:
    """Lines without comments, those that a backslash continues as one, with the number of their first."""
    begun, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        parts.append(line.removesuffix("\\").strip())
        begun = begun or number
        if line.endswith("\\"):
            continue
        if whole := " ".join(filter(None, parts)):
            yield begun, whole
        begun, parts = 0, []


def merge(framework: str, ours: dict[str, Pin], theirs: dict[str, Pin], source: str) -> list[Pin]:
    """One lock of the framework's and a project's. Raises WrongLock naming every package that they want in two versions."""
    clashes = [
        f"{name} {pin.version} (the lock of {framework} has {ours[name].version})"
        for name, pin in sorted(theirs.items())
        if name in ours and ours[name].version != pin.version
    ]
    if clashes:
        raise WrongLock(f"{source} does not fit the framework: {', '.join(clashes)}")
    return [*ours.values(), *(pin for name, pin in theirs.items() if name not in ours)]


def write(pins: Iterable[Pin]) -> str:
    """A lock as text."""
    lines = []
    for pin in pins:
        marker = f" ; {pin.marker}" if pin.marker else ""
        lines.append(" \\\n    ".join([f"{pin.name}=={pin.version}{marker}", *(f"--hash={h}" for h in sorted(pin.hashes))]))
    return "\n".join(lines) + "\n"


def digest(*locks: Path) -> str:
    """SHA-256 that an environment of these locks is known by, as hexadecimal text."""
    return hashlib.sha256(b"\n".join(lock.read_bytes() for lock in locks)).hexdigest()


def project_lock(project: str, requirements: str) -> Path | None:
    """The lock of an agent's own packages: what `requirements` names (below the project), else the project's; None: it has none.

    Raises WrongLock where it is named and not there.
    """
    folder = Path(project or ".")
    if requirements and Path(requirements).name != "pyproject.toml":
        named = folder / requirements
        if not named.is_file():
            raise WrongLock(f'requirements = "{requirements}": {named} is not there')
        return named
    if requirements:
        folder = (folder / requirements).parent
    elif not project:
        return None
    for name in (PROJECT_LOCK, UV_LOCK):
        if (folder / name).is_file():
            return folder / name
    if requirements:
        raise WrongLock(f'requirements = "{requirements}": there is no {PROJECT_LOCK} and no {UV_LOCK} beside it')
    return None


def verify(folder: Path, wanted: str, remedy: str) -> None:
    """Refuses an environment that is not of the lock `wanted`, or whose packages are not the lock's; called by its own interpreter.

    Raises WrongLock.
    """
    try:
        stamp = (folder / STAMP).read_text("ascii").strip()
    except (OSError, ValueError):
        raise WrongLock(f"the environment {folder.name} is not whole; run: {remedy}") from None
    if stamp != wanted:
        raise WrongLock(
            f"the environment {folder.name} was made from another lock ({stamp[:12]}) than the one that is there ({wanted[:12]}); "
            f"run: {remedy}"
        )
    copy = folder / COPY
    if not copy.is_file():
        # Made before locks were kept; the packages that matter are looked at by the adapter.
        return
    installed = {normal(d.metadata["Name"]): d.version for d in distributions(path=[_packages(folder)])}
    for pin in parse(copy.read_text("utf-8"), copy.name).values():
        there = installed.get(pin.name)
        if there is None and not pin.marker:
            raise WrongLock(f"{pin.name} {pin.version} is not installed in the environment {folder.name}; run: {remedy} --force")
        if there is not None and there != pin.version:
            raise WrongLock(
                f"{pin.name} {there} is installed in the environment {folder.name}, the lock says {pin.version}; run: {remedy} --force"
            )


def _packages(folder: Path) -> str:
    found = sorted((folder / "lib").glob("python3.*/site-packages"))
    return str(found[-1]) if found else str(folder)
