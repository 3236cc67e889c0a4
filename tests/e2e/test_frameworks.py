"""Every framework on a real node: answers, tools, a cancel with proof, and a resume that pays for nothing twice."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import MANY, SCRIPTED_BY_DEFAULT, eventually, openai_provider

from singularity_agents import Client
from singularity_agents._local_node import LocalNode
from singularity_agents.testing import Asked, ScriptedModel, ToolCall

HERE = Path(__file__).resolve().parent
TOOLS = (
    '["e2e_agents:multiply", "e2e_agents:compute_for_ever", "e2e_agents:wait_for_a_child", "e2e_agents:read_a_lot", '
    '"e2e_agents:ask_a_person", "calculate"]'
)
OTHERS = ("compute_for_ever", "wait_for_a_child", "read_a_lot", "ask_a_person")
PRICES = '[[models.scripted.prices]]\nvalid_from = "2026-01-01"\ninput = "1.00"\noutput = "1.00"\n'
FRAMEWORKS = ("langchain", "langgraph", "crewai", "autogen", "haystack", "semantic_kernel", "agent_framework")


class Model:
    """Multiplies by the user's tool; `on_result` is called when the tool's result is read for the first time."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.on_result: Callable[[], object] = lambda: None
        self.held = threading.Event()
        self.released = threading.Event()
        self.script = ScriptedModel(*[self._answer] * MANY)

    def clear(self) -> None:
        self.counts.clear()
        self.on_result = lambda: None
        self.held.clear()
        self.released.clear()

    def _answer(self, asked: Asked) -> str | ToolCall:
        text = "\n".join(str(message.get("content") or "") for message in asked.messages)
        if "wait for ever" in text:
            self.held.set()
            self.released.wait(30)
            return "too late"
        for name in OTHERS:
            if name in text:
                last = asked.messages[-1]
                self.counts[name] += 1
                return f"It said: {last['content']}" if last["role"] == "tool" else ToolCall(name)
        if "6 times 7" not in text:
            return "hello there"
        if asked.messages[-1]["role"] != "tool":
            self.counts["question"] += 1
            return ToolCall("multiply", a=6, b=7)
        self.counts["result"] += 1
        if self.counts["result"] == 1:
            self.on_result()
        return f"It is {asked.last}"


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[str, Model]]:
    model = Model()
    agents = "".join(f'[agents.of_{name}]\nframework = "{name}"\nproject = "{HERE}"\ntools = {TOOLS}\n' for name in FRAMEWORKS)
    with model.script:
        provider = openai_provider("scripted", model.script.base_url, "scripted")
        with LocalNode(provider + PRICES + SCRIPTED_BY_DEFAULT + agents + "[workers]\nmax_per_framework = 2\n") as node:
            yield node.address, model


@pytest.fixture
def model(place: tuple[str, Model]) -> Iterator[Model]:
    place[1].clear()
    yield place[1]
    place[1].released.set()


@pytest.fixture
def client(place: tuple[str, Model], model: Model) -> Iterator[Client]:
    with Client(place[0], max_retries=0, timeout="120s") as client:
        yield client


@pytest.fixture(params=FRAMEWORKS, scope="module")
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_answers_a_plain_task_that_names_only_the_framework(client: Client, framework: str) -> None:
    handle = client.submit("say hello", framework=framework)
    task = handle.wait("60s")
    assert task.result is not None, task.error
    assert task.result.output == "hello there" and task.result.executor == framework
    assert task.result.metrics.provider_calls == 1
    text = "".join(str(e.data.get("text", "")) for e in client.watch(handle.id) if e.kind == "text_delta")
    assert text in ("hello there", "")


def test_calls_a_tool(client: Client, model: Model, framework: str) -> None:
    handle = client.submit("What is 6 times 7?", agent=f"of_{framework}")
    task = handle.wait("60s")
    assert task.result is not None, task.error
    assert task.result.output == "It is 42" and task.result.metrics.provider_calls == 2
    events = list(client.watch(handle.id))
    assert [e.data["name"] for e in events if e.kind == "tool_call"] == ["multiply"]
    assert set(model.script.asked[-1].tools) == {"multiply", *OTHERS, "calculate"}


def test_is_cancelled_with_proof(client: Client, model: Model, framework: str) -> None:
    handle = client.submit("wait for ever", agent=f"of_{framework}")
    assert model.held.wait(30)
    answer = client.cancel(handle.id, grace="5s")
    assert answer.task.state == "CANCELLED"
    assert answer.proof.witness and not answer.proof.survivors
    # The worker has ended its run by itself, and the next task finds it well.
    model.released.set()
    assert client.execute("say hello", agent=f"of_{framework}").output == "hello there"


def test_is_cancelled_while_it_computes(client: Client, framework: str) -> None:
    cancelled_in(client, framework, "compute_for_ever")


def test_is_cancelled_in_a_child_process_of_a_tool(client: Client, framework: str) -> None:
    cancelled_in(client, framework, "wait_for_a_child")
    assert not [p for p in Path("/proc").glob("[0-9]*") if is_child(p)]


def is_child(process: Path) -> bool:
    """Whether it is the child of a tool of these tests, and lives."""
    try:
        return b"sleep\x00986" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def cancelled_in(client: Client, framework: str, tool: str) -> None:
    """A task whose tool never ends is ended with everything that it started, and the next one finds a worker."""
    handle = client.submit(f"{tool} please", agent=f"of_{framework}")
    assert any(e.kind == "tool_call" and e.data["name"] == tool for e in client.watch(handle.id)), "it ended before its tool ran"
    answer = client.cancel(handle.id, grace="1s")
    assert answer.task.state == "CANCELLED"
    assert answer.proof.witness and not answer.proof.survivors
    assert client.execute("say hello", agent=f"of_{framework}").output == "hello there"


def test_usage_is_counted_by_the_engine(client: Client, model: Model, framework: str) -> None:
    """Two calls, whose tokens are those that the provider said."""
    task = client.submit("What is 6 times 7?", agent=f"of_{framework}").wait("60s")
    assert task.result is not None, task.error
    metrics = task.result.metrics
    assert metrics.provider_calls == 2 and model.counts == {"question": 1, "result": 1}
    assert (metrics.tokens_used.input_tokens, metrics.tokens_used.output_tokens) == (2, 1 + len(["It", "is", "42"]))


def test_resumes_after_a_kill_without_paying_twice(client: Client, model: Model, framework: str) -> None:
    started: list[str] = []

    def kill() -> None:
        task_id = eventually(lambda: started)[0]
        os.kill(int(eventually(lambda: client.get(task_id).worker_pid)), signal.SIGKILL)

    model.on_result = kill
    handle = client.submit("What is 6 times 7?", agent=f"of_{framework}")
    started.append(handle.id)
    task = handle.wait("60s")
    assert task.result is not None, task.error
    assert task.result.output == "It is 42" and task.attempts == 2
    assert task.result.metrics.provider_calls_replayed in (1, 2)
    # The first call is answered from the journal; the second was under way when its worker was killed.
    assert model.counts["question"] == 1 and model.counts["result"] in (1, 2)
