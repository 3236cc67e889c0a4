"""The node on PostgreSQL: the server is stopped, paused and cut off under load, the node is killed, and a second one is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import CountingModel, KillableNode, eventually, openai_provider
from postgres_server import Postgres

from singularity_agents import Client, SingularityError
from singularity_agents._local_node import free_port, program

#: Seconds for which the server is away; longer than the store waits for one answer.
AWAY_S = 40.0 if os.environ.get("SINGULARITY_LONG_TESTS") else 7.0


class Load:
    """Submits tasks one after the other on some threads until told to stop; remembers what was acknowledged and refused."""

    def __init__(self, address: str, threads: int = 4) -> None:
        self.acknowledged: list[str] = []
        self.refused: list[SingularityError] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(address, n)) for n in range(threads)]

    def _run(self, address: str, thread: int) -> None:
        with Client(address, max_retries=0, timeout="60s") as client:
            number = 0
            while not self._stop.is_set():
                try:
                    task = client.submit(
                        f"thread {thread} task {number}", agent_type="assistant", framework="native", model="counted"
                    )
                    self.acknowledged.append(task.id)
                except SingularityError as refused:
                    self.refused.append(refused)
                    time.sleep(0.05)
                number += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.database("tasks")


@pytest.fixture
def node(killable: Callable[..., KillableNode], counting: CountingModel, url: str) -> KillableNode:
    return killable(openai_provider("counting", counting.model.base_url, "counted"), SINGULARITY_STORE_URL=url)


def all_ended(client: Client, ids: list[str]) -> bool:
    return all(client.get(task).state == "SUCCEEDED" for task in ids)


def stopped(server: Postgres) -> Iterator[None]:
    server.stop()
    yield
    server.start()


def crashed(server: Postgres) -> Iterator[None]:
    server.stop(fast=False)
    yield
    server.start()


def paused(server: Postgres) -> Iterator[None]:
    server.signal(signal.SIGSTOP)
    yield
    server.signal(signal.SIGCONT)


def cut(server: Postgres) -> Iterator[None]:
    server.cut_connections()
    yield
    server.cut_connections()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [stopped, crashed, paused, cut])
def test_nothing_is_lost_and_nothing_paid_twice_while_the_server_is_away(
    node: KillableNode, counting: CountingModel, postgres: Postgres, fault: Callable[[Postgres], Iterator[None]]
) -> None:
    virtual_machine = node.virtual_machine()
    with Client(node.address, max_retries=0, timeout="60s") as client:
        with Load(node.address) as load:
            eventually(lambda: len(load.acknowledged) > 20)
            for _ in fault(postgres):
                time.sleep(AWAY_S if fault is not cut else 0.5)
            before = len(load.acknowledged)
            eventually(lambda: len(load.acknowledged) > before + 20, within_s=60)
        eventually(lambda: all_ended(client, load.acknowledged), within_s=60)
        assert node.virtual_machine() == virtual_machine, "the node did not start again"
        # Whoever was refused was told to come back, or to send the same again.
        patient = [e for e in load.refused if e.retry_after is None]
        assert {e.reason for e in patient} <= {"COMMIT_AMBIGUOUS", "DEADLINE_EXCEEDED"}, patient
        asked = {text: n for text, n in counting.counts.items() if n > 1}
        assert not asked, f"answers were paid for more than once: {asked}"


@pytest.mark.timeout(180)
def test_a_killed_node_goes_on_where_it_was(node: KillableNode, counting: CountingModel) -> None:
    submitted = threading.Event()
    counting.on_first["last words"] = lambda: (submitted.wait(30), node.kill())
    with Client(node.address, max_retries=0, timeout="60s") as client:
        done = client.execute("first", framework="native", model="counted")
        task = client.submit("last words", framework="native", model="counted")
        submitted.set()
    eventually(lambda: not node.running())
    node.start()
    with Client(node.address, timeout="60s") as client:
        assert client.get(done.task_id).state == "SUCCEEDED"
        assert eventually(lambda: client.get(task.id) if client.get(task.id).state == "SUCCEEDED" else None).attempts == 2


def test_a_second_node_is_refused_and_the_first_goes_on(node: KillableNode, tmp_path: Path, url: str) -> None:
    second = {
        **os.environ,
        "SINGULARITY_CONFIG": str(node.folder / "singularity.toml"),
        "SINGULARITY_STORE_URL": url,
        "SINGULARITY_DATA_DIR": str(tmp_path / "second"),
        "SINGULARITY_STATE_DIR": str(tmp_path / "second-state"),
        "SINGULARITY_ADDRESS": "127.0.0.1:0",
        "SINGULARITY_DIST_PORT": str(free_port()),
    }
    ended = subprocess.run(program(), env=second, capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode != 0
    assert "in use by another node" in ended.stdout + ended.stderr
    with Client(node.address) as client:
        assert client.execute("still here?", framework="native", model="counted").output == "still here?"
