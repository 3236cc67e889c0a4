"""A chat model without a connection: each call travels to the engine as one frame."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from ..._errors import SingularityError
from ...worker import _runtime
from ...worker._engine import finish_name
from ...worker._scope import CURRENT
from ...worker._wire import common, providers
from .. import _chat
from . import _messages

#: Name under which the last answer of a task is kept: what is left where a limit ends the run.
LAST_ANSWER = "langchain.last_answer"

# Models with tools, by the objects that were bound.
_bound: dict[tuple[Any, ...], tuple[Any, ...]] = {}
_MAX_BOUND = 100


class EngineChatModel(BaseChatModel):
    """The engine as a chat model: choice of provider, retries, budgets and the record of calls are its business."""

    #: Model or alias of the configuration; empty: the task's.
    model: str = ""
    temperature: float | None = None
    max_tokens: int | None = None

    @property
    def _llm_type(self) -> str:
        return "singularity-engine"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call."""
        if kwargs:
            return self.bind(tools=[definition_of(tool) for tool in tools], tool_choice=tool_choice, **kwargs)
        key = (id(self), tool_choice, *map(id, tools))
        known = _bound.get(key)
        # An id is given again after its object's end: those of the entry live with it.
        if known is None:
            if len(_bound) >= _MAX_BOUND:
                _bound.clear()
            options = {"tools": [definition_of(tool) for tool in tools], "tool_choice": tool_choice}
            known = _bound[key] = (WithTools(bound=self, kwargs=options), self, *tools)
        found: Runnable[LanguageModelInput, AIMessage] = known[0]
        return found

    def _request(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> providers.ChatRequest:
        scope = CURRENT.get()
        choice = options.get("tool_choice") or ""
        request = providers.ChatRequest(
            model=options.get("model") or self.model or (scope.model if scope is not None else ""),
            messages=_messages.to_engine(messages),
            tools=options.get("tools") or (),
            tool_choice="required" if choice in ("any", True) else choice,
            stop=stop or (),
        )
        temperature = options.get("temperature", self.temperature)
        if temperature is not None:
            request.temperature = temperature
        if (max_tokens := options.get("max_tokens", self.max_tokens)) is not None:
            request.max_tokens = max_tokens
        if (seed := options.get("seed")) is not None:
            request.seed = seed
        return request

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """One call. Where nobody listens to callbacks their machinery is passed by: half of the cost of a call is there."""
        if _somebody_listens(config) or not isinstance(input, list):
            return await super().ainvoke(input, config, stop=stop, **kwargs)
        prompt = self._convert_input(input).to_messages() if not _all_messages(input) else input
        return await self._answer(self._request(prompt, stop, kwargs))

    async def _answer(self, request: providers.ChatRequest) -> AIMessage:
        engine = _runtime.engine()
        scope = CURRENT.get()
        if scope is None or not scope.want_text:
            return _kept(await engine.chat_raw(request))
        async for piece, response in engine.stream_raw(request):
            if response is not None:
                return _kept(response)
            if piece.text_delta:
                engine.text(piece.text_delta)
        raise SingularityError("the stream ended without an answer", reason="PROVIDER_STREAM_CUT")

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=await self._answer(self._request(messages, stop, kwargs)))])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        response = _runtime.engine().chat_raw_blocking(self._request(messages, stop, kwargs))
        return ChatResult(generations=[ChatGeneration(message=_kept(response))])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        engine = _runtime.engine()
        streamed = False
        async for piece, response in engine.stream_raw(self._request(messages, stop, kwargs)):
            if response is not None:
                yield _last_chunk(_kept(response), streamed)
                return
            if text := piece.text_delta:
                streamed = True
                engine.text(text)
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                if run_manager is not None:
                    await run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk


class WithTools(RunnableBinding[LanguageModelInput, AIMessage]):
    """The engine's model with tools, as an agent asks for it in each step. Without settings of its own there is nothing to merge."""

    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """One call."""
        if self.config or self.config_factories:
            return await super().ainvoke(input, config, **kwargs)
        return await self.bound.ainvoke(input, config, **{**self.kwargs, **kwargs})


def definition_of(tool: Any) -> common.ToolDefinition:
    """What the model reads of a tool, made once for each tool object."""
    return tool if isinstance(tool, common.ToolDefinition) else _chat.definition(tool, _defined)


def _defined(tool: Any) -> common.ToolDefinition:
    function = convert_to_openai_tool(tool)["function"]
    return _chat.definition_as(function["name"], function.get("description"), function.get("parameters"))


def _kept(response: providers.ChatResponse) -> AIMessage:
    message = _messages.answer(response, finish_name(response))
    scope = CURRENT.get()
    if scope is not None and message.content:
        scope.notes[LAST_ANSWER] = message.content
    return message


def _last_chunk(message: AIMessage, streamed: bool) -> ChatGenerationChunk:
    chunk = AIMessageChunk(
        content="" if streamed else message.content,
        tool_call_chunks=[
            tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=index)
            for index, call in enumerate(_messages.to_engine([message])[0].tool_calls)
        ],
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
        chunk_position="last",
    )
    return ChatGenerationChunk(message=chunk)


def _all_messages(items: Sequence[Any]) -> bool:
    return all(isinstance(item, BaseMessage) for item in items)


def _somebody_listens(config: RunnableConfig | None) -> bool:
    callbacks = (config or {}).get("callbacks") or (var_child_runnable_config.get() or {}).get("callbacks")
    if callbacks is None or isinstance(callbacks, list):
        return bool(callbacks)
    return bool(callbacks.handlers or callbacks.inheritable_handlers)
