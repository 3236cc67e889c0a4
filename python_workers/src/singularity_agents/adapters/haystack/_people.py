"""Confirmations: Haystack's own hook asks through the engine where it would read a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from haystack.core.serialization import default_from_dict, default_to_dict
from haystack.hooks.human_in_the_loop import (
    BlockingConfirmationStrategy,
    ConfirmationHook,
    ConfirmationUIResult,
    RichConsoleUI,
    SimpleConsoleUI,
)

from .. import _people


class EngineConfirmationUI:
    """Asks the person of the task whether a tool may run: yes, no (words say why), or data, which are other arguments."""

    def get_user_confirmation(self, tool_name: str, tool_description: str, tool_params: dict[str, Any]) -> ConfirmationUIResult:
        """The decision. Raises InputNeeded where nobody has decided yet."""
        shown = {"tool": tool_name, "description": tool_description, "arguments": tool_params}
        said = _people.ask(f"May the tool {tool_name} run?", kind="approval", payload=shown)
        if isinstance(said, dict):
            return ConfirmationUIResult("modify", new_tool_params=said)
        if said is True:
            return ConfirmationUIResult("confirm")
        return ConfirmationUIResult("reject", feedback=said if isinstance(said, str) else None)

    def to_dict(self) -> dict[str, Any]:
        """For a pipeline's description."""
        return default_to_dict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EngineConfirmationUI:
        """Of a pipeline's description."""
        made: EngineConfirmationUI = default_from_dict(cls, data)
        return made


def seat(agent: Any) -> None:
    """Puts the engine in the place of the terminal, in all hooks of an agent."""
    for strategy in _strategies(agent):
        if isinstance(strategy.confirmation_ui, (RichConsoleUI, SimpleConsoleUI)):
            strategy.confirmation_ui = EngineConfirmationUI()


def _strategies(agent: Any) -> Iterator[BlockingConfirmationStrategy]:
    for hooks in (agent.hooks or {}).values():
        for hook in hooks:
            if isinstance(hook, ConfirmationHook):
                for strategy in hook.confirmation_strategies.values():
                    if isinstance(strategy, BlockingConfirmationStrategy):
                        yield strategy
