"""Messages between LangChain and the engine, in full both ways."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, InvalidToolCall, SystemMessage, ToolCall, ToolMessage

from ...worker._engine import text_of
from ...worker._wire import arguments_text, common, providers

_ROLES: Final = {
    "human": common.ROLE_USER,
    "ai": common.ROLE_ASSISTANT,
    "system": common.ROLE_SYSTEM,
    "tool": common.ROLE_TOOL,
    "AIMessageChunk": common.ROLE_ASSISTANT,
    "HumanMessageChunk": common.ROLE_USER,
}


def to_engine(messages: Iterable[BaseMessage]) -> list[common.Message]:
    """Messages for a model call."""
    return [_message(message) for message in messages]


def _message(message: BaseMessage) -> common.Message:
    made = common.Message(role=_ROLES.get(message.type, common.ROLE_USER))
    content = message.content
    if isinstance(content, str):
        if content:
            made.content.add(text=content)
    else:
        for block in content:
            _part(made, block)
    if isinstance(message, AIMessage):
        for call in message.tool_calls:
            made.tool_calls.add(id=call["id"] or "", name=call["name"], arguments=arguments_text(call["args"]))
    elif isinstance(message, ToolMessage):
        made.tool_call_id = message.tool_call_id
        made.name = message.name or ""
    return made


def _part(made: common.Message, block: str | dict[str, Any]) -> None:
    if isinstance(block, str):
        made.content.add(text=block)
        return
    kind = block.get("type")
    if kind == "text":
        made.content.add(text=block["text"])
    elif kind == "image_url":
        url = block["image_url"]
        _image(made, url["url"] if isinstance(url, dict) else url, "")
    elif kind == "image":
        if url := block.get("url"):
            _image(made, url, block.get("mime_type", ""))
        elif data := block.get("base64") or block.get("data"):
            made.content.add().image.MergeFrom(
                common.ImagePart(data=base64.b64decode(data), media_type=block.get("mime_type", ""))
            )


def _image(made: common.Message, url: str, media_type: str) -> None:
    if url.startswith("data:"):
        head, _, data = url[5:].partition(",")
        made.content.add().image.MergeFrom(common.ImagePart(data=base64.b64decode(data), media_type=head.partition(";")[0]))
    else:
        made.content.add().image.MergeFrom(common.ImagePart(uri=url, media_type=media_type))


def from_engine(messages: Sequence[common.Message]) -> list[BaseMessage]:
    """The history of a task."""
    return [_from(message) for message in messages]


def _from(message: common.Message) -> BaseMessage:
    text = text_of(message)
    if message.role == common.ROLE_ASSISTANT:
        calls, invalid = _tool_calls(message.tool_calls)
        return AIMessage(text, tool_calls=calls, invalid_tool_calls=invalid)
    if message.role == common.ROLE_SYSTEM:
        return SystemMessage(text)
    if message.role == common.ROLE_TOOL:
        return ToolMessage(text, tool_call_id=message.tool_call_id, name=message.name or None)
    images: list[str | dict[str, Any]] = [_image_block(part.image) for part in message.content if part.HasField("image")]
    return HumanMessage([{"type": "text", "text": text}, *images]) if images else HumanMessage(text)


def _image_block(image: common.ImagePart) -> dict[str, Any]:
    if image.uri:
        return {"type": "image", "url": image.uri}
    return {"type": "image", "base64": base64.b64encode(image.data).decode(), "mime_type": image.media_type}


def _tool_calls(calls: Iterable[common.ToolCall]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    good: list[ToolCall] = []
    bad: list[InvalidToolCall] = []
    for call in calls:
        try:
            arguments = json.loads(call.arguments or "{}")
            if not isinstance(arguments, dict):
                raise ValueError("not an object")
            good.append(ToolCall(name=call.name, args=arguments, id=call.id, type="tool_call"))
        except ValueError as error:
            bad.append(
                InvalidToolCall(name=call.name, args=call.arguments, id=call.id, error=str(error), type="invalid_tool_call")
            )
    return good, bad


def answer(response: providers.ChatResponse, finish_reason: str) -> AIMessage:
    """The model's answer."""
    calls, invalid = _tool_calls(response.message.tool_calls)
    usage = response.usage
    return AIMessage(
        text_of(response.message),
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata={
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "input_token_details": {"cache_read": usage.cached_tokens},
            "output_token_details": {"reasoning": usage.reasoning_tokens},
        },
        response_metadata={"model_name": response.model, "finish_reason": finish_reason},
    )
