"""Plans as people see them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .. import _models as m
from .._plan import dot, mermaid, tree
from ._main import OK, USAGE, Context


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
            for line in tree(plan):
                ctx.io.line(line)
    return OK
