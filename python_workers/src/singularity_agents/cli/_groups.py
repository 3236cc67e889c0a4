"""Commands about what a node has: agents, frameworks, providers, models, and a plain chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _models as m
from .._durations import show
from .._spec import HistoryItem
from . import _environments
from ._io import ago, money, one_line, short, size
from ._main import OK, Context

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ._main import Parser


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the commands."""
    agents = _group(commands, shared, "agents", "configured and created agents", list_agents)
    agents["get"].add_argument("name", metavar="AGENT")
    agents["get"].set_defaults(run=get_agent)
    create = agents["make"]("create", "make an agent of a type")
    create.add_argument("agent_type", metavar="TYPE")
    create.add_argument("--id", default="", metavar="ID")
    for field in ("framework", "instructions", "model"):
        create.add_argument(f"--{field}")
    create.add_argument("--tool", action="append", metavar="NAME")
    create.set_defaults(run=create_agent)
    delete = agents["make"]("delete", "forget a created agent")
    delete.add_argument("name", metavar="AGENT")
    delete.set_defaults(run=delete_agent)
    agents["make"]("types", "built-in and configured types").set_defaults(run=list_types)

    frameworks = _group(commands, shared, "frameworks", "frameworks and their workers", list_frameworks)
    frameworks["get"].add_argument("name", metavar="FRAMEWORK")
    frameworks["get"].set_defaults(run=get_framework)
    restart = frameworks["make"]("restart", "end the workers as they become idle")
    restart.add_argument("name", metavar="FRAMEWORK")
    restart.set_defaults(run=restart_framework)
    _environments.add(frameworks["make"])

    providers = _group(commands, shared, "providers", "providers of models", list_providers)
    providers["get"].add_argument("name", metavar="PROVIDER")
    providers["get"].set_defaults(run=get_provider)
    explain = providers["make"]("explain", "which provider would serve, and why; nothing is called")
    explain.add_argument("--model", metavar="NAME")
    explain.add_argument("--capability", action="append", metavar="NAME", help="tools, streaming, ...")
    explain.add_argument("--min-quality", type=float, metavar="0..1", help="only endpoints of at least this quality")
    explain.set_defaults(run=explain_choice)

    budgets = commands.add_parser("budgets", parents=[shared], help="what may be spent, and what was")
    budgets.add_argument("--tasks", action="store_true", help="also the accounts of tasks")
    budgets.set_defaults(run=list_budgets)

    models = commands.add_parser("models", parents=[shared], help="models and aliases")
    models.set_defaults(run=list_models)

    chat = commands.add_parser("chat", parents=[shared], help="talk to a model, without agent or task")
    chat.description = 'example: singularity chat "Say hello" --model default'
    chat.add_argument("text", nargs="?", metavar="TEXT", help="one message; absent: a conversation")
    chat.add_argument("--model", default="", metavar="NAME")
    chat.add_argument("--system", metavar="TEXT", help="instructions")
    chat.add_argument("--max-tokens", type=int, metavar="N")
    chat.add_argument("--temperature", type=float, metavar="T")
    chat.set_defaults(run=chat_with)


def _group(commands: _SubParsersAction[Parser], shared: Parser, name: str, help: str, default: Any) -> dict[str, Any]:
    group = commands.add_parser(name, parents=[shared], help=help)
    group.set_defaults(run=default)
    verbs = group.add_subparsers(dest="verb", metavar="VERB")

    def make(verb: str, text: str) -> Parser:
        return verbs.add_parser(verb, parents=[shared], help=text)

    make("list", f"list {name} (the default)").set_defaults(run=default)
    return {"get": make("get", "show one"), "make": make}


def list_agents(ctx: Context) -> int:
    """`agents`."""
    with ctx.client() as client:
        agents = client.agents.list(limit=1000)
    rows = (
        (a.id, a.agent_type, a.framework or "-", a.model or "-", a.state or "-", str(a.running_tasks), ",".join(a.tools) or "-")
        for a in agents
    )
    ctx.io.rows("agents", agents, ("AGENT", "TYPE", "FRAMEWORK", "MODEL", "STATE", "RUNNING", "TOOLS"), rows)
    return OK


