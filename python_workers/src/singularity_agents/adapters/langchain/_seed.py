"""`SingularityLangChainAgent`: an agent as an object, with the engine's parts as tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import BaseTool, StructuredTool

from ..._script import engine as engine_of
from .._engine_tools import MEMORY_TEXT, MEMORY_TOOL, PERFORMANCE_TEXT
from ._history import EngineChatHistory
from ._model import EngineChatModel
from ._tools import REPLAY, langchain_tool

if TYPE_CHECKING:
    from ..._client import Client

_RESEARCHER: Final = (
    "You research questions. Gather facts with the tools you have, check them against each other, and answer with what you "
    "found and how sure you are. Say what you could not find out."
)
_CODER: Final = (
    "You write code. Work out what is asked, write the smallest program that does it well, and explain only what is not obvious "
    "from reading it."
)
_TEXT: Final = {"type": "string"}


class SingularityLangChainAgent:
    """A LangChain agent that uses the engine for models, memory and advice.

    In a worker and in a script, where `client` (or the environment's node) is behind it; the parts that the engine does not have
    there answer with its error CAPABILITY_PENDING. With `conversation` it remembers what was said under that name.
    """

    def __init__(
        self,
        native_agent_ref: str = "",
        *,
        instructions: str | None = None,
        tools: Sequence[Any] = (),
        conversation: str = "",
        client: Client | None = None,
    ) -> None:
        self.native_agent_ref = native_agent_ref
        self._engine = engine_of(client)
        self._conversation = conversation
        self._agent = create_agent(
            self.get_optimal_llm(), [langchain_tool(tool) for tool in tools] or None, system_prompt=instructions
        )

    def get_optimal_llm(self, model: str = "") -> EngineChatModel:
        """The engine as chat model: which provider answers is chosen for each call."""
        return EngineChatModel(model=model)

    async def execute_with_langchain(self, text: str) -> str:
        """Does one task and gives its text."""
        if not self._conversation:
            state = await self._agent.ainvoke({"messages": [HumanMessage(text)]})
            return str(state["messages"][-1].text)
        memory = self.get_distributed_memory_adapter()
        said: list[Any] = await memory.aget_messages()
        state = await self._agent.ainvoke({"messages": [*said, HumanMessage(text)]})
        await memory.aadd_messages(state["messages"][len(said) :])
        return str(state["messages"][-1].text)

    def get_distributed_memory_adapter(self, conversation: str = "") -> EngineChatHistory:
        """A conversation in the engine's memory: the agent's own, or the one that is named."""
        return EngineChatHistory(self._engine, conversation or self._conversation or self.native_agent_ref or "default")

    def create_langchain_tools(self) -> list[BaseTool]:
        """The engine's memory, models and advice as tools."""
        return [
            _tool(
                MEMORY_TOOL,
                MEMORY_TEXT,
                {"op": _TEXT, "key": _TEXT, "value": _TEXT, "query": _TEXT},
                ["op"],
                self.access_distributed_memory,
                "journaled",
            ),
            _tool(
                "ai_provider_federation",
                "Asks the best model for a prompt.",
                {"prompt": _TEXT, "requirements": {"type": "object"}},
                ["prompt"],
                self.execute_with_provider_federation,
            ),
            _tool(
                "performance_optimization",
                PERFORMANCE_TEXT,
                {"task": _TEXT, "goal": _TEXT},
                ["task"],
                self.optimize_execution,
            ),
        ]

    async def access_distributed_memory(self, op: str, key: str = "", value: str = "", query: str = "") -> str:
        """A memory call."""
        return await self._engine.memory(op, key=key, value=value, query=query)

    async def execute_with_provider_federation(self, prompt: str, requirements: dict[str, Any] | None = None) -> str:
        """A model call; of the requirements `model` and `max_tokens` are used."""
        wanted = requirements or {}
        return await self._engine.chat(prompt, model=wanted.get("model"), max_tokens=wanted.get("max_tokens"))

    async def optimize_execution(self, task: str, goal: str = "") -> str:
        """Has a part of the task done by the engine in the way that suits a goal: `parallel`, `cache` or words."""
        return await self._engine.optimize(task, goal)

    async def store_execution_result(self, task: str, result: str) -> str:
        """Writes an extra record into memory; the result itself is recorded by the engine."""
        return await self.access_distributed_memory("set", key=f"result:{task}", value=json.dumps({"result": result}))

    @classmethod
    def create_research_agent(cls, tools: Sequence[Any] = ()) -> SingularityLangChainAgent:
        """An agent that researches."""
        return cls("researcher", instructions=_RESEARCHER, tools=tools)

    @classmethod
    def create_coding_agent(cls, tools: Sequence[Any] = ()) -> SingularityLangChainAgent:
        """An agent that writes code."""
        return cls("coder", instructions=_CODER, tools=tools)


def _tool(
    name: str,
    description: str,
    properties: dict[str, Any],
    required: list[str],
    body: Callable[..., Any],
    replay: str = "safe",
) -> BaseTool:
    schema = {"type": "object", "title": name, "description": description, "properties": properties, "required": required}
    # Model calls are recorded by the engine: no bracket around them.
    return StructuredTool(name=name, description=description, args_schema=schema, coroutine=body, metadata={REPLAY: replay})
