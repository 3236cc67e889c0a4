"""`make bench`, the matrix: every framework and the native agent on the same task, one tool and two calls of a model that answers at once.

For each: latency and rate at 1, 16 and 64 in flight; CPU of a task on the engine (the whole node, workers included) beside the
framework in process and beside the framework with its own HTTP client; from the fork of a worker to its first model call; from
kill -9 to the task running again; the memory of a further worker. Prints the comparison table of the original document with these
figures, and writes `_build/bench/matrix.json`. Alone: `_build/venvs/dev/bin/python scripts/bench_matrix.py [FRAMEWORK ...]`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from singularity_agents import Client
from singularity_agents._local_node import LocalNode
from singularity_agents._proto.singularity.agents.v1 import agent_service_pb2, task_pb2
from singularity_agents._proto.singularity.worker.v1 import worker_pb2
from singularity_agents.testing import Asked, ScriptedModel, ToolCall
from singularity_agents.worker import _frames as f

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "_build" / "bench"
TOOL = ROOT / "_build" / "rust" / "release" / "agent_bench"
VENVS = ROOT / "_build" / "venvs"
HERE = ROOT / "tests" / "bench"
sys.path[:0] = [str(ROOT / "scripts")]

import demo  # noqa: E402
from bench_workers import fresh_worker, lost, zygote  # noqa: E402

FRAMEWORKS: Final = ("langchain", "langgraph", "crewai", "autogen", "haystack", "semantic_kernel", "agent_framework")
#: Those whose comparison with their own HTTP client has a goal, and the environment it is in.
OWN_CLIENT: Final = {
    "langchain": "langchain_http",
    "autogen": "autogen_http",
    "haystack": "haystack",
    "semantic_kernel": "semantic_kernel",
    "crewai": "crewai",
}
NATIVE: Final = "native"
IN_FLIGHT: Final = (1, 16, 64)
#: Tasks side by side in one process, and frameworks that have none.
BESIDE: Final = 16
ALONE: Final = (NATIVE, "crewai")
SECONDS: Final = 3.0
#: In which a zygote has imported its framework.
START_S: Final = 8.0
#: Pairs of blocks, on the engine and in process in turn, and seconds of each.
PAIRS, BLOCK_S = 5, 2.0
#: Tasks that bring a worker to its size before its memory is read.
SETTLED: Final = 50
FORKS: Final = 50
KILLS: Final = 30
TOLD: Final = "You are a helpful assistant. Answer briefly."
ASKED: Final = "Use the multiply tool to multiply 36 by 11."
MODEL: Final = 'echo?tool=multiply&args={"a":36,"b":11}'
NATIVE_MODEL: Final = 'echo?tool=calculate&args={"expression":"36*11"}'


class Promise(NamedTuple):
    """A row of the original document's table."""

    name: str
    latency: str
    rate: int
    memory: str
    faults: str


PROMISES: Final = {
    NATIVE: Promise("Native Rust", "1-5 ms", 10_000, "Minimal", "Excellent"),
    "langchain": Promise("Native + LangChain", "10-50 ms", 1_000, "Moderate", "Good"),
    "crewai": Promise("Native + CrewAI", "20-100 ms", 500, "Higher", "Good"),
}


def config(frameworks: list[str]) -> str:
    """A node with an agent of each framework, one whose tasks run side by side, and one whose tool never ends."""
    agents = "".join(
        f'[agents.of_{name}]\nframework = "{name}"\nproject = "{HERE}"\ninstructions = "{TOLD}"\n'
        'tools = ["bench_agents:multiply"]\n'
        f'[agents.lingers_{name}]\nframework = "{name}"\nproject = "{HERE}"\ntools = ["bench_agents:linger"]\n'
        for name in frameworks
        if name != NATIVE
    )
    agents += "".join(
        f'[agents.beside_{name}]\nframework = "{name}"\nproject = "{HERE}"\ninstructions = "{TOLD}"\n'
        f'tools = ["bench_agents:multiply"]\nconcurrency = {BESIDE}\n'
        for name in frameworks
        if name not in ALONE
    )
    return f"""
[providers.echo]
dialect = "echo"
[models.default]
endpoints = [{{ provider = "echo", name = "echo" }}]
[agents.of_native]
framework = "native"
instructions = "{TOLD}"
tools = ["calculate"]
{agents}
[workers]
recycle_after = 1000000
"""


