"""The five steps for Semantic Kernel."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from semantic_kernel.agents import Agent, ChatCompletionAgent, ChatHistoryAgentThread
from semantic_kernel.agents.orchestration.orchestration_base import OrchestrationBase
from semantic_kernel.agents.runtime import InProcessRuntime
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.contents import ChatMessageContent, FunctionCallContent, FunctionResultContent
from semantic_kernel.contents.utils.author_role import AuthorRole

from ...worker._engine import Engine
from ...worker._wire import tasks, worker
from .. import _chat, _pins, _project, _prompt, _tooling
from .._base import Health, Loaded, Outcome, Setup, result_of
from .._entry import Entry
from . import _messages, _people, _tools
from ._model import EngineChatCompletion

#: Agents kept, by what they are made of: building one costs more than running it.
_MAX_CACHED: Final = 64


class Handle(NamedTuple):
    """A run: the agent of the engine's making (None: the user's own), and its messages."""

    agent: ChatCompletionAgent | None
    messages: list[ChatMessageContent]


class Native(NamedTuple):
    """What came back; None where a limit ended the run."""

    value: Any
    is_default: bool


class SemanticKernelAdapter:
    """An agent of the engine's making, or the user's own agent or orchestration."""

    name = "semantic_kernel"

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._entry: Entry | None = None
        self._own: list[_tooling.WorkerTool] = []
        self._agents: dict[tuple[Any, ...], ChatCompletionAgent] = {}
        # Schemas are built on first use: done here they are shared by all forks.
        ChatCompletionAgent(service=EngineChatCompletion(), name="warm")

    def versions(self) -> dict[str, str]:
        """Versions of the packages that matter."""
        return _pins.versions("semantic_kernel")

    async def initialize(self, setup: Setup, engine: Engine) -> Loaded:
        """Imports the user's agent and tools."""
        self._engine = engine
        _project.add_folder(setup.project)
        self._own = _tooling.own_tools(setup)
        if setup.entrypoint:
            plugins = [_tools.kernel_plugin(self._own)] if self._own else []
            self._entry = Entry(setup, engine, EngineChatCompletion, lambda: plugins)
            self._entry.is_factory(Agent, OrchestrationBase)
        return Loaded(tools=_tooling.definitions(self._own))

    async def health_check(self) -> Health:
        """An agent can be built; no model is called."""
        ChatCompletionAgent(service=EngineChatCompletion(), name="health")
        return Health(True, "", _pins.PINS["semantic_kernel"]["semantic-kernel"])

    def convert_task(self, execute: worker.Execute) -> Handle:
        """The agent that fits, and the conversation."""
        messages = [_messages.from_engine(m) for m in execute.task.context.conversation_history]
        messages.append(ChatMessageContent(role=AuthorRole.USER, content=execute.task.description))
        if self._entry is not None:
            return Handle(None, messages)
        _prompt.begin(execute)
        return Handle(self._built(execute), messages)

    def _built(self, execute: worker.Execute) -> ChatCompletionAgent:
        told = _prompt.system_text(execute.agent, execute.task)
        limit = _prompt.max_steps(execute)
        key = (told, limit, *(t.SerializeToString(deterministic=True) for t in execute.engine_tools))
        agent = self._agents.get(key)
        if agent is None:
            if len(self._agents) >= _MAX_CACHED:
                self._agents.clear()
            tools = [*_tooling.engine_tools(execute), *self._own]
            agent = self._agents[key] = ChatCompletionAgent(
                service=EngineChatCompletion(),
                name=re.sub(r"[^0-9A-Za-z_-]", "_", execute.agent.id) or "assistant",
                instructions=told or None,
                plugins=[_tools.kernel_plugin(tools)] if tools else [],
                # One more than the task allows: the engine's own count ends the run, not a forced last answer.
                function_choice_behavior=FunctionChoiceBehavior.Auto(maximum_auto_invoke_attempts=limit + 1),
            )
        return agent

    async def execute_framework_task(self, handle: Handle) -> Native:
        """Runs it; an orchestration in a runtime of its own."""
        runs: Any = handle.agent
        if runs is None:
            assert self._entry is not None
            runs = await self._entry.make(Agent, OrchestrationBase)
        if isinstance(runs, OrchestrationBase):
            return Native(await _chat.settled(self._orchestrated(runs, handle.messages)), False)
        if handle.agent is None:
            _tools.bracket(runs.kernel)
        try:
            return Native(await _chat.settled(self._invoked(runs, handle.messages)), handle.agent is not None)
        except _chat.StepLimit:
            return Native(None, True)

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
            if value is None:
                return result_of(_prompt.outcome(_chat.last_answer(), limit_reached="max_steps"))
            return result_of(_prompt.outcome(str(value.content)))
        if isinstance(value, list):
            said = [
                {"name": item.name or "", "content": str(item.content)} for item in value if isinstance(item, ChatMessageContent)
            ]
            return result_of(Outcome(text="\n\n".join(item["content"] for item in said), data={"messages": said}))
        if isinstance(value, ChatMessageContent):
            return result_of(str(value.content))
        return result_of("" if value is None else value)
