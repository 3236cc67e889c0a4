"""The engine's memory inside of workers: LangGraph's saver and store, the object `memory`, and the tool of every framework."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import MANY, SCRIPTED_BY_DEFAULT, eventually, openai_provider

from singularity_agents import Client, NotFound
from singularity_agents._local_node import LocalNode
from singularity_agents.testing import Asked, ScriptedModel, ToolCall

HERE = Path(__file__).resolve().parent
FRAMEWORKS = ("langchain", "langgraph", "crewai", "autogen", "haystack", "semantic_kernel", "agent_framework")
#: Suites that the graphs of these tests run inside of a worker.
SUITE = "langgraph/checkpoint/conformance"


class Model:
    """Answers steps by their name, and remembers by the tool what it is told."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.script = ScriptedModel(*[self._answer] * MANY)

    def _answer(self, asked: Asked) -> str | ToolCall:
        if "performance_optimization" in " ".join(asked.tools) and asked.messages[-1]["role"] != "tool":
            return ToolCall("performance_optimization", task="step 4\nstep 5", goal="parallel")
        text = "\n".join(str(message.get("content") or "") for message in asked.messages)
        self.counts[asked.last] += 1
        if "step" in asked.last:
            return f"did {asked.last[-1]}"
        if asked.messages[-1]["role"] == "tool":
            return f"It said {asked.last}"
        if "how is it" in text:
            return ToolCall("distributed_memory", op="get", key="moon")
        return ToolCall("distributed_memory", op="set", key="moon", value="bright")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Model]]:
    project = tmp_path_factory.mktemp("project")
    shutil.copy(HERE / "e2e_memories.py", project)
    suite = find_spec("langgraph.checkpoint.conformance")
    assert suite is not None and suite.origin is not None
    shutil.copytree(Path(suite.origin).parent, project / SUITE)
    model = Model()
    graphs = "".join(
        f'[agents.{name}]\nframework = "langgraph"\nproject = "{project}"\nentrypoint = "e2e_memories:{name}"\n'
        for name in ("conformance", "kept", "three_steps")
    )
    tools = "".join(
        f'[agents.of_{name}]\nframework = "{name}"\ntools = ["distributed_memory"]\nmemory_namespace = "shared/{name}"\n'
        for name in FRAMEWORKS
    )
    tools += "".join(
        f'[agents.gives_{name}]\nframework = "{name}"\ntools = ["ai_provider_federation", "performance_optimization"]\n'
        for name in FRAMEWORKS
    )
    with model.script:
        provider = openai_provider("scripted", model.script.base_url, "scripted")
        with LocalNode(provider + SCRIPTED_BY_DEFAULT + graphs + tools + "[workers]\nmax_per_framework = 2\n") as node:
            yield node.address, model


@pytest.fixture
def model(place: tuple[str, Model]) -> Model:
    place[1].counts.clear()
    return place[1]


@pytest.fixture
def client(place: tuple[str, Model], model: Model) -> Iterator[Client]:
    with Client(place[0], max_retries=0, timeout="120s") as client:
        for key in ("stamps", "died"):
            with contextlib.suppress(NotFound):
                client.memory.delete("agents/three_steps", key)
        yield client


def test_the_saver_passes_the_public_suite(client: Client) -> None:
    report: dict[str, list[Any]] = json.loads(client.execute("check", agent="conformance").output)
    assert set(report) >= {"put", "put_writes", "get_tuple", "list", "delete_thread", "delete_for_runs", "copy_thread", "prune"}
    for capability, (detected, passed, tests, failures) in report.items():
        assert detected and passed and tests > 0, (capability, failures)


def test_the_store_of_a_graph_and_the_memory_of_a_function(client: Client) -> None:
    assert json.loads(client.execute("write", agent="kept").output) == {
        "found": [[["users", "a/b"], "likes", "figs"], [["users", "c"], "likes", "plums"]],
        "high": ["figs"],
        "second page": ["plums"],
        "namespaces": [["users", "a/b"], ["users", "c"]],
        "depth": [["threads"], ["users"]],
        "thread": {"from": "a thread"},
        "versions": [1, 2],
        "refused": "VERSION_CONFLICT",
        "meaning": "CAPABILITY_PENDING",
        "list": {"count": 2},
    }
    # Later tasks of the agent see it, clients under the agent's namespace.
    read = json.loads(client.execute("read", agent="kept").output)
    assert read == [{"food": "figs", "score": 5}, 2, [["user", "hello"], ["assistant", "hi"]]]
    assert client.memory.get("agents/kept/users/c", "likes").value == {"food": "plums", "score": 3}


def test_a_killed_graph_goes_on_from_its_checkpoint(client: Client, model: Model) -> None:
    handle = client.submit("die", agent="three_steps")
    task = handle.wait("60s")
    assert task.result is not None, task.error
    assert task.attempts == 2
    # The tool of the second step ran before the kill, and was not run again; that of the third was, though its words are the same.
    assert task.result.output == "did 1 1; did 2 2; did 3 3"
    assert model.counts == {"step 1": 1, "step 2": 1, "step 3": 1}
    nodes = Counter(e.data["name"] for e in client.watch(handle.id) if e.kind == "step_started" and e.data.get("name"))
    assert nodes == {"node:1": 1, "node:2": 2, "node:3": 1}
    assert client.memory.get("agents/three_steps", "stamps").value == 3


@pytest.mark.parametrize("how", ["interrupt", "ask"])
def test_a_graph_that_waits_for_a_person_goes_on_from_its_checkpoint(client: Client, model: Model, how: str) -> None:
    handle = client.submit(f"{how} and die", agent="three_steps")
    asked = ["Well?"] if how == "interrupt" else ["Well, 1?", "Well, 2?"]
    for question in asked:
        eventually(lambda wanted=question: [i.prompt for i in client.get(handle.id).pending_inputs] == [wanted])
        client.signal(handle.id, input=f"answer to {question}")
    task = handle.wait("60s")
    assert task.result is not None, task.error
    assert model.counts == {"step 1": 1, "step 2": 1, "step 3": 1}
    said = task.result.output.split("; ")
    if how == "interrupt":
        assert said == ["did 1 1", "did 2 2 answer to Well?", "did 3 3"]
    else:
        assert said == ["did 1 1 answer to Well, 1?", "did 2 2 answer to Well, 2?", "did 3 3"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_model_remembers_by_the_tool(client: Client, model: Model, framework: str) -> None:
    assert client.execute("keep that the moon is bright", agent=f"of_{framework}").output == 'It said {"version": 1}'
    assert client.memory.get(f"shared/{framework}", "moon").value == "bright"
    task = client.submit("how is it?", agent=f"of_{framework}").wait("60s")
    assert task.result is not None, task.error
    assert task.result.output == "It said bright"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_model_gives_work_away_by_the_tool(client: Client, model: Model, framework: str) -> None:
    done = client.execute("go", agent=f"gives_{framework}")
    assert done.output == 'It said ["did 4", "did 5"]' and done.executor == framework
    assert model.counts["step 4"] == model.counts["step 5"] == 1 and done.metrics.provider_calls == 4
