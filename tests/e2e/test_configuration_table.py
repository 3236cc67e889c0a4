"""The table of docs/configuration.md: each key of the original sections, each of its values, and what a user notices of it.

Three nodes stand for the values: `on` has every default, `off` everything switched off, `strict` other combinations.
The steps around frameworks (`performance_optimization`, `native_optimization`) have tests of their own.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HERE, ROOT, Provider, eventually

from singularity_agents import Client, SingularityError
from singularity_agents._local_node import LocalNode

SECTIONS = {
    "on": "",
    "off": """
[agent_execution]
default_execution_method = "native"
hybrid_execution = false
[native_capabilities]
provider_federation = false
distributed_memory = false
fault_tolerance = "bastion_supervision"
[performance_enhancements]
rust_optimizations = false
provider_optimization = false
memory_federation = false
""",
    "strict": """
[agent_execution]
default_execution_method = "framework_preferred"
framework_fallback = false
exploration = 0
[native_capabilities]
fault_tolerance = "otp_supervision"
[performance_enhancements]
provider_optimization = false
memory_federation = false
""",
}

PLAN = {
    "steps": [
        {"id": "a", "executor": "native", "input": "one"},
        {"id": "b", "executor": "custom:e2e", "agent_id": "shout", "needs": ["a"], "input": "${steps.a.output}"},
    ]
}


class Upstream:
    """Says which model was asked, in which order headers came, and what was said before; the model `down` fails."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.headers: list[list[str]] = []
        self.messages: list[str] = []
        upstream = self

        class Answers(Provider):
            def do_POST(self) -> None:
                request = self.asked()
                upstream.asked[request["model"]] += 1
                upstream.headers.append([name.lower() for name in self.headers])
                upstream.messages.append(json.dumps(request["messages"]))
                if request["model"] == "down":
                    self.answer(503, b'{"error": {"message": "go away"}}')
                    return
                chunk = {"choices": [{"index": 0, "delta": {"content": "well"}, "finish_reason": "stop"}]}
                if request.get("stream"):
                    self.answer(200, f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode(), "text/event-stream")
                else:
                    message = {
                        "choices": [{"index": 0, "message": {"role": "assistant", "content": "well"}, "finish_reason": "stop"}]
                    }
                    self.answer(200, json.dumps(message).encode(), "application/json")

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def config(sections: str, url: str) -> str:
    def provider(name: str) -> str:
        return f'[providers.{name}]\ndialect = "openai"\nbase_url = "{url}"\nmodels = ["{name}"]\n'

    def alias(name: str, *endpoints: str) -> str:
        all_ = ", ".join(f'{{ provider = "{e}", name = "{e}", priority = 1 }}' for e in endpoints)
        return f"[models.{name}]\nendpoints = [{all_}]\n"

    agents = "".join(
        f'[agents.{name}]\nframework = "custom:e2e"\nproject = "{HERE}"\nentrypoint = "e2e_agents:{name}"\n'
        for name in ("shout", "slow_journaled")
    )
    return (
        "".join(provider(name) for name in ("down", "first", "second"))
        + alias("default", "first")
        + alias("falls", "down", "second")
        + alias("two", "first", "second")
        + agents
        + '[agents.one]\nframework = "native"\n[agents.other]\nframework = "native"\n'
        + "[frameworks]\nautogen = { enabled = false }\n"
        + sections
    )


class Place:
    def __init__(self, name: str) -> None:
        self.name = name
        self.upstream = Upstream()
        self.node = LocalNode(config(SECTIONS[name], self.upstream.url))


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, tuple[Client, Upstream]]]:
    all_ = {name: Place(name) for name in SECTIONS}
    try:
        for place in all_.values():
            place.node.__enter__()
        clients = {name: Client(place.node.address, max_retries=0, timeout="120s") for name, place in all_.items()}
        yield {name: (clients[name], place.upstream) for name, place in all_.items()}
        for client in clients.values():
            client.close()
    finally:
        for place in all_.values():
            place.node.__exit__(None, None, None)
            place.upstream.stop()


Places = dict[str, tuple[Client, Upstream]]


def reason(error: pytest.ExceptionInfo[SingularityError]) -> str:
    return error.value.reason


def test_default_execution_method(places: Places) -> None:
    scores = {}
    for name, (client, _) in places.items():
        route = client.check("x", task_type="coding")
        scores[name] = {c.executor: c.parts.rule for c in route.candidates if c.parts is not None}
    assert places["off"][0].check("x").executor == "native"
    assert places["on"][0].check("x").executor == "native"
    assert places["strict"][0].check("x").executor not in ("native", "")
    # native, auto and framework_preferred: how far the frameworks are behind the native agent, or ahead of it.
    assert [scores[name]["native"] - scores[name]["langchain"] for name in ("off", "on", "strict")] == [20, 3, -20]


