"""The one-tool task in a framework alone, without the engine: an agent made once and run again and again.

    python in_process.py FRAMEWORK TASKS [BASE_URL]

Without BASE_URL the model is a class of the framework's own kind that calls the tool once and then answers with its result, at
once: what is left is the framework. With BASE_URL it is the framework's own client of OpenAI's wire, which is told the same by an
HTTP server.
Prints a line of JSON: tasks, wall and CPU milliseconds per task. Run in the framework's environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

os.environ.update(CREWAI_DISABLE_TELEMETRY="true", OTEL_SDK_DISABLED="true", HAYSTACK_TELEMETRY_ENABLED="False")

TOLD = "You are a helpful assistant. Answer briefly."
ASKED = "Use the multiply tool to multiply 36 by 11."
WANTED = "396"
ARGUMENTS = {"a": 36, "b": 11}
#: Runs before the clock starts: caches, schemas, the first connection.
WARM_UP = 20

Once = Callable[[], Awaitable[str]]


def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


def langchain(url: str) -> Once:
    """An agent of `create_agent`."""
    from langchain.agents import create_agent
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, ToolMessage
    from langchain_core.outputs import ChatGeneration, ChatResult
    from langchain_core.tools import tool

    class Instant(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "instant"

        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
            last = messages[-1]
            if isinstance(last, ToolMessage):
                answer = AIMessage(content=last.content)
            else:
                answer = AIMessage(content="", tool_calls=[{"id": "c1", "name": "multiply", "args": ARGUMENTS}])
            return ChatResult(generations=[ChatGeneration(message=answer)])

        async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
            return self._generate(messages)

    model: Any = Instant()
    if url:
        from langchain_openai import ChatOpenAI

        model = ChatOpenAI(model="m", base_url=url, api_key="none")
    agent = create_agent(model, [tool(multiply)], system_prompt=TOLD)

    async def once() -> str:
        state = await agent.ainvoke({"messages": [{"role": "user", "content": ASKED}]})
        return str(state["messages"][-1].content)

    return once


def langgraph(url: str) -> Once:
    """The same loop as a graph of one's own."""
    return langchain(url)


def crewai(url: str) -> Once:
    """One agent without a crew."""
    from crewai import LLM, Agent
    from crewai.events.utils.console_formatter import set_suppress_console_output
    from crewai.llms.base_llm import BaseLLM
    from crewai.tools import tool

    set_suppress_console_output(True)

    class Instant(BaseLLM):
        def call(self, messages: Any, tools: Any = None, *args: Any, **kwargs: Any) -> Any:
            if messages[-1]["role"] == "tool":
                return messages[-1]["content"]
            return [{"id": "c1", "type": "function", "function": {"name": "multiply", "arguments": json.dumps(ARGUMENTS)}}]

        def supports_function_calling(self) -> bool:
            return True

        def supports_stop_words(self) -> bool:
            return False

        def get_context_window_size(self) -> int:
            return 128_000

        def get_input_tokens_count(self, *args: Any, **kwargs: Any) -> int:
            return 100

    made = tool("multiply")(multiply)

    llm = LLM(model="openai/gpt-4o-mini", base_url=url, api_key="none") if url else Instant(model="instant", provider="instant")
    agent = Agent(role="Assistant", goal="Do what the user asks", backstory=TOLD, llm=llm, tools=[made], cache=False)

    async def once() -> str:
        return str((await agent.kickoff_async([{"role": "user", "content": ASKED}])).raw)

    return once


