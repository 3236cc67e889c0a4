"""Python interpreters of this machine by version. Standard library only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Versions that environments are made for.
VERSIONS: Final = ("3.11", "3.12", "3.13")
#: Seconds in which an interpreter must have said what it is.
_ANSWERS_IN: Final = 10
_ASK: Final = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"


def find(wanted: str) -> str | None:
    """An interpreter of a version, as in "3.12"; empty: the first of ours. None: this machine has none."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if wanted in ("", own) and own in VERSIONS:
        return sys.executable
    known = present()
    return known.get(wanted) if wanted else next(iter(known.values()), None)


def present() -> dict[str, str]:
    """Interpreter of each of our versions that this machine has."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for candidate in _candidates():
        real = os.path.realpath(candidate)
        if real in seen:
            continue
        seen.add(real)
        try:
            said = subprocess.run([candidate, "-c", _ASK], capture_output=True, text=True, timeout=_ANSWERS_IN).stdout.split()
        except (OSError, subprocess.TimeoutExpired):
            continue
        if len(said) == 2 and said[0] in VERSIONS:
            found.setdefault(said[0], said[1])
    return dict(sorted(found.items()))


def _candidates() -> Iterator[str]:
    yield sys.executable
    for name in ("python3", *(f"python{version}" for version in VERSIONS)):
        if path := shutil.which(name):
            yield path
    home = Path(os.environ.get("HOME", "/nonexistent"))
    folders = [
        Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions",
        Path(
            os.environ.get("UV_PYTHON_INSTALL_DIR")
            or Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share") / "uv/python"
        ),
    ]
    for folder in folders:
        yield from (str(path) for path in sorted(folder.glob("*/bin/python3")))
