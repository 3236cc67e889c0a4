"""Commands about the memory of agents: values and conversations."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ._io import ago, one_line
from ._main import OK, Context, duration

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from .._models import MemoryItem
    from ._main import Parser

#: Verbs and the names that they take.
_VERBS = {
    "put": (("namespace", "key", "value"), "write a value (JSON, else text)"),
    "get": (("namespace", "key"), "show a value"),
    "delete": (("namespace", "key"), "delete a value"),
    "list": (("namespace",), "list the values of a namespace"),
    "versions": (("namespace", "key"), "earlier versions of a value"),
    "messages": (("namespace",), "the conversation of a namespace"),
    "search": (("namespace", "query"), "search by words (not here yet)"),
}


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the commands."""
    memory = commands.add_parser("memory", parents=[shared], help="memory of agents")
    memory.description = "example: singularity memory put users/42 city '\"Paris\"' --ttl 30d"
    verbs = memory.add_subparsers(dest="verb", metavar="VERB", required=True)
    made = {verb: verbs.add_parser(verb, parents=[shared], help=text) for verb, (_names, text) in _VERBS.items()}
    for verb, parser in made.items():
        for name in _VERBS[verb][0]:
            parser.add_argument(name, metavar=name.upper())
        parser.set_defaults(run=memory_command)
    made["put"].add_argument("--ttl", type=duration, metavar="TIME", help="gone after so long (default: never)")
    for verb in ("put", "delete"):
        made[verb].add_argument("--if-version", type=int, metavar="N", help="only if this is the current version; 0: if absent")
    made["list"].add_argument("--prefix", default="", metavar="TEXT", help="keys that begin so")
    made["messages"].add_argument("--conversation", default="default", metavar="ID")


def memory_command(ctx: Context) -> int:
    """`memory`."""
    args = ctx.args
    with ctx.client() as client:
        memory = client.memory
        match args.verb:
            case "put":
                ctx.io.value(
                    memory.put(args.namespace, args.key, _json(args.value), expected_version=args.if_version, ttl=args.ttl)
                )
            case "get":
                ctx.io.value(memory.get(args.namespace, args.key))
            case "delete":
                version = memory.delete(args.namespace, args.key, expected_version=args.if_version)
                ctx.io.value({"version": version}, f"{args.key} deleted")
            case "list":
                items = memory.list(args.namespace, prefix=args.prefix, limit=1000)
                ctx.io.rows("items", items, ("KEY", "VERSION", "CHANGED", "VALUE"), ((i.key, *_version(i)) for i in items))
            case "versions":
                items = memory.versions(args.namespace, args.key, limit=1000)
                ctx.io.rows("versions", items, ("VERSION", "CHANGED", "VALUE"), map(_version, items))
            case "messages":
                messages = memory.messages(args.namespace, args.conversation, limit=1000)
                said = ((message.role, one_line(message.text, 100)) for message in messages)
                ctx.io.rows("messages", messages, ("ROLE", "TEXT"), said)
            case _:
                found = memory.search(args.namespace, args.query)
                scored = ((f"{score:.2f}", i.key, one_line(json.dumps(i.value))) for score, i in found)
                ctx.io.rows("matches", found, ("SCORE", "KEY", "VALUE"), scored)
    return OK


def _version(item: MemoryItem) -> tuple[str, str, str]:
    return (str(item.version), ago(item.update_time), one_line(json.dumps(item.value)))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
