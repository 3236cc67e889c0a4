"""Where the worker listens for users' own model clients (:mod:`._shim`): bound before the worker gives up its rights.

Only a port that is known then may be dialled. Imports next to nothing: it runs between the fork and the first line of a worker.
"""

from __future__ import annotations

import secrets
import socket
from typing import Final, NamedTuple

#: Connections that wait to be taken.
BACKLOG: Final = 64


class Door(NamedTuple):
    """A listening socket, and the key that its requests carry: random, and without rights anywhere else."""

    listening: socket.socket
    key: str

    @property
    def port(self) -> int:
        """Port on 127.0.0.1."""
        return int(self.listening.getsockname()[1])

    @property
    def environment(self) -> dict[str, str]:
        """What clients of OpenAI's wire read."""
        return {"OPENAI_BASE_URL": f"http://127.0.0.1:{self.port}/v1", "OPENAI_API_KEY": self.key}


#: Of this worker; None where it has none.
opened: Door | None = None


def open_door() -> Door | None:
    """Binds; None where there is no loopback."""
    global opened
    try:
        listening = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    except OSError:
        return None
    opened = Door(listening, "sk-singularity-" + secrets.token_hex(16))
    return opened
