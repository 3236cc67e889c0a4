"""An AutoGen model client without a connection: each call travels to the engine as one frame."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from autogen_core import FunctionCall
from autogen_core.models import (
    AssistantMessage,
    ChatCompletionClient,
    CreateResult,
    FunctionExecutionResultMessage,
    LLMMessage,
    ModelFamily,
    ModelInfo,
    RequestUsage,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import Tool
from pydantic import BaseModel

from ...worker._engine import finish_name, message_of, text_of
from ...worker._wire import common, providers
from .. import _chat

_FINISH = {"stop": "stop", "length": "length", "tool_calls": "function_calls", "content_filter": "content_filter"}
#: Characters of a token, for AutoGen's estimate.
_CHARACTERS = 4
#: Tokens that AutoGen may fill; the engine knows the model's own limit.
_CONTEXT_TOKENS = 128_000


class EngineChatCompletionClient(ChatCompletionClient):
    """The engine as an AutoGen model: choice of provider, retries, budgets and the record of calls are its business."""

    component_type = "model"
    component_config_schema = BaseModel

    def __init__(self, model: str = "", *, temperature: float | None = None) -> None:
        #: Model or alias of the configuration; empty: the task's.
        self.model = model
        self.temperature = temperature
        self._used = RequestUsage(prompt_tokens=0, completion_tokens=0)

    async def create(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Any] = (),
        tool_choice: Any = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] | None = None,
        cancellation_token: Any = None,
    ) -> CreateResult:
        """One call."""
        asked = self._request(messages, tools, tool_choice, json_output, extra_create_args or {})
        return self._result(await _chat.ask(asked))

    async def create_stream(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Any] = (),
        tool_choice: Any = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] | None = None,
        cancellation_token: Any = None,
    ) -> AsyncGenerator[str | CreateResult, None]:
        """One streamed call: pieces of text, the result last."""
        async for piece in _chat.pieces(self._request(messages, tools, tool_choice, json_output, extra_create_args or {})):
            yield piece if isinstance(piece, str) else self._result(piece)

    def _request(
        self, messages: Sequence[LLMMessage], tools: Sequence[Any], choice: Any, output: Any, options: Mapping[str, Any]
    ) -> providers.ChatRequest:
        offered = () if choice == "none" else tools
        return _chat.request(
            [made for message in messages for made in to_engine(message)],
            [definition_of(tool) for tool in offered],
            model=options.get("model") or self.model,
            tool_choice=choice if choice == "required" else getattr(choice, "name", ""),
            temperature=options.get("temperature", self.temperature),
            max_tokens=options.get("max_tokens"),
            seed=options.get("seed"),
            schema=output.model_json_schema() if isinstance(output, type) and issubclass(output, BaseModel) else None,
        )

    def _result(self, response: providers.ChatResponse) -> CreateResult:
        usage = RequestUsage(prompt_tokens=response.usage.input_tokens, completion_tokens=response.usage.output_tokens)
        self._used.prompt_tokens += usage.prompt_tokens
        self._used.completion_tokens += usage.completion_tokens
        text = text_of(response.message)
        calls = [FunctionCall(id=c.id, name=c.name, arguments=c.arguments) for c in response.message.tool_calls]
        return CreateResult(
            finish_reason=_FINISH.get(finish_name(response), "unknown"),
            content=calls or text,
            usage=usage,
            cached=False,
            thought=text if calls and text else None,
        )

    async def close(self) -> None:
        """There is nothing to close."""

    def actual_usage(self) -> RequestUsage:
        """Tokens of this object's calls; the engine's meter is the truth."""
        return self._used

    def total_usage(self) -> RequestUsage:
        """The same."""
        return self._used

    def count_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Any] = ()) -> int:
        """An estimate."""
        return len(str(messages)) // _CHARACTERS

    def remaining_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Any] = ()) -> int:
        """An estimate."""
        return max(0, _CONTEXT_TOKENS - self.count_tokens(messages))

    @property
    def capabilities(self) -> Any:
        """Deprecated by AutoGen."""
        return self.model_info

    @property
    def model_info(self) -> ModelInfo:
        """All that AutoGen asks for; the engine refuses by name what the chosen model cannot."""
        return ModelInfo(
            vision=False,
            function_calling=True,
            json_output=True,
            family=ModelFamily.UNKNOWN,
            structured_output=True,
            multiple_system_messages=True,
        )


def to_engine(message: LLMMessage) -> list[common.Message]:
    """AutoGen's message for a model call; one with several tool results becomes several."""
    if isinstance(message, SystemMessage):
        return [message_of({"role": "system", "content": message.content})]
    if isinstance(message, UserMessage):
        parts = message.content if isinstance(message.content, list) else [message.content]
        return [message_of({"role": "user", "content": "\n".join(part for part in parts if isinstance(part, str))})]
    if isinstance(message, AssistantMessage):
        if isinstance(message.content, str):
            return [message_of({"role": "assistant", "content": message.content})]
        calls = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in message.content]
        return [message_of({"role": "assistant", "content": message.thought or "", "tool_calls": calls})]
    assert isinstance(message, FunctionExecutionResultMessage)
    return [
        message_of({"role": "tool", "content": r.content, "tool_call_id": r.call_id, "name": r.name}) for r in message.content
    ]


def definition_of(tool: Any) -> common.ToolDefinition:
    """What the model reads of a tool."""
    schema = tool.schema if isinstance(tool, Tool) else tool
    return _chat.definition_as(schema["name"], schema.get("description"), schema.get("parameters"))
