"""`make bench`: a table, and `_build/bench/results.json`.

Every figure has its baseline measured in the same run, in turn with it; medians of several runs. The client runs on the same cores.
Noise on shared machines is large: read ratios first, absolutes second.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from singularity_agents import Client
from singularity_agents._local_node import LocalNode, free_port

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "_build" / "bench"
TOOL = ROOT / "_build" / "rust" / "release" / "agent_bench"
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "guard")]

import demo  # noqa: E402
import harness  # noqa: E402

RUNS = 3
SECONDS = 4
#: LangChain tasks in a block, and pairs of blocks.
BLOCK, PAIRS = 500, 5

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
[agents.trivial]
framework = "custom:bench"
project = "{ROOT}/examples/hello"
entrypoint = "agents:shout"
[agents.loop]
framework = "custom:bench"
project = "{ROOT}/examples/demo"
entrypoint = "agents:loop"
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
    done = subprocess.run(
        [str(TOOL), "cancel", "--address", node.address, "--agent", "loop", "--runs", "100"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    cancel = json.loads(done.stdout)
    assert cancel["unproved"] == 0, f"{cancel['unproved']} cancels without proof"
    record("cancel_now_p50", cancel["p50_ms"], "ms")
    record("cancel_now", cancel["p99_ms"], "ms", wanted="p99: must 50 ms, aim 15 ms")


def respawn() -> None:
    """From the start of a guard to the first frame of a freshly forked worker."""
    python = ROOT / "_build" / "venvs" / "custom" / "bin" / "python"
    source = ROOT / "python_workers" / "src"
    with tempfile.TemporaryDirectory(prefix="sgy-") as name:
        folder = Path(name)
        environment = ["--env", f"PYTHONPATH={source}", "--env", "PATH=/usr/bin:/bin"]
        zygote = harness.Port(
            "run",
            *environment,
            "--",
            python,
            "-P",
            "-m",
            "singularity_agents.worker.zygote",
            "--socket",
            folder / "z",
            "--framework",
            "custom",
        )
        zygote.until("ready")
        times = [first_frame(folder, i, environment) for i in range(100)]
        zygote.close()
        zygote.wait()
    times.sort()
    record("worker_respawn_p50", times[49], "ms")
    record("worker_respawn", times[98], "ms", wanted="p99: must 50 ms, aim 20 ms")


def first_frame(folder: Path, number: int, environment: list[str]) -> float:
    import socket

    work = folder / f"w{number}"
    work.mkdir(mode=0o700)
    read = [p for place in (ROOT, sys.base_prefix) for p in ("--allow-read", str(place))]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / f"d{number}"))
        listener.listen(1)
        began = time.perf_counter()
        guard = harness.Port(
            "worker", "--data", folder / f"d{number}", "--zygote", folder / "z", "--worker-id", f"w{number}", "--mode", "auto",
            "--dir", work, *environment, *read, "--allow-write", work,
        )  # fmt: skip
        data, _ = listener.accept()
    with data:
        assert len(data.recv(65536)) > 28
        took = (time.perf_counter() - began) * 1000
    guard.close()
    guard.wait()
    return took


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


def beam_below(node: LocalNode) -> int:
    """The node's virtual machine: the listener on its port."""
    port = int(node.address.rsplit(":", 1)[1])
    found = subprocess.run(["ss", "-ltnpH", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return int(found.split("pid=")[1].split(",")[0])


def idle(node: LocalNode) -> None:
    beam = beam_below(node)
    kib = int(next(line for line in Path(f"/proc/{beam}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])
    record("idle_rss", kib / 1024, "MiB", wanted="beam.smp: must 150 MiB, aim 100 MiB")


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
        langchain(node)
    respawn()
    (OUT / "results.json").write_text(json.dumps(results, indent=1))
    print(f"written to {OUT.relative_to(ROOT) / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
