"""What a task brings is made to fit its model, and what comes back the form that was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MANY, KillableNode, openai_provider

from singularity_agents import Client, TaskFailed
from singularity_agents.testing import Asked, ScriptedModel

HERE = Path(__file__).resolve().parent
SCHEMA = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
#: Ten turns of about 130 tokens each, by the engine's own estimate.
HISTORY = [
    turn for n in range(10) for turn in (("user", f"question {n} " + "x" * 150), ("assistant", f"answer {n} " + "y" * 150))
]
WINDOW = 1000

MakeNode = Callable[..., KillableNode]


class Model:
    """Answers by a function that a test sets, and keeps what it was asked."""

    def __init__(self) -> None:
        self.says: Callable[[Asked], str] = lambda asked: "ok"
        self.script = ScriptedModel(*[lambda asked: self.says(asked)] * MANY)

    @property
    def last(self) -> Asked:
        """The last request."""
        return self.script.asked[-1]


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    with made.script:
        yield made


def configured(model: Model, more: str = "") -> str:
    provider = openai_provider("scripted", model.script.base_url, "scripted")
    narrow = f'[models.narrow]\nendpoints = [{{ provider = "scripted", name = "scripted", context_tokens = {WINDOW} }}]\n'
    tools = json.dumps([f"e2e_delegates:tool_{n}" for n in range(60)] + ["e2e_delegates:weather_forecast"])
    agents = '[agents.chain]\nframework = "langchain"\nmodel = "narrow"\n'
    agents += f'[agents.tooled]\nframework = "langchain"\nmodel = "scripted/scripted"\nproject = "{HERE}"\ntools = {tools}\n'
    agents += f'[agents.says_badly]\nframework = "custom:e2e"\nmodel = "scripted/scripted"\nproject = "{HERE}"\n'
    agents += 'entrypoint = "e2e_delegates:says_badly"\n'
    return provider + narrow + agents + more


def remarks(client: Client, task_id: str) -> list[str]:
    return [e.data["message"] for e in client.watch(task_id) if e.kind == "log" and e.data.get("source") == "optimization"]


def told(asked: Asked) -> list[str]:
    """What was said before, in order."""
    return [str(m["content"])[:10] for m in asked.messages if m["role"] in ("user", "assistant")]


@pytest.mark.parametrize(
    ("effort", "executor", "kept"),
    [
        ("balanced", {"agent": "chain"}, 8),
        ("aggressive", {"agent": "chain"}, 4),
        ("off", {"agent": "chain"}, 20),
        ("balanced", {"framework": "native", "model": "narrow"}, 8),
        ("aggressive", {"framework": "native", "model": "narrow"}, 4),
        ("off", {"framework": "native", "model": "narrow"}, 20),
    ],
)
def test_a_conversation_is_cut_to_what_the_model_reads(
    killable: MakeNode, model: Model, effort: str, executor: dict[str, Any], kept: int
) -> None:
    key = "native_optimization" if "framework" in executor else "performance_optimization"
    with Client(killable(configured(model, f'[agent_execution]\n{key} = "{effort}"\n')).address, timeout="60s") as client:
        task = client.submit("go on", history=HISTORY, **executor).wait("60s")
        assert task.state == "SUCCEEDED", task.error
        said = told(model.last)
        assert len(said) == kept + 1 and said[-1] == "go on"
        assert said[0] == f"question {10 - kept // 2}" and said[-2] == "answer 9 y"
        said_so = [f"{20 - kept} of the conversation's 20 messages are left out"] if kept < 20 else []
        assert [remark.partition(",")[0] for remark in remarks(client, task.id)] == said_so


def test_a_conversation_that_fits_or_whose_model_is_unknown_is_whole(killable: MakeNode, model: Model) -> None:
    with Client(killable(configured(model)).address, timeout="60s") as client:
        for history, which in ((HISTORY[-4:], "narrow"), (HISTORY * 5, "scripted/scripted")):
            task = client.submit("go on", history=history, framework="native", model=which).wait("60s")
            assert len(told(model.last)) == len(history) + 1 and remarks(client, task.id) == []


@pytest.mark.parametrize(("effort", "shown"), [("balanced", 32), ("aggressive", 12), ("off", 61)])
def test_of_many_tools_the_model_is_shown_those_that_fit(killable: MakeNode, model: Model, effort: str, shown: int) -> None:
    more = f'[agent_execution]\nperformance_optimization = "{effort}"\n'
    with Client(killable(configured(model, more)).address, timeout="60s") as client:
        task = client.submit("Will it rain in Paris? Ask the weather service.", agent="tooled").wait("60s")
        assert task.state == "SUCCEEDED", task.error
        assert len(model.last.tools) == shown and "weather_forecast" in model.last.tools
        assert len(remarks(client, task.id)) == (0 if effort == "off" else 1)
        client.execute("Call tool_57 now.", agent="tooled")
        assert "tool_57" in model.last.tools, "the text names it"


@pytest.mark.parametrize("who", ["text", "data", "chain"])
def test_an_answer_that_lost_its_form_is_said_again_in_it(killable: MakeNode, model: Model, who: str) -> None:
    """The repair is a model call of the task: counted, and told among its events."""

    def answer(asked: Asked) -> str:
        return '{"count": 3}' if "must be JSON that matches a schema" in asked.last else "There are three."

    model.says = answer
    agent = "chain" if who == "chain" else "says_badly"
    with Client(killable(configured(model)).address, timeout="60s") as client:
        task = client.submit(who, agent=agent, output_schema=SCHEMA, model="scripted/scripted").wait("60s")
        assert task.result is not None, task.error
        assert task.result.structured_output == {"count": 3} and json.loads(task.result.output) == {"count": 3}
        assert task.result.executor == ("langchain" if who == "chain" else "custom:e2e")
        assert task.result.metrics.provider_calls == (2 if who == "chain" else 1)
        [remark] = remarks(client, task.id)
        assert "output_schema" in remark


def test_a_repair_that_fails_too_is_an_error_of_its_own(killable: MakeNode, model: Model) -> None:
    model.says = lambda asked: "three, I said"
    with Client(killable(configured(model)).address, timeout="60s") as client, pytest.raises(TaskFailed) as failed:
        client.execute("text", agent="says_badly", output_schema=SCHEMA)
    assert failed.value.reason == "OUTPUT_SCHEMA_MISMATCH"
    assert len(model.script.asked) == 2, "the second call is told what was wrong with the first"


def test_switched_off_an_answer_is_held_against_its_schema_and_not_repaired(killable: MakeNode, model: Model) -> None:
    more = "[native_capabilities]\nperformance_optimization = false\n"
    with Client(killable(configured(model, more)).address, timeout="60s") as client, pytest.raises(TaskFailed) as failed:
        client.execute("data", agent="says_badly", output_schema=SCHEMA)
    assert failed.value.reason == "OUTPUT_SCHEMA_MISMATCH" and model.script.asked == []


def test_a_fence_around_the_answer_costs_no_call(killable: MakeNode, model: Model) -> None:
    model.says = lambda asked: '```json\n{"count": 4}\n```'
    with Client(killable(configured(model)).address, timeout="60s") as client:
        done = client.execute("go", agent="chain", output_schema=SCHEMA, model="scripted/scripted")
        assert done.structured_output == {"count": 4} and len(model.script.asked) == 1
