"""Commands about plans and routes: plan check, plan show, route explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .._plan import read_plan
from .._spec import TaskSpec
from ._draw import draw
from ._io import table
from ._main import OK, Context
from ._tasks import task_arguments, task_of

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from .._models import RouteParts
    from ._main import Parser


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the commands."""
    plan = commands.add_parser("plan", parents=[shared], help="plans of several steps")
    verbs = plan.add_subparsers(dest="verb", metavar="VERB", required=True)
    check = verbs.add_parser("check", parents=[shared], help="whether a plan would be taken; nothing runs")
    check.description = "example: singularity plan check examples/plans/brief.toml"
    check.add_argument("file", type=Path, metavar="FILE", help="TOML or JSON")
    check.set_defaults(run=check_plan)
    show = verbs.add_parser("show", parents=[shared], help="draw a plan file")
    show.add_argument("file", type=Path, metavar="FILE", help="TOML or JSON")
    show.add_argument("--as", dest="form", default="tree", choices=["tree", "mermaid", "dot", "json"])
    show.set_defaults(run=show_file)

    route = commands.add_parser("route", parents=[shared], help="what would run a task, and why")
    verbs = route.add_subparsers(dest="verb", metavar="VERB", required=True)
    explain = verbs.add_parser("explain", parents=[shared], help="candidates, scores and refusals; nothing runs")
    explain.description = 'example: singularity route explain "Compare three databases" --task-type research'
    task_arguments(explain)
    explain.set_defaults(run=explain_route)


def check_plan(ctx: Context) -> int:
    """`plan check`: every fault at once, by its field."""
    description, plan = read_plan(ctx.args.file)
    with ctx.client() as client:
        client.check(TaskSpec(description or f"the plan {ctx.args.file.name}", plan=plan))
    ctx.io.line(f"{ctx.args.file}: {len(plan['steps'])} steps, and nothing is wrong with them")
    return OK


def explain_route(ctx: Context) -> int:
    """`route explain`: every candidate, the best first."""
    with ctx.client() as client:
        route = client.check(task_of(ctx.args))
    if ctx.io.format != "table":
        ctx.io.value(route)
        return OK
    ctx.io.line(f"{route.executor}: {route.reason}")
    rows = [[c.executor, f"{c.score:.1f}", *_parts(c.parts), c.rule, c.refused or "could run it"] for c in route.candidates]
    ctx.io.line(table(["EXECUTOR", "SCORE", "RULE", "SUCCESS", "SPEED", "COST", "QUEUE", "SEEN", "BECAUSE", "WHY NOT"], rows))
    if route.exploration:
        ctx.io.line(f"{route.exploration:.0%} of such tasks are tried on another one of the same rule, to learn how it does")
    return OK


def _parts(parts: RouteParts | None) -> list[str]:
    """The parts of a score, short; a dash for what takes nothing."""
    if parts is None:
        return ["-"] * 6
    taken = [f"{value:.1f}" if value <= -0.05 else "-" for value in (parts.success, parts.latency, parts.cost, parts.queue)]
    return [f"{parts.rule:.0f}", *taken, f"{parts.samples:.0f}" if parts.samples >= 0.5 else "-"]


def show_file(ctx: Context) -> int:
    """`plan show`."""
    _, plan = read_plan(ctx.args.file)
    return draw(ctx, plan, ctx.args.form)
