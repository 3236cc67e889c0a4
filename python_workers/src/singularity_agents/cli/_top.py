"""`top`: tasks and workers, refreshed in place. Keys: t tasks, w workers, arrows choose, k cancels, q leaves."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import _models as m
from .._client import Client
from .._errors import SingularityError
from ._io import ago, short, size, table
from ._main import OK, Context, duration
from ._tasks import TASK_HEAD, proof_line, task_row

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ._main import Parser

#: Tasks that are looked at; the newest ones.
TASKS_SHOWN = 200

_CLEAR, _HOME, _HIDE, _SHOW = "\x1b[2J", "\x1b[H", "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the command."""
    top = commands.add_parser("top", parents=[shared], help="a live view of tasks and workers")
    top.description = __doc__
    top.add_argument("--every", type=duration, default=1.0, metavar="TIME", help="between two looks (default 1s)")
    top.add_argument("--once", action="store_true", help="one look, as when stdout is no terminal")
    top.set_defaults(run=show_top)


class View:
    """What is shown; `lines` is pure."""

    def __init__(self) -> None:
        self.page = "tasks"
        self.chosen = 0
        self.note = ""
        self.tasks: list[m.Task] = []
        self.frameworks: list[m.Framework] = []

    def look(self, client: Client) -> None:
        """Asks the node."""
        self.frameworks = client.frameworks.list()
        tasks = client.list(limit=TASKS_SHOWN)
        # What runs is what people look for.
        self.tasks = sorted(tasks, key=lambda task: task.ended)
        self.chosen = max(0, min(self.chosen, len(self.tasks) - 1))

    def lines(self, address: str, height: int, live: bool) -> list[str]:
        """The screen."""
        states = [task.state for task in self.tasks]
        counted = "   ".join(f"{states.count(s)} {s.lower()}" for s in ("RUNNING", "QUEUED", "WAITING", "FAILED") if s in states)
        workers = sum(len(framework.workers) for framework in self.frameworks)
        head = f"node {address}   {counted or 'no tasks'}   {workers} workers"
        body = self._tasks(height - 3) if self.page == "tasks" else self._workers()
        foot = "t tasks  w workers  arrows choose  k cancel  q quit" if live else ""
        return [head, *body[: height - 3], self.note or foot]

    def _tasks(self, room: int) -> list[str]:
        first = max(0, self.chosen - room + 2)
        shown = self.tasks[first : first + max(1, room - 1)]
        rows = [(">" if first + at == self.chosen else " ", *task_row(task)) for at, task in enumerate(shown)]
        return table((" ", *TASK_HEAD), rows).splitlines()

    def _workers(self) -> list[str]:
        head = ("FRAMEWORK", "STATE", "WORKER", "PID", "DOES", "TASK", "RSS", "STARTED", "LOST")
        rows = []
        for f in self.frameworks:
            for w in f.workers:
                rows.append(
                    (
                        f.name,
                        f.state,
                        w.name,
                        str(w.host_pid),
                        w.state,
                        short(w.task_id) + (f" +{len(w.task_ids) - 1}" if len(w.task_ids) > 1 else ""),
                        size(w.rss),
                        ago(w.start_time),
                        str(f.restarts),
                    )
                )
            if not f.workers:
                rows.append((f.name, f.state, "-", "-", "-", "-", "-", "-", str(f.restarts)))
        return table(head, rows).splitlines()

    def key(self, key: str, client: Client) -> bool:
        """Acts on a key; False leaves."""
        self.note = ""
        match key:
            case "q" | "\x03" | "\x04":
                return False
            case "t":
                self.page = "tasks"
            case "w":
                self.page = "workers"
            case "\x1b[A":
                self.chosen = max(0, self.chosen - 1)
            case "\x1b[B":
                self.chosen = min(max(0, len(self.tasks) - 1), self.chosen + 1)
            case "k" if self.page == "tasks" and self.tasks:
                self._cancel(client)
            case _:
                pass
        return True

    def _cancel(self, client: Client) -> None:
        task = self.tasks[self.chosen]
        try:
            done = client.cancel(task.id, reason="top")
            self.note = f"{short(task.id)}: {proof_line(done.proof)}"
        except SingularityError as error:
            self.note = f"{short(task.id)}: {error.reason}: {error.message}"


def show_top(ctx: Context) -> int:
    """Runs the view."""
    view = View()
    with ctx.client() as client:
        view.look(client)
        if ctx.args.once or not (ctx.io.live and sys.stdin.isatty()):
            if ctx.io.format != "table":
                ctx.io.value({"frameworks": view.frameworks, "tasks": view.tasks})
                return OK
            for page in ("tasks", "workers"):
                view.page = page
                ctx.io.line("\n".join(line for line in view.lines(client.address, len(view.tasks) + 40, False) if line))
            return OK
        with _screen():
            while True:
                columns, rows = shutil.get_terminal_size()
                lines = [line[:columns] for line in view.lines(client.address, rows, True)]
                lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
                sys.stdout.write(_HOME + "".join(f"{line}\x1b[K\r\n" for line in lines[:-1]) + "\x1b[J" + lines[-1])
                sys.stdout.flush()
                if (key := _key(ctx.args.every)) and not view.key(key, client):
                    return OK
                try:
                    view.look(client)
                except SingularityError as error:
                    view.note = f"{error.reason}: {error.message}"


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen, with keys as they come."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    sys.stdout.write(_HIDE + _CLEAR)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        sys.stdout.write(_SHOW)
        sys.stdout.flush()


def _key(timeout: float) -> str:
    """A key, or nothing within the time; an arrow is one key."""
    end = time.monotonic() + timeout
    ready, _, _ = select.select([sys.stdin], [], [], max(0.0, end - time.monotonic()))
    return os.read(sys.stdin.fileno(), 8).decode(errors="replace") if ready else ""
