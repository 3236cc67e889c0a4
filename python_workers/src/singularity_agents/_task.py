"""The task as an agent sees it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .worker._wire import common, worker

_ROLE_NAMES = ("", "user", "assistant", "system", "tool")


class Task:
    """What is to be done. Read only; nothing is converted before it is asked for."""

    __slots__ = ("_execute",)

    def __init__(self, execute: worker.Execute) -> None:
        self._execute = execute

    def __repr__(self) -> str:
        return f"Task({self.id!r}, attempt={self.attempt})"

    @property
    def id(self) -> str:
        """Id of the task."""
        return self._execute.task_id

    @property
    def attempt(self) -> int:
        """From 1."""
        return self._execute.attempt

    @property
    def description(self) -> str:
        """What the user asked for."""
        return self._execute.task.description

    @property
    def task_type(self) -> str:
        """general, research, coding and so on; may be empty."""
        return self._execute.task.task_type

    @property
    def agent_id(self) -> str:
        """The agent."""
        return self._execute.agent.id

    @property
    def instructions(self) -> str:
        """The agent's instructions."""
        return self._execute.agent.instructions

    @property
    def model(self) -> str:
        """Model or alias that calls of this task use."""
        return self._execute.model

    @property
    def history(self) -> list[dict[str, str]]:
        """The conversation so far: dicts with `role` and `content`."""
        return [
            {"role": _ROLE_NAMES[m.role], "content": "".join(part.text for part in m.content)}
            for m in self._execute.task.context.conversation_history
        ]

    @property
    def messages(self) -> list[common.Message]:
        """The conversation so far, in full."""
        return list(self._execute.task.context.conversation_history)

    @property
    def memory_namespace(self) -> str:
        """Namespace of the task's memory."""
        return self._execute.task.context.memory_namespace

    @property
    def preferences(self) -> dict[str, Any]:
        """Preferences of the user."""
        from .worker._wire import from_struct

        return from_struct(self._execute.task.context.user_preferences)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of this task; they are never put into `os.environ`."""
        return dict(self._execute.task.context.environment_variables)

    @property
    def data(self) -> dict[str, Any]:
        """Options for the framework."""
        from .worker._wire import from_struct

        return from_struct(self._execute.task.context.framework_specific_data)

    @property
    def labels(self) -> dict[str, str]:
        """Labels."""
        return dict(self._execute.task.labels)

    @property
    def expected_output(self) -> str:
        """What the answer should look like."""
        return self._execute.task.requirements.expected_output

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """JSON schema of the answer, where one is asked for."""
        from .worker._wire import from_struct

        requirements = self._execute.task.requirements
        return from_struct(requirements.output_schema) if requirements.HasField("output_schema") else None

    @property
    def max_steps(self) -> int:
        """Model calls and tool rounds allowed; 0: the engine's default."""
        return self._execute.task.execution_hints.max_steps

    @property
    def deadline(self) -> datetime | None:
        """When the engine ends the task."""
        if not self._execute.HasField("deadline"):
            return None
        return self._execute.deadline.ToDatetime(timezone.utc)

    @property
    def start_time(self) -> datetime:
        """The same in every attempt."""
        return self._execute.start_time.ToDatetime(timezone.utc)

    @property
    def seed(self) -> int:
        """The same in every attempt."""
        return self._execute.seed

    @property
    def proto(self) -> worker.Execute:
        """The message itself."""
        return self._execute
