"""`SingularityCrewAIIntegration`: crews of plain data on the engine's models, tools and memory, in a worker and in a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from crewai import Crew
from crewai.tools import BaseTool

from ..._errors import InvalidRequest
from ..._script import engine as engine_of
from ..._tool import tool as as_tool
from ...worker._engine import Engine
from ...worker._wire import common, to_struct
from .._engine_tools import MEMORY_TEXT, MEMORY_TOOL
from .._tooling import WorkerTool, worker_tool
from . import _crews
from ._model import EngineLLM
from ._tools import converted, crewai_tool

#: Model calls of an agent whose `max_iter` does not say; CrewAI's own number.
_MAX_ITER: Final = 25
#: Schema of a tool of the engine that gives none.
_NO_ARGUMENTS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}}


class SingularityCrewAIIntegration:
    """Makes crews whose models, tools and memory are the engine's.

    >>> integration = SingularityCrewAIIntegration()
    >>> crew = integration.create_enhanced_crew({"agents": [...], "tasks": [...]})
    >>> crew.kickoff().raw

    `native_execution_engine` is the engine that a factory was given in a worker, or a :class:`~singularity_agents.Client` in a
    script; left out, it is the worker's own, or one on the environment's node. `tools` are those that a `crew_config` may name.
    """

    def __init__(self, native_execution_engine: Any = None, *, tools: Sequence[Any] = (), model: str = "") -> None:
        is_engine = isinstance(native_execution_engine, Engine)
        self.native_engine: Engine = native_execution_engine if is_engine else engine_of(native_execution_engine)
        #: Model or alias of the configuration; empty: the task's.
        self.model = model
        made = [crewai_tool(tool) for tool in tools]
        self._known = {tool.name: tool for tool in made}

    def get_federated_llm(self, model: str = "") -> EngineLLM:
        """The engine as model: which provider answers is chosen for each call."""
        return EngineLLM(model or self.model)

    def create_enhanced_crew(self, crew_config: Mapping[str, Any]) -> Crew:
        """A crew of `agents` (role, goal, backstory, tools), `tasks` (description, expected_output, agent_index, tools) and `process`.

        `memory` gives every agent the tool `distributed_memory`; `allow_delegation` and `planning` are off unless they are asked
        for. One model object serves the crew, so that `usage_metrics` are its own. Raises InvalidRequest naming the wrong field.
        """
        tools: dict[str, BaseTool] = {}
        config = dict(crew_config)
        remembers = bool(config.pop("memory", False))
        for key in ("agents", "tasks"):
            if isinstance(config.get(key), list):
                config[key] = [self._named(item, f"crew_config.{key}[{n}]", tools) for n, item in enumerate(config[key])]
        for item in config.get("agents") or ():
            if isinstance(item, dict) and (item.pop("memory", False) or remembers):
                tools[MEMORY_TOOL] = self._memory_tool()
                item["tools"] = [*item.get("tools", ()), MEMORY_TOOL]
        return _crews.crew_of(config, tools, self.get_federated_llm(), _MAX_ITER)

    def _named(self, item: Any, where: str, tools: dict[str, BaseTool]) -> Any:
        """The same with names in the place of its tools, which are made here."""
        if not isinstance(item, Mapping) or not isinstance(item.get("tools"), (list, tuple)):
            return dict(item) if isinstance(item, Mapping) else item
        made = self._made(item["tools"], f"{where}.tools")
        tools.update({tool.name: tool for tool in made})
        return {**item, "tools": [tool.name for tool in made]}

    def create_enhanced_tools(self, tool_configs: Sequence[Any]) -> list[BaseTool]:
        """Tools of their descriptions: `type` is native_enhanced, federated_ai, or anything else for one of CrewAI's own."""
        return self._made(tool_configs, "tools")

    def _made(self, tool_configs: Sequence[Any], where: str) -> list[BaseTool]:
        made: list[BaseTool] = []
        for number, config in enumerate(tool_configs):
            kind = config.get("type") if isinstance(config, Mapping) else None
            make: Callable[[Any], BaseTool] = {
                "native_enhanced": self.create_native_enhanced_tool, "federated_ai": self.create_federated_ai_tool,
            }.get(str(kind), self.create_standard_tool)  # fmt: skip
            try:
                made.append(make(config))
            except InvalidRequest as error:
                field = f"{where}[{number}]"
                raise InvalidRequest(f"{field}: {error}", reason="INVALID_FIELD", metadata={"field": field}) from None
        return made

    def create_native_enhanced_tool(self, tool_config: Mapping[str, Any]) -> BaseTool:
        """A tool that the engine runs: `name` (or `tool`, its name there), `description`, `parameters` (a JSON schema).

        Needs a running task: in a script its calls end with CAPABILITY_PENDING.
        """
        definition = common.ToolDefinition(
            name=_text(tool_config, "tool" if "tool" in tool_config else "name"),
            description=str(tool_config.get("description", "")),
            parameters=to_struct(tool_config.get("parameters") or _NO_ARGUMENTS),
            kind=common.TOOL_KIND_ENGINE,
        )
        return converted(WorkerTool(definition))

    def create_federated_ai_tool(self, tool_config: Mapping[str, Any]) -> BaseTool:
        """A tool that asks a model once: `name`, `description`, and of its `requirements` `model`, `max_tokens`, `temperature`.

        `instructions` are the model's system text.
        """
        wanted = tool_config.get("requirements") or {}
        if not isinstance(wanted, Mapping):
            raise InvalidRequest("requirements must be a dictionary", reason="INVALID_FIELD", metadata={"field": "requirements"})
        system = str(tool_config.get("instructions") or "") or None

        # The call itself is recorded by the engine: no bracket around it.
        @as_tool(
            name=_text(tool_config, "name"),
            description=str(tool_config.get("description") or "Asks a model of its own."),
            replay="safe",
        )
        async def ask(prompt: str) -> str:
            return await self.native_engine.chat(
                prompt,
                system=system,
                model=wanted.get("model") or self.model or None,
                max_tokens=wanted.get("max_tokens"),
                temperature=wanted.get("temperature"),
            )

        return converted(worker_tool(ask))

    def create_standard_tool(self, tool_config: Any) -> BaseTool:
        """A tool of CrewAI's, a `@tool`, or a plain function: the object, `{"tool": object}`, or the name of one of `tools`.

        Raises InvalidRequest for anything else. Nothing is imported by name: a configuration may have come with a task.
        """
        given = tool_config.get("tool", tool_config.get("name")) if isinstance(tool_config, Mapping) else tool_config
        if isinstance(given, BaseTool):
            return given
        if isinstance(given, str):
            if given not in self._known:
                known = ", ".join(sorted(self._known)) or "none"
                raise InvalidRequest(f'"{given}" is not among tools; there are: {known}', reason="INVALID_FIELD")
            return self._known[given]
        if not callable(given):
            raise InvalidRequest(f"a {type(given).__name__} is no tool", reason="INVALID_FIELD")
        return crewai_tool(given)

    def _memory_tool(self) -> BaseTool:
        @as_tool(name=MEMORY_TOOL, description=MEMORY_TEXT, replay="journaled")
        async def distributed_memory(op: str, key: str = "", value: str = "", query: str = "") -> str:
            return await self.native_engine.memory(op, key=key, value=value, query=query)

        return converted(worker_tool(distributed_memory))


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{key} must be text", reason="INVALID_FIELD", metadata={"field": key})
    return value
