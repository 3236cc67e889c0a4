"""The five steps for Haystack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from haystack import Pipeline
from haystack.components.agents import Agent
from haystack.dataclasses import ChatMessage

from ..._errors import InvalidRequest
from ...worker._wire import from_struct, tasks, worker
from .. import _chat, _prompt
from .._agents import AgentAdapter, Native, of_default
from .._base import Outcome, result_of
from .._tooling import WorkerTool
from . import _memo, _messages, _tools
from ._model import EngineChatGenerator

#: Names of a pipeline's inputs that take the task's text, and its messages.
_TEXT_INPUTS: Final = ("query", "question", "prompt", "text", "task", "description")
_MESSAGE_INPUT: Final = "messages"


class Handle(NamedTuple):
    """A run: the agent of the engine's making (None: the user's own), its messages, and data for a pipeline."""

    agent: Agent | None
    messages: list[ChatMessage]
    text: str
    data: dict[str, Any]


class HaystackAdapter(AgentAdapter[Agent]):
    """An agent of the engine's making, or the user's own agent or pipeline."""

    name = "haystack"
    package = "haystack-ai"
    ready = (Agent, Pipeline)

    def __init__(self) -> None:
        super().__init__()
        _memo.install()
        # Templates and schemas are built on first use: done here they are shared by all forks.
        Agent(chat_generator=EngineChatGenerator(), system_prompt="warm")

    def model(self) -> EngineChatGenerator:
        """The engine's model."""
        return EngineChatGenerator()

    def offered(self, tools: Sequence[WorkerTool]) -> list[Any]:
        """Tools of Haystack's own kind."""
        return [_tools.converted(tool) for tool in tools]

    def bare(self) -> Agent:
        """An agent without anything."""
        return Agent(chat_generator=EngineChatGenerator())

    def convert_task(self, execute: worker.Execute) -> Handle:
        """Messages, and the agent that fits."""
        messages = [_messages.from_engine(m) for m in execute.task.context.conversation_history]
        messages.append(ChatMessage.from_user(execute.task.description))
        data = from_struct(execute.task.context.framework_specific_data)
        if self._entry is not None:
            return Handle(None, messages, execute.task.description, data)
        _prompt.begin(execute)
        agent = self.kept(execute, lambda _, limit: self._built(execute, limit))
        # A message and no prompt of the agent's: that is a template, which the framework compiles anew in each run.
        if told := _prompt.system_text(execute.agent, execute.task):
            messages.insert(0, ChatMessage.from_system(told))
        return Handle(agent, messages, execute.task.description, data)

    def _built(self, execute: worker.Execute, limit: int) -> Agent:
        return Agent(
            chat_generator=EngineChatGenerator(),
            tools=self.offered(self.tools_of(execute)),
            # One more than the task allows: the engine's own count ends the run, not a bare tool result.
            max_agent_steps=limit + 1,
        )

    async def execute_framework_task(self, handle: Handle) -> Native:
        """Runs it."""
        runs = await self.runs(handle.agent)
        if isinstance(runs, Pipeline):
            return Native(await _chat.settled(self._pipeline(runs, handle)), False)
        if handle.agent is None:
            _tools.bracket(runs)
        return await self.to_its_end(runs.run_async(messages=handle.messages), handle.agent is not None)

    async def _pipeline(self, pipeline: Pipeline, handle: Handle) -> dict[str, Any]:
        assert self._engine is not None
        for name in pipeline.graph.nodes:
            if isinstance(found := pipeline.get_component(name), Agent):
                _tools.bracket(found)
        last: dict[str, Any] = {}
        shown: set[str] = set()
        everything = set(pipeline.graph.nodes)
        async for partial in pipeline.run_async_generator(_inputs(pipeline, handle), include_outputs_from=everything):
            for name in partial:
                if name not in shown:
                    shown.add(name)
                    self._engine.step("component", name)
                    self._engine.step("component", name, started=False)
            last = partial
        ends = pipeline.outputs()
        return {name: value for name, value in last.items() if name in ends}

    def convert_result(self, native: Native) -> tasks.AgentResult:
        """Text of the last message; of a pipeline its outputs."""
        result = native.value
        if native.is_default:
            return of_default(None if result is None else _text(result.get("last_message")))
        last = result.get("last_message")
        if isinstance(last, ChatMessage):
            limit = "max_agent_steps" if result.get("exit_reason") == "max_agent_steps" else ""
            return result_of(Outcome(text=_text(last), limit_reached=limit, data={"step_count": result.get("step_count", 0)}))
        return result_of(Outcome(text=_found(result), data={"outputs": _json(result)}))


def _inputs(pipeline: Pipeline, handle: Handle) -> dict[str, Any]:
    """What the task says under `inputs`, else its text and messages for every open input that is named like one of theirs."""
    given = handle.data.get("inputs", {})
    if not isinstance(given, dict):
        raise InvalidRequest("inputs must be a dictionary", reason="INVALID_FIELD", metadata={"field": "inputs"})
    made: dict[str, dict[str, Any]] = {name: dict(value) for name, value in given.items() if isinstance(value, dict)}
    for name, sockets in pipeline.inputs().items():
        for socket in sockets:
            known = made.setdefault(name, {})
            if socket in known:
                continue
            if socket == _MESSAGE_INPUT:
                known[socket] = handle.messages
            elif socket in _TEXT_INPUTS:
                known[socket] = handle.text
    return {name: value for name, value in made.items() if value}


def _text(message: Any) -> str:
    return str(message.text or "") if isinstance(message, ChatMessage) else ""


def _found(value: Any) -> str:
    """The last text that a pipeline gave."""
    if isinstance(value, ChatMessage):
        return _text(value)
    if isinstance(value, str):
        return value
    items = list(value.values()) if isinstance(value, Mapping) else list(value) if isinstance(value, (list, tuple)) else []
    for item in reversed(items):
        if text := _found(item):
            return text
    return ""


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else _found(value) or str(value)
