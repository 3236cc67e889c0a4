"""A CrewAI model without a connection: each call travels to the engine as one frame."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from crewai.events.types.llm_events import LLMCallType
from crewai.llms.base_llm import BaseLLM, llm_call_context
from pydantic import BaseModel

from ..._errors import SingularityError
from ...worker._engine import message_of, text_of
from ...worker._wire import common, providers
from .. import _chat

#: Tokens that CrewAI may fill before it shortens a conversation by itself; the engine knows the model's own limit.
_CONTEXT_TOKENS = 128_000
#: Characters of a token, for CrewAI's estimate.
_CHARACTERS = 4


class Refused(RuntimeError):
    """The engine refused a call. Without its words: CrewAI calls again where an error speaks of rates."""


class EngineLLM(BaseLLM):
    """The engine as a CrewAI model: choice of provider, retries, budgets and the record of calls are its business."""

    #: Model or alias of the configuration; empty: the task's.
    engine_model: str = ""

    def __init__(self, engine_model: str = "", **fields: Any) -> None:
        super().__init__(**{"model": "engine", "provider": "engine", **fields, "engine_model": engine_model})

    def call(
        self,
        messages: Any,
        tools: list[dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        available_functions: dict[str, Any] | None = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: type[BaseModel] | None = None,
    ) -> Any:
        """One call, in a thread: text, or the tool calls that the model wants."""
        asked = _chat.request(
            messages_of(messages),
            [definition_of(tool) for tool in tools or ()],
            model=self.engine_model,
            temperature=self.temperature,
            schema=response_model.model_json_schema() if response_model is not None else None,
        )
        with llm_call_context():
            self._emit_call_started_event(messages, tools, None, None, from_task, from_agent)
            try:
                response = _chat.ask_blocking(asked)
            except (SingularityError, _chat.StepLimit):
                self._emit_call_failed_event("the engine refused the call", from_task, from_agent)
                raise Refused("the engine refused the model call") from None
            usage = _usage(response)
            self._track_token_usage_internal(usage)
            answer, kind = _answer(response)
            self._emit_call_completed_event(answer, kind, from_task, from_agent, messages, usage)
        if response_model is not None and isinstance(answer, str):
            return response_model.model_validate_json(answer)
        return answer

    def supports_function_calling(self) -> bool:
        """Tools go to the model as such, not as text to be parsed."""
        return True

    def supports_stop_words(self) -> bool:
        """None are added."""
        return False

    def get_context_window_size(self) -> int:
        """Large: the engine refuses what is too long for the model, by name."""
        return _CONTEXT_TOKENS

    def get_input_tokens_count(self, messages: Any, tools: Any = None, response_model: Any = None) -> int:
        """An estimate."""
        return len(str(messages)) // _CHARACTERS


def messages_of(messages: Any) -> list[common.Message]:
    """CrewAI's messages (text, or dicts as of OpenAI) for a model call."""
    if isinstance(messages, str):
        return [message_of({"role": "user", "content": messages})]
    return [_message(item) for item in messages]


def _message(item: Mapping[str, Any]) -> common.Message:
    content = item.get("content")
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content or () if isinstance(part, Mapping))
    calls = [
        {"id": call.get("id", ""), "name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        for call in item.get("tool_calls") or ()
    ]
    return message_of(
        {"role": item["role"], "content": content, "tool_calls": calls, "tool_call_id": item.get("tool_call_id") or "",
         "name": item.get("name") or ""}
    )  # fmt: skip


def definition_of(tool: Mapping[str, Any]) -> common.ToolDefinition:
    """What the model reads of a tool."""
    function = tool["function"]
    return _chat.definition_as(function["name"], function.get("description"), function.get("parameters"))


def _answer(response: providers.ChatResponse) -> tuple[str | Sequence[dict[str, Any]], LLMCallType]:
    calls = response.message.tool_calls
    if not calls:
        return text_of(response.message), LLMCallType.LLM_CALL
    wanted = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments or json.dumps({})}} for c in calls
    ]
    return wanted, LLMCallType.TOOL_CALL


def _usage(response: providers.ChatResponse) -> dict[str, int]:
    usage = response.usage
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
