"""Ends of a run before its answer, on a real node: its money is spent, or a person is asked by the framework's own means."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import MANY, SCRIPTED_BY_DEFAULT, eventually, openai_provider

from singularity_agents import Client, Task, TaskHandle
from singularity_agents._local_node import LocalNode
from singularity_agents.testing import Asked, Billed, Fail, ScriptedModel, ToolCall

HERE = Path(__file__).resolve().parent
SAMPLES = HERE.parent.parent / "python_workers" / "tests" / "adapters"
FRAMEWORKS = ("langchain", "langgraph", "crewai", "autogen", "haystack", "semantic_kernel", "agent_framework")
#: Micro-dollars per token, so that tokens are money.
PRICES = '[[models.scripted.prices]]\nvalid_from = "2026-01-01"\ninput = "1.00"\noutput = "1.00"\n'
#: What a task may spend, and a first answer that leaves nearly nothing of it.
LIMIT = 20_000
DEAR = Billed(ToolCall("multiply", a=6, b=7), input_tokens=LIMIT - 10)


class Own(NamedTuple):
    """A user's agent that asks a person, what its model says before and after, and what the person says."""

    framework: str
    entrypoint: str
    before: list[Any]
    asked: str
    kind: str
    answers: list[dict[str, Any]]
    after: list[Any]
    output: str


MEASURE = ToolCall("measure", what="height")
YES: dict[str, Any] = {"approve": True}
WORDS: dict[str, Any] = {"input": "shorter"}
HANDOFF = ToolCall("transfer_to_user")
COMPLETE = ToolCall("Handoff-complete_task", task_summary="well")
OWN = (
    Own("langchain", "careful_chain", [MEASURE], "measure", "approval", [YES], ["well"], "well"),
    Own("langgraph", "interrupted_graph", [], "Is it good?", "question", [WORDS], [], "well: shorter"),
    Own("crewai", "reviewed_crew", ["long"], "good?", "question", [WORDS, YES], ["well"], "well"),
    Own("autogen", "proxied", ["long"], "long", "question", [WORDS], ["well"], "well"),
    Own("autogen", "handed_to_user", [HANDOFF], "user", "question", [WORDS], ["well"] * 8, "well"),
    Own("haystack", "confirmed", [MEASURE], "measure", "approval", [YES], ["well"], "well"),
    Own("semantic_kernel", "handoff_to_person", ["long"], "long", "question", [WORDS], [COMPLETE], "well"),
    Own("agent_framework", "approved_tool", [MEASURE], "measure", "approval", [YES], ["well"], "well"),
    Own("agent_framework", "asking:workflow", [], "the moon", "question", [WORDS], [], "well: shorter"),
)


