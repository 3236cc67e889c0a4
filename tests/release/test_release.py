"""The release `singularityd' as an operator meets it: start, ask, stop, and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RELEASE = Path(os.environ.get("SINGULARITY_RELEASE", ROOT / "_build" / "prod" / "rel" / "singularityd"))
PROGRAM = RELEASE / "bin" / "singularityd"
#: A node without work starts and stops well within this.
LIMIT_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Node:
    """One node in a folder of its own: its own ports, state, data and configuration (provider echo, no model)."""

    def __init__(self, folder: Path, program: Path = PROGRAM) -> None:
        self.folder = folder
        self.program = program
        self.state = folder / "state"
        self.grpc_port = free_port()
        self.config = folder / "node.toml"
        self.configure()
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "SINGULARITY_CONFIG": str(self.config),
            "SINGULARITY_DATA_DIR": str(folder / "data"),
            "SINGULARITY_STATE_DIR": str(self.state),
            "SINGULARITY_DIST_PORT": str(free_port()),
            "SINGULARITY_HTTP_ADDRESS": "off",
            "SINGULARITY_ENVS": str(ROOT / "_build" / "venvs"),
            "SECRET_OF_THE_OPERATOR": "do-not-show",
        }

    def configure(self, server: str = "") -> None:
        self.config.write_text(
            f'[server]\naddress = "127.0.0.1:{self.grpc_port}"\nhttp_address = "127.0.0.1:{free_port()}"\n{server}'
            '[providers.echo]\ndialect = "echo"\nmodels = ["echo"]\n'
            '[models.default]\nendpoints = [{ provider = "echo", name = "echo" }]\n'
        )

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        # Output goes to a file: a daemon would hold a pipe open.
        log = self.folder / "out"
        with log.open("w") as out:
            code = subprocess.run(
                [self.program, *args], env=self.environment, stdout=out, stderr=out, timeout=LIMIT_S + 30
            ).returncode
        return subprocess.CompletedProcess(args, code, log.read_text())

    def pid(self) -> int:
        return int((self.state / "run" / "pid").read_text())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    if made.run("ping").returncode == 0:
        made.run("stop")


def wait_until(condition, what: str) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_daemon_starts_answers_and_stops(node: Node) -> None:
    started = node.run("daemon")
    assert started.returncode == 0, started.stdout
    pid = node.pid()
    assert node.run("ping").stdout == "pong\n"
    assert node.run("eval", "1 + 1").stdout == "2\n"
    failed = node.run("eval", "1 = 2")
    assert failed.returncode == 1 and "badmatch" in failed.stdout
    again = node.run("daemon")
    assert again.returncode == 1 and "runs already" in again.stdout
    assert node.run("stop").returncode == 0
    assert not Path(f"/proc/{pid}").exists()
    assert "does not run" in node.run("ping").stdout


@pytest.fixture(scope="session")
def bare_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every program of this machine except those of Erlang."""
    folder = tmp_path_factory.mktemp("bin")
    erlang = re.compile(r"erl|escript|epmd|ct_run|typer|dialyzer|rebar|run_erl|to_erl|heart")
    programs = {p.name: p for place in ("/bin", "/usr/bin") for p in Path(place).iterdir() if p.is_file()}
    for name, program in programs.items():
        if not erlang.match(name):
            (folder / name).symlink_to(program)
    return folder


def test_the_tarball_runs_where_there_is_no_erlang_and_no_home(tmp_path: Path, bare_path: Path) -> None:
    made = subprocess.run([ROOT / "scripts" / "release", "--tar"], capture_output=True, text=True, check=True)
    place = tmp_path / "unpacked"
    place.mkdir()
    subprocess.run(["tar", "-xzf", made.stdout.split()[-1], "-C", place], check=True)
    (tmp_path / "node").mkdir()
    node = Node(tmp_path / "node", place / "bin" / "singularityd")
    del node.environment["HOME"]
    node.environment["PATH"] = str(bare_path)
    assert subprocess.run(["sh", "-c", "command -v erl"], env=node.environment, stdout=subprocess.DEVNULL).returncode != 0
    started = node.run("daemon")
    try:
        assert started.returncode == 0, started.stdout
        assert node.run("ping").stdout == "pong\n"
        root = node.run("eval", "code:root_dir()").stdout.strip().strip('"')
        assert root == str(place)
        maps = Path(f"/proc/{node.pid()}/maps").read_text()
        assert "/usr/lib/erlang" not in maps and str(place) in maps
    finally:
        stopped = node.run("stop")
    assert stopped.returncode == 0, stopped.stdout