def get_agent(ctx: Context) -> int:
    """`agents get`."""
    with ctx.client() as client:
        ctx.known = [agent.id for agent in client.agents.list(limit=1000)]
        ctx.io.value(client.agents.get(ctx.args.name))
    return OK


def create_agent(ctx: Context) -> int:
    """`agents create`."""
    fields = {name: value for name in ("framework", "instructions", "model") if (value := getattr(ctx.args, name))}
    if ctx.args.tool:
        fields["tools"] = ctx.args.tool
    with ctx.client() as client:
        ctx.known = [kind.name for kind in client.agents.types()]
        agent = client.agents.create(ctx.args.agent_type, agent_id=ctx.args.id, **fields)
    ctx.io.value(agent, agent.id)
    return OK


def delete_agent(ctx: Context) -> int:
    """`agents delete`."""
    with ctx.client() as client:
        ctx.io.value({"agent_id": client.agents.delete(ctx.args.name)}, f"{ctx.args.name} deleted")
    return OK


def list_types(ctx: Context) -> int:
    """`agents types`."""
    with ctx.client() as client:
        types = client.agents.types()
    rows = ((t.name, "built in" if t.built_in else "configured", one_line(t.template.instructions, 80)) for t in types)
    ctx.io.rows("agent_types", types, ("TYPE", "FROM", "INSTRUCTIONS"), rows)
    return OK


def list_frameworks(ctx: Context) -> int:
    """`frameworks`."""
    with ctx.client() as client:
        frameworks = client.frameworks.list()
    rows = (
        (
            f.name, f.state, f.versions.get(f.name, "-"), str(sum(w.state == "busy" for w in f.workers)), str(len(f.workers)),
            str(f.restarts), one_line(f.unavailable_reason or f.progress, 80) or "-",
        )
        for f in frameworks
    )  # fmt: skip
    head = ("FRAMEWORK", "STATE", "VERSION", "BUSY", "WORKERS", "LOST", "WHY NOT")
    ctx.io.rows("frameworks", frameworks, head, rows)
    return OK


def get_framework(ctx: Context) -> int:
    """`frameworks get`."""
    with ctx.client() as client:
        ctx.known = [framework.name for framework in client.frameworks.list()]
        framework = client.frameworks.get(ctx.args.name)
    if ctx.io.format != "table":
        ctx.io.value(framework)
        return OK
    ctx.io.line(f"{framework.name}   {framework.state}   {framework.unavailable_reason}".rstrip())
    for name, version in sorted(framework.versions.items()):
        ctx.io.line(f"  {name} {version}")
    if framework.progress:
        ctx.io.line(f"  being made: {framework.progress}")
    for e in framework.environments:
        why = f"   {e.unavailable_reason or e.progress}" if e.unavailable_reason or e.progress else ""
        ctx.io.line(f"  environment {e.name}   {e.state}   lock {e.lock_hash[:12] or '-'}   of {', '.join(e.agent_ids)}{why}")
    ctx.io.line(f"  isolation: {', '.join(framework.isolation) or 'unknown until a worker starts'}")
    for w in framework.workers:
        task = f"   task {', '.join(short(task_id) for task_id in w.task_ids)}" if w.task_ids else ""
        place = f" on {w.host}" if w.host else ""
        ctx.io.line(
            f"  worker {w.name}   pid {w.host_pid}{place}   {w.state}   {size(w.rss)}   started {ago(w.start_time)}{task}"
        )
    return OK


def restart_framework(ctx: Context) -> int:
    """`frameworks restart`."""
    with ctx.client() as client:
        framework = client.frameworks.restart(ctx.args.name)
    ctx.io.value(framework, f"{framework.name}   {framework.state}")
    return OK


def list_providers(ctx: Context) -> int:
    """`providers`."""
    with ctx.client() as client:
        providers = client.providers.list()
    columns = ("PROVIDER", "DIALECT", "STATE", "BREAKER", "IN FLIGHT", "CALLS", "ERRORS", "FIRST TOKEN", "LATENCY", "COST")
    ctx.io.rows("providers", providers, columns, map(_provider_row, providers))
    return OK


