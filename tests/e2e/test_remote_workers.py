"""Workers that attach over gRPC: they run tasks, and whatever is killed, cut or wrong costs no task and no other worker."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import eventually

from singularity_agents import Client, SingularityError
from singularity_agents._local_node import LocalNode
from singularity_agents._proto.singularity.agents.v1 import worker_service_pb2 as attach
from singularity_agents._proto.singularity.worker.v1 import worker_pb2
from singularity_agents.worker import _frames as f

HERE = Path(__file__).resolve().parent
KEY = "a-key-that-may-attach-workers"
METHOD = "/singularity.agents.v1.WorkerService/Attach"
AGENTS = ("shout", "loop", "count")


class Cable:
    """A TCP connection between two, which can be cut, or left lying silent."""

    def __init__(self, address: str) -> None:
        self._to = address.rpartition(":")[0], int(address.rpartition(":")[2])
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._silent = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listening.accept()
                pair = (ours, socket.create_connection(self._to))
                self._pairs.append(pair)
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                for ready in select.select([one, other], [], [], 0.1)[0]:
                    if self._silent.is_set():
                        self._silent.wait(0.01)
                        continue
                    data = ready.recv(65536)
                    if not data:
                        return
                    (other if ready is one else one).sendall(data)

    def cut(self) -> None:
        """Every connection ends at once; new ones are taken."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def silence(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._silent.set()

    def close(self) -> None:
        """Ends it."""
        self._listening.close()
        self.cut()


