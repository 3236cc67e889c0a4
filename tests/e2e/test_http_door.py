"""The HTTP door, asked by the official clients of OpenAI and Anthropic, and by things that are neither.

What is used of the clients' own behaviour: `base_url`; the key as `Authorization: Bearer` (openai) or `x-api-key` (anthropic); embeddings
asked for in base64 unless told otherwise (openai); classes of errors by status, 401 AuthenticationError, 404 NotFoundError, 429
RateLimitError; two retries of their own on 408, 409, 429 and 5xx, unless the answer says `x-should-retry: false`; an `error` in a stream
raised as APIError; tool calls put together from fragments (`messages.stream` of anthropic, `chat.completions.stream` of openai).
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from conftest import config, openai_provider
from pydantic import BaseModel

from singularity_agents._local_node import LocalNode
from singularity_agents.testing import Asked, Fail, ScriptedModel, ToolCall

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": WEATHER}}
HELLO: Any = [{"role": "user", "content": "hello"}]


def scripted(asked: Asked) -> Any:
    """Calls the tool that it is shown, then says what it gave; fails as it is told to."""
    if asked.last.startswith("fail"):
        return Fail(int(asked.last.split()[1]), "scripted")
    if asked.messages[-1]["role"] == "tool":
        return f"It is {asked.last}."
    if len(asked.tools) > 0:
        return [ToolCall("weather", city="Oslo"), ToolCall("weather", city="Rome")]
    return asked.last.upper()


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedModel]:
    with ScriptedModel(*[scripted] * 500) as model:
        yield model


@pytest.fixture(scope="module")
def door(upstream: ScriptedModel, bad_provider: str) -> Iterator[LocalNode]:
    scripted_provider = openai_provider("scripted", upstream.base_url, "scripted")
    with LocalNode(config(bad_provider) + scripted_provider) as node:
        yield node


@pytest.fixture
def gpt(door: LocalNode) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{door.http_address}/v1", api_key="any") as client:
        yield client


@pytest.fixture
def claude(door: LocalNode) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"http://{door.http_address}", api_key="any") as client:
        yield client


class TestOpenAi:
    def test_an_answer(self, gpt: openai.OpenAI) -> None:
        raw = gpt.chat.completions.with_raw_response.create(model="default", messages=HELLO)
        answer = raw.parse()
        assert answer.choices[0].message.content == "hello"
        assert (answer.choices[0].finish_reason, answer.object, answer.model) == ("stop", "chat.completion", "echo")
        assert answer.usage is not None and answer.usage.total_tokens == 2
        assert (raw.headers["x-singularity-provider"], raw.headers["x-singularity-cost-micros"]) == ("echo", "0")

    def test_a_stream(self, gpt: openai.OpenAI) -> None:
        text = "many words in a row"
        chunks = list(
            gpt.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": text}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 5
        assert len({c.id for c in chunks}) == 1

    def test_tools(self, gpt: openai.OpenAI) -> None:
        ask: Any = [{"role": "user", "content": "weather?"}]
        first = gpt.chat.completions.create(model="scripted", messages=ask, tools=[TOOL]).choices[0]
        assert first.finish_reason == "tool_calls" and first.message.tool_calls is not None
        call = first.message.tool_calls[0]
        assert call.type == "function" and json.loads(call.function.arguments) == {"city": "Oslo"}
        ask += [first.message, *({"role": "tool", "tool_call_id": c.id, "content": "fine"} for c in first.message.tool_calls)]
        assert (
            gpt.chat.completions.create(model="scripted", messages=ask, tools=[TOOL]).choices[0].message.content == "It is fine."
        )

    def test_tools_in_a_stream(self, gpt: openai.OpenAI) -> None:
        with gpt.chat.completions.stream(model="scripted", messages=HELLO, tools=[TOOL]) as stream:
            final = stream.get_final_completion()
        calls = final.choices[0].message.tool_calls or []
        assert [json.loads(c.function.arguments)["city"] for c in calls] == ["Oslo", "Rome"]
        assert len({c.id for c in calls}) == 2

    def test_a_schema(self, gpt: openai.OpenAI) -> None:
        class City(BaseModel):
            CITY: str

        answer = gpt.chat.completions.parse(
            model="scripted", messages=[{"role": "user", "content": '{"city": "oslo"}'}], response_format=City
        )
        assert answer.choices[0].message.parsed == City(CITY="OSLO")

    def test_embeddings(self, gpt: openai.OpenAI) -> None:
        asked = gpt.embeddings.create(model="echo/echo", input=["one", "two"])
        plain = gpt.embeddings.create(model="echo/echo", input=["one", "two"], encoding_format="float")
        assert [e.embedding for e in asked.data] == [pytest.approx(e.embedding) for e in plain.data]
        assert len(asked.data) == 2 and asked.data[1].index == 1

    def test_models(self, gpt: openai.OpenAI) -> None:
        assert {"default", "scripted"} <= {m.id for m in gpt.models.list()}
        assert gpt.models.retrieve("scripted").owned_by == "scripted"
        with pytest.raises(openai.NotFoundError):
            gpt.models.retrieve("nobody's")

    @pytest.mark.parametrize(
        ("options", "field"),
        [
            ({"n": 2}, "n"),
            ({"temperature": 9}, "temperature"),
            ({"logprobs": True}, "logprobs"),
            ({"extra_body": {"top_k": 4}}, "top_k"),
            ({"messages": []}, "messages"),
            (
                {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
                "messages[0].content[0].type",
            ),
            ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
            ({"tools": [{"type": "function"}]}, "tools[0].function"),
            ({"max_tokens": 0}, "max_tokens"),
        ],
    )
    def test_what_cannot_be_honoured_is_refused_by_its_field(self, gpt: openai.OpenAI, options: Any, field: str) -> None:
        with pytest.raises(openai.BadRequestError) as error:
            gpt.chat.completions.create(**{"model": "default", "messages": HELLO, **options})
        assert (error.value.param, error.value.type) == (field, "invalid_request_error")

    @pytest.mark.parametrize(
        ("said", "kind", "code"),
        [
            ("fail 429", openai.RateLimitError, "rate_limit_exceeded"),
            ("fail 503", openai.InternalServerError, "PROVIDER_UNAVAILABLE"),
            ("fail 400", openai.BadRequestError, "PROVIDER_REJECTED"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_errors_have_their_class_and_are_not_tried_again(
        self, gpt: openai.OpenAI, upstream: ScriptedModel, said: str, kind: type[openai.APIStatusError], code: str, stream: bool
    ) -> None:
        ask: Any = [{"role": "user", "content": said}]
        made = []
        for client in (gpt, gpt.with_options(max_retries=0)):
            before = len(upstream.asked)
            with pytest.raises(kind) as error:
                client.chat.completions.create(model="scripted", messages=ask, stream=stream)
            assert error.value.code == code
            assert error.value.response.headers["x-should-retry"] == "false"
            made.append(len(upstream.asked) - before)
        # What the engine tries again by itself is the same; the client adds nothing.
        assert made[0] == made[1] <= 3

    def test_a_model_that_nobody_has(self, gpt: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as error:
            gpt.chat.completions.create(model="unknown-model", messages=HELLO)
        assert error.value.code == "model_not_found"

    def test_a_stream_that_is_cut_says_so(self, gpt: openai.OpenAI) -> None:
        seen = []
        with pytest.raises(openai.APIError) as error:
            for chunk in gpt.chat.completions.create(model="bad/cut", messages=HELLO, stream=True):
                seen.append(chunk.choices[0].delta.content)
        assert "half" in seen
        assert error.value.code == "PROVIDER_STREAM_CUT"


class TestAnthropic:
    def test_an_answer(self, claude: anthropic.Anthropic) -> None:
        answer = claude.messages.create(model="default", max_tokens=50, system="Be kind.", messages=HELLO)
        assert [block.text for block in answer.content if block.type == "text"] == ["hello"]
        assert (answer.stop_reason, answer.role, answer.usage.output_tokens) == ("end_turn", "assistant", 1)

    def test_a_stream(self, claude: anthropic.Anthropic) -> None:
        with claude.messages.stream(
            model="default", max_tokens=50, messages=[{"role": "user", "content": "many words in a row"}]
        ) as stream:
            assert "".join(stream.text_stream) == "many words in a row"
            final = stream.get_final_message()
        assert final.stop_reason == "end_turn" and final.usage.output_tokens == 5

    def test_tools(self, claude: anthropic.Anthropic) -> None:
        tools: Any = [{"name": "weather", "description": "Of a city.", "input_schema": WEATHER}]
        first = claude.messages.create(model="scripted", max_tokens=50, messages=HELLO, tools=tools)
        assert first.stop_reason == "tool_use"
        calls = [block for block in first.content if block.type == "tool_use"]
        assert [call.input for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
        results: Any = [{"type": "tool_result", "tool_use_id": c.id, "content": "cold"} for c in calls]
        again: Any = [*HELLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
        last = claude.messages.create(model="scripted", max_tokens=50, messages=again, tools=tools)
        assert last.content[0].type == "text" and last.content[0].text == "It is cold."

    def test_tools_in_a_stream(self, claude: anthropic.Anthropic) -> None:
        tools: Any = [{"name": "weather", "input_schema": WEATHER}]
        with claude.messages.stream(model="scripted", max_tokens=50, messages=HELLO, tools=tools) as stream:
            final = stream.get_final_message()
        assert [block.input for block in final.content if block.type == "tool_use"] == [{"city": "Oslo"}, {"city": "Rome"}]

    def test_what_cannot_be_honoured_is_refused(self, claude: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.BadRequestError, match="top_k"):
            claude.messages.create(model="default", max_tokens=5, messages=HELLO, extra_body={"top_k": 3})

    def test_errors_have_their_class_and_are_not_tried_again(self, claude: anthropic.Anthropic, upstream: ScriptedModel) -> None:
        ask: Any = [{"role": "user", "content": "fail 429"}]
        before = len(upstream.asked)
        with pytest.raises(anthropic.RateLimitError):
            claude.messages.create(model="scripted", max_tokens=5, messages=ask)
        assert len(upstream.asked) - before <= 3


def asked(node: LocalNode, method: str, path: str, body: bytes = b"{}", **headers: str) -> tuple[int, dict[str, Any]]:
    host, port = node.http_address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"content-type": "application/json", **given})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("status", "request_of"),
    [
        (403, {"host": "evil.example:50152"}),
        (403, {"origin": "https://evil.example"}),
        (403, {"origin": "null"}),
        (415, {"content_type": "text/plain"}),
        (415, {"content_type": "application/x-www-form-urlencoded"}),
    ],
)
def test_a_web_page_spends_nothing(door: LocalNode, status: int, request_of: dict[str, str]) -> None:
    body = json.dumps({"model": "default", "messages": HELLO}).encode()
    given, answer = asked(door, "POST", CHAT, body, **request_of)
    assert (given, "choices" in answer) == (status, False)


@pytest.mark.parametrize(
    ("status", "method", "path", "body"),
    [
        (400, "POST", CHAT, b"not json"),
        (400, "POST", CHAT, b"[]"),
        (400, "POST", CHAT, b'{"model": 7, "messages": []}'),
        (400, "POST", CHAT, b"[" * 200_000),
        (413, "POST", CHAT, b'{"model": "' + b"x" * (5 * 1024 * 1024) + b'"}'),
        (405, "GET", CHAT, b""),
        (405, "DELETE", "/v1/models", b""),
        (404, "POST", "/v1/responses", b"{}"),
        (404, "GET", "/", b""),
        (400, "POST", "/v1/embeddings", b'{"model": "echo/echo", "input": []}'),
        (400, "POST", "/v1/messages", b'{"model": "default", "messages": [{"role": "user", "content": "x"}]}'),
    ],
)
def test_bad_requests_are_answered_in_the_words_of_their_wire(
    door: LocalNode, status: int, method: str, path: str, body: bytes
) -> None:
    given, answer = asked(door, method, path, body)
    assert given == status
    assert answer["error"]["message"] and answer["error"]["type"]
    assert (answer.get("type") == "error") == path.startswith("/v1/messages")
    assert len(json.dumps(answer)) < 1000, "an answer does not repeat what was sent"
