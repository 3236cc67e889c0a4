"""The smallest agents: a function, a class, a tool."""

from __future__ import annotations

from typing import Any

from singularity_agents import AgentCapabilities, UniversalAgent, agent, tool


@agent("shout")
async def shout(task: Any, engine: Any) -> str:
    """Says it louder. No model is asked."""
    return str(task.description).upper()


@agent("ask")
async def ask(task: Any, engine: Any) -> str:
    """One model call, through the engine."""
    return str(await engine.chat(task.description))


@tool(replay="safe")
def count_words(text: str) -> int:
    """Counts the words of a text."""
    return len(text.split())


class WordCounter(UniversalAgent):
    """The same as a class, for agents that keep something between tasks."""

    def capabilities(self) -> AgentCapabilities:
        """What it can do."""
        return AgentCapabilities(task_types=["general"])

    async def execute(self, task: Any) -> str:
        """Counts the words of the task itself."""
        return f"{count_words(text=task.description)} words"
