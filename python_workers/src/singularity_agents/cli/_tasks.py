"""Commands about tasks: run, submit, watch, get, list, cancel, retry, fork, signal."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .. import _models as m
from .._calls import result_of
from .._client import Client, TaskHandle
from .._durations import show
from .._errors import ConnectionFailed, SingularityError
from .._local_node import LocalNode, openai_config, serving
from .._plan import read_plan
from .._spec import TaskOptions, TaskSpec
from ._draw import show_task
from ._files import write_artifacts
from ._io import Io, ago, money, one_line, paint, short
from ._live import draw, wanted
from ._main import INTERRUPTED, OK, REFUSED, TASK_FAILED, Context, duration, exit_code, pair

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ._main import Parser

#: The endpoint that `--model` with OPENAI_API_KEY means, unless OPENAI_BASE_URL says otherwise.
OPENAI_BASE_URL = "https://api.openai.com/v1"


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the commands."""
    run = commands.add_parser("run", parents=[shared], help="submit a task, show it live, print its result")
    run.description = 'example: singularity run "What is 17 * 23?" --agent researcher'
    task_arguments(run)
    run.add_argument("--replay", type=Path, metavar="BUNDLE", help="the task of a bundle, from its record: no model is called")
    run.add_argument("--timeout", type=duration, metavar="TIME", help="how long to wait (default: until the end)")
    run.set_defaults(run=run_task)

    submit = commands.add_parser("submit", parents=[shared], help="submit a task and print its id")
    submit.description = 'example: singularity submit "Summarise the report" --framework langchain'
    task_arguments(submit)
    submit.set_defaults(run=submit_task)

    watch = commands.add_parser("watch", parents=[shared], help="follow a task until its end")
    watch.description = "example: singularity watch 9c41e7d0"
    watch.add_argument("task", metavar="TASK", help="id, or its last characters")
    watch.add_argument("--after", type=int, default=0, metavar="N", help="only events after this sequence number")
    watch.add_argument("--no-text", action="store_true", help="without the text")
    watch.set_defaults(run=watch_task)

    get = commands.add_parser("get", parents=[shared], help="show a task")
    get.description = "example: singularity get 9c41e7d0 -o json"
    get.add_argument("task", metavar="TASK", help="id, or its last characters")
    get.add_argument("--attempts", action="store_true", help="its attempts too")
    get.add_argument(
        "--plan", nargs="?", const="tree", choices=["tree", "mermaid", "dot", "json"], help="its steps (default: a tree)"
    )
    get.add_argument("--artifacts", type=Path, metavar="FOLDER", help="write the files that came with its answer")
    get.add_argument("--bundle", type=Path, metavar="FILE", help="write everything it was made of, for run --replay")
    get.set_defaults(run=get_task)

    listing = commands.add_parser("list", parents=[shared], help="list tasks")
    listing.description = "example: singularity list --filter 'state=FAILED agent=researcher'"
    listing.add_argument("--filter", default="", metavar="TEXT", help="for example 'state=FAILED created>=2026-11-24T08:00:00Z'")
    listing.add_argument("--order-by", default="", metavar="TEXT", help='"create_time desc" (default) or "create_time asc"')
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (default 50)")
    listing.set_defaults(run=list_tasks)

    cancel = commands.add_parser("cancel", parents=[shared], help="end a task and show the proof")
    cancel.description = "example: singularity cancel 9c41e7d0 --grace 0s"
    cancel.add_argument("tasks", metavar="TASK", nargs="*", help="ids, or their last characters")
    _many(cancel)
    cancel.add_argument("--grace", type=duration, metavar="TIME", help="in which a result still counts (default 5s)")
    cancel.add_argument("--reason", default="", help="for the record")
    cancel.set_defaults(run=cancel_tasks)

    retry = commands.add_parser("retry", parents=[shared], help="a new task like an ended one")
    retry.description = "example: singularity retry 9c41e7d0"
    retry.add_argument("task", metavar="TASK", nargs="?", help="id, or its last characters")
    _many(retry)
    retry.add_argument("--detach", action="store_true", help="do not wait for its end")
    retry.set_defaults(run=retry_task)

    fork = commands.add_parser("fork", parents=[shared], help="a new task that is given the answers of another one")
    fork.description = "example: singularity fork 9c41e7d0 --after 12"
    fork.add_argument("task", metavar="TASK", help="id, or its last characters")
    fork.add_argument("--after", type=int, default=0, metavar="N", help="number of the last event that counts (default: all)")
    fork.add_argument("--detach", action="store_true", help="do not wait for its end")
    fork.set_defaults(run=fork_task)

    signal = commands.add_parser("signal", parents=[shared], help="answer what a task asked")
    signal.description = 'example: singularity signal 9c41e7d0 approve --comment "ok, Ana"'
    signal.add_argument("task", metavar="TASK", help="id, or its last characters")
    signal.add_argument("what", choices=["approve", "reject", "input", "tool-result"], help="the kind of answer")
    signal.add_argument("text", nargs="?", help="with input and tool-result")
    signal.add_argument("--input-id", default="", help="which question, if there are several")
    signal.add_argument("--comment", default="", help="for the record")
    signal.set_defaults(run=signal_task)


