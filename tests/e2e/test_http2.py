"""Clients that misbehave on the wire, and what every client may ask of a gRPC server."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from conftest import KillableNode, beam

from singularity_agents import Client
from singularity_agents._local_node import LocalNode, serving
from singularity_agents._transport import Target

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, GOAWAY, CONTINUATION = 1, 3, 4, 7, 9
END_STREAM, END_HEADERS = 1, 4
#: Seconds in which the server must have had enough.
PATIENCE_S = 20.0
SERVICES = ("TaskService", "AgentService", "FrameworkService", "ProviderService")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request_headers() -> bytes:
    """A call of ListTasks; indexes of the static table of HPACK."""
    path = b"/singularity.agents.v1.TaskService/ListTasks"
    return (
        b"\x83\x86" + b"\x04" + bytes([len(path)]) + path + literal(b"te", b"trailers")
        + literal(b"content-type", b"application/grpc")
    )  # fmt: skip


@contextlib.contextmanager
def connection(node: LocalNode | KillableNode) -> Iterator[socket.socket]:
    host, port = node.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw:
        raw.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
        yield raw


def is_ended(raw: socket.socket) -> bool:
    """Whether the server says GOAWAY or closes before our patience ends."""
    got = b""
    try:
        while piece := raw.recv(65536):
            got += piece
            at = 0
            while len(got) - at >= 9:
                length = int.from_bytes(got[at : at + 3], "big")
                if got[at + 3] == GOAWAY:
                    return True
                at += 9 + length
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def rss_kib(node: LocalNode) -> int:
    assert node._process is not None
    lines = Path(f"/proc/{beam(node._process.pid)}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def test_a_flood_of_resets_ends_its_own_connection_only(node: LocalNode, client: Client) -> None:
    with connection(node) as raw, contextlib.suppress(ConnectionError):
        for stream in range(1, 20001, 2):
            raw.sendall(
                frame(HEADERS, END_HEADERS, stream, request_headers()) + frame(RST_STREAM, 0, stream, b"\x00\x00\x00\x08")
            )
        assert is_ended(raw)
    assert client.execute("still here").output == "still here"


def test_headers_without_an_end_are_cut_off(node: LocalNode, client: Client) -> None:
    before = rss_kib(node)
    with connection(node) as raw, contextlib.suppress(ConnectionError):
        raw.sendall(frame(HEADERS, 0, 1, request_headers()))
        for _ in range(4000):
            raw.sendall(frame(CONTINUATION, 0, 1, literal(b"x", b"y" * 100) * 100))
        assert is_ended(raw)
    assert client.execute("still here").output == "still here"
    assert rss_kib(node) - before < 64 * 1024, "what was sent is not kept"


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\xff" * 4096])
def test_what_is_no_http2_is_closed(node: LocalNode, client: Client, garbage: bytes) -> None:
    host, port = node.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw:
        raw.sendall(garbage)
        assert is_ended(raw)
    assert client.execute("still here").output == "still here"


def test_many_half_open_connections_keep_nobody_out(node: LocalNode, client: Client) -> None:
    host, port = node.address.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S)).sendall(PREFACE[:10])
        with Client(node.address) as other:
            assert other.execute("still here").output == "still here"


def test_health_says_serving(node: LocalNode) -> None:
    assert serving(Target(node.address))


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_the_services(node: LocalNode, version: str) -> None:
    list_services = b"\x3a\x00"
    with grpc.insecure_channel(node.address) as channel:
        ask = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
        answer: bytes = next(iter(ask(iter([list_services]), timeout=10)))
    for service in SERVICES:
        assert f"singularity.agents.v1.{service}".encode() in answer


@pytest.mark.parametrize("said", [b"", PREFACE[:10]])
def test_a_connection_that_does_not_begin_is_closed(node: LocalNode, said: bytes) -> None:
    host, port = node.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw:
        raw.sendall(said)
        assert is_ended(raw)


def test_an_idle_connection_is_closed_and_the_client_does_not_notice(killable: Callable[[str], KillableNode]) -> None:
    node = killable('[server]\nidle_timeout = "500ms"\n')
    # A request that meets the end of its connection is sent again by the SDK, under the same request id.
    with Client(node.address) as client:
        assert client.execute("hello").output == "hello"
        with connection(node) as raw:
            assert is_ended(raw)
        # A stream that says nothing is no idle connection.
        waits = client.submit("x", method="native", model="echo?latency=1500ms")
        assert waits.result().output
        assert client.execute("hello").output == "hello"
