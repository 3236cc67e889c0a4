"""Files that an agent gives with its answer."""

from __future__ import annotations

import hashlib
from typing import Final

from ._wire import tasks

#: Most bytes of one, and of all of a task: an answer must fit in one message.
MAX_BYTES: Final = 1 << 20
MAX_ALL_BYTES: Final = 2 << 20
#: Longest name, in characters.
MAX_NAME: Final = 255


def add(known: dict[str, tasks.Artifact], name: str, data: bytes | str, media_type: str) -> None:
    """Adds one, or replaces the one of its name. Raises ValueError for one without a name, and beyond the limits."""
    if not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"the name of an artifact has 1 to {MAX_NAME} characters")
    content = data.encode() if isinstance(data, str) else bytes(data)
    # Threads of the task may add one at the same time.
    others = sum(other.size for key, other in list(known.items()) if key != name)
    if len(content) > MAX_BYTES or others + len(content) > MAX_ALL_BYTES:
        raise ValueError(
            f"the artifact {name} has {len(content)} bytes and the others of the task {others}; there may be {MAX_BYTES} of one and "
            f"{MAX_ALL_BYTES} of all: write it to a store of yours, and give where it is"
        )
    known[name] = tasks.Artifact(
        name=name,
        media_type=media_type or ("text/plain; charset=utf-8" if isinstance(data, str) else "application/octet-stream"),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        inline=content,
    )