def load(node: LocalNode, name: str, in_flight: int, seconds: float, warm_up: float = 1.0, kind: str = "of") -> dict[str, Any]:
    """One run of the load generator."""
    model = NATIVE_MODEL if name == NATIVE else MODEL
    done = subprocess.run(
        [str(TOOL), "load", "--address", node.address, "--agent", f"{kind}_{name}", "--model", model, "--bytes", str(len(ASKED)),
         "--in-flight", str(in_flight), "--seconds", str(seconds), "--warm-up", str(warm_up)],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["failed"] == 0, f"{answer['failed']} tasks of {name} failed"
    return answer


def beam(node: LocalNode) -> int:
    """The node's virtual machine: the listener on its port."""
    port = int(node.address.rsplit(":", 1)[1])
    found = subprocess.run(["ss", "-ltnpH", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return int(found.split("pid=")[1].split(",")[0])


def on_engine(node: LocalNode, name: str, in_flight: int = 1, kind: str = "of") -> tuple[float, float]:
    """CPU ms of a task, of the node and all below it, and tasks a second; one task at a time unless told otherwise."""
    root = beam(node)
    before = demo.tree_cpu_s(root)
    run = load(node, name, in_flight, BLOCK_S, warm_up=0, kind=kind)
    return (demo.tree_cpu_s(root) - before) * 1000 / run["ok"], run["per_second"]


def beside(node: LocalNode, name: str) -> dict[str, Any]:
    """As many tasks at once in one process, and in processes of their own, in turn; medians."""
    load(node, name, BESIDE, 1.0, kind="beside")
    blocks = [(on_engine(node, name, BESIDE), on_engine(node, name, BESIDE, "beside")) for _ in range(PAIRS)]
    return {
        kind: {
            "cpu_ms": statistics.median(pair[at][0] for pair in blocks),
            "per_second": statistics.median(pair[at][1] for pair in blocks),
        }
        for at, kind in enumerate(("own", "shared"))
    }


def alone(name: str, tasks: int, environment: str = "", url: str = "") -> dict[str, float]:
    """The framework in a process of its own."""
    python = VENVS / (environment or ("langchain" if name == "langgraph" else name)) / "bin" / "python"
    done = subprocess.run(
        [str(python), str(HERE / "in_process.py"), name, str(tasks), *([url] if url else [])],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def answer(asked: Asked) -> str | ToolCall:
    """What the provider `echo` does, over HTTP."""
    if asked.messages[-1]["role"] == "tool":
        return str(asked.last)
    name = next(tool for tool in asked.tools if tool.endswith("multiply"))
    return ToolCall(name, a=36, b=11)


def with_own_client(name: str, tasks: int) -> float | None:
    """CPU ms of a task with the framework's own HTTP client; None: its environment cannot be made here."""
    environment = OWN_CLIENT.get(name)
    if environment is None or not prepared(environment):
        return None
    # Two calls a task, those before the clock starts too.
    with ScriptedModel(*[answer] * (2 * (tasks + 25))) as model:
        return alone(name, tasks, environment, model.base_url)["cpu_ms"]


def prepared(environment: str) -> bool:
    """Makes an environment of this benchmark's own from its lock."""
    lock, folder = HERE / f"{environment}.txt", VENVS / environment
    if not lock.exists():
        return folder.exists()
    stamp = folder / "lock"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return True
    uv = str(VENVS / "uv" / "bin" / "uv")
    for command in (
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--require-hashes", "--python", str(folder / "bin" / "python"), "-r", str(lock)],
    ):
        if subprocess.run(command, capture_output=True, check=False, timeout=600).returncode:
            return False
    stamp.write_bytes(lock.read_bytes())
    return True


def uss_mib(pid: int) -> float:
    """Private memory of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024


def memory(node: LocalNode, name: str) -> float:
    """Median private memory of the framework's workers, each of which has run many tasks by now."""
    with Client(node.address) as client:
        workers = [w.host_pid for w in client.frameworks.get(name).workers if w.agent_id == f"of_{name}"]
    return statistics.median(uss_mib(pid) for pid in workers)


def kills(node: LocalNode, name: str) -> list[float]:
    """Ms from kill -9 of a worker in a tool to the task running again, sorted."""
    options = {"agent": f"lingers_{name}", "model": "echo?tool=linger&args={}"}
    with Client(node.address) as client:
        return sorted(lost(client, signal.SIGKILL, "wait", **options) for _ in range(KILLS))


class Fork(NamedTuple):
    """Ms from the start of a guard."""

    hello: float
    ready: float
    first_call: float


def fork(name: str, folder: Path, number: int, variables: list[str]) -> Fork:
    """A fresh worker: says HELLO, loads the agent, takes a task and makes its first model call."""
    agent = agent_service_pb2.Agent(id="a", framework=name, instructions=TOLD)
    init = worker_pb2.Init(
        agent=agent, tenant="default", project=str(HERE), tools=["bench_agents:multiply"], storage_dir=str(folder / f"w{number}")
    )
    execute = worker_pb2.Execute(task_id="t", task=task_pb2.AgentTask(description=ASKED), agent=agent, model="m")
    times: list[float] = []
    with fresh_worker(folder, number, variables) as (data, began):
        data.settimeout(30)
        for wanted, frame in (
            (f.Type.HELLO, f.encode(f.Type.INIT, 0, 0, 0, 0, 0, init.SerializeToString())),
            (f.Type.READY, f.encode(f.Type.EXECUTE, 0, 0, 0, 0, 1, execute.SerializeToString())),
            (f.Type.CALL, b""),
        ):
            got = frame_of(data, wanted)
            times.append((time.perf_counter() - began) * 1000)
            assert not got.flags & f.FLAG_ERROR, got.payload
            data.sendall(frame)
    return Fork(*times)


def frame_of(data: Any, wanted: f.Type) -> f.Frame:
    """The next frame of a type; beats and events are passed over."""

    def exactly(size: int) -> bytes:
        made = b""
        while len(made) < size:
            piece = data.recv(size - len(made))
            assert piece, "the worker ended"
            made += piece
        return made

    while True:
        (length,) = struct.unpack(">I", exactly(4))
        body = exactly(length)
        frame = f.Frame(*struct.unpack(">BBBIQQ", body[1 : f.HEADER_BYTES]), body[f.HEADER_BYTES :])
        if frame.type == wanted:
            return frame


def forks(name: str) -> list[Fork]:
    """Fresh workers, one after the other."""
    environment = "langchain" if name == "langgraph" else name
    with tempfile.TemporaryDirectory(prefix="sgy-") as made, zygote(environment, Path(made)) as variables:
        return [fork(name, Path(made), number, variables) for number in range(FORKS)]


def conformance(name: str) -> str:
    """Behaviours shown by tests, of all in the table."""
    rows = [
        line.split("|")[1:-1] for line in (ROOT / "docs" / "conformance.md").read_text().splitlines() if line.startswith("| ")
    ]
    head = [cell.strip() for cell in rows[0]]
    if name not in head:
        return "-"
    # The page has another table below it.
    cells = [row[head.index(name)].strip() for row in rows[1:] if len(row) == len(head)]
    return f"{sum(cell == 'yes' for cell in cells)}/{len(cells)}"


def at(values: list[float], percent: int) -> float:
    """A quantile of sorted values."""
    return values[min(len(values) * percent // 100, len(values) - 1)]


def measured(node: LocalNode, name: str) -> dict[str, Any]:
    """All figures of a framework."""
    load(node, name, 4, 1.0, warm_up=START_S)
    row: dict[str, Any] = {"name": name, "load_average": round(os.getloadavg()[0], 2)}
    for in_flight in IN_FLIGHT:
        run = load(node, name, in_flight, SECONDS)
        row[f"c{in_flight}"] = {"p50_ms": run["p50_us"] / 1000, "p99_ms": run["p99_us"] / 1000, "per_second": run["per_second"]}
    if name == NATIVE:
        row["engine_cpu_ms"] = statistics.median(on_engine(node, name)[0] for _ in range(PAIRS))
        return row
    row["uss_mib"] = memory(node, name)
    tasks = max(SETTLED, int(BLOCK_S * 1000 / max(alone(name, SETTLED)["wall_ms"], 0.1)))
    pairs = [(alone(name, tasks)["cpu_ms"], on_engine(node, name)[0]) for _ in range(PAIRS)]
    row["in_process_cpu_ms"] = statistics.median(pair[0] for pair in pairs)
    row["engine_cpu_ms"] = statistics.median(pair[1] for pair in pairs)
    row["added_cpu_ms"] = statistics.median(pair[1] - pair[0] for pair in pairs)
    row["own_client_cpu_ms"] = with_own_client(name, min(tasks, 200))
    if name not in ALONE:
        row["beside"] = beside(node, name)
    late = kills(node, name)
    row["killed"] = {"p50_ms": at(late, 50), "p99_ms": at(late, 99), "retried": f"{len(late)}/{KILLS}"}
    fresh = forks(name)
    row["fork"] = {kind: {f"p{p}_ms": at(sorted(getattr(x, kind) for x in fresh), p) for p in (50, 99)} for kind in Fork._fields}
    row["conformance"] = conformance(name)
    return row


def figures(rows: list[dict[str, Any]]) -> str:
    """The figures beside their goals."""
    lines = [
        "| | p50 / p99 ms at 1 | rate at 1 / 16 / 64 | CPU ms engine / alone / added (must) | own client, ratio (must 0.5)"
        " | fork to READY / first call p99 ms (must 50, CrewAI 200) | kill -9 to running again p50 / p99 ms (must 100)"
        f" | USS MiB (must 40) | {BESIDE} at once, own processes / one: CPU ms, rate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["name"],
            f"{row['c1']['p50_ms']:.2f} / {row['c1']['p99_ms']:.2f}",
            " / ".join(f"{row[f'c{n}']['per_second']:.0f}" for n in IN_FLIGHT),
        ]
        if row["name"] == NATIVE:
            cells += [f"{row['engine_cpu_ms']:.2f}", "", "", "", "", ""]
        else:
            alone_ms, own = row["in_process_cpu_ms"], row["own_client_cpu_ms"]
            cells += [
                f"{row['engine_cpu_ms']:.2f} / {alone_ms:.2f} / {row['added_cpu_ms']:.2f} ({max(0.5, alone_ms / 10):.2f})",
                "not measured" if own is None else f"{own:.2f}, {row['engine_cpu_ms'] / own:.2f}",
                f"{row['fork']['ready']['p99_ms']:.0f} / {row['fork']['first_call']['p99_ms']:.0f}",
                f"{row['killed']['p50_ms']:.0f} / {row['killed']['p99_ms']:.0f}",
                f"{row['uss_mib']:.1f}",
                "" if "beside" not in row else side_by_side(row["beside"]),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def side_by_side(blocks: dict[str, Any]) -> str:
    """The cell of tasks at once."""
    own, shared = blocks["own"], blocks["shared"]
    return f"{own['cpu_ms']:.2f} / {shared['cpu_ms']:.2f}, {own['per_second']:.0f} / {shared['per_second']:.0f}"


def comparison(rows: list[dict[str, Any]]) -> str:
    """The original document's table: its figure, ours beside it, and the cores that its rate would need."""
    lines = [
        f"{'':22}{'latency (p50/p99 at 1)':36}{'rate (ours at 64)':28}{'cores for it':14}"
        f"{'memory of a worker':24}{'kill -9':14}conformance",
    ]
    for row in rows:
        promise = PROMISES.get(row["name"], Promise(f"Native + {row['name']}", "-", 0, "-", "-"))
        cores = f"{promise.rate * row['engine_cpu_ms'] / 1000:.1f}" if promise.rate else "-"
        killed = row["killed"]["retried"] if "killed" in row else "-"
        uss = f"{row['uss_mib']:.0f} MiB" if "uss_mib" in row else "no worker"
        promised = f"{promise.rate:,}+" if promise.rate else "-"
        latency = f"{promise.latency}: {row['c1']['p50_ms']:.2f} / {row['c1']['p99_ms']:.2f} ms"
        rate = f"{promised}: {row['c64']['per_second']:,.0f}/s"
        lines.append(
            f"{promise.name:22}{latency:36}{rate:28}{cores:14}{f'{promise.memory}: {uss}':24}{f'{promise.faults}: {killed}':14}"
            f"{row.get('conformance', '-')}"
        )
    own = [row for row in rows if row.get("own_client_cpu_ms")]
    for row in own:
        cpu = row["own_client_cpu_ms"]
        lines.append(f"{'Pure ' + row['name']:22}{'50-500 ms':36}{f'100+: {1000 / cpu:,.0f}/s a core':28}{cpu / 10:<14.1f}")
    return "\n".join(line.rstrip() for line in lines)


def measure(names: list[str]) -> list[dict[str, Any]]:
    """Measures and prints; gives the rows."""
    rows: list[dict[str, Any]] = []
    OUT.mkdir(parents=True, exist_ok=True)
    with LocalNode(config(names)) as node:
        for name in names:
            print(f"{name} …", file=sys.stderr, flush=True)
            rows.append(measured(node, name))
            print(figures(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
            # A run is long: what is there is kept whatever comes.
            (OUT / "matrix.json").write_text(json.dumps(rows, indent=1))
    print(f"\nOne-tool task, {os.cpu_count()} cores, client on them; load average {os.getloadavg()[0]:.2f}\n")
    print(figures(rows))
    print(f"\n{comparison(rows)}")
    print(f"written to {(OUT / 'matrix.json').relative_to(ROOT)}")
    return rows


if __name__ == "__main__":
    # Ended from outside it stops its node as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    wanted = sys.argv[1:] or [NATIVE, *FRAMEWORKS]
    unknown = [name for name in wanted if not re.fullmatch("|".join((NATIVE, *FRAMEWORKS)), name)]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join((NATIVE, *FRAMEWORKS))}")
    measure(wanted)
