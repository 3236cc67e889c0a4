"""The five steps for CrewAI."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from crewai import Agent, Crew, Task
from crewai.events.utils.console_formatter import set_suppress_console_output
from crewai.tools import BaseTool
from crewai.utilities import tool_result_artifacts

from ..._errors import InvalidRequest
from ...worker._engine import Engine, text_of
from ...worker._wire import from_struct, tasks, worker
from .. import _chat, _pins, _project, _prompt, _tooling
from .._base import Health, Loaded, Setup, result_of
from .._entry import Entry
from . import _crews, _events, _folder, _memo, _people, _tools
from ._model import EngineLLM

#: Text of a task's output in `task_outputs`, in characters.
_MAX_OUTPUT = 20_000


class Handle(NamedTuple):
    """A run: a crew with its inputs, or an agent with its messages."""

    execute: worker.Execute
    llm: EngineLLM
    crew: Crew | None
    agent: Agent | None
    messages: list[dict[str, Any]]
    inputs: dict[str, Any]


class Native(NamedTuple):
    """What came back."""

    text: str
    data: dict[str, Any]
    is_default: bool
    limit_reached: str = ""


class CrewAIAdapter:
    """An agent of the engine's making, a crew of the task's, or the user's own of either."""

    name = "crewai"

    def __init__(self) -> None:
        set_suppress_console_output(True)
        self._setup: Setup | None = None
        self._engine: Engine | None = None
        self._entry: Entry | None = None
        self._own: list[_tooling.WorkerTool] = []
        self._llm = EngineLLM()
        _memo.install()
        # Classes of agents and tools are built on first use: done here they are shared by all forks.
        Agent(role="warm", goal="warm", backstory="", llm=self._llm)

    def versions(self) -> dict[str, str]:
        """Versions of the packages that matter."""
        return _pins.versions("crewai")

    async def initialize(self, setup: Setup, engine: Engine) -> Loaded:
        """Imports the user's crew and tools."""
        if setup.concurrency > 1:
            raise LookupError(
                f"concurrency = {setup.concurrency}: CrewAI runs one task in a process, since its crews and its event bus are the "
                "process's; remove concurrency, and set more workers"
            )
        own = os.path.abspath(setup.storage_dir or ".")  # noqa: ASYNC240
        # A crew locks files in the folder for temporary ones, of which a worker may write to its own alone.
        os.environ["CREWAI_STORAGE_DIR"] = os.environ["TMPDIR"] = tempfile.tempdir = own
        # Results that are long for its model it keeps in files below /tmp, whatever TMPDIR says.
        tool_result_artifacts._TOOL_RESULT_TEMP_DIR = Path(own)
        self._setup, self._engine = setup, engine
        _project.add_folder(setup.project)
        self._own = _tooling.own_tools(setup)
        _events.install(engine)
        unjournaled: list[str] = []
        is_folder = _folder.is_meant(setup.entrypoint, setup.project)
        if setup.entrypoint or is_folder:
            found = _folder.resolve(setup.entrypoint, setup.project) if is_folder else None
            self._entry = Entry(setup, engine, EngineLLM, lambda: [_tools.converted(tool) for tool in self._own], found)
            if not self._entry.is_factory(Crew, Agent):
                unjournaled = self._prepared(self._entry.found, self._llm)
        return Loaded(tools=_tooling.definitions(self._own), unjournaled=unjournaled)

    async def health_check(self) -> Health:
        """An agent can be built; no model is called."""
        Agent(role="health", goal="health", backstory="", llm=EngineLLM())
        return Health(True, "", _pins.PINS["crewai"]["crewai"])

    def convert_task(self, execute: worker.Execute) -> Handle:
        """A crew where the task brings one or wants a manager, else one agent that knows the conversation."""
        data = from_struct(execute.task.context.framework_specific_data)
        inputs = data.get("inputs", {})
        if not isinstance(inputs, dict):
            raise InvalidRequest("inputs must be a dictionary", reason="INVALID_FIELD", metadata={"field": "inputs"})
        inputs = {"description": execute.task.description, "task": execute.task.description, **inputs}
        llm = EngineLLM()
        if self._entry is not None:
            return Handle(execute, llm, None, None, _messages(execute), inputs)
        _prompt.begin(execute)
        tools = {tool.name: _tools.converted(tool) for tool in [*_tooling.engine_tools(execute), *self._own]}
        limit = _prompt.max_steps(execute)
        if "crew_config" in data:
            return Handle(execute, llm, _crews.crew_of(data["crew_config"], tools, llm, limit), None, [], inputs)
        agent = _default_agent(execute, llm, list(tools.values()), limit)
        if execute.task.execution_hints.process == tasks.CREW_PROCESS_HIERARCHICAL:
            return Handle(execute, llm, _crews.assembled([agent], [_default_task(execute)], True, llm), None, [], inputs)
        return Handle(execute, llm, None, agent, _messages(execute), inputs)

    async def execute_framework_task(self, handle: Handle) -> Native:
        """Runs it. Never in CrewAI's own thread, which would go on after a cancel."""
        crew, agent, llm = handle.crew, handle.agent, handle.llm
        if self._entry is not None:
            made = await self._entry.make(Crew, Agent)
            if made is not self._entry.found:
                self._prepared(made, llm)
            crew, agent = (made, None) if isinstance(made, Crew) else (None, made)
        is_default = self._entry is None
        _people.install()
        try:
            return await self._run(handle, crew, agent, is_default)
        except _chat.StepLimit:
            return Native(_chat.last_answer(), {}, is_default, "max_steps")

    async def _run(self, handle: Handle, crew: Crew | None, agent: Agent | None, is_default: bool) -> Native:
        if crew is None:
            assert agent is not None
            output = await _chat.settled(agent.kickoff_async(handle.messages))
            return Native(output.raw, {"crew_metrics": _metrics(agent.llm)}, is_default)
        history = _prompt.history_text(handle.execute)
        if history and is_default:
            crew.tasks[0].description = f"{history}\n\n{crew.tasks[0].description}"
        output = await _chat.settled(crew.akickoff(inputs=handle.inputs))
        outputs = [{"agent": o.agent, "description": o.description, "output": o.raw[:_MAX_OUTPUT]} for o in output.tasks_output]
        models = {id(a.llm): a.llm for a in crew.agents}
        return Native(output.raw, {"crew_metrics": _summed(list(models.values())), "task_outputs": outputs}, is_default)

    def convert_result(self, native: Native) -> tasks.AgentResult:
        """Text, what each task of the crew gave, and CrewAI's own count of tokens (the engine's meter is the truth)."""
        if native.is_default:
            return result_of(_prompt.outcome(native.text, limit_reached=native.limit_reached, data=native.data))
        result = result_of(native.text)
        result.framework_specific_data.update(native.data)
        return result

    @staticmethod
    def _prepared(made: Any, llm: EngineLLM) -> list[str]:
        return _crews.prepared(made, llm) if isinstance(made, Crew) else _crews.prepared_agent(made, llm)


