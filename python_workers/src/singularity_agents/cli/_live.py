"""The plan of a task as a tree that is drawn again in place while it runs. Only for terminals: elsewhere events are lines."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from .. import _models as m
from .._client import Client, TaskHandle
from .._durations import show
from .._plan import depths
from ._io import Io, one_line, paint

#: Between two pictures, in seconds.
FRAME = 0.12
#: Between two looks at the task while its events say nothing of steps, in seconds.
LOOK = 2.0
#: The least, after an event that says something of them, in seconds.
LOOK_AFTER_EVENT = 0.25

_SPIN = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_MARKS = {"succeeded": "✓", "failed": "✗", "timed_out": "✗", "skipped": "-", "undone": "↶", "queued": "·", "": "·"}
_STYLES = {"succeeded": "green", "failed": "red", "timed_out": "red", "running": "cyan", "undone": "yellow"}
#: What a crowded screen shows first.
_FIRST = ("failed", "timed_out", "running", "undone")


class PlanView:
    """What is known of a plan that runs; `lines` is pure."""

    def __init__(self, task: m.Task) -> None:
        self._events: dict[str, tuple[str, datetime | None]] = {}
        self.task = task

    def take(self, event: m.Event) -> bool:
        """Notes an event; whether it says something of a step."""
        name = str(event.data.get("name", ""))
        if event.kind == "step_started":
            self._events[name] = ("running", event.time)
        elif event.kind == "step_finished":
            self._events[name] = (str(event.data.get("status", "")), event.time)
        elif event.kind == "attempt_started":
            self._events.clear()
        return event.kind in ("step_started", "step_finished", "state_changed")

    def state(self, step: Mapping[str, Any]) -> str:
        """What a step is doing, or how it ended."""
        runs = step.get("runs", [])
        if step["id"] in _undone(self.task):
            return "undone"
        if runs and all(run.get("skipped") for run in runs):
            return "skipped"
        kept = str(step.get("state", "")).removeprefix("TASK_STATE_").lower()
        if kept in ("succeeded", "failed", "timed_out"):
            return kept
        if self.task.ended:
            return ""
        # Ready is not running: a step may wait for its turn.
        return self._events.get(str(step["id"]), ("queued", None))[0]

    def lines(self, width: int, height: int, now: datetime, spin: int | None = None) -> list[str]:
        """The picture, at most `height` lines of at most `width` columns; without `spin` nothing turns."""
        steps = list((self.task.plan or {}).get("steps", []))
        states = [self.state(step) for step in steps]
        deep = depths(self.task.plan or {})
        order = sorted(range(len(steps)), key=lambda n: (deep[n], n))
        room = max(1, height - 2)
        shown = set(order)
        if len(order) > room:
            ranked = sorted(range(len(order)), key=lambda at: (_rank(states[order[at]]), at))
            shown = {order[at] for at in ranked[: room - 1]}
        # Deep plans on narrow screens keep their names.
        step_in = 2 if max(deep, default=0) * 2 <= width // 4 else 0
        names = max((len(str(steps[n]["id"])) + step_in * deep[n] for n in shown), default=0)
        head = f"{self.task.state.lower()}   {_counts(states)}"
        out = [_cut(head, width)]
        for n in order:
            if n in shown:
                out.append(self._line(steps[n], states[n], " " * (step_in * deep[n]), min(names, width // 2), width, now, spin))
        if hidden := [states[n] for n in order if n not in shown]:
            out.append(_cut(f"  … {len(hidden)} more: {_counts(hidden)}", width))
        return out

    def _line(
        self, step: Mapping[str, Any], state: str, indent: str, names: int, width: int, now: datetime, spin: int | None
    ) -> str:
        mark = _MARKS.get(state, "·")
        if state == "running":
            mark = "▸" if spin is None else _SPIN[spin % len(_SPIN)]
        runs = step.get("runs", [])
        ran_on = ", ".join(sorted({str(run.get("executor", "")) for run in runs} - {""})) or str(step.get("executor", ""))
        figures = [ran_on, state or "did not run", *self._figures(step, state, now)]
        name = _cut(indent + str(step["id"]), names).ljust(names)
        text = _cut(f"{name}  " + "  ".join(part for part in figures if part), width - 2)
        return f"{paint(mark, _STYLES.get(state, 'dim'), sys.stderr)} {paint(text, 'dim', sys.stderr) if state in ('queued', '') else text}"

    def _figures(self, step: Mapping[str, Any], state: str, now: datetime) -> list[str]:
        runs = step.get("runs", [])
        parts = []
        if step.get("for_each"):
            total = _items(step)
            parts.append(f"{len(runs)}{f'/{total}' if total else ''} items")
        starts = [at for run in runs if (at := _time(run.get("start_time")))]
        ends = [at for run in runs if (at := _time(run.get("end_time")))]
        began = self._events.get(str(step["id"]), ("", None))[1] if state == "running" else None
        begin = min([*starts, *([began] if began else [])], default=None)
        end = now if state == "running" else max(ends, default=None)
        if begin and end:
            parts.append(show(max(0.0, round((end - begin).total_seconds(), 1 if state == "running" else 3))))
        usage = [run.get("usage", {}) for run in runs]
        if tokens := sum(int(u.get("input_tokens", 0)) + int(u.get("output_tokens", 0)) for u in usage):
            parts.append(f"{tokens} tok")
        if cost := sum(int(run.get("cost_micros", 0)) for run in runs):
            parts.append(f"${cost / 1e6:.6f}")
        if tries := max((int(run.get("attempts", 1)) for run in runs), default=1) - 1:
            parts.append(f"{tries + 1} tries")
        parts += [str(run["error"].get("reason", "")) for run in runs if run.get("error")][:1]
        return parts


def _rank(state: str) -> int:
    return _FIRST.index(state) if state in _FIRST else len(_FIRST) + (state in ("queued", ""))


def _undone(task: m.Task) -> set[str]:
    said = task.error.metadata.get("undone", "") if task.error else ""
    return {name.strip() for name in said.split(",")} - {""}


def _items(step: Mapping[str, Any]) -> int:
    """How many items the list has, where the plan itself says so."""
    import json

    try:
        items = json.loads(str(step["for_each"]))
    except ValueError:
        return 0
    return len(items) if isinstance(items, list) else 0


def _counts(states: list[str]) -> str:
    counted = Counter(state or "not run" for state in states)
    return ", ".join(f"{number} {state}" for state, number in counted.most_common())


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")) if value else None
    except ValueError:
        # Nanoseconds are more than Python reads.
        return datetime.fromisoformat(str(value)[:19] + "+00:00")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def wanted(io: Io, task: m.Task) -> bool:
    """Whether somebody looks who can see a tree."""
    return bool(io.live and not io.quiet and task.spec.get("plan") and sys.stderr.isatty() and os.environ.get("TERM") != "dumb")


def draw(io: Io, client: Client, handle: TaskHandle) -> m.Task:
    """Draws the plan until the task has ended; gives the task. Raises SingularityError as a watch does."""
    view = PlanView(handle.get())
    heard: queue.Queue[m.Event | Exception | None] = queue.Queue(maxsize=1000)

    def listen() -> None:
        try:
            for event in client.watch(handle.id, include_text=False):
                heard.put(event)
            heard.put(None)
        except Exception as error:
            heard.put(error)

    threading.Thread(target=listen, name="singularity-watch", daemon=True).start()
    screen = _Screen()
    looked, due, frame, over = time.monotonic(), False, 0, False
    while not over:
        frame += 1
        until = time.monotonic() + FRAME
        while (left := until - time.monotonic()) > 0:
            try:
                event = heard.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(event, Exception):
                screen.show([])
                raise event
            if event is None:
                over = True
                break
            due |= view.take(event)
            if note := _note(event, handle.id):
                screen.note(paint(note, "yellow", sys.stderr))
        if over or time.monotonic() - looked > (LOOK_AFTER_EVENT if due else LOOK):
            view.task, looked, due = handle.get(), time.monotonic(), False
        try:
            width, height = os.get_terminal_size(sys.stderr.fileno())
        except OSError:
            width, height = 80, 24
        screen.show(view.lines(width - 1, height, datetime.now(timezone.utc), None if over else frame))
    return view.task


def _note(event: m.Event, task_id: str) -> str:
    """What must not be missed; it stays above the tree."""
    data = event.data
    if event.kind == "worker_lost":
        return f"worker lost: {data.get('cause')} {one_line(str(data.get('detail', '')))}"
    if event.kind == "input_requested":
        words = {"approval": "approve|reject", "client_tool": "tool-result TEXT"}.get(str(data.get("kind")), "input TEXT")
        asked = f"it asks ({data.get('kind')}, {data.get('input_id')}): {one_line(str(data.get('prompt', '')))}"
        return f"{asked}\n  to answer: singularity signal {task_id[-8:]} {words} --input-id {data.get('input_id')}"
    return ""


class _Screen:
    """Lines that are written over."""

    def __init__(self) -> None:
        self._drawn = 0

    def show(self, lines: list[str]) -> None:
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        sys.stderr.write(up + "\r\x1b[J" + "".join(line + "\n" for line in lines))
        sys.stderr.flush()
        self._drawn = len(lines)

    def note(self, text: str) -> None:
        self.show([])
        sys.stderr.write(text + "\n")
