"""Messages between Semantic Kernel and the engine. Functions of the engine's plugin go by their short names there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from semantic_kernel.contents import ChatMessageContent, FunctionCallContent, FunctionResultContent, TextContent
from semantic_kernel.contents.utils.author_role import AuthorRole
from semantic_kernel.contents.utils.finish_reason import FinishReason

from ...worker._engine import finish_name, message_of, text_of
from ...worker._wire import arguments_text, common, providers

#: Plugin of the tools of the engine and the configuration.
PLUGIN: Final = "engine"
_PREFIX: Final = f"{PLUGIN}-"
_FINISH: Final = {
    "stop": FinishReason.STOP, "length": FinishReason.LENGTH, "tool_calls": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}  # fmt: skip


def short(name: str) -> str:
    """A function's name as the model reads it."""
    return name.removeprefix(_PREFIX)


def to_engine(message: ChatMessageContent) -> list[common.Message]:
    """For a model call; a message with several results becomes several."""
    results = [item for item in message.items if isinstance(item, FunctionResultContent)]
    if results:
        return [
            message_of(
                {"role": "tool", "content": str(r.result), "tool_call_id": r.call_id or r.id or "", "name": short(r.name or "")}
            )
            for r in results
        ]
    text = "".join(getattr(item, "text", "") or "" for item in message.items if not isinstance(item, FunctionCallContent))
    role = "system" if message.role == AuthorRole.DEVELOPER else message.role.value
    calls = [_call(item) for item in message.items if isinstance(item, FunctionCallContent)]
    return [message_of({"role": role, "content": text, "tool_calls": calls})]


def _call(item: FunctionCallContent) -> dict[str, Any]:
    arguments = item.arguments if isinstance(item.arguments, str) else arguments_text(dict(item.arguments or {}))
    return {"id": item.call_id or item.id or "", "name": short(item.name or ""), "arguments": arguments or "{}"}


def from_engine(message: common.Message) -> ChatMessageContent:
    """A message of a task's history."""
    text = text_of(message)
    if message.role == common.ROLE_TOOL:
        result = FunctionResultContent(id=message.tool_call_id, call_id=message.tool_call_id, name=message.name, result=text)
        return ChatMessageContent(role=AuthorRole.TOOL, items=[result])
    roles = {common.ROLE_SYSTEM: AuthorRole.SYSTEM, common.ROLE_ASSISTANT: AuthorRole.ASSISTANT}
    items: list[Any] = [TextContent(text=text)] if text else []
    return ChatMessageContent(
        role=roles.get(message.role, AuthorRole.USER),
        items=[*items, *calls(message, (_PREFIX + c.name for c in message.tool_calls))],
    )


def calls(message: common.Message, offered: Iterable[str]) -> list[FunctionCallContent]:
    """The functions that the model wants called, by the names that Semantic Kernel knows."""
    known = set(offered)
    return [
        FunctionCallContent(
            id=c.id, index=n, name=_PREFIX + c.name if _PREFIX + c.name in known else c.name, arguments=c.arguments or "{}"
        )
        for n, c in enumerate(message.tool_calls)
    ]


def answer(response: providers.ChatResponse, offered: Iterable[str]) -> ChatMessageContent:
    """The model's answer."""
    text = text_of(response.message)
    items: list[Any] = [TextContent(text=text)] if text else []
    return ChatMessageContent(
        role=AuthorRole.ASSISTANT,
        items=[*items, *calls(response.message, offered)],
        ai_model_id=response.model,
        finish_reason=finish(response),
        metadata={"usage": {"prompt_tokens": response.usage.input_tokens, "completion_tokens": response.usage.output_tokens}},
    )


def finish(response: providers.ChatResponse) -> FinishReason | None:
    """Why it ended."""
    return _FINISH.get(finish_name(response))
