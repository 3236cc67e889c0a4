"""A Haystack chat generator without a connection: each call travels to the engine as one frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haystack import component
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools import flatten_tools_or_toolsets

from ...worker._wire import common, providers
from .. import _chat
from . import _messages


@component
class EngineChatGenerator:
    """The engine as a chat generator: choice of provider, retries, budgets and the record of calls are its business."""

    def __init__(self, model: str = "", temperature: float | None = None, tools: Any = None) -> None:
        #: Model or alias of the configuration; empty: the task's.
        self.model = model
        self.temperature = temperature
        self.tools = tools

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage],
        tools: Any = None,
        streaming_callback: Any = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One call, for synchronous pipelines."""
        response = _chat.ask_blocking(self._request(messages, tools, generation_kwargs or {}))
        return {"replies": [_messages.answer(response)]}

    @component.output_types(replies=list[ChatMessage])
    async def run_async(
        self,
        messages: list[ChatMessage],
        tools: Any = None,
        streaming_callback: Any = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One call."""
        asked = self._request(messages, tools, generation_kwargs or {})
        if streaming_callback is None:
            return {"replies": [_messages.answer(await _chat.ask(asked))]}
        async for piece in _chat.pieces(asked):
            if isinstance(piece, providers.ChatResponse):
                return {"replies": [_messages.answer(piece)]}
            await streaming_callback(StreamingChunk(content=piece, index=0))
        raise AssertionError("unreachable: pieces end with an answer or an error")

    def _request(self, messages: Sequence[ChatMessage], tools: Any, options: dict[str, Any]) -> providers.ChatRequest:
        return _chat.request(
            [made for message in messages for made in _messages.to_engine(message)],
            [_chat.definition(tool, definition_of) for tool in flatten_tools_or_toolsets(tools or self.tools)],
            model=options.get("model") or self.model,
            tool_choice=options.get("tool_choice") or "",
            temperature=options.get("temperature", self.temperature),
            max_tokens=options.get("max_tokens"),
            seed=options.get("seed"),
        )


def definition_of(tool: Any) -> common.ToolDefinition:
    """What the model reads of a tool."""
    return _chat.definition_as(tool.name, tool.description, tool.parameters)