def task_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say a task."""
    parser.add_argument("text", metavar="TEXT", nargs="?", help='the task in words; "-" reads it from stdin')
    parser.add_argument("--plan", type=Path, metavar="FILE", help="its steps, TOML or JSON; TEXT is then ${task.input}")
    parser.add_argument(
        "--decompose", action="store_true", help="the native agent makes the steps, and puts the results together"
    )
    who = parser.add_argument_group("who does it")
    who.add_argument("--agent", metavar="ID", help="a configured or created agent")
    who.add_argument("--agent-type", metavar="TYPE", help="researcher, coder, planner, assistant or a configured type")
    who.add_argument("--framework", metavar="NAME", help="native, langchain, custom:NAME, ...")
    who.add_argument("--method", choices=["auto", "native", "framework", "hybrid"])
    who.add_argument("--task-type", metavar="TYPE", help="research, conversation, planning, coding, ...")
    how = parser.add_argument_group("how")
    how.add_argument("--model", metavar="NAME", help="model or alias; with OPENAI_API_KEY set, one of that provider")
    how.add_argument("--max-steps", type=int, metavar="N")
    how.add_argument("--max-tokens", type=int, metavar="N", help="of one model call")
    how.add_argument("--temperature", type=float, metavar="T")
    how.add_argument("--seed", type=int, metavar="N")
    how.add_argument("--priority", type=int, metavar="0-9")
    how.add_argument("--max-duration", type=duration, metavar="TIME", help="of the task, over all attempts")
    how.add_argument("--ephemeral", action="store_true", help="in memory only: faster, and gone if the node ends")
    how.add_argument("--label", type=pair, action="append", default=[], metavar="KEY=VALUE")
    how.add_argument("--request-id", metavar="ID", help="sent again, it gives the same task")


def _options(args: argparse.Namespace) -> TaskOptions:
    names = (
        "agent", "agent_type", "framework", "method", "task_type", "model", "max_steps", "max_tokens", "temperature", "seed",
        "priority", "max_duration",
    )  # fmt: skip
    options: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.ephemeral:
        options["durability"] = "ephemeral"
    if args.decompose:
        options["planning"] = "model"
    if args.label:
        options["labels"] = dict(args.label)
    return cast("TaskOptions", options)


def task_of(args: argparse.Namespace) -> TaskSpec:
    """The task of a command line. Raises OSError and ValueError of a plan file, and ValueError where there is no text."""
    options = _options(args)
    text = sys.stdin.read() if args.text == "-" else args.text
    if args.plan:
        described, options["plan"] = read_plan(args.plan)
        text = text or described or f"the plan {args.plan.name}"
    if text is None:
        raise ValueError('there is no task: give TEXT, "-", or --plan FILE')
    return TaskSpec(text, **options)


def _model_of(endpoint: str) -> str:
    """The model of "provider/model": its own name may hold a slash."""
    return endpoint.partition("/")[2]


@contextlib.contextmanager
def _node_for(ctx: Context) -> Iterator[Client]:
    """The chosen node; or, for --model with a key, one of its own where the chosen one cannot serve that model."""
    model, key = ctx.args.model, os.environ.get("OPENAI_API_KEY")
    if not (model and key):
        with ctx.client() as client:
            yield client
        return
    if serving(ctx.target):
        with ctx.client() as client:
            if any(model == known.name or model in map(_model_of, known.endpoints) for known in client.providers.models()):
                yield client
                return
        ctx.io.say(f"the node at {ctx.target.address} does not know {model}", "dim")
    base_url = os.environ.get("OPENAI_BASE_URL") or OPENAI_BASE_URL
    ctx.io.say(f"starting a node for this command, with {model} of {base_url}", "dim")
    with LocalNode(openai_config(model, base_url)) as node, ctx.client(node.address) as client:
        yield client


def run_task(ctx: Context) -> int:
    """`run`: submit, follow, print."""
    if ctx.args.replay:
        return replay_task(ctx)
    with _node_for(ctx) as client:
        _note_names(ctx, client)
        handle = client.submit(task_of(ctx.args), request_id=ctx.args.request_id)
        return follow(ctx, client, handle, ctx.args.timeout)


def replay_task(ctx: Context) -> int:
    """`run --replay`."""
    if ctx.args.text or ctx.args.plan or _options(ctx.args):
        raise ValueError("--replay runs the task of its bundle: it takes no TEXT and no option of a task")
    with ctx.client() as client:
        handle = client.replay(ctx.args.replay, request_id=ctx.args.request_id)
        return follow(ctx, client, handle, ctx.args.timeout)


def _note_names(ctx: Context, client: Client) -> None:
    """Names for did-you-mean, asked only when one was typed."""
    if ctx.args.agent or ctx.args.agent_type:
        with contextlib.suppress(SingularityError):
            ctx.known += [agent.id for agent in client.agents.list(limit=1000)]
            ctx.known += [kind.name for kind in client.agents.types()]


def submit_task(ctx: Context) -> int:
    """`submit`: the id on stdout."""
    with ctx.client() as client:
        _note_names(ctx, client)
        handle = client.submit(task_of(ctx.args), request_id=ctx.args.request_id)
    ctx.io.value(handle.task, handle.id)
    ctx.io.say(f"follow it: singularity watch {short(handle.id)}", "dim")
    return OK


def follow(ctx: Context, client: Client, handle: TaskHandle, timeout: float | None = None) -> int:
    """Shows a task until its end, then its result and what it took."""
    io = ctx.io
    progress = Progress(io, short(handle.id))
    io.say(f"task {short(handle.id)}", "dim")
    try:
        if timeout is None and wanted(io, handle.task):
            task = draw(io, client, handle)
        elif timeout is None:
            for event in handle.watch(include_text=io.live):
                progress.show(event)
            task = handle.get()
        else:
            task = handle.wait(timeout)
    except KeyboardInterrupt:
        progress.end()
        io.say(f"\nthe task goes on: singularity watch {short(handle.id)}   end it: singularity cancel {short(handle.id)}")
        return INTERRUPTED
    progress.end()
    return report(ctx, task, printed=progress.printed)


def report(ctx: Context, task: m.Task, printed: str = "") -> int:
    """The end of a task: its output on stdout, its figures on stderr."""
    io = ctx.io
    if io.format != "table":
        io.value(task)
    elif task.state == "SUCCEEDED" and task.output and printed.strip() != task.output.strip():
        io.line(task.output)
    if summary := figures(task):
        io.say(summary, "dim")
    try:
        result_of(task)
    except SingularityError as error:
        io.error(error)
        return exit_code(error) if task.ended else TASK_FAILED
    return OK


def figures(task: m.Task) -> str:
    """One line on what it took."""
    result = task.result
    if result is None:
        return ""
    took = result.metrics
    parts = [result.executor or "?"]
    parts += [f"queued {_time(took.queue_time)}", f"ran {_time(took.execution_time)}"]
    parts.append(f"{took.tokens_used.input_tokens} + {took.tokens_used.output_tokens} tokens")
    parts.append(f"{took.provider_calls} model call{'s' * (took.provider_calls != 1)}")
    if took.tool_calls:
        parts.append(f"{took.tool_calls} tool call{'s' * (took.tool_calls != 1)}")
    if result.limit_reached:
        parts.append(f"ended by its limit {result.limit_reached}")
    return "   ".join([*parts, f"cost {money(took.cost_micros)}"])


def _time(value: timedelta | None) -> str:
    return show(value.total_seconds()) if value is not None else "?"


class Progress:
    """Events of a task for people: tokens on stdout, the rest on stderr."""

    def __init__(self, io: Io, task: str) -> None:
        self._io = io
        self._task = task
        #: Text of the newest attempt that stands on stdout.
        self.printed = ""

    def end(self) -> None:
        """Ends an open line."""
        if self.printed and not self.printed.endswith("\n"):
            self._io.text("\n")

    def _say(self, text: str, style: str = "dim") -> None:
        if self.printed and not self.printed.endswith("\n"):
            self._io.text("\n")
            self.printed += "\n"
        self._io.say(text, style)

    def show(self, event: m.Event) -> None:
        """Shows one event."""
        data = event.data
        match event.kind:
            case "text_delta":
                if self._io.live:
                    self._io.text(event.text)
                    self.printed += event.text
            case "attempt_started":
                if data.get("discard_text") and self.printed:
                    self._say("(starting again)", "yellow")
                    self.printed = ""
            case "state_changed" if data.get("state") == "WAITING":
                self._say("waiting")
            case "worker_assigned":
                self._say(f"worker {data.get('worker')} (pid {data.get('host_pid')})")
            case "worker_lost":
                self._say(f"worker lost: {data.get('cause')} {one_line(str(data.get('detail', '')))}", "yellow")
            case "tool_call":
                self._say(f"tool {data.get('name')} {one_line(str(data.get('arguments', '')))}")
            case "tool_result":
                style = "yellow" if data.get("is_error") else "dim"
                self._say(f"  -> {one_line(str(data.get('content', '')))}", style)
            case "step_started" if data.get("name"):
                self._say(f"step {data['name']} ({data.get('executor')})")
            case "step_finished" if data.get("name"):
                style = "yellow" if data.get("status") == "failed" else "dim"
                self._say(f"  {data['name']}: {data.get('status')}", style)
            case "log":
                self._say(f"{data.get('source', '')}: {one_line(str(data.get('message', '')), 200)}")
            case "input_requested":
                self._say(f"it asks ({data.get('kind')}, {data.get('input_id')}): {data.get('prompt', '')}", "yellow")
                answer = {"approval": "approve|reject", "client_tool": "tool-result TEXT"}.get(
                    str(data.get("kind")), "input TEXT"
                )
                self._say(f"  to answer: singularity signal {self._task} {answer}", "yellow")
            case _:
                pass


def watch_task(ctx: Context) -> int:
    """`watch`: events; with -o json one per line."""
    with ctx.client() as client:
        handle = client.handle(ctx.args.task)
        if ctx.io.format == "table":
            return follow(ctx, client, handle)
        for event in handle.watch(after=ctx.args.after, include_text=not ctx.args.no_text):
            ctx.io.line(event.model_dump_json())
        return OK if handle.get().state == "SUCCEEDED" else TASK_FAILED


def get_task(ctx: Context) -> int:
    """`get`."""
    with ctx.client() as client:
        if ctx.args.bundle:
            bundle = client.bundle(ctx.args.task)
            bundle.write(ctx.args.bundle)
            ctx.io.value(
                {"bundle": str(ctx.args.bundle), "task_id": bundle.task.id, "entries": len(bundle.journal)},
                f"{ctx.args.bundle}: task {short(bundle.task.id)}, {len(bundle.journal)} recorded answers",
            )
            return OK
        task = client.get(ctx.args.task)
        attempts = list(client.attempts(task.id)) if ctx.args.attempts else []
    if ctx.args.plan:
        return show_task(ctx, task, ctx.args.plan)
    if ctx.args.artifacts:
        files = write_artifacts(task.result.artifacts if task.result else [], ctx.args.artifacts)
        ctx.io.value({"files": [str(file) for file in files]}, "\n".join(map(str, files)) or "the task gave no files")
        return OK
    if ctx.io.format != "table":
        ctx.io.value({**task.model_dump(mode="json"), "attempt_list": attempts} if ctx.args.attempts else task)
        return OK
    ctx.io.line(_details(task))
    for attempt in attempts:
        took = attempt.end_time - attempt.start_time if attempt.end_time and attempt.start_time else None
        where = attempt.worker or attempt.executor or "native"
        ctx.io.line(
            f"attempt {attempt.number}   fence {attempt.fence}   {where}   {_time(took)}   "
            f"{attempt.outcome or 'running'}   {one_line(attempt.cause)}"
        )
    return OK


def _details(task: m.Task) -> str:
    state = task.state + (f" for {task.waiting_for}" if task.waiting_for else "")
    who = task.spec.get("agent_id") or task.spec.get("agent_type") or "assistant"
    rows = [
        ("task", task.id),
        ("state", paint(state, {"SUCCEEDED": "green", "FAILED": "red", "TIMED_OUT": "red"}.get(task.state, ""), sys.stdout)),
        ("agent", str(who)),
        ("text", one_line(str(task.spec.get("description", "")), 100)),
        ("submitted", ago(task.create_time)),
        ("attempts", str(task.attempts)),
    ]
    if task.route:
        rows.append(("executor", f"{task.route.executor}   ({task.route.reason})"))
    if task.worker_pid and not task.ended:
        rows.append(("pid", str(task.worker_pid)))
    if task.retry_of:
        rows.append(("retry of", short(task.retry_of)))
    if task.fork_of:
        rows.append(("fork of", short(task.fork_of)))
    if task.replay_of:
        rows.append(("replay of", short(task.replay_of)))
    if task.error:
        rows.append(("error", f"{task.error.reason}: {task.error.message}"))
    if proof := task.cancellation_proof:
        rows.append(("proof", proof_line(proof)))
    if task.result:
        rows += [("took", figures(task)), ("output", task.output)]
    return "\n".join(f"{name:<10} {text}" for name, text in rows)


def proof_line(proof: m.CancellationProof) -> str:
    """What a cancel proved, in a line."""
    dead = "confirmed dead" if proof.confirmed_dead else "NOT confirmed dead"
    if proof.witness == "NONE_NEEDED":
        dead = "no process to end"
    sent = " then ".join(str(signal.get("name")) for signal in proof.signals)
    parts = [dead, f"witness {proof.witness}"]
    if proof.host_pid:
        parts.append(f"pid {proof.host_pid}")
    if sent:
        parts.append(sent)
    if proof.survivors:
        parts.append(f"may live: {', '.join(map(str, proof.survivors))}")
    return "   ".join([*parts, f"in {_time(proof.duration)}"])


def list_tasks(ctx: Context) -> int:
    """`list`."""
    with ctx.client() as client:
        tasks = client.list(ctx.args.filter, order_by=ctx.args.order_by, limit=ctx.args.limit)
    ctx.io.rows("tasks", tasks, TASK_HEAD, (task_row(task) for task in tasks))
    return OK


TASK_HEAD = ("TASK", "STATE", "AGENT", "EXECUTOR", "ATT", "SUBMITTED", "TEXT")


def task_row(task: m.Task) -> tuple[str, ...]:
    """A task in a table."""
    agent = str(task.spec.get("agent_id") or task.spec.get("agent_type") or "-")
    executor = task.result.executor if task.result else task.route.executor if task.route else "-"
    text = task.error.reason if task.error else one_line(str(task.spec.get("description", "")), 48)
    return (
        short(task.id), task.state, agent, executor or "-", str(task.attempts), ago(task.create_time), text,
    )  # fmt: skip


def _many(parser: Parser) -> None:
    """Options of commands that work on what a filter finds as well."""
    parser.add_argument("--filter", metavar="TEXT", help="all tasks that it finds, as in list")
    parser.add_argument("--dry-run", action="store_true", help="with --filter: only say which")


def _bulk(ctx: Context, outcomes: m.BulkOutcomes) -> int:
    rows = (
        (short(o.task_id), o.state, short(o.new_task_id) if o.new_task_id else "-", o.error.reason if o.error else "-")
        for o in outcomes.outcomes
    )
    ctx.io.rows("outcomes", outcomes.outcomes, ("TASK", "STATE", "NEW TASK", "WHY NOT"), rows)
    if outcomes.more:
        ctx.io.say("there are more: run the same again")
    return REFUSED if any(o.error for o in outcomes.outcomes) else OK


def cancel_tasks(ctx: Context) -> int:
    """`cancel`: each task with its proof; the worst outcome decides the code."""
    if bool(ctx.args.tasks) == bool(ctx.args.filter):
        raise ValueError("name the tasks, or give --filter")
    if ctx.args.filter:
        with ctx.client() as client:
            outcomes = client.cancel_all(ctx.args.filter, dry_run=ctx.args.dry_run, grace=ctx.args.grace, reason=ctx.args.reason)
        return _bulk(ctx, outcomes)
    done: list[m.Cancellation] = []
    worst = OK
    with ctx.client() as client:
        for task_id in ctx.args.tasks:
            try:
                done.append(client.cancel(task_id, grace=ctx.args.grace, reason=ctx.args.reason))
            except ConnectionFailed:
                raise
            except SingularityError as error:
                ctx.io.error(error)
                worst = max(worst, exit_code(error))
                continue
            if ctx.io.format == "table":
                task = done[-1].task
                ctx.io.line(f"{short(task.id)}   {task.state}   {proof_line(done[-1].proof)}")
    if ctx.io.format != "table":
        ctx.io.value({"cancellations": done})
    return worst


def retry_task(ctx: Context) -> int:
    """`retry`."""
    if bool(ctx.args.task) == bool(ctx.args.filter):
        raise ValueError("name the task, or give --filter")
    with ctx.client() as client:
        if ctx.args.filter:
            return _bulk(ctx, client.retry_all(ctx.args.filter, dry_run=ctx.args.dry_run))
        handle = client.retry(ctx.args.task)
        if not ctx.args.detach:
            return follow(ctx, client, handle)
    ctx.io.value(handle.task, handle.id)
    return OK


def fork_task(ctx: Context) -> int:
    """`fork`."""
    with ctx.client() as client:
        handle = client.fork(ctx.args.task, after=ctx.args.after)
        if not ctx.args.detach:
            return follow(ctx, client, handle)
    ctx.io.value(handle.task, handle.id)
    return OK


def signal_task(ctx: Context) -> int:
    """`signal`."""
    what, text = ctx.args.what, ctx.args.text
    if what in ("input", "tool-result") and text is None:
        raise ValueError(f"{what} needs a text")
    with ctx.client() as client:
        task = client.signal(
            ctx.args.task,
            input_id=ctx.args.input_id,
            approve={"approve": True, "reject": False}.get(what),
            input=text if what == "input" else None,
            tool_result=text if what == "tool-result" else None,
            comment=ctx.args.comment,
        )
    ctx.io.value(task, f"{short(task.id)}   {task.state}")
    return OK