def autogen(url: str) -> Once:
    """An AssistantAgent, which forgets after each task."""
    from autogen_agentchat.agents import AssistantAgent
    from autogen_core import CancellationToken, FunctionCall
    from autogen_core.models import (
        ChatCompletionClient,
        CreateResult,
        FunctionExecutionResultMessage,
        ModelFamily,
        ModelInfo,
        RequestUsage,
    )

    info = ModelInfo(vision=False, function_calling=True, json_output=True, family=ModelFamily.UNKNOWN, structured_output=True)

    class Instant(ChatCompletionClient):
        async def create(self, messages: Any, **kwargs: Any) -> CreateResult:
            last = messages[-1]
            done = isinstance(last, FunctionExecutionResultMessage)
            content: Any = (
                last.content[0].content if done else [FunctionCall(id="c1", name="multiply", arguments=json.dumps(ARGUMENTS))]
            )
            usage = RequestUsage(prompt_tokens=0, completion_tokens=0)
            return CreateResult(finish_reason="stop" if done else "function_calls", content=content, usage=usage, cached=False)

        def create_stream(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

        async def close(self) -> None: ...

        def actual_usage(self) -> RequestUsage:
            return RequestUsage(prompt_tokens=0, completion_tokens=0)

        total_usage = actual_usage

        def count_tokens(self, messages: Any, **kwargs: Any) -> int:
            return 0

        def remaining_tokens(self, messages: Any, **kwargs: Any) -> int:
            return 1000

        @property
        def capabilities(self) -> Any:
            return info

        @property
        def model_info(self) -> ModelInfo:
            return info

    client: Any = Instant()
    if url:
        from autogen_ext.models.openai import OpenAIChatCompletionClient

        client = OpenAIChatCompletionClient(model="m", base_url=url, api_key="none", model_info=info)

    agent = AssistantAgent("assistant", client, tools=[multiply], system_message=TOLD, max_tool_iterations=51)

    async def once() -> str:
        said = (await agent.run(task=ASKED)).messages[-1]
        await agent.on_reset(CancellationToken())
        return str(said.content)  # type: ignore[union-attr]

    return once


def haystack(url: str) -> Once:
    """An Agent."""
    from haystack import component
    from haystack.components.agents import Agent
    from haystack.dataclasses import ChatMessage, ToolCall
    from haystack.tools import create_tool_from_function

    @component
    class Instant:
        @component.output_types(replies=list[ChatMessage])
        def run(self, messages: list[ChatMessage], tools: Any = None, **kwargs: Any) -> dict[str, Any]:
            if (result := messages[-1].tool_call_result) is not None:
                return {"replies": [ChatMessage.from_assistant(str(result.result))]}
            return {"replies": [ChatMessage.from_assistant(tool_calls=[ToolCall("multiply", ARGUMENTS, id="c1")])]}

        @component.output_types(replies=list[ChatMessage])
        async def run_async(self, messages: list[ChatMessage], tools: Any = None, **kwargs: Any) -> dict[str, Any]:
            return dict(self.run(messages))

    model: Any = Instant()
    if url:
        from haystack.components.generators.chat import OpenAIChatGenerator
        from haystack.utils import Secret

        model = OpenAIChatGenerator(model="m", api_base_url=url, api_key=Secret.from_token("none"))
    agent = Agent(chat_generator=model, tools=[create_tool_from_function(multiply)], system_prompt=TOLD)

    async def once() -> str:
        return str((await agent.run_async(messages=[ChatMessage.from_user(ASKED)]))["last_message"].text)

    return once


def semantic_kernel(url: str) -> Once:
    """A ChatCompletionAgent with a plugin."""
    from semantic_kernel.agents import ChatCompletionAgent
    from semantic_kernel.connectors.ai.chat_completion_client_base import ChatCompletionClientBase
    from semantic_kernel.connectors.ai.function_calling_utils import update_settings_from_function_call_configuration
    from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
    from semantic_kernel.connectors.ai.prompt_execution_settings import PromptExecutionSettings
    from semantic_kernel.contents import ChatMessageContent, FunctionCallContent, FunctionResultContent
    from semantic_kernel.contents.utils.author_role import AuthorRole
    from semantic_kernel.functions import kernel_function

    class Settings(PromptExecutionSettings):
        tools: Any = None
        tool_choice: Any = None

    class Instant(ChatCompletionClientBase):
        SUPPORTS_FUNCTION_CALLING = True

        def get_prompt_execution_settings_class(self) -> type[PromptExecutionSettings]:
            return Settings

        async def _inner_get_chat_message_contents(self, chat_history: Any, settings: Any) -> list[ChatMessageContent]:
            last = chat_history.messages[-1].items[-1]
            if isinstance(last, FunctionResultContent):
                return [ChatMessageContent(role=AuthorRole.ASSISTANT, content=str(last.result))]
            call = FunctionCallContent(id="c1", name="engine-multiply", arguments=json.dumps(ARGUMENTS))
            return [ChatMessageContent(role=AuthorRole.ASSISTANT, items=[call])]

        def _update_function_choice_settings_callback(self) -> Any:
            return update_settings_from_function_call_configuration

        def _reset_function_choice_settings(self, settings: Any) -> None:
            settings.tools = settings.tool_choice = None

    class Tools:
        @kernel_function(name="multiply", description="Multiply two integers.")
        def multiply(self, a: int, b: int) -> int:
            return a * b

    service: Any = Instant(ai_model_id="instant")
    if url:
        from openai import AsyncOpenAI
        from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion

        service = OpenAIChatCompletion(ai_model_id="m", async_client=AsyncOpenAI(base_url=url, api_key="none"))
    from semantic_kernel.functions import KernelPlugin

    agent = ChatCompletionAgent(
        service=service, name="assistant", instructions=TOLD, plugins=[KernelPlugin.from_object("engine", Tools())],
        function_choice_behavior=FunctionChoiceBehavior.Auto(maximum_auto_invoke_attempts=51),
    )  # fmt: skip

    async def once() -> str:
        return str((await agent.get_response(messages=ASKED)).message.content)

    return once


def agent_framework(url: str) -> Once:
    """An Agent of Microsoft Agent Framework."""
    from agent_framework import Agent, BaseChatClient, ChatResponse, Content, FunctionInvocationLayer, Message, tool

    class Calls(BaseChatClient):
        async def _inner_get_response(self, *, messages: Any, stream: bool, options: Any, **_: Any) -> ChatResponse:  # type: ignore[override]
            results = [c for c in messages[-1].contents if c.type == "function_result"]
            made = (
                Content.from_text(str(results[-1].result))
                if results
                else Content.from_function_call("c1", "multiply", arguments=json.dumps(ARGUMENTS))
            )
            return ChatResponse(messages=[Message("assistant", [made])])

    class Instant(FunctionInvocationLayer, Calls):
        pass

    agent = Agent(Instant(), TOLD, name="assistant", tools=[tool(multiply)])

    async def once() -> str:
        return str((await agent.run(ASKED)).text)

    return once


FRAMEWORKS = {made.__name__: made for made in (langchain, langgraph, crewai, autogen, haystack, semantic_kernel, agent_framework)}


async def main(framework: str, tasks: int, url: str) -> None:
    """Runs the task `tasks` times after a warm-up and prints the figures."""
    once = FRAMEWORKS[framework](url)
    for _ in range(WARM_UP):
        said = await once()
        assert WANTED in said, f"the framework said {said!r}"
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(tasks):
        await once()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"tasks": tasks, "wall_ms": wall * 1000 / tasks, "cpu_ms": cpu * 1000 / tasks}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""))
