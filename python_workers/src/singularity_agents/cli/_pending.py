"""Commands whose part of the engine has not come yet: they say so."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .._errors import CapabilityPending
from ._main import Context

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ._main import Parser

#: Commands without a method to ask, and what they will be for.
_WITHOUT_METHOD = {
    "plan": "plans of several steps",
    "route": "routing as a dry run",
}


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the commands."""
    for name, what in _WITHOUT_METHOD.items():
        parser = commands.add_parser(name, parents=[shared], help=f"{what} (not here yet)")
        parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
        parser.set_defaults(run=pending)


def pending(ctx: Context) -> int:
    """Says what is missing."""
    what = _WITHOUT_METHOD[ctx.args.command]
    raise CapabilityPending(
        f"{what}: not in this version", reason="CAPABILITY_PENDING", metadata={"capability": ctx.args.command}
    )
