"""A chat service without a connection: each call travels to the engine as one frame."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, Field
from semantic_kernel.connectors.ai.chat_completion_client_base import ChatCompletionClientBase
from semantic_kernel.connectors.ai.function_calling_utils import update_settings_from_function_call_configuration
from semantic_kernel.connectors.ai.prompt_execution_settings import PromptExecutionSettings
from semantic_kernel.contents import ChatHistory, ChatMessageContent, StreamingChatMessageContent, StreamingTextContent
from semantic_kernel.contents.utils.author_role import AuthorRole

from ...worker._wire import common, providers
from .. import _chat
from . import _messages


class EngineSettings(PromptExecutionSettings):
    """What a call may say."""

    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    response_format: Any = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | None = None


class EngineChatCompletion(ChatCompletionClientBase):
    """The engine as a chat service: choice of provider, retries, budgets and the record of calls are its business."""

    SUPPORTS_FUNCTION_CALLING: ClassVar[bool] = True
    #: Model or alias of the configuration; empty: the task's.
    engine_model: str = Field(default="")

    def __init__(self, engine_model: str = "", service_id: str = "engine") -> None:
        super().__init__(ai_model_id="engine", service_id=service_id, engine_model=engine_model)

    def get_prompt_execution_settings_class(self) -> type[PromptExecutionSettings]:
        """The settings."""
        return EngineSettings

    async def _inner_get_chat_message_contents(self, chat_history: ChatHistory, settings: Any) -> list[ChatMessageContent]:
        response = await _chat.ask(self._request(chat_history, settings))
        return [_messages.answer(response, _offered(settings))]

    async def _inner_get_streaming_chat_message_contents(
        self, chat_history: ChatHistory, settings: Any, function_invoke_attempt: int = 0
    ) -> AsyncGenerator[list[StreamingChatMessageContent], Any]:
        async for piece in _chat.pieces(self._request(chat_history, settings)):
            last = piece if isinstance(piece, providers.ChatResponse) else None
            items: list[Any] = (
                _messages.calls(last.message, _offered(settings))
                if last is not None
                else [StreamingTextContent(text=piece, choice_index=0)]
            )
            yield [
                StreamingChatMessageContent(
                    role=AuthorRole.ASSISTANT,
                    choice_index=0,
                    items=items,
                    ai_model_id=last.model if last is not None else "engine",
                    finish_reason=_messages.finish(last) if last is not None else None,
                    function_invoke_attempt=function_invoke_attempt,
                )
            ]

    def _request(self, chat_history: ChatHistory, settings: Any) -> providers.ChatRequest:
        choice = settings.tool_choice
        return _chat.request(
            [made for message in chat_history.messages for made in _messages.to_engine(message)],
            [_definition(tool["function"]) for tool in settings.tools or () if choice != "none"],
            model=self.engine_model,
            tool_choice="required" if choice == "required" else "",
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
            schema=_schema(settings.response_format),
        )

    def _update_function_choice_settings_callback(self) -> Callable[..., None]:
        return update_settings_from_function_call_configuration

    def _reset_function_choice_settings(self, settings: Any) -> None:
        settings.tools = None
        settings.tool_choice = None


def _offered(settings: Any) -> list[str]:
    return [tool["function"]["name"] for tool in settings.tools or ()]


def _definition(function: Mapping[str, Any]) -> common.ToolDefinition:
    return _chat.definition_as(_messages.short(function["name"]), function.get("description"), function.get("parameters"))


def _schema(wanted: Any) -> Mapping[str, Any] | None:
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        return wanted.model_json_schema()
    if isinstance(wanted, Mapping):
        found = wanted.get("json_schema", wanted)
        return found.get("schema", found) if isinstance(found, Mapping) else None
    return None
