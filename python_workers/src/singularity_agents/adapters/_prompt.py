"""What a default agent is told, and what its answer must be: the same words for every framework, and the engine's own agent."""

from __future__ import annotations

import json
from typing import Any

from ..worker._engine import text_of
from ..worker._scope import CURRENT
from ..worker._wire import agents, common, from_struct, tasks, worker
from . import _chat
from ._base import Outcome

#: Model calls where neither task nor configuration says.
DEFAULT_MAX_STEPS = 50

_ROLE_NAMES = {
    common.ROLE_USER: "user",
    common.ROLE_ASSISTANT: "assistant",
    common.ROLE_SYSTEM: "system",
    common.ROLE_TOOL: "tool",
}


def system_text(agent: agents.Agent, task: tasks.AgentTask) -> str:
    """Instructions, expected output, preferences of the user."""
    parts = [agent.instructions] if agent.instructions else []
    if task.requirements.expected_output:
        parts.append(f"Expected output: {task.requirements.expected_output}")
    if task.context.HasField("user_preferences") and task.context.user_preferences.fields:
        preferences = json.dumps(from_struct(task.context.user_preferences), ensure_ascii=False)
        parts.append(f"Preferences of the user: {preferences}")
    return "\n\n".join(parts)


def max_steps(execute: worker.Execute) -> int:
    """Model calls that a run may make."""
    return execute.task.execution_hints.max_steps or DEFAULT_MAX_STEPS


def role_name(message: common.Message) -> str:
    """user, assistant, system or tool."""
    return _ROLE_NAMES.get(message.role, "user")


def history_text(execute: worker.Execute) -> str:
    """The conversation so far as text, for frameworks that have no place for it."""
    lines = [f"{role_name(m)}: {text_of(m)}" for m in execute.task.context.conversation_history if text_of(m)]
    return "The conversation so far:\n" + "\n".join(lines) if lines else ""


def arguments_of(call: common.ToolCall) -> dict[str, Any]:
    """Arguments of a model's call; what is no JSON object is passed on under one name, so that the tool says what is wrong."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        arguments = None
    return arguments if isinstance(arguments, dict) else {"input": call.arguments}


def begin(execute: worker.Execute) -> None:
    """Notes what the task asks of the model calls of a default agent: schema, temperature, and how many they may be."""
    scope = CURRENT.get()
    if scope is None:
        return
    scope.notes[_chat.MAX_STEPS] = max_steps(execute)
    if execute.task.requirements.HasField("output_schema"):
        scope.notes[_chat.SCHEMA] = from_struct(execute.task.requirements.output_schema)
    if execute.task.execution_hints.HasField("temperature"):
        scope.notes[_chat.TEMPERATURE] = execute.task.execution_hints.temperature


def outcome(text: str, *, limit_reached: str = "", data: dict[str, Any] | None = None) -> Outcome:
    """The end of a default agent's run. Where data was asked for and none came it is text: the engine holds it against the schema."""
    scope = CURRENT.get()
    schema = scope.notes.get(_chat.SCHEMA) if scope is not None else None
    if schema is None or limit_reached:
        return Outcome(text=text, limit_reached=limit_reached, data=data or {})
    try:
        structured = json.loads(text)
    except ValueError:
        return Outcome(text=text, data=data or {})
    return Outcome(structured=structured, data=data or {})