def _provider_row(p: m.Provider) -> tuple[str, ...]:
    failed = ", ".join(f"{kind} {count}" for kind, count in sorted(p.errors.items())) or "-"
    cost = "unknown" if p.cost_micros is None else money(p.cost_micros)
    first = show(p.first_token.total_seconds()) if p.first_token else "-"
    latency = show(p.latency.total_seconds()) if p.latency else "-"
    return (p.name, p.dialect, p.state, p.breaker or "-", str(p.in_flight), str(p.requests), failed, first, latency, cost)


def get_provider(ctx: Context) -> int:
    """`providers get`."""
    with ctx.client() as client:
        ctx.io.value(client.providers.get(ctx.args.name))
    return OK


def explain_choice(ctx: Context) -> int:
    """`providers explain`."""
    options: dict[str, Any] = {}
    if ctx.args.model:
        options["model"] = ctx.args.model
    if ctx.args.capability:
        options["capabilities"] = ctx.args.capability
    if ctx.args.min_quality is not None:
        options["min_quality"] = ctx.args.min_quality
    with ctx.client() as client:
        choice = client.providers.select(**options)
    if ctx.io.format != "table":
        ctx.io.value(choice)
        return OK
    ctx.io.line(f"{choice.provider}/{choice.model}   {choice.reason}")
    for c in choice.candidates:
        parts = "  ".join(f"{name} {value:.3g}" for name, value in sorted(c.terms.items()))
        ctx.io.line(f"  {c.provider}/{c.model}   score {c.score:.3g}   {c.refused}".rstrip())
        if parts:
            ctx.io.line(f"      {parts}")
    return OK


def list_budgets(ctx: Context) -> int:
    """`budgets`."""
    with ctx.client() as client:
        budgets = client.providers.budgets(include_tasks=ctx.args.tasks)
        spending = client.providers.spending()
    ctx.io.rows("budgets", budgets, ("LEVEL", "NAME", "WINDOW", "LIMIT", "SPENT", "LENT", "RESETS"), map(_budget_row, budgets))
    if ctx.io.format == "table":
        unpriced = f", {spending.unpriced_requests} of unknown price" if spending.unpriced_requests else ""
        ctx.io.line(f"since the start: {money(spending.cost_micros)} for {spending.requests} requests{unpriced}")
    return OK


def _budget_row(b: m.Budget) -> tuple[str, ...]:
    limit = "none" if b.limit_micros is None else money(b.limit_micros)
    resets = b.resets.isoformat(timespec="minutes") if b.resets else "-"
    return (b.level, b.name or "-", b.window, limit, money(b.spent_micros), money(b.lent_micros), resets)


def list_models(ctx: Context) -> int:
    """`models`."""
    with ctx.client() as client:
        models = client.providers.models()
    rows = (
        (m.name, ", ".join(m.endpoints) or "-", str(m.context) if m.context else "-", ",".join(m.capabilities) or "-")
        for m in models
    )
    ctx.io.rows("models", models, ("MODEL", "ENDPOINTS", "CONTEXT", "CAPABILITIES"), rows)
    return OK


def chat_with(ctx: Context) -> int:
    """`chat`: one answer, or a conversation until end-of-file."""
    history: list[HistoryItem] = [("system", ctx.args.system)] if ctx.args.system else []
    with ctx.client() as client:
        while True:
            text = ctx.args.text
            if text is None:
                try:
                    text = input("> " if ctx.io.live else "")
                except EOFError:
                    return OK
            history.append(("user", text))
            answer = ""
            pieces = client.providers.stream_chat(
                history, model=ctx.args.model, max_tokens=ctx.args.max_tokens, temperature=ctx.args.temperature
            )
            for piece in pieces:
                answer += piece.text_delta
                if ctx.io.format == "table":
                    ctx.io.text(piece.text_delta)
                if piece.final is None:
                    continue
                if ctx.io.format != "table":
                    ctx.io.value(piece.final)
                else:
                    ctx.io.text("\n")
                    used = piece.final.usage
                    cost = money(piece.final.cost_micros)
                    ctx.io.say(
                        f"{piece.final.provider}/{piece.final.model}   {used.input_tokens} + {used.output_tokens} tokens   cost {cost}",
                        "dim",
                    )
            history.append(("assistant", answer))
            if ctx.args.text is not None:
                return OK
