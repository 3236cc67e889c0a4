"""Plans as people see them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .. import _models as m
from .._plan import dot, mermaid, tree
from ._main import OK, USAGE, Context

#: How a plan that nobody wrote came about.
ORIGINS = {
    "MODEL": "made by the model",
    "REPAIRED": "made by the model when it was told what was wrong with its first",
    "FALLBACK": "the model made no plan that could be used: the task ran as one step",
}


def show_task(ctx: Context, task: m.Task, form: str) -> int:
    """`get --plan`: the steps of a task, and what became of them."""
    if not task.plan:
        ctx.io.say("the task has no plan")
        return USAGE
    return draw(ctx, task.plan, form)


def draw(ctx: Context, plan: Mapping[str, Any], form: str) -> int:
    """A plan in one of its forms."""
    match form:
        case "mermaid":
            ctx.io.line(mermaid(plan))
        case "dot":
            ctx.io.line(dot(plan))
        case "json":
            ctx.io.line(json.dumps(plan, indent=2, default=str))
        case _:
            if origin := ORIGINS.get(plan.get("planning", {}).get("origin", "")):
                ctx.io.line(origin)
            for line in tree(plan):
                ctx.io.line(line)
    return OK
