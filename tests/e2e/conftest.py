"""A real node for the whole module: the release of this checkout, with the providers `echo` and `local`, and a scripted bad provider."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from singularity_agents import Client
from singularity_agents._local_node import LocalNode, free_port, program, serving
from singularity_agents._transport import Target
from singularity_agents.testing import Asked, ScriptedModel, ToolCall

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from postgres_server import NoPostgres, Postgres  # noqa: E402


class Provider(http.server.BaseHTTPRequestHandler):
    """What every provider of the tests needs besides its answers."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def asked(self) -> dict[str, Any]:
        """The request."""
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        return body

    def answer(self, status: int, body: bytes, kind: str | None = None) -> None:
        """A whole answer."""
        self.send_response(status)
        if kind:
            self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class BadProvider(Provider):
    """Fails as the model's name says: 503, garbage, cut, slow, wrong."""

    def do_POST(self) -> None:
        how = self.asked()["model"]
        chunk = b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n'
        if how == "down":
            self.answer(503, b'{"error": {"message": "go away"}}')
        elif how == "garbage":
            self.answer(200, b"<html>not json</html>")
        elif how == "wrong":
            self.answer(200, b'{"choices": []}')
        elif how == "refuses-key":
            self.answer(401, b'{"error": {"message": "bad key sk-secret-canary-123"}}')
        elif how == "cut":
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("content-length", "100000")
            self.end_headers()
            self.wfile.write(chunk)
            self.close_connection = True
        elif how == "slow":
            time.sleep(3)
            self.close_connection = True


@pytest.fixture(scope="session")
def bad_provider() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), BadProvider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def config(bad: str) -> str:
    agents = "".join(
        f'[agents.{name}]\nframework = "custom:e2e"\nproject = "{HERE}"\nentrypoint = "e2e_agents:{name}"\n'
        for name in (
            "shout",
            "loop",
            "count",
            "die",
            "garbage",
            "half_frame",
            "huge_frame",
            "flood",
            "spy",
            "raises",
            "hog",
            "steps",
            "own_client",
            "blocks_its_loop",
            "is_stuck",
            "asks_people",
            "slow_once",
            "slow_journaled",
            "asks_later",
            "asks_in_vain",
            "has_a_door_opened",
            "silent",
        )
    )
    return f"""
[providers.local]
dialect = "local"
models = ["smollm2-135m"]
[providers.echo]
dialect = "echo"
[providers.bad]
dialect = "openai"
base_url = "{bad}"
models = ["down", "garbage", "wrong", "refuses-key", "cut", "slow"]
timeouts = {{ headers = "1s", first_token = "1s", idle = "1s", total = "5s" }}
[providers.nobody]
dialect = "openai"
base_url = "http://127.0.0.1:9/v1"
models = ["nobody"]
[models.default]
endpoints = [{{ provider = "echo", name = "echo" }}]
[frameworks]
haystack = {{ enabled = false }}
[agents.calculator]
framework = "langchain"
project = "{HERE}"
tools = ["e2e_agents:multiply"]
instructions = "You are a helpful assistant."
[agents.graph]
framework = "langchain"
project = "{HERE}"
entrypoint = "e2e_graphs:graph"
[agents.saved_graph]
framework = "langchain"
project = "{HERE}"
entrypoint = "e2e_graphs:saved_graph"
[agents.broken]
framework = "custom:e2e"
project = "{HERE}"
entrypoint = "no_such_module:agent"
{agents}
"""


@pytest.fixture(scope="session")
def node(bad_provider: str) -> Iterator[LocalNode]:
    with LocalNode(config(bad_provider)) as node:
        yield node


@pytest.fixture
def client(node: LocalNode) -> Iterator[Client]:
    with Client(node.address, max_retries=0, timeout="120s") as client:
        yield client