def test_the_cookie_is_on_no_command_line_and_in_no_readable_file(node: Node) -> None:
    assert node.run("daemon").returncode == 0
    cookie_file = node.state / ".erlang.cookie"
    cookie = cookie_file.read_bytes()
    assert stat.S_IMODE(cookie_file.stat().st_mode) == 0o400
    assert len(cookie) >= 32
    assert cookie not in Path(f"/proc/{node.pid()}/cmdline").read_bytes()
    assert cookie not in Path(f"/proc/{node.pid()}/environ").read_bytes()
    for path in node.state.rglob("*"):
        assert path == cookie_file or path.is_dir() or cookie not in path.read_bytes(), path
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def listening(pid: int) -> list[str]:
    """Addresses on which a process listens, as the kernel writes them."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return [fields[1].split(":")[0] for fields in lines if fields[3] == "0A" and fields[9] in inodes]


def test_distribution_listens_on_loopback_alone(node: Node) -> None:
    assert node.run("daemon").returncode == 0
    # Distribution and gRPC; the daemon answers before it serves.
    wait_until(lambda: len(listening(node.pid())) >= 2, "the node does not serve")
    assert set(listening(node.pid())) == {"0100007F"}


def test_sigterm_stops_a_node_in_the_foreground(node: Node) -> None:
    with (node.folder / "node.log").open("w") as log:
        process = subprocess.Popen(
            [PROGRAM, "foreground"], env=node.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        wait_until(lambda: node.run("ping").returncode == 0, "the node did not start")
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()


def test_a_wrong_configuration_stops_the_start_and_names_the_key(node: Node) -> None:
    node.configure('addres = "x"\n')
    refused = node.run("foreground")
    assert refused.returncode == 1
    assert "addres" in refused.stdout and "nothing was started" in refused.stdout
    assert "do-not-show" not in refused.stdout


def test_an_address_off_loopback_needs_tls_and_keys(node: Node) -> None:
    node.config.write_text(node.config.read_text().replace(f"127.0.0.1:{node.grpc_port}", f"0.0.0.0:{node.grpc_port}"))
    refused = node.run("foreground")
    assert refused.returncode == 1
    assert "tls" in refused.stdout and "keys" in refused.stdout


def test_a_missing_library_is_named_before_anything_starts(node: Node, tmp_path: Path) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "ldd").write_text("#!/bin/sh\necho '\tlibcrypto.so.3 => not found'\n")
    (fake / "ldd").chmod(0o755)
    node.environment["PATH"] = f"{fake}:{node.environment['PATH']}"
    refused = node.run("foreground")
    assert refused.returncode == 1
    assert "libcrypto.so.3" in refused.stdout and "libssl3" in refused.stdout
    assert not (node.state / "run" / "node.config.terms").exists()


def test_state_that_cannot_be_written_is_said(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    node.environment["SINGULARITY_STATE_DIR"] = str(tmp_path / "file" / "state")
    refused = node.run("foreground")
    assert refused.returncode == 1 and "SINGULARITY_STATE_DIR" in refused.stdout


def test_a_panic_in_the_listener_is_that_of_the_listener_alone(node: Node) -> None:
    """Its watcher starts it again at the same address; the virtual machine and a client that tries again go on."""
    from singularity_agents import Client

    node.environment["AGENT_FAULT_INJECTION"] = "1"
    assert node.run("daemon").returncode == 0
    pid = node.pid()
    with Client(f"127.0.0.1:{node.grpc_port}") as client:
        done = client.submit("before")
        assert done.result().output == "before"
        before = node.run("eval", "whereis(grpc_listener)").stdout
        assert node.run("eval", "{ok, G} = native_subsystem:handle(grpc), agent_native:grpc_panic(G)").stdout == "ok\n"
        wait_until(lambda: node.run("eval", "whereis(grpc_listener)").stdout not in (before, "undefined\n"), "a new watcher")
        wait_until(lambda: node.run("eval", "element(1, grpc_listener:address())").stdout == "ok\n", "it listens again")
        assert client.execute("after").output == "after"
        assert client.get(done.id).state.endswith("SUCCEEDED")
    assert node.pid() == pid, "the node is the same"


def test_a_drained_node_says_so_to_health_checks_and_refuses_tasks(node: Node) -> None:
    from singularity_agents import Client, SingularityError
    from singularity_agents._local_node import serving
    from singularity_agents._transport import Target

    assert node.run("daemon").returncode == 0
    address = f"127.0.0.1:{node.grpc_port}"
    assert serving(Target(address))
    assert node.run("eval", "grpc_listener:drain()").stdout == "ok\n"
    wait_until(lambda: not serving(Target(address)), "NOT_SERVING")
    with Client(address, max_retries=0) as client:
        with pytest.raises(SingularityError) as refused:
            client.submit("too late")
        assert refused.value.reason in ("DRAINING", "UNAVAILABLE")
