"""Faults that do not stop: workers that die all the time, and ten times more work than the node can do."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, KillableNode, eventually

from singularity_agents import Client

LONG = bool(os.environ.get("SINGULARITY_LONG_TESTS"))
TASKS, KILL_EVERY_S = (10_000, 2.0) if LONG else (400, 0.3)
OVERLOAD_S = 60 if LONG else 6
#: Of the best rate; a short run on a shared machine is noisier.
GOODPUT = 0.9 if LONG else 0.6
TOOL = ROOT / "_build" / "rust" / "release" / "agent_bench"


@pytest.mark.timeout(1500 if LONG else 240)
def test_workers_that_die_all_the_time_cost_no_task(killable: Callable[..., KillableNode]) -> None:
    node = killable()
    done = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        chance = random.Random(7)
        with Client(node.address) as client:
            while not done.wait(KILL_EVERY_S):
                pids = [w.host_pid for f in client.frameworks.list() for w in f.workers if w.host_pid]
                if pids:
                    killed.append(chance.choice(pids))
                    # It may have been recycled since.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    with Client(node.address, timeout="120s") as client:
        killer.start()
        try:
            model = "echo?latency=20ms"
            with ThreadPoolExecutor(8) as pool:
                ids: list[str] = []
                while len(ids) < TASKS or len(killed) < 4:
                    ids += pool.map(lambda n: client.submit(f"task {n}", agent_type="shout", model=model).id, range(100))
                states = Counter(pool.map(lambda i: client.wait(i).state, ids))
        finally:
            done.set()
            killer.join()
        assert states == {"SUCCEEDED": len(ids)}
        attempts = Counter(client.get(i).attempts for i in random.Random(8).sample(ids, 100))
        assert set(attempts) <= {1, 2, 3, 4}


@pytest.mark.timeout(120)
def test_what_is_urgent_goes_first_and_what_is_not_is_not_starved(killable: Callable[..., KillableNode]) -> None:
    node = killable("[agent_execution]\nmax_running = 2\n")
    options: dict[str, Any] = {"agent_type": "assistant", "framework": "native", "model": "echo?latency=20ms"}
    with Client(node.address, timeout="60s") as client, ThreadPoolExecutor(8) as pool:

        def end(task_id: str) -> float:
            task = client.wait(task_id)
            assert task.state == "SUCCEEDED" and task.end_time is not None
            return task.end_time.timestamp()

        # A second and a half of work waits before the urgent part comes.
        idle = [client.submit(f"idle {n}", priority=0, **options).id for n in range(150)]
        urgent = [client.submit(f"urgent {n}", priority=9, **options).id for n in range(20)]
        ends = sorted(pool.map(end, idle))
        assert max(pool.map(end, urgent)) < ends[len(ends) * 2 // 3], "twenty urgent tasks passed most of the idle ones"

        # Urgent work that never stops leaves something for the others.
        done = threading.Event()

        def urge() -> None:
            while not done.is_set():
                client.execute("urgent", priority=9, **options)

        for _ in range(8):
            pool.submit(urge)
        try:
            assert client.wait(client.submit("patient", priority=0, **options).id, timeout="40s").state == "SUCCEEDED"
        finally:
            done.set()


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.timeout(300)
def test_ten_times_too_much_work_is_refused_and_what_is_taken_is_done(killable: Callable[..., KillableNode]) -> None:
    """Four tasks of 20 ms at once are 200 a second."""
    node = killable("[agent_execution]\nmax_running = 4\nmax_queued = 100\n")

    def load(in_flight: int, seconds: int) -> dict[str, float]:
        done = subprocess.run(
            [
                str(TOOL), "load", "--address", node.address, "--durable", "--framework", "native", "--model", "echo?latency=20ms",
                "--in-flight", str(in_flight), "--seconds", str(seconds),
            ],
            capture_output=True, text=True, check=True, timeout=200,
        )  # fmt: skip
        answer: dict[str, float] = json.loads(done.stdout)
        return answer

    best = load(8, 4)["per_second"]
    before = resident_mib(node.virtual_machine())
    # A hundred wait in the queue; the others are refused and come again after 5 ms.
    much = load(115, OVERLOAD_S)
    offered = much["per_second"] + much["failed"] / OVERLOAD_S
    assert offered > 5 * best, "the client was too slow to be too much"
    assert much["per_second"] >= GOODPUT * best, (much, best)
    assert resident_mib(node.virtual_machine()) - before < 150
    with Client(node.address, timeout="30s") as client:
        eventually(lambda: not client.list("state=QUEUED", limit=1) and not client.list("state=RUNNING", limit=1))
        assert client.execute("normal again", framework="native").output == "normal again"