def test_framework_fallback(places: Places) -> None:
    asked = {"framework": "autogen", "method": "auto"}
    route = places["on"][0].check("x", **asked)
    assert route.executor != "autogen" and "in place of autogen" in route.reason
    with pytest.raises(SingularityError) as refused:
        places["strict"][0].check("x", **asked)
    assert reason(refused) == "FRAMEWORK_UNAVAILABLE" and "enabled = true" in str(refused.value)


def test_hybrid_execution(places: Places) -> None:
    assert places["on"][0].execute("x", plan=PLAN).output == "WELL"
    with pytest.raises(SingularityError) as refused:
        places["off"][0].submit("x", plan=PLAN)
    assert reason(refused) == "UNSUPPORTED_FIELD" and "hybrid_execution" in str(refused.value)


def test_provider_federation(places: Places) -> None:
    client, upstream = places["on"]
    assert client.execute("x", model="falls", method="native").output == "well"
    client, upstream = places["off"]
    with pytest.raises(SingularityError) as failed:
        client.execute("x", model="falls", method="native", max_attempts=1)
    # The one endpoint's own error, and nobody else was asked.
    assert reason(failed).startswith("PROVIDER_")
    assert upstream.asked["down"] > 0 and upstream.asked["second"] == 0


def test_distributed_memory(places: Places) -> None:
    places["on"][0].memory.put("notes", "moon", {"is": "bright"})
    client, _ = places["off"]
    for ask in (
        lambda: client.memory.put("notes", "moon", {"is": "bright"}),
        lambda: client.memory.get("notes", "moon"),
        lambda: client.submit("x", memory_namespace="notes"),
        lambda: client.submit("x", tools=[{"name": "distributed_memory"}]),
    ):
        with pytest.raises(SingularityError) as refused:
            ask()
        assert reason(refused) == "CAPABILITY_DISABLED" and "distributed_memory = true" in str(refused.value)
    # All else works, and remembers nothing.
    assert client.execute("x", method="native").output == "well"


def test_memory_that_is_off_and_named_by_an_agent_is_a_fault_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "singularity.toml"
    file.write_text('[agents.a]\nmemory_namespace = "notes"\n[native_capabilities]\ndistributed_memory = false\n')
    [tool] = (ROOT / "_build" / "prod" / "rel" / "singularityd").glob("lib/agent_native-*/priv/bin/singularity_config")
    done = subprocess.run([tool, "check", file], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert ":2: [agents.a] memory_namespace" in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["off", "strict"])
def test_fault_tolerance_means_the_same_in_both_words(places: Places, name: str) -> None:
    """A worker that is killed costs an attempt, and its task is done all the same."""
    client, _ = places[name]
    handle = client.submit("x", agent="slow_journaled", framework="custom:e2e")
    pid = eventually(lambda: client.get(handle.id).worker_pid)
    os.kill(pid, signal.SIGKILL)
    handle.result()
    assert client.get(handle.id).attempts == 2


def test_rust_optimizations(places: Places) -> None:
    order = {}
    for name in ("on", "off"):
        client, upstream = places[name]
        assert client.execute("x", method="native").output == "well"
        headers = upstream.headers[-1]
        order[name] = headers.index("user-agent") < headers.index("content-type")
    # The engine's own client, which a call polls itself, writes its headers first; the general one adds them last.
    assert order == {"on": True, "off": False}


def test_provider_optimization(places: Places) -> None:
    for name, shared in (("on", True), ("strict", False)):
        client, upstream = places[name]
        upstream.asked.clear()
        for _ in range(40):
            client.execute("x", model="two", method="native", durability="ephemeral")
        # Two that are equal share the calls; in the order of the file the first one has them all.
        assert (upstream.asked["second"] > 0) is shared, (name, upstream.asked)
    # What fails is still passed by.
    client, upstream = places["strict"]
    assert client.execute("x", model="falls", method="native").output == "well"


def test_memory_federation(places: Places) -> None:
    for name, shared in (("on", True), ("strict", False)):
        client, upstream = places[name]
        client.execute("I am Ana", agent="one", memory_namespace="chat")
        client.execute("who am I?", agent="one", memory_namespace="chat")
        assert "I am Ana" in upstream.messages[-1]
        client.execute("and who am I?", agent="other", memory_namespace="chat")
        assert ("I am Ana" in upstream.messages[-1]) is shared, name
