"""Crews: built of plain data that comes with a task, and prepared where they are the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from crewai import Agent, Crew, Process, Task
from crewai.tools import BaseTool

from ..._errors import InvalidRequest
from . import _tools
from ._model import EngineLLM

_KEYS: Final = frozenset({"agents", "tasks", "process", "allow_delegation", "memory", "planning", "verbose", "name"})
_AGENT_KEYS: Final = frozenset({"role", "goal", "backstory", "tools", "allow_delegation", "max_iter", "memory", "verbose"})
_TASK_KEYS: Final = frozenset({"description", "expected_output", "agent_index", "tools", "human_input"})
#: Of a task that says none.
EXPECTED_OUTPUT: Final = "Comprehensive analysis and recommendations"
#: More are a mistake.
_MAX_MEMBERS: Final = 64


def crew_of(config: Any, tools: Mapping[str, BaseTool], llm: EngineLLM, max_iter: int) -> Crew:
    """The crew of a `crew_config`. Raises InvalidRequest naming the field that is wrong."""
    _mapping(config, "crew_config", _KEYS)
    if config.get("memory"):
        raise _invalid("crew_config.memory", "a crew's own memory needs embeddings that the engine does not offer it yet")
    delegation = bool(config.get("allow_delegation"))
    agents = [
        _agent(item, f"crew_config.agents[{n}]", tools, llm, max_iter, delegation)
        for n, item in enumerate(_items(config, "agents"))
    ]
    tasks = [_task(item, f"crew_config.tasks[{n}]", agents, tools) for n, item in enumerate(_items(config, "tasks"))]
    process = config.get("process", "sequential")
    if process not in ("sequential", "hierarchical"):
        raise _invalid("crew_config.process", f'"{process}" is not sequential or hierarchical')
    return assembled(agents, tasks, process == "hierarchical", llm, planning=bool(config.get("planning")))


def assembled(agents: list[Agent], tasks: list[Task], hierarchical: bool, llm: EngineLLM, planning: bool = False) -> Crew:
    """A crew on the engine's model. In a hierarchical one the manager gives the work out."""
    if hierarchical:
        for task in tasks:
            task.agent = None
    return Crew(
        agents=agents,
        tasks=tasks,
        process=Process.hierarchical if hierarchical else Process.sequential,
        manager_llm=llm if hierarchical else None,
        planning=planning,
        planning_llm=llm if planning else None,
        cache=False,
        verbose=False,
    )


def prepared(crew: Crew, llm: EngineLLM) -> list[str]:
    """Puts the engine's model and brackets into a crew of the user's; gives the names of tools that are not recorded."""
    members = [*crew.agents, *([crew.manager_agent] if crew.manager_agent is not None else [])]
    left: list[str] = []
    for agent in members:
        left += prepared_agent(agent, llm)
    for task in crew.tasks:
        left += _tools.bracket(task.tools or ())
    if crew.process == Process.hierarchical and crew.manager_agent is None and not isinstance(crew.manager_llm, EngineLLM):
        crew.manager_llm = llm
    if crew.planning and not isinstance(crew.planning_llm, EngineLLM):
        crew.planning_llm = llm
    return left


def prepared_agent(agent: Any, llm: EngineLLM) -> list[str]:
    """The same for one agent."""
    if not isinstance(agent.llm, EngineLLM):
        agent.llm = llm
    agent.max_retry_limit = 0
    return _tools.bracket(agent.tools or ())


def _agent(item: Any, where: str, tools: Mapping[str, BaseTool], llm: EngineLLM, max_iter: int, delegation: bool) -> Agent:
    _mapping(item, where, _AGENT_KEYS)
    if item.get("memory"):
        raise _invalid(f"{where}.memory", "a crew's own memory needs embeddings that the engine does not offer it yet")
    return Agent(
        role=_text(item, where, "role"),
        goal=_text(item, where, "goal"),
        backstory=str(item.get("backstory", "")),
        llm=llm,
        tools=_named(item, where, tools),
        allow_delegation=bool(item.get("allow_delegation", delegation)),
        max_iter=int(item.get("max_iter", max_iter)),
        max_retry_limit=0,
        cache=False,
    )


def _task(item: Any, where: str, agents: Sequence[Agent], tools: Mapping[str, BaseTool]) -> Task:
    _mapping(item, where, _TASK_KEYS)
    index = item.get("agent_index", 0)
    if not isinstance(index, int) or not 0 <= index < len(agents):
        raise _invalid(f"{where}.agent_index", f"{index!r} is not the number of an agent, 0 to {len(agents) - 1}")
    return Task(
        description=_text(item, where, "description"),
        expected_output=str(item.get("expected_output") or EXPECTED_OUTPUT),
        agent=agents[index],
        tools=_named(item, where, tools),
        human_input=bool(item.get("human_input")),
    )


def _named(item: Mapping[str, Any], where: str, tools: Mapping[str, BaseTool]) -> list[BaseTool]:
    wanted = item.get("tools", [])
    if not isinstance(wanted, list):
        raise _invalid(f"{where}.tools", "it must be a list of names")
    for name in wanted:
        if not isinstance(name, str) or name not in tools:
            known = ", ".join(sorted(tools)) or "none"
            raise _invalid(f"{where}.tools", f"{name!r} is no tool of the agent; it has: {known}")
    return [tools[name] for name in wanted]


def _items(config: Mapping[str, Any], key: str) -> list[Any]:
    items = config.get(key)
    if not isinstance(items, list) or not 0 < len(items) <= _MAX_MEMBERS:
        raise _invalid(f"crew_config.{key}", f"it must be a list of 1 to {_MAX_MEMBERS}")
    return items


def _mapping(item: Any, where: str, known: frozenset[str]) -> None:
    if not isinstance(item, Mapping):
        raise _invalid(where, "it must be a dictionary")
    for key in item:
        if key not in known:
            raise _invalid(f"{where}.{key}", f"it is not known; known are: {', '.join(sorted(known))}")


def _text(item: Mapping[str, Any], where: str, key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise _invalid(f"{where}.{key}", "it must be text")
    return value


def _invalid(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {why}", reason="INVALID_FIELD", metadata={"field": field})
