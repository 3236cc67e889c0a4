"""The five steps for LangChain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import Runnable
from langgraph.errors import GraphRecursionError

from ...worker._engine import Engine
from ...worker._scope import CURRENT
from ...worker._wire import agents, from_struct, tasks, worker
from .. import _project
from .._base import Health, Loaded, Outcome, Setup, result_of
from .._engine_tools import ENGINE_TOOLS
from .._entry import Entry
from . import _deployment, _memo, _tools
from ._graph import NodeSteps, invoke
from ._messages import from_engine
from ._model import LAST_ANSWER, EngineChatModel, definition_of
from ._saver import EngineSaver
from ._store import EngineStore

#: Model calls where neither task nor configuration says.
_DEFAULT_MAX_STEPS: Final = 50
#: Agents kept, by what they are made of.
_MAX_CACHED: Final = 64
#: Text of a tool's result in `intermediate_steps`, in characters.
_MAX_STEP_TEXT: Final = 4000


class Handle(NamedTuple):
    """A run: what to invoke, with what."""

    agent: Runnable[Any, Any]
    input: dict[str, Any]
    given: int
    max_steps: int


class Native(NamedTuple):
    """What came back."""

    state: Any
    given: int
    limit_reached: str
    last_answer: str


class LangChainAdapter:
    """Agents of `create_agent`, or the user's own graph."""

    name = "langchain"

    def __init__(self) -> None:
        _tools.install()
        _memo.install()
        self._setup: Setup | None = None
        self._engine: Engine | None = None
        self._own: Runnable[Any, Any] | None = None
        self._worker_tools: list[Any] = []
        self._agents: dict[tuple[str, ...], Runnable[Any, Any]] = {}
        # Schemas of messages and state are built on first use: done here they are shared by all forks.
        create_agent(EngineChatModel(), [], system_prompt="warm")

    def versions(self) -> dict[str, str]:
        """Versions of the packages that matter."""
        return {name: version(name) for name in ("langchain", "langchain-core", "langgraph")}

    async def initialize(self, setup: Setup, engine: Engine) -> Loaded:
        """Imports the user's agent and tools."""
        self._setup = setup
        self._engine = engine
        _project.add_folder(setup.project)
        for name in setup.tools:
            if ":" in name:
                self._worker_tools.append(_tools.langchain_tool(_project.resolve(name)))
            elif name in ENGINE_TOOLS:
                self._worker_tools.append(_tools.langchain_tool(ENGINE_TOOLS[name]()))
        if setup.entrypoint:
            found = _deployment.resolve(setup.entrypoint, setup.project) if _deployment.is_meant(setup.entrypoint) else None
            # LangGraph's own word for options: a factory reads them where a graph would.
            given = setup._replace(config={"configurable": dict(setup.config)})
            more = {"checkpointer": lambda: EngineSaver(engine), "store": lambda: EngineStore(engine)}
            entry = Entry(given, engine, EngineChatModel, lambda: list(self._worker_tools), found, more)
            self._own = await entry.make(Runnable)
        return Loaded(tools=[definition_of(tool) for tool in self._worker_tools])

    async def health_check(self) -> Health:
        """An agent can be built; no model is called."""
        await asyncio.to_thread(lambda: create_agent(EngineChatModel(), []))
        return Health(True, "", version("langchain"))

    def convert_task(self, execute: worker.Execute) -> Handle:
        """Messages and the agent that fits: the user's, or one built for these instructions, tools and schema."""
        task = execute.task
        messages = from_engine(task.context.conversation_history)
        messages.append(HumanMessage(task.description))
        agent = self._own or self._built(execute)
        max_steps = task.execution_hints.max_steps or _DEFAULT_MAX_STEPS
        return Handle(agent, {"messages": messages}, len(messages), max_steps)

    def _built(self, execute: worker.Execute) -> Runnable[Any, Any]:
        requirements = execute.task.requirements
        schema = json.dumps(from_struct(requirements.output_schema)) if requirements.HasField("output_schema") else ""
        instructions = _system_text(execute.agent, execute.task)
        key = (instructions, schema, *(tool.name + tool.description for tool in execute.engine_tools))
        agent = self._agents.get(key)
        if agent is None:
            if len(self._agents) >= _MAX_CACHED:
                self._agents.clear()
            tools = [_tools.engine_tool(tool) for tool in execute.engine_tools] + self._worker_tools
            agent = create_agent(
                EngineChatModel(),
                tools,
                system_prompt=instructions or None,
                response_format={"title": "answer", **json.loads(schema)} if schema else None,
            )
            self._agents[key] = agent
        return agent

    async def execute_framework_task(self, handle: Handle) -> Native:
        """Runs the agent; the model streams its text by itself, so nothing of LangChain's streaming is needed."""
        scope = CURRENT.get()
        config: Any = {"recursion_limit": 2 * handle.max_steps}
        if self._own is not None and self._engine is not None:
            config["callbacks"] = [NodeSteps(self._engine)]
        try:
            state, limit = await invoke(handle.agent, handle.input, config), ""
        except GraphRecursionError:
            state, limit = None, "max_steps"
        return Native(state, handle.given, limit, scope.notes.get(LAST_ANSWER, "") if scope is not None else "")

    def convert_result(self, native: Native) -> tasks.AgentResult:
        """Text, structured answer, steps."""
        if native.limit_reached:
            return result_of(Outcome(text=native.last_answer, limit_reached=native.limit_reached))
        state = native.state
        if not isinstance(state, Mapping):
            return result_of(str(state.text) if isinstance(state, BaseMessage) else state)
        messages: Sequence[BaseMessage] = state.get("messages", ())
        if not messages:
            return result_of(Outcome(structured=dict(state)))
        steps = _steps(messages[native.given :])
        structured = state.get("structured_response")
        text = "" if structured is not None else str(messages[-1].text)
        return result_of(Outcome(text=text, structured=structured, data={"intermediate_steps": steps} if steps else {}))


# The same words as the engine's own agent uses.
def _system_text(agent: agents.Agent, task: tasks.AgentTask) -> str:
    parts = [agent.instructions] if agent.instructions else []
    if task.requirements.expected_output:
        parts.append(f"Expected output: {task.requirements.expected_output}")
    if task.context.HasField("user_preferences") and task.context.user_preferences.fields:
        preferences = json.dumps(from_struct(task.context.user_preferences), ensure_ascii=False)
        parts.append(f"Preferences of the user: {preferences}")
    return "\n\n".join(parts)


def _steps(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    results = {m.tool_call_id: m for m in messages if isinstance(m, ToolMessage)}
    steps: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message, AIMessage):
            for call in message.tool_calls:
                result = results.get(call["id"] or "")
                steps.append(
                    {
                        "tool": call["name"],
                        "arguments": call["args"],
                        "result": str(result.text)[:_MAX_STEP_TEXT] if result is not None else "",
                        "is_error": result is not None and result.status == "error",
                    }
                )
    return steps
