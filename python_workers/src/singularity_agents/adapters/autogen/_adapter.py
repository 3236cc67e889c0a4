"""The five steps for AutoGen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import ChatAgent, TaskResult, Team
from autogen_agentchat.messages import BaseAgentEvent, BaseChatMessage, StructuredMessage, TextMessage
from autogen_core import CancellationToken, FunctionCall
from autogen_core.model_context import UnboundedChatCompletionContext
from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    LLMMessage,
    SystemMessage,
    UserMessage,
)

from ...worker._engine import text_of
from ...worker._wire import common, tasks, worker
from .. import _prompt
from .._agents import AgentAdapter, Native, of_default
from .._base import Outcome, result_of
from .._entry import Entry
from .._tooling import WorkerTool
from . import _people
from ._model import EngineChatCompletionClient
from ._tools import EngineWorkbench, bracket

#: Messages of a run shown in its result, and characters of each.
_MAX_MESSAGES: Final = 200
_MAX_TEXT: Final = 4000


class Handle(NamedTuple):
    """A run: the agent of the engine's making (None: the user's own), and what it is told."""

    agent: AssistantAgent | None
    messages: list[TextMessage]


class AutoGenAdapter(AgentAdapter[AssistantAgent]):
    """An agent of the engine's making, or the user's own agent or team. One of each per task: they keep their history."""

    name = "autogen"
    package = "autogen-agentchat"
    ready = (ChatAgent, Team)
    stateful = (ChatAgent, Team)

    def model(self) -> EngineChatCompletionClient:
        """The engine's model."""
        return EngineChatCompletionClient()

    def offered(self, tools: Sequence[WorkerTool]) -> EngineWorkbench:
        """All tools as one workbench."""
        return EngineWorkbench(tools)

    def bare(self) -> AssistantAgent:
        """An agent of a name."""
        return AssistantAgent("health", EngineChatCompletionClient())

    def seen(self, entry: Entry) -> list[str]:
        """A ready object is bracketed here, one that is made where it is made."""
        return [] if entry.is_factory(*self.ready) else bracket(entry.found)

    def convert_task(self, execute: worker.Execute) -> Handle:
        """The agent and the conversation so far; an agent of the user's hears it as messages."""
        asked = TextMessage(content=execute.task.description, source="user")
        if self._entry is not None:
            return Handle(None, [*_heard(execute), asked])
        _prompt.begin(execute)
        tools = self.tools_of(execute)
        agent = AssistantAgent(
            re.sub(r"\W", "_", f"_{execute.agent.id}").strip("_") or "assistant",
            EngineChatCompletionClient(),
            workbench=[EngineWorkbench(tools)] if tools else None,
            system_message=_prompt.system_text(execute.agent, execute.task) or None,
            model_context=UnboundedChatCompletionContext(initial_messages=_history(execute)),
            # One more than the task allows: the engine's own count ends the run, not a bare tool result.
            max_tool_iterations=_prompt.max_steps(execute) + 1,
        )
        return Handle(agent, [asked])

    async def execute_framework_task(self, handle: Handle) -> Native:
        """Runs it to its end. Without a cancellation token: AutoGen hangs on one that fires in a tool."""
        agent = await self.runs(handle.agent)
        if handle.agent is None:
            if self._entry is not None and agent is self._entry.found:
                await _emptied(agent)
            else:
                bracket(agent)
        return await self.to_its_end(self._run(agent, handle.messages), handle.agent is not None)

    async def _run(self, agent: Any, messages: list[TextMessage]) -> TaskResult:
        """Until it has ended for good: what is handed to a user goes on with the user's answer."""
        result = await self._part(agent, messages)
        while (answer := _people.answer_to_handoff(agent, result)) is not None:
            more = await self._part(agent, answer)
            result = TaskResult(messages=[*result.messages, *more.messages], stop_reason=more.stop_reason)
        return result

    async def _part(self, agent: Any, messages: Any) -> TaskResult:
        is_team = isinstance(agent, Team)
        speaking, result = "", None
        # To the end of the stream: a team counts as running until then.
        async for item in agent.run_stream(task=messages):
            if isinstance(item, TaskResult):
                result = item
            elif is_team and self._engine is not None and isinstance(item, (BaseChatMessage, BaseAgentEvent)):
                speaking = self._shown(item, speaking)
        if result is None:
            raise RuntimeError("AutoGen ended the run without a result")
        return result

    def _shown(self, item: BaseChatMessage | BaseAgentEvent, speaking: str) -> str:
        """A member's turn as a step; gives who speaks now."""
        assert self._engine is not None
        if item.source == "user":
            return speaking
        if speaking != item.source:
            self._engine.step("agent", item.source)
        if isinstance(item, BaseChatMessage):
            self._engine.step("agent", item.source, started=False)
            return ""
        return item.source

    def convert_result(self, native: Native) -> tasks.AgentResult:
        """The last message, why the run stopped, and who said what."""
        result = native.value
        if result is None:
            return of_default(None)
        last = result.messages[-1] if result.messages else None
        text = last.to_text() if isinstance(last, (BaseChatMessage, BaseAgentEvent)) else ""
        if native.is_default:
            return of_default(text)
        said = [
            {"source": m.source, "type": type(m).__name__, "content": m.to_text()[:_MAX_TEXT]}
            for m in result.messages[-_MAX_MESSAGES:]
            if isinstance(m, BaseChatMessage)
        ]
        reason = result.stop_reason or ""
        return result_of(
            Outcome(
                text=text,
                structured=last.content if isinstance(last, StructuredMessage) else None,
                limit_reached="max_turns" if "Maximum number of" in reason else "",
                data={"stop_reason": reason, "messages": said},
            )
        )


async def _emptied(agent: Any) -> None:
    """A ready object keeps the conversation of the task before."""
    if isinstance(agent, Team):
        await agent.reset()
    else:
        await agent.on_reset(CancellationToken())


def _heard(execute: worker.Execute) -> list[TextMessage]:
    return [
        TextMessage(content=text_of(m), source="user" if m.role == common.ROLE_USER else _prompt.role_name(m))
        for m in execute.task.context.conversation_history
        if text_of(m)
    ]


def _history(execute: worker.Execute) -> list[LLMMessage]:
    made: list[LLMMessage] = []
    for message in execute.task.context.conversation_history:
        text = text_of(message)
        if message.role == common.ROLE_SYSTEM:
            made.append(SystemMessage(content=text))
        elif message.role == common.ROLE_TOOL:
            result = FunctionExecutionResult(content=text, name=message.name, call_id=message.tool_call_id, is_error=False)
            made.append(FunctionExecutionResultMessage(content=[result]))
        elif message.role == common.ROLE_ASSISTANT:
            calls = [FunctionCall(id=c.id, name=c.name, arguments=c.arguments) for c in message.tool_calls]
            made.append(AssistantMessage(content=calls or text, thought=text if calls else None, source="assistant"))
        else:
            made.append(UserMessage(content=text, source="user"))
    return made
