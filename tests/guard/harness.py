"""Plays the node: opens the real guard as a port is opened, and reads its reports (docs/port_protocol.md, section 2)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUARD = ROOT / "apps" / "agent_native" / "priv" / "bin" / "port_guard"
#: Nothing that is waited for here takes longer on a busy machine.
LIMIT_S = 20.0

PROOF = {1: "namespace", 2: "descendants", 3: "unconfirmed"}


@dataclass
class Message:
    name: str
    values: dict[str, object] = field(default_factory=dict)

    def __getitem__(self, key: str) -> object:
        return self.values[key]


def decode(data: bytes) -> Message:
    tag, rest = data[0], data[1:]
    match tag:
        case 16:
            pid, mode, layers = struct.unpack(">IBH", rest[:7])
            return Message(
                "up", {"pid": pid, "mode": {1: "namespace", 2: "plain", 3: "run"}[mode], "layers": layers, "why": rest[7:]}
            )
        case 17:
            kind, value, rss, cpu = struct.unpack(">BBQQ", rest)
            return Message("exited", {"signal" if kind else "code": value, "peak_rss": rss, "cpu_ms": cpu})
        case 18:
            proof, reaped, ms, count = struct.unpack(">BIIH", rest[:11])
            return Message(
                "gone", {"proof": PROOF[proof], "reaped": reaped, "ms": ms, "survivors": struct.unpack(f">{count}I", rest[11:])}
            )
        case 19:
            return Message("failed", {"errno": struct.unpack(">I", rest[:4])[0], "step": rest[4:].decode()})
        case 20:
            return Message("log", {"fd": rest[0], "line": rest[1:]})
        case 21:
            return Message("stack", {"text": rest})
        case 22:
            which, value, limit = struct.unpack(">BQQ", rest)
            return Message("limit", {"which": {1: "max_memory", 2: "max_processes"}[which], "value": value, "limit": limit})
        case 23:
            return Message("ready", {"text": rest})
    raise AssertionError(f"unknown tag {tag}")


def _above(fd: int) -> int:
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved


class Port:
    """One guard: descriptors 3 and 4, `{packet, 4}`."""

    def __init__(self, *args: str | Path) -> None:
        # Above 4, so that the shell can put them in place.
        ours_in, theirs_out = map(_above, os.pipe())
        theirs_in, ours_out = map(_above, os.pipe())
        self.process = subprocess.Popen(
            [
                "/bin/bash",
                "-c",
                f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-',
                GUARD,
                *map(str, args),
            ],
            pass_fds=(theirs_in, theirs_out),
            env={},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = ours_in, ours_out
        self._data = b""
        self.messages: list[Message] = []
        self._read: dict[str, int] = {}

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._out, struct.pack(">I", len(data)) + data)

    def kill(self, grace_ms: int = 0) -> None:
        self.send(struct.pack(">BI", 1, grace_ms))

    def signal(self, number: int) -> None:
        self.send(struct.pack(">BB", 2, number))

    def until(self, name: str, limit: float = LIMIT_S) -> Message:
        """The next message of that name, also if it came before another one that was asked for; all are kept in `messages`."""
        deadline = time.monotonic() + limit
        while True:
            for at in range(self._read.get(name, 0), len(self.messages)):
                self._read[name] = at + 1
                if self.messages[at].name == name:
                    return self.messages[at]
            if not self._more(deadline):
                raise AssertionError(f"no {name}; heard: {self.messages[-20:]}")

    def _more(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        data = os.read(self._in, 65536)
        self._data += data
        while len(self._data) >= 4 and len(self._data) >= 4 + (length := struct.unpack(">I", self._data[:4])[0]):
            self.messages.append(decode(self._data[4 : 4 + length]))
            self._data = self._data[4 + length :]
        return bool(data)

    def wait(self) -> int:
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        """What `port_close/1' does: both ends are closed, no signal is sent."""
        for fd in (self._in, self._out):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._in = self._out = -1


class Zygote:
    """A zygote under `port_guard run`, and the workers forked from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "z"
        self.port = Port(
            "run",
            "--env",
            f"PYTHONPATH={ROOT / 'python_workers' / 'src'}",
            "--env",
            "PATH=/usr/bin:/bin",
            "--",
            sys.executable,
            Path(__file__).with_name("zygote_for_tests.py"),
            "--socket",
            self.socket,
            "--framework",
            "test",
        )
        self.workers: list[Worker] = []
        self.pid = int(str(self.port.until("up")["pid"]))
        self.port.until("ready")

    def close(self) -> None:
        """The node lets go of everything."""
        for worker in self.workers:
            worker.close()
        self.port.close()
        self.port.wait()

    def worker(self, behaviour: str, mode: str = "auto", *args: str, env: dict[str, str] | None = None) -> Worker:
        return Worker(self, behaviour, mode, args, env or {})


class Worker:
    """A worker, seen from the node: its guard's port and its data channel."""

    _count = 0

    def __init__(self, zygote: Zygote, behaviour: str, mode: str, args: Iterable[str], env: dict[str, str]) -> None:
        zygote.workers.append(self)
        Worker._count += 1
        name = f"w{Worker._count}"
        self.dir = zygote.folder / name
        self.dir.mkdir(mode=0o700)
        path = zygote.folder / f"{name}.s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(LIMIT_S)
            variables = {"BEHAVIOUR": behaviour, "PATH": "/usr/bin:/bin", **env}
            pairs = [part for name_, value in variables.items() for part in ("--env", f"{name_}={value}")]
            read = [
                part
                for place in (ROOT / "python_workers" / "src", sys.prefix, sys.base_prefix)
                for part in ("--allow-read", str(place))
            ]
            options = ["--data", path, "--zygote", zygote.socket, "--worker-id", name, "--mode", mode, "--dir", self.dir]
            self.port = Port("worker", *options, *pairs, *read, "--allow-write", str(self.dir), *args)
            self.data, _ = listener.accept()
        self.data.settimeout(LIMIT_S)
        self.up = self.port.until("up")
        self.pid = int(str(self.up["pid"]))

    data: socket.socket | None = None
    port: Port | None = None

    def close(self) -> None:
        if self.data is not None:
            self.data.close()
        if self.port is not None:
            self.port.close()
            self.port.wait()

    def line(self) -> str:
        """One line that the worker wrote to its data channel."""
        line = b""
        while not line.endswith(b"\n"):
            data = self.data.recv(1 if len(line) > 65536 else 65536)
            assert data, "the data channel ended"
            line += data
        return line.decode().strip()

    def tree(self) -> set[Process]:
        """The keeper, and all that is below it."""
        keeper = parent(self.pid)
        return {p for p in processes([keeper, *descendants(keeper)]) if p.alive()}


@dataclass(frozen=True)
class Process:
    """A process and not just its number: the start time tells two holders of one number apart."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(pid, _stat(pid)[19])

    def describe(self) -> str:
        try:
            return f"{self.pid} {Path(f'/proc/{self.pid}/cmdline').read_bytes()[:60]!r} {_stat(self.pid)[:2]}"
        except OSError:
            return f"{self.pid} gone"

    def alive(self) -> bool:
        try:
            stat = _stat(self.pid)
        except OSError:
            return False
        return stat[19] == self.started and stat[0] not in "ZX"


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def parent(pid: int) -> int:
    return int(_stat(pid)[1])


def processes(pids: Iterable[int]) -> list[Process]:
    """Those that are still there: a process may end between its listing and a look at it."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found.append(Process.of(pid))
    return found


def program(pid: int) -> bytes:
    """Its command line; empty for one that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def descendants(pid: int) -> list[int]:
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                below.setdefault(parent(int(entry.name)), []).append(int(entry.name))
    found, pending = [], [pid]
    while pending:
        children = below.get(pending.pop(), [])
        found += children
        pending += children
    return found


def wait_until(condition: Callable[[], object], what: str | Callable[[], str], limit: float = LIMIT_S) -> float:
    """Seconds until the condition held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit, what if isinstance(what, str) else what()
        time.sleep(0.002)
    return time.monotonic() - started


def all_gone(processes: Iterable[Process], limit: float = LIMIT_S) -> float:
    processes = list(processes)
    return wait_until(
        lambda: not any(p.alive() for p in processes), lambda: f"alive: {[p.describe() for p in processes if p.alive()]}", limit
    )


def hit(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def stop_and_wait(pid: int) -> None:
    """SIGSTOP, and the proof that it is stopped."""
    hit(pid, signal.SIGSTOP)
    wait_until(lambda: _stat(pid)[0] in "TtZ", f"{pid} did not stop")
