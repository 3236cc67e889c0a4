"""A chat client without a connection: each call travels to the engine as one frame."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from agent_framework import BaseChatClient, ChatResponse, ChatResponseUpdate, Content, FunctionInvocationLayer, Message
from pydantic import BaseModel

from ...worker._engine import finish_name, message_of, text_of
from ...worker._wire import arguments_text, common, providers
from .. import _chat

_FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "content_filter"}


class _Client(BaseChatClient):
    """The calls; the layer above runs the functions."""

    #: Model or alias of the configuration; empty: the task's.
    engine_model = ""

    def _inner_get_response(self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **_: Any) -> Any:
        asked = self._request(messages, options)
        if stream:
            return self._build_response_stream(self._updates(asked), response_format=options.get("response_format"))
        return self._answer(asked, options.get("response_format"))

    async def _answer(self, asked: providers.ChatRequest, response_format: Any) -> ChatResponse:
        response = await _chat.ask(asked)
        return ChatResponse(
            messages=[Message("assistant", contents_of(response))],
            model=response.model,
            finish_reason=_FINISH.get(finish_name(response)),
            usage_details=_usage(response),
            response_format=response_format,
        )

    async def _updates(self, asked: providers.ChatRequest) -> AsyncIterator[ChatResponseUpdate]:
        streamed = False
        async for piece in _chat.pieces(asked):
            if isinstance(piece, str):
                streamed = True
                yield ChatResponseUpdate(role="assistant", contents=[Content.from_text(piece)])
                continue
            contents = [c for c in contents_of(piece) if not (streamed and c.type == "text")]
            yield ChatResponseUpdate(
                role="assistant",
                contents=[*contents, Content.from_usage(_usage(piece))],
                model=piece.model,
                finish_reason=_FINISH.get(finish_name(piece)),
            )

    def _request(self, messages: Sequence[Message], options: Mapping[str, Any]) -> providers.ChatRequest:
        told = [message_of({"role": "system", "content": text})] if (text := options.get("instructions")) else []
        choice = options.get("tool_choice")
        mode = choice.get("mode", "") if isinstance(choice, Mapping) else str(choice or "")
        tools = options.get("tools") or ()
        return _chat.request(
            [*told, *(made for message in messages for made in to_engine(message))],
            [_chat.definition(tool, definition_of) for tool in (tools if isinstance(tools, Sequence) else [tools])]
            if mode != "none"
            else (),
            model=self.engine_model or str(options.get("model") or ""),
            tool_choice="required" if mode == "required" else "",
            temperature=options.get("temperature"),
            max_tokens=options.get("max_tokens"),
            seed=options.get("seed"),
            schema=_schema(options.get("response_format")),
        )


class EngineChatClient(FunctionInvocationLayer, _Client):
    """The engine as a chat client: choice of provider, retries, budgets and the record of calls are its business."""

    def __init__(self, *, engine_model: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.engine_model = engine_model


def to_engine(message: Message) -> list[common.Message]:
    """For a model call; a message with several results becomes several."""
    results = [c for c in message.contents if c.type == "function_result"]
    if results:
        return [message_of({"role": "tool", "content": _result(c), "tool_call_id": c.call_id or ""}) for c in results]
    calls = [
        {"id": c.call_id or "", "name": c.name, "arguments": _arguments(c)} for c in message.contents if c.type == "function_call"
    ]
    text = "".join(c.text or "" for c in message.contents if c.type == "text")
    role = str(getattr(message.role, "value", message.role))
    return [message_of({"role": role if role in ("system", "assistant") else "user", "content": text, "tool_calls": calls})]


def from_engine(message: common.Message) -> Message:
    """A message of a task's history."""
    text = text_of(message)
    if message.role == common.ROLE_TOOL:
        return Message("tool", [Content.from_function_result(message.tool_call_id, result=text)])
    role = {common.ROLE_SYSTEM: "system", common.ROLE_ASSISTANT: "assistant"}.get(message.role, "user")
    return Message(role, [*([Content.from_text(text)] if text else []), *_calls(message)])


def contents_of(response: providers.ChatResponse) -> list[Content]:
    """Text and function calls of an answer."""
    text = text_of(response.message)
    return [*([Content.from_text(text)] if text else []), *_calls(response.message)]


def definition_of(tool: Any) -> common.ToolDefinition:
    """What the model reads of a tool."""
    return _chat.definition_as(tool.name, tool.description, tool.parameters())


def _calls(message: common.Message) -> list[Content]:
    return [Content.from_function_call(c.id, c.name, arguments=c.arguments or "{}") for c in message.tool_calls]


def _arguments(content: Content) -> str:
    return content.arguments if isinstance(content.arguments, str) else arguments_text(content.arguments or {})


def _result(content: Content) -> str:
    if content.exception:
        return str(content.exception)
    return content.result if isinstance(content.result, str) else "" if content.result is None else str(content.result)


def _usage(response: providers.ChatResponse) -> Any:
    usage = response.usage
    return {
        "input_token_count": usage.input_tokens,
        "output_token_count": usage.output_tokens,
        "total_token_count": usage.input_tokens + usage.output_tokens,
    }


def _schema(wanted: Any) -> Mapping[str, Any] | None:
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        return wanted.model_json_schema()
    return wanted if isinstance(wanted, Mapping) else None
