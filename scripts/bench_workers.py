"""Workers as the benchmarks need them: a zygote beside no node, a fresh worker with its socket, a worker that is lost in a step."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from singularity_agents import Client

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "guard")]

import harness  # noqa: E402


@contextlib.contextmanager
def zygote(environment: str, folder: Path) -> Iterator[list[str]]:
    """A zygote of an environment, as the node starts one; gives the variables of its workers."""
    variables = ["--env", f"PYTHONPATH={ROOT / 'python_workers' / 'src'}", "--env", "PATH=/usr/bin:/bin"]
    port = harness.Port(
        "run", *variables, "--", ROOT / "_build" / "venvs" / environment / "bin" / "python", "-P", "-m",
        "singularity_agents.worker.zygote", "--socket", folder / "z", "--framework", environment,
    )  # fmt: skip
    try:
        port.until("ready", 60)
        yield variables
    finally:
        port.close()
        port.wait()


@contextlib.contextmanager
def fresh_worker(folder: Path, number: int, variables: list[str]) -> Iterator[tuple[socket.socket, float]]:
    """A worker just forked by the zygote of that folder: its socket, and when its guard was started."""
    work = folder / f"w{number}"
    work.mkdir(mode=0o700)
    read = [p for place in (ROOT, sys.base_prefix) for p in ("--allow-read", str(place))]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / f"d{number}"))
        listener.listen(1)
        began = time.perf_counter()
        guard = harness.Port(
            "worker", "--data", folder / f"d{number}", "--zygote", folder / "z", "--worker-id", f"w{number}", "--mode", "auto",
            "--dir", work, *variables, *read, "--allow-write", work,
        )  # fmt: skip
        data, _ = listener.accept()
    with data:
        yield data, began
    guard.close()
    guard.wait()


def lost(client: Client, how: signal.Signals, text: str, **options: Any) -> float:
    """Ms from the loss of a worker in a step until the step runs again in another one."""
    task = client.submit(text, **options).id
    while not (first := client.get(task).worker_pid):
        time.sleep(0.005)
    began = time.perf_counter()
    os.kill(first, how)
    while (second := client.get(task).worker_pid) in (0, first):
        time.sleep(0.001)
    took = (time.perf_counter() - began) * 1000
    client.cancel(task, grace="0s")
    assert second != first
    return took
