"""The five steps for Semantic Kernel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from semantic_kernel.agents import Agent, ChatCompletionAgent, ChatHistoryAgentThread
from semantic_kernel.agents.orchestration.orchestration_base import OrchestrationBase
from semantic_kernel.agents.runtime import InProcessRuntime
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.contents import ChatMessageContent, FunctionCallContent, FunctionResultContent
from semantic_kernel.contents.utils.author_role import AuthorRole

from ...worker._wire import tasks, worker
from .. import _chat, _prompt
from .._agents import AgentAdapter, Native, of_default
from .._base import Outcome, result_of
from .._tooling import WorkerTool
from . import _messages, _people, _tools
from ._model import EngineChatCompletion


class Handle(NamedTuple):
    """A run: the agent of the engine's making (None: the user's own), and its messages."""

    agent: ChatCompletionAgent | None
    messages: list[ChatMessageContent]


class SemanticKernelAdapter(AgentAdapter[ChatCompletionAgent]):
    """An agent of the engine's making, or the user's own agent or orchestration."""

    name = "semantic_kernel"
    package = "semantic-kernel"
    ready = (Agent, OrchestrationBase)
    stateful = (OrchestrationBase,)

    def __init__(self) -> None:
        super().__init__()
        # Schemas are built on first use: done here they are shared by all forks.
        ChatCompletionAgent(service=EngineChatCompletion(), name="warm")

    def model(self) -> EngineChatCompletion:
        """The engine's model."""
        return EngineChatCompletion()

    def offered(self, tools: Sequence[WorkerTool]) -> list[Any]:
        """All tools as one plugin."""
        return [_tools.kernel_plugin(tools)] if tools else []

    def bare(self) -> ChatCompletionAgent:
        """An agent of a name."""
        return ChatCompletionAgent(service=EngineChatCompletion(), name="health")

    def convert_task(self, execute: worker.Execute) -> Handle:
        """The agent that fits, and the conversation."""
        messages = [_messages.from_engine(m) for m in execute.task.context.conversation_history]
        messages.append(ChatMessageContent(role=AuthorRole.USER, content=execute.task.description))
        if self._entry is not None:
            return Handle(None, messages)
        _prompt.begin(execute)
        return Handle(self.kept(execute, lambda told, limit: self._built(execute, told, limit)), messages)

    def _built(self, execute: worker.Execute, told: str, limit: int) -> ChatCompletionAgent:
        return ChatCompletionAgent(
            service=EngineChatCompletion(),
            name=re.sub(r"[^0-9A-Za-z_-]", "_", execute.agent.id) or "assistant",
            instructions=told or None,
            plugins=self.offered(self.tools_of(execute)),
            # One more than the task allows: the engine's own count ends the run, not a forced last answer.
            function_choice_behavior=FunctionChoiceBehavior.Auto(maximum_auto_invoke_attempts=limit + 1),
        )

    async def execute_framework_task(self, handle: Handle) -> Native:
        """Runs it; an orchestration in a runtime of its own."""
        runs = await self.runs(handle.agent)
        if isinstance(runs, OrchestrationBase):
            return Native(await _chat.settled(self._orchestrated(runs, handle.messages)), False)
        if handle.agent is None:
            _tools.bracket(runs.kernel)
        return await self.to_its_end(self._invoked(runs, handle.messages), handle.agent is not None)

    async def _invoked(self, agent: Any, messages: list[ChatMessageContent]) -> Any:
        last: Any = None
        async for item in agent.invoke(messages, thread=ChatHistoryAgentThread()):
            last = item.message
        return last

    async def _orchestrated(self, orchestration: Any, messages: list[ChatMessageContent]) -> Any:
        for member in orchestration._members:
            if (kernel := getattr(member, "kernel", None)) is not None:
                _tools.bracket(kernel)
        _people.seat(orchestration)
        users = orchestration._agent_response_callback
        orchestration._agent_response_callback = lambda message: self._spoke(message, users)
        runtime = InProcessRuntime()
        runtime.start()
        try:
            running = await orchestration.invoke(task=messages if len(messages) > 1 else messages[0], runtime=runtime)
            value = await running.get()
            await runtime.stop_when_idle()
        finally:
            orchestration._agent_response_callback = users
        return value

    def _spoke(self, message: Any, users: Any) -> Any:
        """A member's answer as a step; functions that it calls are seen as tools."""
        said = message[-1] if isinstance(message, list) else message
        items = getattr(said, "items", ())
        if self._engine is not None and not any(isinstance(i, (FunctionCallContent, FunctionResultContent)) for i in items):
            self._engine.step("agent", said.name or "agent")
            self._engine.step("agent", said.name or "agent", started=False)
        return users(message) if users is not None else None

    def convert_result(self, native: Native) -> tasks.AgentResult:
        """Text of the last message; of a concurrent orchestration all of them."""
        value = native.value
        if native.is_default:
            return of_default(None if value is None else str(value.content))
        if isinstance(value, list):
            said = [
                {"name": item.name or "", "content": str(item.content)} for item in value if isinstance(item, ChatMessageContent)
            ]
            return result_of(Outcome(text="\n\n".join(item["content"] for item in said), data={"messages": said}))
        if isinstance(value, ChatMessageContent):
            return result_of(str(value.content))
        return result_of("" if value is None else value)
