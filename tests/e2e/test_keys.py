"""TLS and static keys: what an address off loopback needs, tried on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from conftest import eventually, make_certificates

from singularity_agents import Client
from singularity_agents._local_node import LocalNode, free_port, program
from singularity_agents._transport import Tls

HERE = Path(__file__).resolve().parent

KEY = "a-key-that-is-long-enough"
LIST = "/singularity.agents.v1.TaskService/ListTasks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_certificates(folder)
    (folder / "acme.key").write_text(KEY + "\n")
    (folder / "worker.key").write_text("a-key-that-may-attach-workers\n")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    (folder / "singularity.toml").write_text(f"""
[server]
address = "{address}"
tls = {{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}
[providers.echo]
dialect = "echo"
[tenants.acme]
keys = [{{ file = "{folder}/acme.key" }}]
[workers]
remote_keys = [{{ file = "{folder}/worker.key" }}]
[agents.shout]
framework = "custom:e2e"
project = "{HERE}"
entrypoint = "e2e_agents:shout"
""")
    environment = {
        **os.environ,
        "SINGULARITY_CONFIG": str(folder / "singularity.toml"),
        "SINGULARITY_DATA_DIR": str(folder / "data"),
        "SINGULARITY_STATE_DIR": str(folder / "state"),
        "SINGULARITY_DIST_PORT": str(free_port()),
        "SINGULARITY_HTTP_ADDRESS": "off",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(program(), env=environment, stdout=log, stderr=log, start_new_session=True)
    yield address
    process.terminate()
    process.wait(timeout=60)


def ask(folder: Path, address: str, key: str | None) -> grpc.StatusCode:
    credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
    options = [("grpc.ssl_target_name_override", (folder / "host").read_text())]
    metadata = [("authorization", f"Bearer {key}")] if key else []
    with grpc.secure_channel(address, credentials, options) as channel:
        try:
            channel.unary_unary(LIST)(b"", metadata=metadata, timeout=5)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_a_known_key_over_tls_is_let_in_and_no_other(folder: Path, address: str) -> None:
    eventually(lambda: ask(folder, address, KEY) is grpc.StatusCode.OK, within_s=60)
    assert ask(folder, address, None) is grpc.StatusCode.UNAUTHENTICATED
    assert ask(folder, address, "another-key-of-some-length") is grpc.StatusCode.UNAUTHENTICATED
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(LIST)(b"", timeout=5)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert KEY not in (folder / "log").read_text()
    assert KEY not in "".join(p.read_text(errors="replace") for p in (folder / "state").rglob("*") if p.is_file())


def test_a_worker_of_another_machine_attaches_over_tls_and_to_no_stranger(folder: Path, address: str) -> None:
    eventually(lambda: ask(folder, address, KEY) is grpc.StatusCode.OK, within_s=60)
    named = f"localhost:{address.rpartition(':')[2]}"
    own = [
        sys.executable,
        "-m",
        "singularity_agents.cli",
        "worker",
        "--address",
        named,
        "--framework",
        "custom:e2e",
        "--project",
        str(HERE),
    ]
    own += ["--key-file", str(folder / "worker.key"), "--tls"]
    with (
        Client(named, api_key=KEY, tls=Tls(ca=folder / "ca.pem"), max_retries=0, timeout="60s") as client,
        subprocess.Popen([*own, "--ca", str(folder / "ca.pem")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as worker,
    ):
        try:
            eventually(lambda: [w for f in client.frameworks.list() for w in f.workers if w.host], within_s=30)
            done = client.submit("over tls", agent="shout").wait("60s")
            assert done.result is not None and done.result.output == "OVER TLS"
            assert [w.host_pid for w in client.frameworks.get("custom:e2e").workers if w.host] == [done.worker_pid]
        finally:
            worker.send_signal(signal.SIGINT)
            worker.wait(timeout=30)
    # Without the authority it does not know the node, and gives it neither its key nor a worker.
    with subprocess.Popen(own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as stranger:
        assert stranger.stdout is not None
        try:
            said = next(line for line in stranger.stdout if "CERTIFICATE" in line or "UNAVAILABLE" in line or "connect" in line)
            assert "a-key-that-may" not in said
        finally:
            stranger.send_signal(signal.SIGINT)
            stranger.wait(timeout=30)


def test_off_loopback_without_tls_and_keys_does_not_start(tmp_path: Path) -> None:
    config = tmp_path / "singularity.toml"
    config.write_text('[server]\naddress = "0.0.0.0:50151"\n')
    environment = {
        **os.environ,
        "SINGULARITY_CONFIG": str(config),
        "SINGULARITY_DATA_DIR": str(tmp_path / "data"),
        "SINGULARITY_STATE_DIR": str(tmp_path / "state"),
        "SINGULARITY_DIST_PORT": str(free_port()),
        "SINGULARITY_HTTP_ADDRESS": "off",
    }
    done = subprocess.run(program(), env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "off loopback" in done.stderr + done.stdout and "tls" in done.stderr + done.stdout


def test_the_key_of_the_model_server_stands_on_no_command_line(node: LocalNode) -> None:
    lines = [f.read_bytes() for f in Path("/proc").glob("[0-9]*/cmdline") if f.parent.exists()]
    assert any(b"singularity_agents.model_server" in line for line in lines), "the server runs"
    assert not [line for line in lines if b"SINGULARITY_LOCAL_KEY=" in line]
