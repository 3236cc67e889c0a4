"""Imports a framework once and forks workers on request: ``python -m singularity_agents.worker.zygote``.

Run by the engine under ``port_guard run``. One thread, one poll loop. Each connection on its ``SOCK_SEQPACKET`` socket is
one guard, and its one message a SPAWN: key and value in turn, each ended by a zero byte (``guard, worker-id, mode, dir, env
NAME=VALUE, allow-read, allow-write, allow-connect``), with the worker's data channel and log pipe as descriptors. The zygote
forks, forgets, and is out of the path; users' code is never imported here, since the next child may belong to another agent
or tenant.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import select
import socket
import struct
import sys
import time
from pathlib import Path

from .. import _locks
from . import _spawn

#: Longest SPAWN message.
_MAX_MESSAGE = 64 * 1024
#: Guards that may wait for their fork.
_BACKLOG = 128


def serve(path: str, framework: str, lock: str, remedy: str) -> None:
    """Listens until the process is ended. Before anything is imported the environment is held to its lock."""
    if lock:
        _locks.verify(Path(sys.prefix), lock, remedy)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(_BACKLOG)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    children: dict[int, int] = {}
    started = time.monotonic()
    from . import main

    versions = main.preload(framework)
    gc.collect()
    gc.freeze()
    ready = {"framework": framework, "versions": versions, "import_ms": int((time.monotonic() - started) * 1000)}
    _say(json.dumps(ready))
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                child = _accept(listener, framework)
                if child is not None:
                    poll.register(child[1], select.POLLIN)
                    children[child[1]] = child[0]
            else:
                # A keeper that ended before us.
                poll.unregister(fd)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(children.pop(fd), 0)
                os.close(fd)


def _accept(listener: socket.socket, framework: str) -> tuple[int, int] | None:
    """Forks for one guard: (pid, pidfd) of the keeper."""
    conn, _ = listener.accept()
    with conn:
        if struct.unpack("3i", conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1] != os.getuid():
            return None
        conn.settimeout(1.0)
        try:
            message, fds, _, _ = socket.recv_fds(conn, _MAX_MESSAGE, 2)
        except OSError:
            return None
        try:
            if len(fds) != 2:
                return None
            spec = _spawn.Spec.parse(message)
            pid = os.fork()
            if pid == 0:
                conn.settimeout(None)
                listener.close()
                _spawn.become_keeper(conn, fds[0], fds[1], spec, framework)
                os._exit(1)
            return pid, os.pidfd_open(pid)
        finally:
            # At once: a later child must not hold what belongs to this one.
            for fd in fds:
                os.close(fd)


def _say(line: str) -> None:
    fd = int(os.environ.get("SINGULARITY_READY_FD", "1"))
    os.write(fd, line.encode() + b"\n")
    if fd > 2:
        os.close(fd)


def main_() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="zygote")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--framework", required=True)
    parser.add_argument("--lock", default="", help="SHA-256 of the locks that the environment must have been made from")
    parser.add_argument("--remedy", default="singularity frameworks install", help="the command that makes it good")
    options = parser.parse_args()
    try:
        serve(options.socket, options.framework, options.lock, options.remedy)
    except (_locks.WrongLock, ImportError) as error:
        # The last line is the reason that people are told.
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main_())
