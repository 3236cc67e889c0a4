"""The five steps for Microsoft Agent Framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from agent_framework import Agent, AgentResponseUpdate, Message, Workflow

from ...worker._wire import tasks, worker
from .. import _chat, _prompt
from .._agents import AgentAdapter, Native, of_default
from .._base import Outcome, result_of
from .._tooling import WorkerTool
from . import _people, _tools
from ._model import EngineChatClient, from_engine


class Handle(NamedTuple):
    """A run: the agent of the engine's making (None: the user's own), its messages, and the task's text."""

    agent: Agent | None
    messages: list[Message]
    text: str


class AgentFrameworkAdapter(AgentAdapter[Agent]):
    """An agent of the engine's making, or the user's own agent or workflow."""

    name = "agent_framework"
    package = "agent-framework-core"
    ready = (Agent, Workflow)
    stateful = (Workflow,)

    def model(self) -> EngineChatClient:
        """The engine's model."""
        return EngineChatClient()

    def offered(self, tools: Sequence[WorkerTool]) -> list[Any]:
        """Function tools."""
        return [_tools.converted(tool) for tool in tools]

    def bare(self) -> Agent:
        """An agent of a name."""
        return Agent(EngineChatClient(), "health")

    def convert_task(self, execute: worker.Execute) -> Handle:
        """The agent, and the conversation."""
        text = execute.task.description
        messages = [*(from_engine(m) for m in execute.task.context.conversation_history), Message("user", [text])]
        if self._entry is not None:
            return Handle(None, messages, text)
        _prompt.begin(execute)
        return Handle(self.kept(execute, lambda told, limit: self._built(execute, told, limit)), messages, text)

    def _built(self, execute: worker.Execute, told: str, limit: int) -> Agent:
        # One more than the task allows: the engine's own count ends the run, not a forced last answer.
        limits: Any = {"max_iterations": limit + 1}
        return Agent(
            EngineChatClient(function_invocation_configuration=limits),
            told or None,
            name=execute.agent.id or "assistant",
            tools=self.offered(self.tools_of(execute)),
        )

    async def execute_framework_task(self, handle: Handle) -> Native:
        """Runs it."""
        runs = await self.runs(handle.agent)
        if isinstance(runs, Workflow):
            return Native(await _chat.settled(self._workflow(runs, handle)), False)
        if handle.agent is None:
            _tools.bracket(runs)
        return await self.to_its_end(_people.run(runs, handle.messages), handle.agent is not None)

    async def _workflow(self, workflow: Workflow, handle: Handle) -> Any:
        assert self._engine is not None
        for executor in workflow.get_executors_list():
            if isinstance(agent := getattr(executor, "_agent", None), Agent):
                _tools.bracket(agent)
        stream, outputs = workflow.run(handle.text, stream=True), []
        while True:
            async for event in stream:
                kind = event.type
                if kind in ("executor_invoked", "executor_completed", "executor_failed"):
                    name = event.executor_id or "executor"
                    self._engine.step("executor", name, started=kind == "executor_invoked", is_error=kind == "executor_failed")
            ended = await stream.get_final_response()
            outputs += ended.get_outputs()
            if not (requests := ended.get_request_info_events()):
                return outputs
            stream = workflow.run(stream=True, responses=_people.answers(requests))

    def convert_result(self, native: Native) -> tasks.AgentResult:
        """Text of the answer; of a workflow its outputs."""
        value = native.value
        if native.is_default:
            return of_default(None if value is None else value.text)
        if isinstance(value, list):
            said = _said(value)
            return result_of(Outcome(text=said[-1] if said else "", data={"outputs": said}))
        structured = getattr(value, "value", None)
        return result_of(Outcome(text=value.text, structured=structured))


def _said(outputs: list[Any]) -> list[str]:
    """Text of each output; the pieces in which an agent's answer came are one."""
    made: list[str] = []
    joined = False
    for item in outputs:
        piece = isinstance(item, AgentResponseUpdate)
        if piece and joined:
            made[-1] += _text(item)
        else:
            made.append(_text(item))
        joined = piece
    return made


def _text(item: Any) -> str:
    if isinstance(item, list):
        return "\n".join(_text(one) for one in item)
    return str(getattr(item, "text", item))