def eventually(check: Callable[[], Any], within_s: float = 20.0) -> Any:
    """Polls until `check` gives something true."""
    end = time.monotonic() + within_s
    while not (value := check()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return value


def openai_provider(name: str, base_url: str, *models: str) -> str:
    """Its part of a configuration."""
    return f'[providers.{name}]\ndialect = "openai"\nbase_url = "{base_url}"\nmodels = {list(models)!r}\n'


#: Who names no model is served by the provider `scripted`.
SCRIPTED_BY_DEFAULT = '[models.default]\nendpoints = [{ provider = "scripted", name = "scripted" }]\n'

#: More than any of the tests asks for.
MANY = 5000


class CountingModel:
    """Answers "a1" to "step 1", and does what the test wants when a question comes for the first time."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.on_first: dict[str, Callable[[], object]] = {}
        self.model = ScriptedModel(*[self._answer] * MANY)

    def _answer(self, asked: Asked) -> str | ToolCall:
        # A crew wraps its task into a prompt of its own.
        crew = re.search(r"Current Task: (step \w+)", asked.last)
        question = crew.group(1) if crew else asked.last
        self.counts[question] += 1
        if self.counts[question] == 1 and question in self.on_first:
            self.on_first[question]()
        if "multiply" in asked.tools and asked.messages[-1]["role"] != "tool":
            return ToolCall("multiply", a=6, b=7)
        return question.replace("step ", "a")


@pytest.fixture
def counting() -> Iterator[CountingModel]:
    counting = CountingModel()
    with counting.model:
        yield counting


class KillableNode:
    """A node whose data outlives it: killed and started again on the same folder."""

    def __init__(self, folder: Path, config: str, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "singularity.toml").write_text(config)
        self.address = f"127.0.0.1:{free_port()}"
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            **os.environ, "SINGULARITY_CONFIG": str(folder / "singularity.toml"), "SINGULARITY_DATA_DIR": str(folder / "data"),
            "SINGULARITY_STATE_DIR": str(folder / "state"), "SINGULARITY_ADDRESS": self.address,
            "SINGULARITY_DIST_PORT": str(free_port()), "SINGULARITY_HTTP_ADDRESS": "off", **environment,
        }  # fmt: skip
        self.folder = folder

    def start(self, *, may_die: bool = False, **environment: str) -> None:
        """Until it serves, or, where that is meant, has ended."""
        self._launch(environment)
        eventually(lambda: serving(Target(self.address)) or (may_die and not self.running()), within_s=60)

    def _launch(self, environment: dict[str, str]) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                program(), env={**self._environment, **environment}, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """kill -9 of the virtual machine; the start script ends with it."""
        assert self._process is not None
        os.kill(beam(self._process.pid), signal.SIGKILL)
        self._process.wait(timeout=20)

    def start_in_vain(self, **environment: str) -> None:
        """A node that cannot serve; until its store has said why."""
        self._launch(environment)
        eventually(lambda: not self.running() or "subsystem_not_up" in self.log(), within_s=60)

    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")

    def kill_if_running(self) -> None:
        """The same for one that may have ended by itself."""
        if self.running():
            self.kill()

    def running(self) -> bool:
        """Whether its start script has not ended."""
        return self._process is not None and self._process.poll() is None

    def virtual_machine(self) -> int:
        """Its process id."""
        assert self._process is not None
        return beam(self._process.pid)

    def stop(self) -> None:
        """However the test ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=60)


@pytest.fixture
def killable(tmp_path: Path, bad_provider: str) -> Iterator[Callable[..., KillableNode]]:
    """Makes a node of the test's own: `killable(more_config)`."""
    made: list[KillableNode] = []

    def make(more: str = "", *, starts: bool = True, **environment: str) -> KillableNode:
        made.append(KillableNode(tmp_path / f"node{len(made)}", config(bad_provider) + more, **environment))
        if starts:
            made[-1].start()
        return made[-1]

    yield make
    for node in made:
        node.stop()


#: Erlang makes test certificates without another tool: authority, certificate and key of a server with the name in the file "host".
CERTIFICATES = """
    Rsa = [{digest, sha256}, {key, {rsa, 2048, 65537}}],
    Named = [{extensions, [{'Extension', {2, 5, 29, 17}, false, [{dNSName, "localhost"}, {dNSName, net_adm:localhost()}]}]} | Rsa],
    #{server_config := S, client_config := C} = public_key:pkix_test_data(#{
        server_chain => #{root => Rsa, intermediates => [], peer => Named},
        client_chain => #{root => Rsa, intermediates => [], peer => Rsa}}),
    Pem = fun(Type, Ders) -> public_key:pem_encode([{Type, D, not_encrypted} || D <- Ders]) end,
    {KeyType, Key} = proplists:get_value(key, S),
    ok = file:write_file("cert.pem", Pem('Certificate', [proplists:get_value(cert, S)])),
    ok = file:write_file("key.pem", Pem(KeyType, [Key])),
    ok = file:write_file("ca.pem", Pem('Certificate', proplists:get_value(cacerts, C))),
    ok = file:write_file("host", net_adm:localhost()), halt().
"""


def make_certificates(folder: Path) -> None:
    """Writes cert.pem, key.pem, ca.pem and host."""
    subprocess.run(["erl", "-noshell", "-eval", CERTIFICATES], cwd=folder, check=True, timeout=60, capture_output=True)


def beam(pid: int) -> int:
    """The virtual machine at or below a process."""
    pending = [pid]
    while pending:
        pid = pending.pop()
        if "beam" in Path(f"/proc/{pid}/comm").read_text():
            return pid
        pending += [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    raise AssertionError("no virtual machine below the start script")


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A server of the test's own."""
    try:
        server = Postgres()
    except NoPostgres as missing:
        pytest.skip(str(missing))
    with server:
        yield server
