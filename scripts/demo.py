"""`make demo`: what the engine is for, on a node of its own with the embedded model. No key, no network.

Leaves the node running only with `--keep`; the data stay either way, so that the tasks can be looked at afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from singularity_agents import Client, SingularityError, TaskSpec
from singularity_agents._plan import read_plan, tree

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "_build" / "demo"
START = ROOT / "scripts" / "start"
ADDRESS = os.environ.get("SINGULARITY_ADDRESS", "127.0.0.1:50151")
#: Seconds in which the node must serve and the model be loaded.
NODE_WITHIN_S = 90
TASK_WITHIN = "180s"
#: The first is in every demo.
PLANS = ("sums.toml", "brief.toml", "survey.toml")

CONFIG = f"""
[providers.local]
dialect = "local"
models = ["smollm2-135m"]
[providers.echo]
dialect = "echo"
[models.default]
endpoints = [{{ provider = "local", name = "smollm2-135m" }}]

[agents.calculator]
framework = "langchain"
project = "{ROOT}/examples/demo"
tools = ["agents:multiply"]
instructions = "You are a helpful assistant."
[agents.loop]
framework = "custom:demo"
project = "{ROOT}/examples/demo"
entrypoint = "agents:loop"
[agents.count]
framework = "custom:demo"
project = "{ROOT}/examples/demo"
entrypoint = "agents:count"
[agents.shout]
framework = "custom:hello"
project = "{ROOT}/examples/hello"
entrypoint = "agents:shout"
"""

BOLD, DIM, OFF = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def say(text: str = "") -> None:
    print(text, flush=True)


def chapter(text: str) -> None:
    say(f"\n{BOLD}== {text}{OFF}")


def until(what: str, within_s: float, check: Callable[[], Any]) -> Any:
    """Polls until `check` gives something; raises TimeoutError with what was waited for."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if value := check():
                return value
        except SingularityError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"waited {within_s:.0f} s for {what}")


