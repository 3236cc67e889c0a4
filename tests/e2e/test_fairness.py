"""Two tenants on one node: one that sends a hundred times as much makes the other one wait hardly longer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import KillableNode, eventually

from singularity_agents import Client

#: One slot and 20 ms for a task: what waits for a slot waits for others.
MODEL = "echo?latency=20ms"
OPTIONS: dict[str, Any] = {"framework": "native", "model": MODEL}
TASKS = 100
#: Beside the time for a task, what a busy machine adds to both figures, in seconds.
NOISE_S = 0.03


@contextmanager
def load(address: str, key: str, in_flight: int) -> Iterator[None]:
    """So many tasks of a tenant, all the time."""
    done = threading.Event()

    def work() -> None:
        with Client(address, api_key=key, timeout="60s") as client:
            waiting: list[str] = []
            while not done.is_set():
                while len(waiting) < in_flight // 2:
                    waiting.append(client.submit("loud", **OPTIONS).id)
                client.wait(waiting.pop(0), timeout="30s")

    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(work) for _ in range(2)]
        try:
            yield
        finally:
            done.set()
            for one in loads:
                one.result(timeout=60)


def p99_of_start_delay(client: Client) -> float:
    """Of tasks sent one after the other, in seconds."""
    delays = []
    for n in range(TASKS):
        task = client.wait(client.submit(f"quiet {n}", **OPTIONS).id)
        assert task.state == "SUCCEEDED" and task.start_time and task.create_time
        delays.append((task.start_time - task.create_time).total_seconds())
    return sorted(delays)[len(delays) * 99 // 100 - 1]


@pytest.mark.timeout(180)
def test_a_tenant_that_sends_a_hundred_times_as_much_does_not_double_the_wait_of_another(
    killable: Callable[..., KillableNode], tmp_path: Path
) -> None:
    tenants = ""
    for name in ("quiet", "loud"):
        key = tmp_path / f"{name}.key"
        key.write_text(f"the-key-of-the-tenant-{name}\n")
        tenants += f'[tenants.{name}]\nkeys = [{{ file = "{key}" }}]\n'
    node = killable(f"[agent_execution]\nmax_running = 1\n{tenants}")
    loud, quiet = (f"the-key-of-the-tenant-{name}" for name in ("loud", "quiet"))
    with Client(node.address, api_key=quiet, timeout="60s") as client:
        with load(node.address, loud, 2):
            fair = p99_of_start_delay(client)
        with load(node.address, loud, 200), Client(node.address, api_key=loud) as other:
            eventually(lambda: len(other.list("state=QUEUED", limit=200)) > 100)
            loaded = p99_of_start_delay(client)
        assert not [t for t in client.list(limit=500) if t.spec["description"] == "loud"]
    assert loaded <= 2 * fair + NOISE_S, (loaded, fair)