class Model:
    """Plays what a test wrote down."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked: list[Asked] = []
        self.script = ScriptedModel(*[self._answer] * MANY)

    def plays(self, *answers: Any) -> None:
        """Begins anew with these answers."""
        self.answers, self.asked = list(answers), []

    def _answer(self, asked: Asked) -> Any:
        self.asked.append(asked)
        return self.answers.pop(0) if self.answers else Fail(400, f"no answer is left for {asked.last[:200]}")


def agent_id(own: Own) -> str:
    """Its name in the configuration."""
    return f"own_{own.framework}_{own.entrypoint.partition(':')[2] or own.entrypoint}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Model]]:
    project = tmp_path_factory.mktemp("project")
    for name in ("entries", "asking"):
        shutil.copy(SAMPLES / f"sample_{name}.py", project / f"{name}.py")
    tools = '["e2e_agents:multiply", "e2e_agents:read_a_lot", "e2e_agents:ask_a_person"]'
    agents = "".join(f'[agents.of_{name}]\nframework = "{name}"\nproject = "{HERE}"\ntools = {tools}\n' for name in FRAMEWORKS)
    for own in OWN:
        entrypoint = own.entrypoint if ":" in own.entrypoint else f"entries:{own.entrypoint}"
        agents += f'[agents.{agent_id(own)}]\nframework = "{own.framework}"\nproject = "{project}"\nentrypoint = "{entrypoint}"\n'
    model = Model()
    with model.script:
        provider = openai_provider("scripted", model.script.base_url, "scripted")
        with LocalNode(provider + PRICES + SCRIPTED_BY_DEFAULT + agents + "[workers]\nmax_per_framework = 2\n") as node:
            yield node.address, model


@pytest.fixture
def model(place: tuple[str, Model]) -> Model:
    place[1].plays()
    return place[1]


@pytest.fixture
def client(place: tuple[str, Model]) -> Iterator[Client]:
    with Client(place[0], max_retries=0, timeout="120s") as client:
        yield client


@pytest.fixture(params=FRAMEWORKS, scope="module")
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def waits(client: Client, handle: TaskHandle) -> Task:
    """The task, once it waits; fails with its error if it ended."""
    task = eventually(lambda: (seen := client.get(handle.id)).state in ("WAITING", "SUCCEEDED", "FAILED") and seen, within_s=60)
    assert task.state == "WAITING", (task.state, task.error, task.result)
    found: Task = eventually(lambda: (seen := client.get(handle.id)).pending_inputs and seen)
    return found


def test_a_budget_that_is_spent_ends_the_task(client: Client, model: Model, framework: str) -> None:
    model.plays(DEAR, "never")
    task = client.submit("6 times 7", agent=f"of_{framework}", max_cost_micros=LIMIT, max_attempts=3).wait("60s")
    assert task.state == "FAILED" and task.error is not None, (task.state, task.result)
    assert task.error.reason == "BUDGET_EXHAUSTED" and task.error.metadata["level"] == "task", task.error
    assert task.attempts == 1 and len(model.asked) == 1, "its one call, and no other"


def test_a_budget_that_is_spent_waits_where_the_task_says_so(client: Client, model: Model, framework: str) -> None:
    model.plays(DEAR, "42")
    handle = client.submit("6 times 7", agent=f"of_{framework}", max_cost_micros=LIMIT, on_budget_end="wait")
    task = waits(client, handle)
    assert task.waiting_for == "BUDGET" and task.worker_pid == 0 and len(model.asked) == 1
    # A yes adds what it had at first.
    client.signal(handle.id, approve=True)
    task = handle.wait("60s")
    assert task.result is not None, task.error
    assert task.result.output == "42" and len(model.asked) == 2, "the call before the wait is answered from the record"
    assert task.result.metrics.provider_calls_replayed == 1


def test_a_long_result_of_a_tool_is_read(client: Client, model: Model, framework: str) -> None:
    """200 KB; CrewAI keeps it in a file and shows its model the beginning."""
    model.plays(ToolCall("read_a_lot"), "read it")
    task = client.submit("read a lot", agent=f"of_{framework}").wait("60s")
    assert task.result is not None, task.error
    assert task.result.output == "read it" and "word word" in str(model.asked[1].messages)


def test_a_tool_asks_a_person_who_answers_by_a_signal(client: Client, model: Model, framework: str) -> None:
    model.plays(ToolCall("ask_a_person"), "well")
    handle = client.submit("ask", agent=f"of_{framework}")
    task = waits(client, handle)
    assert task.waiting_for == "INPUT" and task.worker_pid == 0
    assert [i.prompt for i in task.pending_inputs] == ["Shall I?"]
    client.signal(handle.id, input="yes")
    task = handle.wait("60s")
    assert task.result is not None, task.error
    assert task.result.output == "well" and len(model.asked) == 2
    assert "the person said yes" in str(model.asked[1].messages)


@pytest.mark.parametrize("own", OWN, ids=lambda own: f"{own.framework}-{own.entrypoint.replace(':', '_')}")
def test_a_person_is_asked_by_its_own_means_and_answers_by_a_signal(client: Client, model: Model, own: Own) -> None:
    model.plays(*own.before, *own.after)
    handle = client.submit("the moon", agent=agent_id(own))
    for number, answer in enumerate(own.answers):
        task = waits(client, handle)
        question = task.pending_inputs[0]
        assert task.waiting_for == ("APPROVAL" if own.kind == "approval" else "INPUT") and question.kind == own.kind
        assert task.worker_pid == 0, "nobody holds a process while a person thinks"
        if number == 0:
            assert own.asked in f"{question.prompt} {question.payload}" and len(model.asked) == len(own.before)
        client.signal(handle.id, input_id=question.input_id, **answer)
    task = handle.wait("60s")
    assert task.result is not None, task.error
    assert own.output in task.result.output
    assert task.attempts == 1 + len(own.answers) and len(task.answers) == len(own.answers)
    assert len(model.asked) == len(own.before) + len(own.after) - len(model.answers), "no call was paid for twice"


def test_who_says_no_stops_the_tool(client: Client, model: Model) -> None:
    """The framework's own tool does not run, and its model is told."""
    model.plays(MEASURE, "as you wish")
    handle = client.submit("the moon", agent="own_langchain_careful_chain")
    task: Task = waits(client, handle)
    client.signal(handle.id, input_id=task.pending_inputs[0].input_id, approve=False)
    assert handle.result("60s").output == "as you wish"
    assert "height: " not in str(model.asked[-1].messages)
