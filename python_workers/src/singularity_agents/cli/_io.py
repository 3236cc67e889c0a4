"""Where output goes and how it looks: data on stdout, talk on stderr, colour only on a terminal."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

from pydantic import BaseModel

from .._durations import show
from .._errors import SingularityError

Format = Literal["table", "json", "yaml"]

#: Characters of an id that people see: the first ones of ids made close together are alike.
SHORT = 8

_COLOURS = {"dim": "2", "bold": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_STATES = {
    "SUCCEEDED": "green", "READY": "green", "ready": "green", "RUNNING": "cyan", "busy": "cyan", "QUEUED": "dim",
    "WAITING": "yellow", "STARTING": "yellow", "FAILED": "red", "TIMED_OUT": "red", "UNAVAILABLE": "red", "CANCELLED": "yellow",
}  # fmt: skip


class Io:
    """The streams of one command."""

    def __init__(self, format: Format = "table", quiet: bool = False) -> None:
        self.format: Format = format
        self.quiet = quiet
        #: People look at stdout now.
        self.live = sys.stdout.isatty() and format == "table"

    def value(self, value: Any, table: str | None = None) -> None:
        """Prints a value; `table` is what people see instead of JSON."""
        if self.format == "table" and table is not None:
            self.line(table)
            return
        data = plain(value)
        if self.format == "yaml":
            import yaml

            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip("\n")
        else:
            text = json.dumps(data, indent=2, ensure_ascii=False)
        self.line(text)

    def rows(self, name: str, items: Sequence[Any], head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Prints a list: a table, or `{name: [...]}`."""
        if self.format == "table":
            self.line(table(head, list(rows), colour=self.live and colours(sys.stdout)))
        else:
            self.value({name: items})

    def line(self, text: str) -> None:
        """A line of data."""
        print(text, flush=True)

    def text(self, text: str) -> None:
        """Data without a line's end: tokens as they come."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def say(self, text: str, style: str = "") -> None:
        """A line for people; not with --quiet."""
        if not self.quiet:
            print(paint(text, style, sys.stderr), file=sys.stderr, flush=True)

    def error(self, error: SingularityError, known: Iterable[str] = ()) -> None:
        """An error with its reason and the next command."""
        print(f"{paint('error', 'red', sys.stderr)} {error}{did_you_mean(error, known)}", file=sys.stderr)
        if next_command := advice(error):
            print(f"next: {next_command}", file=sys.stderr)


def colours(stream: TextIO) -> bool:
    """Whether colour is wanted there."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: TextIO) -> str:
    """Text in a style, where the stream shows it."""
    return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m" if style and colours(stream) else text


def plain(value: Any) -> Any:
    """Values as JSON-like data."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def table(head: Sequence[str], rows: Sequence[Sequence[str]], colour: bool = False) -> str:
    """Columns padded to their widest cell; the last one is not padded."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str], bold: bool) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        padded[-1] = cells[-1]
        if colour:
            padded = [
                f"\x1b[{_COLOURS[style]}m{text}\x1b[0m" if (style := "bold" if bold else _STATES.get(cell, "")) else text
                for text, cell in zip(padded, cells, strict=True)
            ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(head, True), *(line(row, False) for row in rows)])


def short(task_id: str) -> str:
    """The end of an id, which tells ids apart; commands accept it."""
    return task_id[-SHORT:] if task_id else "-"


def ago(time: datetime | None) -> str:
    """A time for people."""
    if time is None:
        return "-"
    return f"{show(max(0.0, (datetime.now(timezone.utc) - time).total_seconds()))} ago"


def money(micros: int | None) -> str:
    """Micro-dollars for people; an honest unknown."""
    return "unknown" if micros is None else f"${micros / 1e6:.4f}"


def size(count: int | None) -> str:
    """Bytes for people."""
    if not count:
        return "-"
    return f"{count / 1048576:.0f} MB"


def one_line(text: str, width: int = 60) -> str:
    """The beginning of a text, in one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def did_you_mean(error: SingularityError, known: Iterable[str]) -> str:
    """A close name, where the error is about a name."""
    asked = next(
        (error.metadata[key] for key in ("name", "agent", "agent_id", "framework", "model") if key in error.metadata), ""
    )
    names = [*known, *(name.strip() for name in error.metadata.get("known", "").split(",") if name.strip())]
    close = difflib.get_close_matches(asked, names, 1) if asked else []
    return f'. Did you mean "{close[0]}"?' if close and "id you mean" not in error.message else ""


_ADVICE = {
    "NODE_NOT_INSTALLED": "make release",
    "ENVIRONMENT_FAILED": "singularity frameworks install NAME, once the cause is gone",
    "TASK_NOT_FOUND": "singularity list",
    "AGENT_NOT_FOUND": "singularity agents list",
    "FRAMEWORK_UNAVAILABLE": "singularity doctor",
    "SANDBOX_UNAVAILABLE": "singularity doctor",
    "MODEL_NOT_FOUND": "singularity models",
    "NO_PROVIDER_MATCHES": "singularity models",
    "KEY_MISSING": "export SINGULARITY_API_KEY=…",
    "KEY_UNKNOWN": "export SINGULARITY_API_KEY=…",
    "DEADLINE_EXCEEDED": "singularity watch {task}",
    "WORKER_START_FAILED": "singularity doctor",
    "PROVIDER_UNAVAILABLE": "singularity providers",
    "PROVIDER_AUTH": "singularity providers",
}


def advice(error: SingularityError) -> str:
    """The command that helps, as far as one is known."""
    from .._errors import ConnectionFailed

    text = _ADVICE.get(error.reason, "")
    if not text and isinstance(error, ConnectionFailed):
        text = "singularity up        (or --address HOST:PORT)"
    if "{task}" in text and not error.task_id:
        return ""
    return text.format(task=short(error.task_id or ""))
