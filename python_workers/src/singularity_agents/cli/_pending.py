"""Commands whose part of the engine has not come yet: they ask the engine where it has a method, else say so."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from .._errors import CapabilityPending
from ._io import ago, one_line
from ._main import OK, Context

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ._main import Parser

#: Commands without a method to ask, and what they will be for.
_WITHOUT_METHOD = {
    "plan": "plans of several steps",
    "route": "routing as a dry run",
    "worker": "workers on other machines",
    "store": "checks and backups of the store",
}


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the commands."""
    memory = commands.add_parser("memory", parents=[shared], help="memory of agents")
    verbs = memory.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, names in (
        ("put", ("namespace", "key", "value")), ("get", ("namespace", "key")), ("delete", ("namespace", "key")),
        ("list", ("namespace",)), ("search", ("namespace", "query")),
    ):  # fmt: skip
        parser = verbs.add_parser(verb, parents=[shared])
        for name in names:
            parser.add_argument(name, metavar=name.upper())
        parser.set_defaults(run=memory_command)

    schedules = commands.add_parser("schedules", parents=[shared], help="tasks by the clock")
    schedules.set_defaults(run=schedules_command, verb="list")
    verbs = schedules.add_subparsers(dest="verb", metavar="VERB")
    verbs.add_parser("list", parents=[shared]).set_defaults(run=schedules_command)
    for verb in ("get", "pause", "resume", "trigger", "delete"):
        parser = verbs.add_parser(verb, parents=[shared])
        parser.add_argument("schedule", metavar="ID")
        parser.set_defaults(run=schedules_command)
    create = verbs.add_parser("create", parents=[shared])
    create.add_argument("text", metavar="TEXT")
    create.add_argument("--cron", metavar="FIELDS")
    create.add_argument("--every", metavar="TIME")
    create.add_argument("--time-zone", default="")
    create.set_defaults(run=schedules_command)

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


def memory_command(ctx: Context) -> int:
    """`memory`."""
    args = ctx.args
    with ctx.client() as client:
        match args.verb:
            case "put":
                ctx.io.value(client.memory.put(args.namespace, args.key, _json(args.value)))
            case "get":
                ctx.io.value(client.memory.get(args.namespace, args.key))
            case "delete":
                ctx.io.value({"version": client.memory.delete(args.namespace, args.key)})
            case "list":
                items = client.memory.list(args.namespace)
                rows = ((i.key, str(i.version), ago(i.update_time), one_line(json.dumps(i.value))) for i in items)
                ctx.io.rows("items", items, ("KEY", "VERSION", "CHANGED", "VALUE"), rows)
            case _:
                found = client.memory.search(args.namespace, args.query)
                rows = ((f"{score:.2f}", i.key, one_line(json.dumps(i.value)), "") for score, i in found)
                ctx.io.rows("matches", found, ("SCORE", "KEY", "VALUE", ""), rows)
    return OK


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def schedules_command(ctx: Context) -> int:
    """`schedules`."""
    args = ctx.args
    with ctx.client() as client:
        group = client.schedules
        match args.verb:
            case "create":
                ctx.io.value(group.create(args.text, cron=args.cron, every=args.every, time_zone=args.time_zone))
            case "get" | "pause" | "resume" | "trigger":
                ctx.io.value(getattr(group, args.verb)(args.schedule))
            case "delete":
                ctx.io.value({"schedule_id": group.delete(args.schedule)})
            case _:
                items = group.list(limit=1000)
                rows = ((s.id, s.state, s.cron or str(s.interval), one_line(str(s.task.get("description", "")))) for s in items)
                ctx.io.rows("schedules", items, ("SCHEDULE", "STATE", "WHEN", "TEXT"), rows)
    return OK
