"""The real zygote, whose workers misbehave: what a worker does is named by BEHAVIOUR in its environment.

The frames of a real worker are of no interest to the guard, so the main loop of the workers is replaced, and nothing else.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import time
import types
from pathlib import Path
from typing import NoReturn


def _forever() -> NoReturn:
    while True:
        time.sleep(3600)


def _say(text: str) -> None:
    os.write(3, text.encode() + b"\n")


def _ignore_all() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def stubborn() -> None:
    """Ignores what can be ignored, has a child, a session of its own and a double-forked daemon, and holds the interpreter lock."""
    _ignore_all()
    for detach in (lambda: None, os.setsid, lambda: (os.setsid(), os.fork() and os._exit(0))):
        if os.fork() == 0:
            detach()
            _forever()
    # The middle one of the daemon must have ended before the test looks.
    time.sleep(0.05)
    _say("ready")
    # sleep() of libc called with the lock held: no Python runs in this process any more.
    ctypes.PyDLL(None).sleep(3600)


def quiet() -> None:
    _say("ready")
    _forever()


def echo() -> None:
    _say("ready")
    while data := os.read(3, 65536):
        os.write(3, data)


def leave() -> None:
    _say("ready")
    os.read(3, 1)
    os._exit(7)


def crash() -> None:
    _say("ready")
    os.read(3, 1)
    os.kill(os.getpid(), signal.SIGSEGV)
    _forever()


def eat_memory() -> None:
    _say("ready")
    eaten = []
    while True:
        eaten.append(bytearray(b"x" * (8 << 20)))
        time.sleep(0.01)


def fork_bomb() -> None:
    _say("ready")
    while True:
        try:
            if os.fork() == 0:
                _forever()
        except OSError:
            time.sleep(0.01)


def talk() -> None:
    print("to stdout", flush=True)
    os.write(2, b"to stderr\n")
    _say("spoke")
    # Both were heard: the flood would be counted against them.
    os.read(3, 1)
    os.write(1, b"x" * 100_000 + b"\n")
    for number in range(1000):
        os.write(1, b"line %d\n" % number)
    while True:
        os.write(1, b"later\n")
        time.sleep(0.3)


def stacks() -> None:
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    _say("ready")
    _forever()


def look_around() -> None:
    """Tries what a worker must not do; says what worked."""
    found: dict[str, object] = {"env": dict(os.environ), "fds": sorted(int(f) for f in os.listdir("/proc/self/fd"))}
    worked = []
    for path in json.loads(os.environ["FORBIDDEN"]):
        try:
            Path(path).read_bytes()
            worked.append(f"read {path}")
        except OSError:
            pass
    pid = os.environ["NODE_PID"]
    try:
        os.kill(int(pid), 0)
        worked.append("signal the node")
    except OSError:
        pass
    try:
        socket.create_connection(("127.0.0.1", int(os.environ["NODE_PORT"])), timeout=2).close()
        worked.append("dial the node")
    except OSError:
        pass
    try:
        Path(os.environ["HOME"], "own").write_text("mine")
        found["own_folder"] = True
    except OSError:
        found["own_folder"] = False
    found["worked"] = worked
    _say(json.dumps(found))
    _forever()


def _run(fd: int, worker_id: str, framework: str) -> None:
    globals()[os.environ["BEHAVIOUR"]]()


def main() -> int:
    stand_in = types.ModuleType("singularity_agents.worker.main")
    stand_in.preload = lambda framework: {"framework": framework}  # type: ignore[attr-defined]
    stand_in.run = _run  # type: ignore[attr-defined]
    sys.modules["singularity_agents.worker.main"] = stand_in
    from singularity_agents import worker
    from singularity_agents.worker import zygote

    worker.main = stand_in  # type: ignore[attr-defined]
    return zygote.main_()


if __name__ == "__main__":
    sys.exit(main())
