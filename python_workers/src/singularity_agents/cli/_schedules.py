"""Commands about schedules: tasks by the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._durations import show
from ._io import one_line, short
from ._main import OK, Context, duration

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from .._models import Schedule
    from ._main import Parser

_ACTIONS = {
    "get": "show one",
    "pause": "stop it for a while",
    "resume": "go on",
    "trigger": "start its task now",
    "delete": "end it",
}


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the commands."""
    schedules = commands.add_parser("schedules", parents=[shared], help="tasks by the clock")
    schedules.description = (
        'example: singularity schedules create "Summarise the news" --cron "0 9 * * 1-5" --time-zone Europe/Paris'
    )
    schedules.set_defaults(run=schedules_command, verb="list")
    verbs = schedules.add_subparsers(dest="verb", metavar="VERB")
    verbs.add_parser("list", parents=[shared], help="list schedules (the default)").set_defaults(run=schedules_command)
    for verb, text in _ACTIONS.items():
        parser = verbs.add_parser(verb, parents=[shared], help=text)
        parser.add_argument("schedule", metavar="ID")
        parser.set_defaults(run=schedules_command)
    create = verbs.add_parser("create", parents=[shared], help="make one")
    create.add_argument("text", metavar="TEXT", help="what its tasks are to do")
    create.add_argument("--id", default="", metavar="ID", help="its name (default: made)")
    create.add_argument("--cron", metavar="FIELDS", help="minute hour day-of-month month day-of-week")
    create.add_argument("--every", type=duration, metavar="TIME", help="or by interval, for example 15m")
    create.add_argument("--time-zone", default="", metavar="NAME", help="of --cron, for example Europe/Paris (default UTC)")
    create.add_argument(
        "--overlap", default="", metavar="HOW", help="while the last task runs: skip (default), queue, cancel_old, allow"
    )
    create.add_argument(
        "--catch-up", type=duration, metavar="TIME", help="missed times younger than this are made up for (default 60s)"
    )
    create.add_argument("--agent", default="", metavar="TYPE", help="agent type of its tasks")
    create.add_argument("--framework", default="", metavar="NAME")
    create.add_argument("--model", default="", metavar="NAME")
    create.set_defaults(run=schedules_command)


def schedules_command(ctx: Context) -> int:
    """`schedules`."""
    args = ctx.args
    with ctx.client() as client:
        group = client.schedules
        match args.verb:
            case "create":
                schedule = group.create(
                    args.text,
                    cron=args.cron,
                    every=args.every,
                    time_zone=args.time_zone,
                    overlap=args.overlap,
                    catch_up=args.catch_up,
                    schedule_id=args.id,
                    agent_type=args.agent,
                    framework=args.framework,
                    model=args.model,
                )
                ctx.io.value(schedule)
            case "get" | "pause" | "resume" | "trigger":
                ctx.io.value(getattr(group, args.verb)(args.schedule))
            case "delete":
                ctx.io.value({"schedule_id": group.delete(args.schedule)}, f"{args.schedule} deleted")
            case _:
                items = group.list(limit=1000)
                head = ("SCHEDULE", "STATE", "WHEN", "NEXT", "FIRED", "SKIPPED", "LAST TASK", "TEXT")
                ctx.io.rows("schedules", items, head, (_row(s) for s in items))
    return OK


def _row(s: Schedule) -> tuple[str, ...]:
    when = f"{s.cron} {s.time_zone}".strip() if s.cron else f"every {show(s.interval.total_seconds())}" if s.interval else "-"
    following = f"{s.next_times[0]:%Y-%m-%d %H:%M:%S}" if s.next_times else "-"
    last = short(s.last_task_id) if s.last_task_id else "-"
    return (s.id, s.state, when, following, str(s.fired), str(s.skipped), last, one_line(str(s.task.get("description", "")), 40))
