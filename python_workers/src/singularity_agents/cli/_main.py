"""Arguments, the connection, and what each outcome means to a script.

Exit codes: 0 success, 1 the task failed, 2 usage, 3 no connection, 4 the engine refused.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from .. import __version__
from .._client import Client
from .._durations import seconds
from .._errors import ConnectionFailed, SingularityError, TaskFailed
from .._transport import DEFAULT_ADDRESS, Target, Tls
from ._io import Io

OK, TASK_FAILED, USAGE, NO_CONNECTION, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130


@dataclass
class Context:
    """What a command needs: its arguments, where to print, how to connect."""

    args: argparse.Namespace
    io: Io
    #: Names that an error may have meant.
    known: list[str] = field(default_factory=list)

    @property
    def target(self) -> Target:
        """Where to connect."""
        tls = Tls(self.args.ca, self.args.cert, self.args.key) if self.args.ca or self.args.cert or self.args.tls else None
        return Target.of(self.args.address, None, tls)

    def client(self, address: str | None = None) -> Client:
        """A client of the chosen node."""
        target = self.target
        retries = getattr(self.args, "max_retries", 2)
        return Client(address or target.address, tls=target.tls, max_retries=retries)


Command = Callable[[Context], int]


class Parser(argparse.ArgumentParser):
    """Usage errors say what is known, and end with 2."""

    def error(self, message: str) -> NoReturn:
        """Prints the error with a hint."""
        self.print_usage(sys.stderr)
        sys.stderr.write(f"error {message}\nnext: {self.prog} --help\n")
        sys.exit(USAGE)


def duration(text: str) -> float:
    """Type of arguments that are durations."""
    try:
        return seconds(text if not text.replace(".", "", 1).isdigit() else float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def pair(text: str) -> tuple[str, str]:
    """Type of arguments KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f'"{text}" is not KEY=VALUE')
    return key, value


def common() -> Parser:
    """Options of every command; they may stand before or behind its name."""
    parser = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = parser.add_argument_group("everywhere")
    group.add_argument("--address", metavar="HOST:PORT", help=f"node (SINGULARITY_ADDRESS; default {DEFAULT_ADDRESS})")
    group.add_argument("-o", "--output", choices=["table", "json", "yaml"], help="form of the data on stdout (default table)")
    group.add_argument("-q", "--quiet", action="store_true", help="no talk on stderr, errors only")
    group.add_argument("--tls", action="store_true", help="connect by TLS")
    group.add_argument("--ca", metavar="FILE", help="authority that the node's certificate must be of (SINGULARITY_CA)")
    group.add_argument("--cert", metavar="FILE", help="own certificate")
    group.add_argument("--key", metavar="FILE", help="key of the own certificate")
    group.add_argument("--max-retries", type=int, metavar="N", help="further tries of a call (default 2)")
    return parser


_DEFAULTS = {
    "address": None, "output": "table", "quiet": False, "tls": False, "ca": None, "cert": None, "key": None, "max_retries": 2,
}  # fmt: skip


def parser() -> Parser:
    """The whole command line."""
    from . import _call, _completion, _doctor, _groups, _memory, _node, _plans, _schedules, _store, _tasks, _top, _worker

    shared = common()
    top = Parser(
        prog="singularity",
        parents=[shared],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description='example: singularity run "What is the capital of France?"\n\nRuns agents of any framework on one engine.',
        epilog="The key of a tenant comes from SINGULARITY_API_KEY. Exit codes: 0 success, 1 task failed, 2 usage, "
        "3 no connection, 4 refused.",
    )
    top.add_argument("--version", action="version", version=f"singularity {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for part in (_node, _tasks, _groups, _plans, _schedules, _memory, _store, _call, _top, _doctor, _completion, _worker):
        part.add(commands, shared)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and gives the exit code."""
    whole = parser()
    args = whole.parse_args(arguments)
    for name, value in _DEFAULTS.items():
        if not hasattr(args, name):
            setattr(args, name, value)
    command: Command | None = getattr(args, "run", None)
    if command is None:
        whole.print_help(sys.stderr if args.command else sys.stdout)
        return USAGE if args.command else OK
    context = Context(args, Io(args.output, args.quiet))
    try:
        return command(context)
    except SingularityError as error:
        context.io.error(error, context.known)
        return exit_code(error)
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader of a pipe has seen enough; nothing may be written at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        print(f"error {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED


def exit_code(error: SingularityError) -> int:
    """What an error means to a script."""
    if isinstance(error, TaskFailed):
        return TASK_FAILED
    return NO_CONNECTION if isinstance(error, ConnectionFailed) else REFUSED