class Machine:
    """`singularity worker`, as on another machine."""

    def __init__(self, address: str, key: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "singularity_agents.cli", "worker", "--address", address, "--framework", "custom:e2e",
             "--key-file", str(key), "--project", str(HERE), *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def stop(self) -> str:
        """Interrupts it; gives what it said."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.communicate(timeout=20)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "worker.key"
    file.write_text(KEY + "\n")
    return file


@pytest.fixture(scope="module")
def node(key: Path) -> Iterator[LocalNode]:
    agents = "".join(
        f'[agents.{name}]\nframework = "custom:e2e"\nproject = "{HERE}"\nentrypoint = "e2e_agents:{name}"\n' for name in AGENTS
    )
    config = f'[providers.echo]\ndialect = "echo"\n[workers]\nremote_keys = [{{ file = "{key}" }}]\n{agents}'
    with LocalNode(config) as node:
        yield node


@pytest.fixture
def client(node: LocalNode) -> Iterator[Client]:
    with Client(node.address) as client:
        # An idle worker beside the node would be taken before anything that is offered.
        client.frameworks.restart("custom:e2e")
        eventually(lambda: not [w for framework in client.frameworks.list() for w in framework.workers])
        yield client


@pytest.fixture
def cable(node: LocalNode) -> Iterator[Cable]:
    made = Cable(node.address)
    yield made
    made.close()


def workers(client: Client, state: str = "") -> list[Any]:
    """Workers of other machines in the node's view."""
    found = [w for framework in client.frameworks.list() for w in framework.workers if w.host]
    return [w for w in found if not state or w.state == state]


@pytest.fixture
def machine(client: Client, cable: Cable, key: Path) -> Iterator[Machine]:
    """One worker behind the cable, offered to the node."""
    made = Machine(cable.address, key)
    try:
        eventually(lambda: workers(client, "offered") or made.process.poll() is not None, 30)
        assert made.process.poll() is None, made.process.communicate()[0]
        yield made
    finally:
        made.stop()
        eventually(lambda: not workers(client))


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def running(client: Client, agent: str) -> tuple[str, int]:
    """A task that runs on the other machine's worker, and the worker's pid."""
    task = client.submit("x", agent=agent).id
    pid = eventually(lambda: client.get(task).worker_pid)
    assert pid in [w.host_pid for w in workers(client)]
    return task, pid


def test_runs_a_task_and_shows_in_the_views(client: Client, machine: Machine) -> None:
    result = client.execute("hello", agent="shout", timeout="60s")
    assert result.output == "HELLO"
    (worker,) = workers(client)
    assert worker.agent_id == "shout" and worker.host and worker.host_pid > 0
    (attempt,) = client.attempts(result.task_id)
    assert (attempt.worker, attempt.host_pid) == (worker.name, worker.host_pid)
    # The same process again: it belongs to the agent now.
    assert client.execute("again", agent="shout", timeout="60s").output == "AGAIN"
    assert [w.host_pid for w in workers(client)] == [worker.host_pid]


def test_a_killed_worker_costs_no_task(client: Client, machine: Machine) -> None:
    task, pid = running(client, "count")
    os.kill(pid, signal.SIGKILL)
    assert client.wait(task, timeout="60s").state == "SUCCEEDED"
    first, second = client.attempts(task)
    assert (first.outcome, first.cause) == ("lost", "WORKER_CRASHED")
    assert second.fence > first.fence and second.host_pid != pid


def test_a_cut_connection_is_fenced_and_retried(client: Client, machine: Machine, cable: Cable) -> None:
    task, pid = running(client, "count")
    cable.cut()
    assert client.wait(task, timeout="60s").state == "SUCCEEDED"
    first, second = client.attempts(task)
    assert first.outcome == "lost" and second.fence > first.fence and second.host_pid != pid
    # The other side's own guard took it down.
    eventually(lambda: not alive(pid))
    # Whoever was cut off attaches again.
    eventually(lambda: workers(client))


def test_a_cancel_has_the_proof_of_the_other_machines_guard(client: Client, machine: Machine) -> None:
    task, pid = running(client, "loop")
    proof = client.cancel(task, grace="0s").proof
    assert proof.confirmed_dead and proof.witness.endswith(("NAMESPACE", "DESCENDANTS"))
    assert proof.host_pid == pid and not alive(pid)


def test_a_cancel_over_a_silent_line_is_unconfirmed(client: Client, machine: Machine, cable: Cable) -> None:
    task, pid = running(client, "loop")
    cable.silence()
    answer = client.cancel(task, grace="0s")
    assert answer.task.state == "CANCELLED"
    assert not answer.proof.confirmed_dead and answer.proof.witness.endswith("UNCONFIRMED")
    # The machine hears nothing either, and its guard ends what it cannot report.
    eventually(lambda: not alive(pid), 30)


def test_a_silent_line_costs_no_task(client: Client, machine: Machine, cable: Cable) -> None:
    task, pid = running(client, "loop")
    began = time.monotonic()
    cable.silence()
    second = eventually(lambda: (now := client.get(task).worker_pid) not in (0, pid) and now)
    assert time.monotonic() - began < 10
    assert next(iter(client.attempts(task))).outcome == "lost"
    client.cancel(task, grace="0s")
    eventually(lambda: not alive(second))
    eventually(lambda: not alive(pid), 30)


def test_the_end_of_the_machine_ends_its_workers(client: Client, cable: Cable, key: Path) -> None:
    made = Machine(cable.address, key, "--count", "2")
    eventually(lambda: len(workers(client, "offered")) == 2, 30)
    task, pid = running(client, "count")
    made.process.kill()
    made.process.communicate(timeout=20)
    eventually(lambda: not alive(pid))
    assert client.wait(task, timeout="60s").state == "SUCCEEDED"
    eventually(lambda: not workers(client))


@pytest.mark.parametrize("wrong", ["a-key-that-nobody-has-given-out", ""])
def test_a_wrong_key_is_refused(node: LocalNode, tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "key"
    file.write_text(wrong)
    made = Machine(node.address, file)
    said, _ = made.process.communicate(timeout=60)
    assert made.process.returncode == 4
    assert ("KEY_UNKNOWN" if wrong else "KEY_MISSING") in said and KEY not in said


def test_rights_are_apart(tmp_path: Path, key: Path) -> None:
    tenant = tmp_path / "acme.key"
    tenant.write_text("a-key-of-the-tenant-acme")
    config = f'[providers.echo]\ndialect = "echo"\n[workers]\nremote_keys = [{{ file = "{key}" }}]\n'
    with LocalNode(f'{config}[tenants.acme]\nkeys = [{{ file = "{tenant}" }}]\n') as node:
        made = Machine(node.address, tenant)
        said, _ = made.process.communicate(timeout=60)
        assert made.process.returncode == 4 and "KEY_UNKNOWN" in said
        with Client(node.address, api_key=KEY) as client, pytest.raises(SingularityError, match="not known"):
            client.list()


def test_where_no_key_may_nobody_attaches(tmp_path: Path, key: Path) -> None:
    with LocalNode('[providers.echo]\ndialect = "echo"\n') as node:
        made = Machine(node.address, key)
        said, _ = made.process.communicate(timeout=60)
        assert made.process.returncode == 4 and "remote_keys" in said


def attached(node: LocalNode, *frames: bytes) -> grpc.RpcError | None:
    """Attaches by hand, sends frames (without their length), and waits for the end of the call; gives its error."""
    stop = threading.Event()

    def requests() -> Iterator[attach.AttachRequest]:
        for frame in frames:
            yield attach.AttachRequest(frame=frame)
        stop.wait(20)

    with grpc.insecure_channel(node.address) as channel:
        call: Any = channel.stream_stream(
            METHOD,
            request_serializer=attach.AttachRequest.SerializeToString,
            response_deserializer=attach.AttachResponse.FromString,
        )(requests(), metadata=(("authorization", f"Bearer {KEY}"),), timeout=20)
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            return error
        finally:
            stop.set()
    return None


HELLO = f.encode(f.Type.HELLO, 0, 0, 0, 0, 0, worker_pb2.Hello(worker_id="w", framework="custom").SerializeToString())[4:]


@pytest.mark.parametrize(
    "frames",
    [
        (b"short",),
        (b"\x09" + HELLO[1:],),
        (HELLO, HELLO),
        (f.encode(f.Type.HELLO, 0, 0, 0, 0, 0, b"\xff\xff")[4:],),
        (HELLO, f.encode(f.Type.EXECUTE, 0, 0, 0, 0, 0, b"")[4:]),
    ],
    ids=["short", "version", "two hellos", "unreadable", "not the worker's"],
)
def test_a_wrong_frame_ends_the_call_and_nothing_else(client: Client, node: LocalNode, frames: tuple[bytes, ...]) -> None:
    began = time.monotonic()
    attached(node, *frames)
    assert time.monotonic() - began < 15
    eventually(lambda: not workers(client))
    assert client.execute("still here", agent="shout", timeout="60s").output == "STILL HERE"
