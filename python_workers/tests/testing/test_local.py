"""A user's agent in the user's own process: the scripted model, and `.local()`."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import pytest

import singularity_agents
from singularity_agents import CapabilityPending, InvalidRequest, ProviderFailed, SingularityError, WrongState
from singularity_agents.testing import Billed, Fail, Node, ScriptedModel, ToolCall

from .agents import asks, fails, remembers, uses_a_tool, waits


def test_the_model_says_what_the_script_says_and_keeps_what_it_was_asked() -> None:
    model = ScriptedModel("hello")
    assert asks.local("hi", scripted=model) == "hello!"
    (asked,) = model.asked
    assert asked.last == "hi"
    assert [m["role"] for m in asked.messages] == ["system", "user"]
    assert model.unused == 0


def test_a_tool_call_of_the_script_reaches_the_function() -> None:
    model = ScriptedModel(ToolCall("double", n=21))
    assert uses_a_tool.local("double 21", scripted=model) == 'double {"n": 21} 42'
    assert model.asked[0].tools == ("double",)


def test_a_function_of_the_script_sees_the_request() -> None:
    assert asks.local("louder", scripted=ScriptedModel(lambda asked: asked.last.upper())) == "LOUDER!"


def test_synchronous_generators_run_too() -> None:
    assert waits.local("x", scripted=ScriptedModel("two")) == "one two"


def test_what_the_function_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="boom"):
        fails.local("boom")


def test_a_scripted_failure_and_an_exhausted_script_are_the_providers() -> None:
    with pytest.raises(ProviderFailed, match="busy"):
        asks.local("x", scripted=ScriptedModel(Fail(429, "busy")))
    with pytest.raises(ProviderFailed, match="has 0 answers, and this is request 1"):
        asks.local("x", scripted=ScriptedModel())


def test_what_needs_a_node_says_so() -> None:
    with pytest.raises(CapabilityPending, match=r"submit\(\)"):
        remembers.local("x", scripted=ScriptedModel())


def test_wrong_arguments_name_the_field_and_the_remedy() -> None:
    wrong: Any = 7
    for call in (lambda: asks.local(wrong), lambda: asks.submit(wrong), lambda: asks.map(["x"], concurrency=0)):
        with pytest.raises(InvalidRequest, match="must be"):
            call()
    with pytest.raises(InvalidRequest, match="an answer is int, must be text"):
        ScriptedModel(wrong)
    with pytest.raises(InvalidRequest, match="no @agent function"):
        Node(wrong)


async def test_inside_a_loop_it_says_what_to_do() -> None:
    with pytest.raises(WrongState, match="thread"):
        asks.local("x", scripted=ScriptedModel("y"))
    assert await asyncio.to_thread(asks.local, "x", scripted=ScriptedModel("y")) == "y!"


def test_over_http_it_is_an_openai_compatible_server() -> None:
    def post(url: str, body: dict[str, Any]) -> str:
        request = urllib.request.Request(
            f"{url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())

    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with ScriptedModel("two words", "two words", Fail(503, "down"), Billed("dear", input_tokens=9000, output_tokens=7)) as model:
        assert json.loads(post(model.base_url, body))["choices"][0]["message"]["content"] == "two words"
        lines = [line for line in post(model.base_url, {**body, "stream": True}).splitlines() if line]
        pieces = [json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines[:3]]
        assert "".join(pieces) == "two words"
        assert lines[-1] == "data: [DONE]"
        with pytest.raises(urllib.error.HTTPError) as error:
            post(model.base_url, body)
        assert error.value.code == 503
        error.value.close()
        assert json.loads(post(model.base_url, body))["usage"] == {
            "prompt_tokens": 9000, "completion_tokens": 7, "total_tokens": 9007,
        }  # fmt: skip
    assert [asked.streams for asked in model.asked] == [False, True, False, False]
    with pytest.raises(SingularityError, match="with block"):
        print(model.base_url)


def test_every_public_name_is_there() -> None:
    wanted = {
        "Client", "AsyncClient", "SingularityError", "UniversalAgent", "AgentCapabilities", "agent", "tool",
        "SingularityLangChainAgent", "SingularityCrewAIIntegration",
    }  # fmt: skip
    assert wanted <= set(singularity_agents.__all__)
    # These two are imported with their frameworks, in whose environments they are tested.
    for name in set(singularity_agents.__all__) - {"SingularityLangChainAgent", "SingularityCrewAIIntegration"}:
        assert getattr(singularity_agents, name) is not None
