"""Messages between Haystack and the engine."""

from __future__ import annotations

from typing import Any

from haystack.dataclasses import ChatMessage, ToolCall

from ...worker._engine import finish_name, message_of, text_of
from ...worker._wire import common, providers
from .. import _prompt


def to_engine(message: ChatMessage) -> list[common.Message]:
    """For a model call; a message with several tool results becomes several."""
    if message.tool_call_results:
        return [
            message_of(
                {"role": "tool", "content": str(r.result), "tool_call_id": r.origin.id or "", "name": r.origin.tool_name}
            )
            for r in message.tool_call_results
        ]  # fmt: skip
    calls = [{"id": c.id or "", "name": c.tool_name, "arguments": c.arguments} for c in message.tool_calls]
    return [message_of({"role": message.role.value, "content": "\n".join(message.texts), "tool_calls": calls})]


def from_engine(message: common.Message) -> ChatMessage:
    """A message of a task's history."""
    text = text_of(message)
    if message.role == common.ROLE_SYSTEM:
        return ChatMessage.from_system(text)
    if message.role == common.ROLE_ASSISTANT:
        return ChatMessage.from_assistant(text or None, tool_calls=_calls(message))
    if message.role == common.ROLE_TOOL:
        return ChatMessage.from_tool(text, origin=ToolCall(message.name, {}, id=message.tool_call_id))
    return ChatMessage.from_user(text)


def answer(response: providers.ChatResponse) -> ChatMessage:
    """The model's answer."""
    usage = response.usage
    meta: dict[str, Any] = {
        "model": response.model,
        "finish_reason": finish_name(response),
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
        },
    }
    return ChatMessage.from_assistant(text_of(response.message) or None, tool_calls=_calls(response.message), meta=meta)


def _calls(message: common.Message) -> list[ToolCall]:
    return [ToolCall(c.name, _prompt.arguments_of(c), id=c.id) for c in message.tool_calls]
