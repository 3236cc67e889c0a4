"""TLS and static keys: what an address off loopback needs, tried on loopback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from conftest import eventually, make_certificates

from singularity_agents._local_node import LocalNode, free_port, program

KEY = "a-key-that-is-long-enough"
LIST = "/singularity.agents.v1.TaskService/ListTasks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_certificates(folder)
    (folder / "acme.key").write_text(KEY + "\n")
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
