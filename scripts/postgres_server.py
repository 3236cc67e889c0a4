"""A PostgreSQL server of our own for tests and benchmarks: a scratch folder, a unix socket, no network.

Its programs are those that ``scripts/setup`` unpacked from Debian's package, else installed ones. Run as a program it serves until it is
interrupted and prints its URL.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

ROOT = Path(__file__).resolve().parent.parent
UNPACKED = ROOT / "_build" / "postgresql"
#: The server refuses to run as root; then it runs as nobody.
NOBODY = 65534
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class NoPostgres(RuntimeError):
    """There is no PostgreSQL on this machine."""


def programs() -> Path:
    """The folder of ``initdb`` and ``postgres``; the newest, from version 15 on."""
    roots = (UNPACKED / "usr/lib/postgresql", Path("/usr/lib/postgresql"))
    found = [b for root in roots for b in sorted(root.glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)]
    usable = [b for b in found if (b / "initdb").exists() and int(b.parent.name) >= 15]
    if not usable:
        raise NoPostgres("PostgreSQL 15 or newer is missing: run scripts/setup, or install the package postgresql")
    return usable[0]


class Postgres:
    """A running server; a context manager. ``stop`` and ``start`` keep its data."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="singularity-pg-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        self._bin = self._readable(programs())
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
        self.data = self.folder / "data"
        self._run(["initdb", "-D", str(self.data), "-U", "singularity", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"])

    def _readable(self, bin: Path) -> Path:
        """The programs where nobody may read them: a checkout in root's home is not such a place."""
        open_to_all = all(parent.stat().st_mode & 0o005 == 0o005 for parent in bin.parents)
        if os.geteuid() != 0 or open_to_all or not bin.is_relative_to(UNPACKED):
            return bin
        shutil.copytree(UNPACKED, self.folder / "programs", symlinks=True)
        return self.folder / "programs" / bin.relative_to(UNPACKED)

    def _environment(self) -> dict[str, str]:
        libraries = [str(p) for p in self._bin.parents[3].glob("lib/*-linux-gnu")] if self._bin.parts[1] != "usr" else []
        return {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C",
            "TZ": "UTC",
            "LD_LIBRARY_PATH": ":".join(libraries),
            "HOME": str(self.folder),
        }

    def _as_nobody(self) -> dict[str, int | list[int]]:
        return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}

    def _run(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            [str(self._bin / command[0]), *command[1:]],
            env=self._environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            **self._as_nobody(),  # type: ignore[call-overload]
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]}: {done.stderr[-2000:]}")
        return str(done.stdout)

    def start(self, **more: str) -> None:
        """Starts the server, with more of its settings; it answers when this returns."""
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "max_connections": "60",
            "shared_buffers": "32MB",
            **more,
        }
        with (self.folder / "log").open("ab") as log:
            self._launch(options, log)
        deadline = time.monotonic() + START_TIMEOUT_S
        assert self._process is not None
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("PostgreSQL did not start: " + (self.folder / "log").read_text()[-2000:])
            time.sleep(0.05)

    def _launch(self, options: dict[str, str], log: IO[bytes]) -> None:
        self._process = subprocess.Popen(
            [str(self._bin / "postgres"), "-D", str(self.data), *(a for k, v in options.items() for a in ("-c", f"{k}={v}"))],
            env=self._environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            **self._as_nobody(),  # type: ignore[call-overload]
        )

    def _ready(self) -> bool:
        pidfile = self.data / "postmaster.pid"
        lines = pidfile.read_text().splitlines() if pidfile.exists() else []
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def pids(self) -> list[int]:
        """The server and the processes of its connections."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [self._process.pid, *map(int, children)]

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all of them: SIGSTOP and SIGCONT pause it."""
        for pid in self.pids():
            os.kill(pid, number)

    def cut_connections(self) -> None:
        """Ends every process that serves a connection of the node."""
        sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'singularity'"
        self.sql(sql)

    def stop(self, fast: bool = True) -> None:
        """Ends it: connections are cut; not fast: as a crash would."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT if fast else signal.SIGQUIT)
            self._process.wait(STOP_TIMEOUT_S)
        self._process = None

    def sql(self, statement: str, database: str = "postgres") -> None:
        """Runs a statement, by the server's program for one connection: there is no client in the package."""
        import socket

        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_TIMEOUT_S)
            connection.connect(str(next(self.folder.glob(".s.PGSQL.*[0-9]"))))
            _query(connection, database, statement)

    def database(self, name: str) -> str:
        """Makes an empty database; gives its URL."""
        self.sql(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def start_with_tls(self, port: int, certificate: Path, key: Path) -> None:
        """The same over TCP on loopback, with TLS."""
        for source, name in ((certificate, "server.crt"), (key, "server.key")):
            (self.data / name).write_bytes(source.read_bytes())
            (self.data / name).chmod(0o600)
            if os.geteuid() == 0:
                os.chown(self.data / name, NOBODY, NOBODY)
        self.start(listen_addresses="127.0.0.1", port=str(port), ssl="on")

    def url(self, name: str) -> str:
        return f"postgres://singularity@{str(self.folder).replace('/', '%2F')}/{name}"

    def close(self) -> None:
        """Ends the server and removes its folder."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _query(connection, database: str, statement: str) -> None:  # type: ignore[no-untyped-def]
    """The simple query protocol, version 3 (postgresql.org/docs/15/protocol-message-formats.html)."""
    start = b"\0\x03\0\0user\0singularity\0database\0" + database.encode() + b"\0\0"
    connection.sendall((len(start) + 4).to_bytes(4, "big") + start)
    _until_ready(connection)
    text = statement.encode() + b"\0"
    connection.sendall(b"Q" + (len(text) + 4).to_bytes(4, "big") + text)
    _until_ready(connection)


def _until_ready(connection) -> None:  # type: ignore[no-untyped-def]
    def exactly(n: int) -> bytes:
        data = b""
        while len(data) < n:
            piece = connection.recv(n - len(data))
            if not piece:
                raise ConnectionError("PostgreSQL closed the connection")
            data += piece
        return data

    while True:
        kind, length = exactly(1), int.from_bytes(exactly(4), "big")
        body = exactly(length - 4)
        if kind == b"E":
            raise RuntimeError(body.replace(b"\0", b" ").decode(errors="replace"))
        if kind == b"Z":
            return


def main() -> int:
    # Held back, so that they are waited for and the server is ended.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with Postgres() as server:
        print(server.url("postgres"), flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    sys.exit(main())
