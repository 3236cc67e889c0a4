"""The LangChain one-tool task in the framework alone: a compiled agent, reused, on a model that answers at once.

Prints a line of JSON: tasks, wall and CPU milliseconds per task. The model does what the provider `echo?tool=multiply` does, so
the engine's run of the same task differs by the engine alone. Run in the environment `langchain`.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


class Instant(BaseChatModel):
    """Calls the tool once, then answers with its result."""

    @property
    def _llm_type(self) -> str:
        return "instant"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: Any = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            answer = AIMessage(content=last.content)
        else:
            answer = AIMessage(
                content="",
                tool_calls=[{"id": "c1", "name": "multiply", "args": {"a": 36, "b": 11}}],
            )
        return ChatResult(generations=[ChatGeneration(message=answer)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: Any = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages)


async def main(tasks: int) -> None:
    """Runs the task `tasks` times after a warm-up and prints the figures."""
    agent = create_agent(
        Instant(),
        [multiply],
        system_prompt="You are a helpful assistant. Answer briefly.",
    )

    async def once() -> str:
        state = await agent.ainvoke(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "Use the multiply tool to multiply 36 by 11.",
                    }
                ]
            }
        )
        return str(state["messages"][-1].content)

    for _ in range(20):
        assert await once() == "396"
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(tasks):
        await once()
    wall, after = (
        time.perf_counter() - started,
        resource.getrusage(resource.RUSAGE_SELF),
    )
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        json.dumps(
            {
                "tasks": tasks,
                "wall_ms": wall * 1000 / tasks,
                "cpu_ms": cpu * 1000 / tasks,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