def _default_agent(execute: worker.Execute, llm: EngineLLM, tools: list[BaseTool], limit: int) -> Agent:
    profile = execute.agent.crew_profile
    told = _prompt.system_text(execute.agent, execute.task)
    return Agent(
        role=profile.role or "Assistant",
        goal=profile.goal or "Do what the user asks",
        backstory="\n\n".join(filter(None, (profile.backstory, told))),
        llm=llm,
        tools=tools,
        allow_delegation=False,
        max_iter=limit,
        max_retry_limit=0,
        cache=False,
    )


def _default_task(execute: worker.Execute) -> Task:
    expected = execute.task.requirements.expected_output or execute.agent.crew_profile.expected_output
    return Task(description=execute.task.description, expected_output=expected or _crews.EXPECTED_OUTPUT)


def _messages(execute: worker.Execute) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for message in execute.task.context.conversation_history:
        item: dict[str, Any] = {"role": _prompt.role_name(message), "content": text_of(message)}
        if message.tool_calls:
            item["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in message.tool_calls
            ]
        if message.tool_call_id:
            item["tool_call_id"], item["name"] = message.tool_call_id, message.name
        made.append(item)
    return [*made, {"role": "user", "content": execute.task.description}]


def _metrics(llm: Any) -> dict[str, Any]:
    return _summed([llm])


def _summed(models: list[Any]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for model in models:
        if isinstance(model, EngineLLM):
            for key, value in model.get_token_usage_summary().model_dump().items():
                if isinstance(value, int):
                    total[key] = total.get(key, 0) + value
    return total
