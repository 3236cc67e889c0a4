"""`make bench`: a table, and `_build/bench/results.json`.

Every figure has its baseline measured in the same run, in turn with it; medians of several runs. The client runs on the same cores.
Noise on shared machines is large: read ratios first, absolutes second.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from singularity_agents import Client
from singularity_agents._local_node import LocalNode, free_port, program, serving
from singularity_agents._transport import Target

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "_build" / "bench"
TOOL = ROOT / "_build" / "rust" / "release" / "agent_bench"
sys.path[:0] = [str(ROOT / "scripts")]

import bench_providers  # noqa: E402
import demo  # noqa: E402
from bench_workers import fresh_worker, lost, zygote  # noqa: E402
from postgres_server import NoPostgres, Postgres  # noqa: E402

RUNS = 3
SECONDS = 4
#: Tasks that are woken one by one.
WAKES = 2000
#: LangChain tasks in a block, and pairs of blocks.
BLOCK, PAIRS = 500, 5

#: Native tasks, as many at once as the other rows have.
NATIVE = ("--agent", "echo", "--in-flight", "64", "--seconds", str(SECONDS))

CONFIG = f"""
[providers.echo]
dialect = "echo"
[models.default]
endpoints = [{{ provider = "echo", name = "echo" }}]
[agents.echo]
framework = "native"
tools = []
[agents.calculator]
framework = "langchain"
project = "{ROOT}/examples/demo"
tools = ["agents:multiply"]
instructions = "You are a helpful assistant. Answer briefly."
[agents.repeated]
framework = "langchain"
tools = []
[agents.trivial]
framework = "custom:bench"
project = "{ROOT}/examples/hello"
entrypoint = "agents:shout"
[agents.beside]
framework = "custom:bench"
project = "{ROOT}/examples/hello"
entrypoint = "agents:shout"
concurrency = 16
[agents.loop]
framework = "custom:bench"
project = "{ROOT}/examples/demo"
entrypoint = "agents:loop"
[agents.pay]
framework = "custom:bench"
project = "{ROOT}/examples/demo"
entrypoint = "agents:pay"
[workers]
recycle_after = 1000000
"""

results: list[dict[str, Any]] = []


def record(
    name: str,
    value: float,
    unit: str,
    *,
    baseline: float | None = None,
    wanted: str = "",
    command: str = "make bench",
) -> None:
    """Keeps a figure and prints its row."""
    ratio = round(value / baseline, 3) if baseline else None
    host = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
    results.append(
        {
            "name": name,
            "value": round(value, 3),
            "unit": unit,
            "baseline": baseline,
            "ratio": ratio,
            "command": command,
            "host": host,
        }
    )
    print(
        f"{name:32}{value:>12.3f} {unit:6}{f'ratio {ratio}' if ratio else '':16}{wanted:40}load {host['load']}",
        flush=True,
    )


def load(address: str, *options: str) -> dict[str, Any]:
    """One run of the load generator."""
    done = subprocess.run(
        [str(TOOL), "load", "--address", address, *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["failed"] == 0, f"{answer['failed']} calls failed"
    return answer


def median(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(RUNS))


def grpc(node: LocalNode) -> None:
    address = f"127.0.0.1:{free_port()}"
    with subprocess.Popen(
        [str(TOOL), "bare", "--address", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as bare:
        assert bare.stdin is not None and bare.stdout is not None
        bare.stdout.readline()
        pairs = []
        for _ in range(RUNS):
            options = ("--in-flight", "64", "--seconds", str(SECONDS))
            pairs.append(
                (
                    load(address, *options)["per_second"],
                    load(node.address, "--agent", "echo", *options)["per_second"],
                )
            )
        base, ours = (
            statistics.median(p[0] for p in pairs),
            statistics.median(p[1] for p in pairs),
        )
        record("grpc_bare", base, "/s")
        record(
            "grpc_native_ephemeral",
            ours,
            "/s",
            baseline=base,
            wanted="must 10,000/s, aim 0.3 x grpc_bare",
        )
        quiet = [load(node.address, "--agent", "echo", "--in-flight", "1", "--seconds", "3") for _ in range(RUNS)]
        alone = load(address, "--in-flight", "1", "--seconds", "2")
        for quantile, wanted in (
            ("p50", "must 0.5 ms, aim 0.2 ms"),
            ("p99", "must 2 ms"),
        ):
            value = statistics.median(q[f"{quantile}_us"] for q in quiet) / 1000
            record(
                f"grpc_native_latency_c1_{quantile}",
                value,
                "ms",
                baseline=alone[f"{quantile}_us"] / 1000,
                wanted=wanted,
            )
        bare.stdin.close()


def workers(node: LocalNode) -> None:
    value = median(
        lambda: load(
            node.address,
            "--agent",
            "trivial",
            "--in-flight",
            "16",
            "--seconds",
            str(SECONDS),
        )["per_second"]
    )
    record("worker_trivial", value, "/s", wanted="must 3,000/s, aim 8,000/s")
    beside = ("--agent", "beside", "--in-flight", "16", "--seconds", str(SECONDS))
    record("worker_trivial_beside", median(lambda: load(node.address, *beside)["per_second"]), "/s", baseline=value)
    done = subprocess.run(
        [str(TOOL), "cancel", "--address", node.address, "--agent", "loop", "--runs", "100"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    cancel = json.loads(done.stdout)
    assert cancel["unproved"] == 0, f"{cancel['unproved']} cancels without proof"
    record("cancel_now_p50", cancel["p50_ms"], "ms")
    record("cancel_now", cancel["p99_ms"], "ms", wanted="p99: must 50 ms, aim 15 ms")


def repeated(node: LocalNode) -> None:
    """Equal LangChain tasks, answered from the cache of whole tasks; all but the first."""
    options = ("--cached", "--agent", "repeated", "--in-flight", "64", "--seconds", str(SECONDS))
    load(node.address, "--cached", "--agent", "repeated", "--in-flight", "1", "--seconds", "1")
    record("cached_repeat", median(lambda: load(node.address, *options)["per_second"]), "/s", wanted="must 10,000/s")
    pairs = [
        (load(node.address, "--durable", *options)["per_second"], load(node.address, "--durable", *NATIVE)["per_second"])
        for _ in range(RUNS)
    ]
    record(
        "cached_repeat_durable",
        statistics.median(p[0] for p in pairs),
        "/s",
        baseline=statistics.median(p[1] for p in pairs),
        wanted="must 0.9 of durable_native beside it",
    )


def losses(node: LocalNode) -> None:
    """From the loss of a worker in a step until the step runs again in another one."""
    for name, how, losses, wanted in (
        ("worker_killed", signal.SIGKILL, 100, "kill -9 to running again: p99 must 100 ms, aim 50 ms"),
        ("worker_stopped", signal.SIGSTOP, 8, "SIGSTOP to running again: must 2 s"),
    ):
        late = sorted(loss(node, how) for _ in range(losses))
        record(f"{name}_p50", statistics.median(late), "ms")
        record(name, late[len(late) * 99 // 100], "ms", wanted=wanted)


def loss(node: LocalNode, how: signal.Signals) -> float:
    with Client(node.address) as client:
        return lost(client, how, "x", agent="loop")


def respawn() -> None:
    """From the start of a guard to the first frame of a freshly forked worker."""
    with tempfile.TemporaryDirectory(prefix="sgy-") as name, zygote("custom", Path(name)) as variables:
        times = [first_frame(Path(name), i, variables) for i in range(100)]
    times.sort()
    record("worker_respawn_p50", times[49], "ms")
    record("worker_respawn", times[98], "ms", wanted="p99: must 50 ms, aim 20 ms")


def first_frame(folder: Path, number: int, variables: list[str]) -> float:
    with fresh_worker(folder, number, variables) as (data, began):
        assert len(data.recv(65536)) > 28
        return (time.perf_counter() - began) * 1000


def langchain(node: LocalNode) -> None:
    """CPU that the engine adds: blocks in the framework alone and on the engine in turn, paired."""
    python = str(ROOT / "_build" / "venvs" / "langchain" / "bin" / "python")
    model = 'echo?tool=multiply&args={"a":36,"b":11}'
    options = [
        "--agent",
        "calculator",
        "--model",
        model,
        "--in-flight",
        "1",
        "--bytes",
        "43",
    ]
    load(node.address, *options, "--seconds", "2", "--warm-up", "1")
    beam = beam_below(node)
    pairs = []
    for _ in range(PAIRS):
        done = subprocess.run(
            [python, str(ROOT / "tests/bench/langchain_in_process.py"), str(BLOCK)],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        alone = json.loads(done.stdout)
        before, began = demo.tree_cpu_s(beam), time.perf_counter()
        count = load(
            node.address,
            *options,
            "--seconds",
            str(max(2.0, BLOCK * alone["wall_ms"] / 1000)),
            "--warm-up",
            "0",
        )["ok"]
        cpu, wall = (
            (demo.tree_cpu_s(beam) - before) * 1000 / count,
            (time.perf_counter() - began) * 1000 / count,
        )
        pairs.append((alone["cpu_ms"], cpu, alone["wall_ms"], wall))
    record("langchain_in_process", statistics.median(p[2] for p in pairs), "ms")
    base = statistics.median(p[2] for p in pairs)
    record(
        "langchain_tool_task",
        statistics.median(p[3] for p in pairs),
        "ms",
        baseline=base,
    )
    record("langchain_in_process_cpu", statistics.median(p[0] for p in pairs), "ms")
    record(
        "langchain_added_cpu",
        statistics.median(p[1] - p[0] for p in pairs),
        "ms",
        wanted="must 0.5 ms, aim 0.3 ms",
    )


def fsync_ms(folder: Path) -> float:
    """Median of what one small write costs until it is on the disk, in ms."""
    times = []
    with (folder / "fsync-probe").open("wb") as file:
        for _ in range(300):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    (folder / "fsync-probe").unlink()
    return statistics.median(times)


def durable(node: LocalNode) -> None:
    """Tasks on the disk: journaled and metered like any."""
    folder = node.log.parent
    options = ("--durable", "--agent", "echo")
    syncs, many, alone = [fsync_ms(folder)], [], []
    for _ in range(RUNS):
        many.append(load(node.address, *options, "--in-flight", "64", "--seconds", str(SECONDS))["per_second"])
        alone.append(load(node.address, *options, "--in-flight", "1", "--seconds", "3")["p50_us"] / 1000)
        syncs.append(fsync_ms(folder))
    sync = statistics.median(syncs)
    record("fsync", sync, "ms", wanted="of a 4 KiB write in the data folder")
    record("durable_native", statistics.median(many), "/s", wanted="must 5,000/s, aim 8,000/s")
    record(
        "durable_latency_c1",
        statistics.median(alone),
        "ms",
        baseline=2 * sync + 1,
        wanted="p50: must 2 fsyncs + 1 ms (the baseline)",
    )
    trivial = ("--durable", "--agent", "trivial", "--in-flight", "16", "--seconds", str(SECONDS))
    record(
        "durable_worker_trivial",
        median(lambda: load(node.address, *trivial)["per_second"]),
        "/s",
        wanted="must 1,500/s, aim 3,000/s",
    )
    journaled(folder / "data" / "singularity.db")


#: Steps of the chain, and of the wide plan; a plan of as few steps is what the wide one is held against.
CHAIN, WIDE, NARROW = 10, 1000, 10


def plans(node: LocalNode) -> None:
    """Plans of echo steps: a chain of them, and many side by side."""
    chain = ("--agent", "echo", "--chain", str(CHAIN))
    tool = "agent_bench load --agent echo"
    sync = fsync_ms(node.log.parent)
    many = median(lambda: load(node.address, *chain, "--durable", "--in-flight", "32", "--seconds", str(SECONDS))["per_second"])
    command = f"{tool} --durable --chain {CHAIN} --in-flight 32"
    record("plan_steps", many * CHAIN, "/s", wanted="must 6,000/s (600 plans/s), aim 10,000/s", command=command)
    for name, kind, spent, wanted in (
        ("plan_step_c1_durable", ("--durable",), sync, "must 1 ms beyond the fsync"),
        ("plan_step_c1_ephemeral", (), 0.0, "must 0.2 ms"),
    ):
        alone = median(lambda kind=kind: load(node.address, *chain, *kind, "--in-flight", "1", "--seconds", "3")["p50_us"] / 1000)  # type: ignore[misc]
        record(name, alone / CHAIN - spent, "ms", wanted=wanted, command=f"{tool} {' '.join(kind)} --chain {CHAIN} --in-flight 1")
    # As many steps under way in both: what differs is the size of the plan.
    wide = ("--agent", "echo", "--parallel", "64", "--wide")
    few = median(lambda: load(node.address, *wide, str(NARROW), "--in-flight", "6", "--seconds", str(SECONDS))["per_second"])
    # Few of the large ones fit into the time: their own median says more than their number.
    large = median(lambda: load(node.address, *wide, str(WIDE), "--in-flight", "1", "--seconds", str(SECONDS))["p50_us"])
    record(
        "plan_wide",
        large / WIDE,
        "us",
        baseline=1e6 / (few * NARROW),
        wanted=f"a step of {WIDE}: must 1.2 x one of {NARROW}",
        command=f"{tool} --wide {WIDE} --parallel 64 --in-flight 1, against --wide {NARROW} --in-flight 6",
    )


def journaled(file: Path) -> None:
    """Every native task left the row of its call and its whole list of events."""
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as db:
        incomplete = db.execute(
            "SELECT count(*) FROM (SELECT id FROM task WHERE state = 4 ORDER BY id DESC LIMIT 2000) t WHERE"
            " (SELECT count(*) FROM event e WHERE e.task_id = t.id) <> (SELECT sequence FROM task WHERE id = t.id)"
        ).fetchone()[0]
        calls = db.execute("SELECT count(*) FROM journal WHERE answer IS NOT NULL").fetchone()[0]
        trivial = db.execute(
            "SELECT count(*) FROM task t WHERE NOT EXISTS (SELECT 1 FROM journal j WHERE j.task_id = t.id)"
        ).fetchone()[0]
        tasks = db.execute("SELECT count(*) FROM task WHERE state = 4").fetchone()[0]
    assert incomplete == 0, f"{incomplete} tasks lack events"
    assert calls >= tasks - trivial > 0, f"{calls} calls of {tasks} tasks"


def on_postgres() -> None:
    """The same on a server, with what its own disk costs."""
    try:
        server = Postgres()
    except NoPostgres as missing:
        print(f"not measured on PostgreSQL: {missing}")
        return
    with server, LocalNode(CONFIG, environment={"SINGULARITY_STORE_URL": server.database("bench")}) as node:
        options = ("--durable", "--agent", "echo")
        many = median(lambda: load(node.address, *options, "--in-flight", "64", "--seconds", str(SECONDS))["per_second"])
        record("durable_native_postgres", many, "/s")
        alone = median(lambda: load(node.address, *options, "--in-flight", "1", "--seconds", "3")["p50_us"] / 1000)
        record("durable_latency_c1_postgres", alone, "ms")
        record("fsync_postgres", fsync_ms(server.folder), "ms", wanted="in the server's folder")


def recovery() -> None:
    """From the start of a node on what a killed one left: 100,000 running attempts."""
    with tempfile.TemporaryDirectory(prefix="sgy-bench-") as name:
        folder = Path(name)
        (folder / "data").mkdir()
        made = subprocess.run(
            [str(TOOL), "backlog", "--file", str(folder / "data" / "singularity.db"), "--tasks", "100000"],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        last = json.loads(made.stdout)["last"]
        address = f"127.0.0.1:{free_port()}"
        (folder / "singularity.toml").write_text(f'[server]\naddress = "{address}"\n{CONFIG}')
        environment = {
            **os.environ, "SINGULARITY_CONFIG": str(folder / "singularity.toml"), "SINGULARITY_DATA_DIR": str(folder / "data"),
            "SINGULARITY_STATE_DIR": str(folder / "state"), "SINGULARITY_DIST_PORT": str(free_port()), "SINGULARITY_HTTP_ADDRESS": "off",
        }  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(program(), env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            while not serving(Target(address)):
                time.sleep(0.01)
            served = time.perf_counter()
            with Client(address) as client:
                while not client.list("state=SUCCEEDED", order_by="create_time asc", limit=1):
                    time.sleep(0.01)
                record("recovery_first_runs", time.perf_counter() - served, "s", wanted="must 1 s")
                while client.get(last).state == "RUNNING" and client.get(last).attempts == 1:
                    time.sleep(0.05)
                record("recovery_100k", time.perf_counter() - served, "s", wanted="all closed and QUEUED: must 20 s, aim 10 s")
        finally:
            process.terminate()
            process.wait(120)


def parked() -> None:
    """Tasks that wait for their time are rows: memory and disk of many of them."""
    tasks = int(os.environ.get("SINGULARITY_BENCH_PARKED", "1000000"))
    with LocalNode(CONFIG) as node:
        beam, database = beam_below(node), node.log.parent / "data" / "singularity.db"
        before = rss_mib(beam)
        done = subprocess.run(
            [str(TOOL), "park", "--address", node.address, "--tasks", str(tasks)],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        record("park_rate", json.loads(done.stdout)["per_second"], "/s")
        time.sleep(2)
        record("parked_million", rss_mib(beam) - before, "MiB", wanted=f"{tasks} parked; must 200 MiB for a million")
        record("parked_disk", database.stat().st_size / tasks / 1024, "KiB", wanted="of each in the database: must 1 KiB")
        wakes(node)
        due_at_once(node)


def wakes(node: LocalNode) -> None:
    """Beside all of these, tasks that wait for an approval are woken in random order: from the call to the start of the next attempt."""
    with Client(node.address, timeout="120s") as client, ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(lambda n: client.submit(f"bill {n}", agent="pay").id, range(WAKES)))
        while any(state != "WAITING" for state in pool.map(lambda i: client.get(i).state, ids)):
            time.sleep(0.1)
        random.Random(7).shuffle(ids)
        signalled = []
        for task in ids:
            signalled.append(time.time())
            client.signal(task, approve=True)
        assert all(task.state == "SUCCEEDED" for task in pool.map(client.wait, ids))
        attempts = pool.map(lambda i: list(client.attempts(i)), ids)
        starts = [second.start_time.timestamp() for _, second in attempts if second.start_time is not None]
    late = sorted((start - at) * 1000 for start, at in zip(starts, signalled, strict=True))
    record("wake_p50", statistics.median(late), "ms", wanted=f"{WAKES} random ones, one by one")
    record("wake_p99", late[len(late) * 99 // 100], "ms", wanted="signal to RUNNING: must 10 ms")


def due_at_once(node: LocalNode) -> None:
    """Submits while many parked tasks come due in the same second."""
    options = ("--durable", "--agent", "echo", "--in-flight", "1", "--seconds", "6")
    alone = load(node.address, *options)["p99_us"] / 1000
    subprocess.run(
        [str(TOOL), "park", "--address", node.address, "--tasks", "10000", "--in-seconds", "3"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    among = load(node.address, *options)
    record("submit_among_due_p99", among["p99_us"] / 1000, "ms", baseline=alone, wanted="10,000 due at once; baseline: alone")
    record("submit_among_due_p50", among["p50_us"] / 1000, "ms")


def rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def beam_below(node: LocalNode) -> int:
    """The node's virtual machine: the listener on its port."""
    port = int(node.address.rsplit(":", 1)[1])
    found = subprocess.run(["ss", "-ltnpH", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return int(found.split("pid=")[1].split(",")[0])


def idle(node: LocalNode) -> None:
    record("idle_rss", rss_mib(beam_below(node)), "MiB", wanted="beam.smp: must 150 MiB, aim 100 MiB")


def route_decision() -> None:
    """Who runs a task, of 20 executors with a history: header in, route out. The release's own beams, in a virtual machine of their own."""
    release = ROOT / "_build" / "prod" / "rel" / "singularityd"
    runs = []
    for _ in range(RUNS):
        done = subprocess.run(
            ["escript", str(ROOT / "scripts" / "bench_route.escript"), str(release)],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        runs.append(json.loads(done.stdout)["p50_us"])
    record("route_decision", statistics.median(runs), "us", wanted="of 20 executors, median: must 20, aim 5")


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}; medians of {RUNS} runs")
    with LocalNode(CONFIG) as node:
        with Client(node.address) as client:
            client.execute("warm", agent="echo")
        time.sleep(2)
        idle(node)
        grpc(node)
        workers(node)
        repeated(node)
        losses(node)
        durable(node)
        plans(node)
        langchain(node)
    bench_providers.measure(record, OUT)
    route_decision()
    respawn()
    on_postgres()
    recovery()
    parked()
    (OUT / "results.json").write_text(json.dumps(results, indent=1))
    print(f"written to {OUT.relative_to(ROOT) / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