class Node:
    """The demo's node: the release of this checkout."""

    def __init__(self) -> None:
        self.env = {
            **os.environ,
            "SINGULARITY_CONFIG": str(HOME / "singularity.toml"),
            "SINGULARITY_DATA_DIR": str(HOME / "data"),
            "SINGULARITY_STATE_DIR": str(HOME / "state"),
            "SINGULARITY_ADDRESS": ADDRESS,
            "SINGULARITY_DIST_PORT": os.environ.get("SINGULARITY_DIST_PORT", "50163"),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Starts it and waits until it serves and the model is loaded; gives the seconds."""
        began = time.monotonic()
        log = (HOME / "node.log").open("ab")
        self.process = subprocess.Popen(
            [str(START), "foreground"],
            env=self.env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        with Client(ADDRESS, max_retries=0) as client:
            until(
                "the node",
                NODE_WITHIN_S,
                lambda: self.alive() and client.providers.list(),
            )
            until(
                "the model",
                NODE_WITHIN_S,
                lambda: all(p.state == "ready" for p in client.providers.list()),
            )
        return time.monotonic() - began

    def alive(self) -> bool:
        """True while it runs; raises RuntimeError with its last words when it has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            tail = (HOME / "node.log").read_text(errors="replace").splitlines()[-15:]
            raise RuntimeError("the node ended:\n" + "\n".join(tail))
        return True

    def eval(self, expression: str) -> str:
        """An expression in the running node, as its remote shell would print it."""
        done = subprocess.run(
            [str(START), "eval", expression],
            check=False,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.strip() or done.stderr.strip()

    def beam(self) -> int:
        """Its operating-system pid."""
        return int(self.eval("list_to_integer(os:getpid())").strip().splitlines()[-1])

    def kill(self) -> None:
        """As a power cut would: no word to anybody."""
        os.kill(self.beam(), signal.SIGKILL)
        assert self.process is not None
        self.process.wait(timeout=30)

    def stop(self) -> None:
        """Orderly, by SIGTERM."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                # The start script waits for the node, which has a session of its own.
                os.kill(int(Path(self.env["SINGULARITY_STATE_DIR"], "run", "pid").read_text()), signal.SIGKILL)
                self.process.wait(timeout=30)


def run(client: Client, title: str, text: str, **options: Any) -> Any:
    """Submits a task, shows its tokens and tools as they come, gives the ended task."""
    say(f"\n{BOLD}{title}{OFF}\n{DIM}> {text}{OFF}")
    handle = client.submit(text, **options)
    first: float | None = None
    began = time.monotonic()
    for event in handle.watch():
        if event.kind == "text_delta":
            first = first or time.monotonic() - began
            sys.stdout.write(str(event.data.get("text", "")))
            sys.stdout.flush()
        elif event.kind == "tool_call":
            say(f"  {DIM}tool {event.data.get('name')} {event.data.get('arguments')}{OFF}")
        elif event.kind == "tool_result":
            say(f"  {DIM}  -> {event.data.get('content')}{OFF}")
    task = handle.wait(TASK_WITHIN)
    if first is None:
        say(f"  {task.result.output if task.result else task.error.message if task.error else task.state}")
    say(f"\n  {DIM}{executor(task)}, first token after {first:.2f} s{OFF}" if first else f"  {DIM}{executor(task)}{OFF}")
    return task


def executor(task: Any) -> str:
    return str(task.result.executor) if task.result else (task.route.executor if task.route else "-")


def seconds(duration: Any) -> str:
    return f"{duration.total_seconds():.2f} s" if duration is not None else "-"


def table(tasks: list[tuple[str, Any]]) -> None:
    rows = [
        (
            "TASK",
            "OUTCOME",
            "EXECUTOR",
            "ATT",
            "QUEUED",
            "RAN",
            "TOKENS",
            "CALLS",
            "ANSWER",
        )
    ]
    for name, t in tasks:
        m = t.result.metrics if t.result else None
        tokens = str(m.tokens_used.input_tokens + m.tokens_used.output_tokens) if m else "-"
        answer = (t.result.output if t.result else t.error.reason if t.error else "").replace("\n", " ")[:34]
        rows.append((name, t.state.removeprefix("TASK_STATE_"), executor(t), str(t.attempts), seconds(m.queue_time if m else None),
                     seconds(m.execution_time if m else None), tokens, str(m.provider_calls) if m else "-", answer))  # fmt: skip
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for i, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        say(f"{BOLD}{line}{OFF}" if i == 0 else line)


def tree_cpu_s(root: int) -> float:
    """CPU seconds of a process and everything below it, ended children included."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(entry.name)
            children.setdefault(int(fields[1]), []).append(pid)
            used[pid] = sum(int(f) for f in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    total, pending = 0.0, [root]
    while pending:
        pid = pending.pop()
        total += used.get(pid, 0.0)
        pending += children.get(pid, [])
    return total


def beside(client: Client, node: Node, tasks: int) -> None:
    """The LangChain task in the framework alone and on the engine, both on a model that answers at once."""
    python = ROOT / "_build" / "venvs" / "langchain" / "bin" / "python"
    alone = json.loads(subprocess.run([str(python), str(ROOT / "tests/bench/langchain_in_process.py"), str(tasks)],
                                      capture_output=True, text=True, check=True, timeout=120).stdout)  # fmt: skip
    options: dict[str, Any] = {
        "agent": "calculator", "model": 'echo?tool=multiply&args={"a":36,"b":11}', "durability": "ephemeral", "stream_text": False,
    }  # fmt: skip
    text = "Use the multiply tool to multiply 36 by 11."
    for _ in range(20):
        client.execute(text, **options)
    beam = node.beam()
    before, began = tree_cpu_s(beam), time.perf_counter()
    for _ in range(tasks):
        client.execute(text, **options)
    wall, cpu = (
        (time.perf_counter() - began) * 1000 / tasks,
        (tree_cpu_s(beam) - before) * 1000 / tasks,
    )
    say(f"  {'':28}{'time':>10}{'CPU':>10}")
    say(f"  {'LangChain alone':28}{alone['wall_ms']:>7.2f} ms{alone['cpu_ms']:>7.2f} ms")
    say(f"  {'on the engine (client in it)':28}{wall:>7.2f} ms{cpu:>7.2f} ms   the node's whole tree")
    say(
        f"  {'the engine adds':28}{wall - alone['wall_ms']:>7.2f} ms{cpu - alone['cpu_ms']:>7.2f} ms   {tasks} tasks, one after the other"
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", action="store_true", help="leave the node running")
    parser.add_argument("--all", action="store_true", help="every plan of examples/plans, with the frameworks that they name")
    options = parser.parse_args()
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    (HOME / "singularity.toml").write_text(CONFIG)
    node, kept = Node(), False
    try:
        tell(node, PLANS if options.all else PLANS[:1])
        kept = options.keep
    except (TimeoutError, RuntimeError, SingularityError) as error:
        say(f"\nthe demo failed: {error}\nlog: {HOME / 'node.log'}")
        return 1
    finally:
        if not kept:
            node.stop()
    closing(kept)
    return 0


def plan(client: Client, name: str) -> Any:
    """Runs a plan of the examples and shows what became of its steps."""
    description, steps = read_plan(ROOT / "examples" / "plans" / name)
    say(f"\n{BOLD}examples/plans/{name}{OFF}")
    task = client.submit(TaskSpec(description, plan=steps)).wait(TASK_WITHIN)
    for line in tree(task.plan or client.get(task.id).plan or {}):
        say("  " + line)
    if task.error:
        raise RuntimeError(f"the plan {name} ended {task.state}: {task.error.reason} {task.error.message}")
    say(f"  -> {task.output[:200]}")
    return task


def tell(node: Node, plans: tuple[str, ...]) -> None:
    chapter("A node with an embedded model")
    say(
        "SmolLM2 with 135 million parameters: it answers badly, and that is not the engine's fault.\n"
        "The tasks below are ones it gets right."
    )
    say(f"up in {node.start():.1f} s at {ADDRESS}, data in {HOME / 'data'}")
    ended: list[tuple[str, Any]] = []
    with Client(ADDRESS, timeout=TASK_WITHIN) as client:
        chapter("1. Real tasks, tokens as they come")
        ended.append(
            (
                "native",
                run(
                    client,
                    "The native agent, with an engine tool",
                    "Use the calculate tool: what is 17 * 23?",
                    method="native",
                ),
            )
        )
        ended.append(
            (
                "langchain",
                run(
                    client,
                    "A LangChain agent that must call a Python tool",
                    "Use the multiply tool to multiply 36 by 11.",
                    agent="calculator",
                ),
            )
        )
        ended.append(
            (
                "python",
                run(
                    client,
                    "A plain Python function (examples/hello)",
                    "hello from a function",
                    agent="shout",
                ),
            )
        )
        ended.append(
            (
                "auto",
                run(
                    client,
                    "method = AUTO: the engine chooses",
                    "Use the calculate tool: what is 128 * 46?",
                ),
            )
        )
        route = ended[-1][1].route
        say(f"  {DIM}chosen because: {route.reason if route else '-'}{OFF}")

        chapter("2. What happens when things die")
        handle = client.submit("loop for ever", agent="loop")
        until("the loop", 60, lambda: client.get(handle.id).worker_pid)
        say("\nA looping agent with a child in a session of its own runs. The live supervision tree:")
        say(node.eval("agent_execution:tree(), ok"))
        say(f"\n{BOLD}agent_execution:why/1{OFF}\n  " + node.eval(f'agent_execution:why(<<"{handle.id}">>)'))
        proof = client.cancel(handle.id, grace="0s").proof
        say(f"\ncancelled: witness {proof.witness.removeprefix('PROOF_WITNESS_')}, host pid {proof.host_pid}, "
            f"confirmed dead: {proof.confirmed_dead}, {proof.duration.total_seconds() * 1000 if proof.duration else 0:.1f} ms, "
            f"survivors: {proof.survivors or 'none'}")  # fmt: skip
        ended.append(("loop", client.get(handle.id)))

        handle = client.submit("count", agent="count")
        pid = until("the count", 60, lambda: client.get(handle.id).worker_pid)
        os.kill(pid, signal.SIGKILL)
        task = handle.wait(TASK_WITHIN)
        say(f"\nkill -9 {pid} in mid-task: it ended {task.state.removeprefix('TASK_STATE_')} with attempt {task.attempts}")
        ended.append(("count", task))

        chapter("3. A plan: steps on several executors under one task")
        ended += [("plan " + name.removesuffix(".toml"), plan(client, name)) for name in plans]

        chapter("4. The same LangChain task in the framework alone, and on the engine")
        beside(client, node, 100)

    chapter("5. kill -9 the node")
    node.kill()
    seconds = node.start()
    with Client(ADDRESS, timeout=TASK_WITHIN) as client:
        kept = {t.id for t in client.list(limit=100)}
        there = sum(1 for _, t in ended if t.id in kept)
        say(f"started again in {seconds:.1f} s; {there} of {len(ended)} finished tasks are listed")
        chapter("6. All of it")
        table([(name, client.get(t.id)) for name, t in ended])


def closing(kept: bool) -> None:
    env = f"SINGULARITY_CONFIG={HOME.relative_to(ROOT)}/singularity.toml SINGULARITY_DATA_DIR={HOME.relative_to(ROOT)}/data"
    say(f"""
{BOLD}== And now{OFF}
the node      {"runs at " + ADDRESS if kept else "is stopped"}; its data and log: _build/demo
start it      {env} make start
ask it        bin/singularity run "Use the calculate tool: what is 17 * 23?"
look at it    bin/singularity list | top | doctor      scripts/start eval 'agent_execution:tree()'
your model    OPENAI_API_KEY=… bin/singularity run --model gpt-4.1-mini "…"
reset         rm -r _build/demo""")


if __name__ == "__main__":
    sys.exit(main())
