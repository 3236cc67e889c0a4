"""Model clients that users' code builds itself: they reach the engine's models, and nothing else."""

from __future__ import annotations

import json
from typing import Any

from singularity_agents import Client


def asked(client: Client, *bodies: dict[str, Any], agent: str = "own_client") -> tuple[list[str], Any]:
    """What the agent's own client was answered, and the result."""
    result = client.execute(json.dumps(bodies), agent=agent)
    return json.loads(result.output), result


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **more}


def test_it_is_answered_by_the_tasks_model_and_metered(client: Client) -> None:
    [answer], result = asked(client, says("hello"))
    completion = json.loads(answer)
    assert completion["choices"][0]["message"] == {"role": "assistant", "content": "hello"}
    assert completion["choices"][0]["finish_reason"] == "stop" and completion["model"] == "echo"
    assert completion["usage"]["completion_tokens"] == 1
    assert result.metrics.provider_calls == 1


def test_it_streams(client: Client) -> None:
    [answer], _ = asked(client, says("one two", stream=True, stream_options={"include_usage": True}))
    lines = [line.removeprefix("data: ") for line in answer.splitlines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "one two"
    assert chunks[-1]["usage"]["completion_tokens"] == 2


def test_it_calls_tools(client: Client) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    [answer], _ = asked(client, says("x", model='echo?tool=add&args={"a":1}', tools=[tool]))
    choice = json.loads(answer)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a":1}'}


def test_what_it_cannot_do_is_said_once_and_not_to_be_tried_again(client: Client) -> None:
    wrong = [
        says("x", n=2), {"model": "m"}, says("x", key="another"), says("x", path="/responses"), says("x", model="echo?fail=503"),
        says("x", response_format={"type": "xml"}),
    ]  # fmt: skip
    answers, _ = asked(client, *wrong)
    heads = [answer.split(" ", 2)[:2] for answer in answers]
    assert heads == [[status, "false"] for status in ("400", "400", "401", "404", "502", "400")], answers
    assert "messages" in answers[1] and "response_format" in answers[5]


def test_a_client_that_blocks_the_loop_is_told_so(client: Client) -> None:
    [answer], _ = asked(client, says("x"), agent="blocks_its_loop")
    assert answer.startswith("503 false") and "async client" in answer
