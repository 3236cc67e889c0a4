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
from conftest import CountingModel, KillableNode, eventually, make_certificates, openai_provider
from postgres_server import Postgres

from singularity_agents import Client, SingularityError
from singularity_agents._local_node import free_port, program

#: Seconds for which the server is away; longer than the store waits for one answer.
#: Longer than it takes until no model is asked any more: 8 s.
GATE_CLOSED_S = 9.0
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


@pytest.mark.timeout(180)
def test_what_was_paid_for_while_the_server_was_away_outlives_the_node(
    node: KillableNode, counting: CountingModel, postgres: Postgres
) -> None:
    submitted = threading.Event()
    counting.on_first["paid"] = lambda: (submitted.wait(30), postgres.signal(signal.SIGSTOP))
    with Client(node.address, max_retries=0, timeout="60s") as client:
        task = client.submit("paid", agent_type="assistant", framework="native", model="counted")
        submitted.set()
        spool = node.folder / "data" / "spool"
        eventually(lambda: spool.exists() and spool.stat().st_size > 0, within_s=30)
    node.kill()
    postgres.signal(signal.SIGCONT)
    node.start()
    with Client(node.address, timeout="60s") as client:
        found = eventually(lambda: client.get(task.id) if client.get(task.id).state == "SUCCEEDED" else None)
        assert (found.result.output, found.attempts) == ("paid", 1), "its end was recorded too"
    assert counting.counts["paid"] == 1
    eventually(lambda: not spool.exists())


@pytest.mark.timeout(180)
def test_no_model_is_asked_while_the_server_has_been_away_for_long(
    node: KillableNode, counting: CountingModel, postgres: Postgres, tmp_path: Path
) -> None:
    with Client(node.address, max_retries=0, timeout="60s") as client:
        later = client.submit(str(tmp_path / "now"), agent_type="asks_later", model="counted")
        eventually(lambda: client.get(later.id).state == "RUNNING")
        postgres.signal(signal.SIGSTOP)
        with pytest.raises(SingularityError):
            client.submit("finds that the server is away", framework="native", model="counted", timeout="1s")
        time.sleep(GATE_CLOSED_S)  # How long it is away is what is tested.
        (tmp_path / "now").touch()
        time.sleep(1)
        assert counting.counts["late"] == 0
        postgres.signal(signal.SIGCONT)
        assert eventually(lambda: client.get(later.id).state == "SUCCEEDED", within_s=60)
        assert counting.counts["late"] == 1


def test_the_server_proves_who_it_is(killable: Callable[..., KillableNode], postgres: Postgres, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    postgres.database("tasks")
    postgres.stop()
    port = free_port()
    postgres.start_with_tls(port, tmp_path / "cert.pem", tmp_path / "key.pem")
    host = (tmp_path / "host").read_text()
    url = f"postgres://singularity@{host}:{port}/tasks?hostaddr=127.0.0.1"
    trusting = killable(f'[store]\nca = "{tmp_path / "ca.pem"}"\n', SINGULARITY_STORE_URL=url)
    with Client(trusting.address) as client:
        assert client.execute("hello", framework="native", model="echo").output
    trusting.stop()
    wary = killable(starts=False, SINGULARITY_STORE_URL=url)
    wary.start_in_vain()
    assert "UnknownIssuer" in wary.log()


def test_a_second_node_is_refused_and_the_first_goes_on(node: KillableNode, tmp_path: Path, url: str) -> None:
    second = {
        **os.environ,
        "SINGULARITY_CONFIG": str(node.folder / "singularity.toml"),
        "SINGULARITY_STORE_URL": url,
        "SINGULARITY_DATA_DIR": str(tmp_path / "second"),
        "SINGULARITY_STATE_DIR": str(tmp_path / "second-state"),
        "SINGULARITY_ADDRESS": "127.0.0.1:0",
        "SINGULARITY_HTTP_ADDRESS": "off",
        "SINGULARITY_DIST_PORT": str(free_port()),
    }
    ended = subprocess.run(program(), env=second, capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode != 0
    assert "in use by another node" in ended.stdout + ended.stderr
    with Client(node.address) as client:
        assert client.execute("still here?", framework="native", model="counted").output == "still here?"
