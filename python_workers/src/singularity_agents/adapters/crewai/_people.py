"""`Task(human_input=True)`: the person is asked through the engine; CrewAI itself would read the worker's terminal for ever."""

from __future__ import annotations

from typing import Any

from crewai.core.providers.human_input import SyncHumanInputProvider, set_provider

from .. import _people

#: What a member reads when its answer was refused without a word.
_REFUSED = "This answer is not accepted. Do it again, and better."
#: Characters of an answer that a person is shown.
_MAX_TEXT = 4000


class EngineHumanInput(SyncHumanInputProvider):
    """Shows a member's answer; approval (or no words) ends its task, words are feedback that it works in."""

    def handle_feedback(self, formatted_answer: Any, context: Any) -> Any:
        """In a thread of the task."""
        answer = formatted_answer
        while context.ask_for_human_input and (said := self._asked(answer, context)):
            context.messages.append(context._format_feedback_message(said))
            answer = context._invoke_loop()
        context.ask_for_human_input = False
        return answer

    async def handle_feedback_async(self, formatted_answer: Any, context: Any) -> Any:
        """On the loop."""
        answer = formatted_answer
        while context.ask_for_human_input and (said := self._asked(answer, context)):
            context.messages.append(context._format_feedback_message(said))
            answer = await context._ainvoke_loop()
        context.ask_for_human_input = False
        return answer

    def _asked(self, answer: Any, context: Any) -> str:
        shown = {"agent": str(context.agent.role), "answer": self._get_output_string(answer)[:_MAX_TEXT]}
        if context.task is not None:
            shown["task"] = str(context.task.description)[:_MAX_TEXT]
        said = _people.ask("Is this answer good? Approve it, or say what to change.", payload=shown)
        return _people.words(said, yes="", no=_REFUSED).strip()


def install() -> None:
    """For the task that runs now, and all threads that it starts."""
    set_provider(EngineHumanInput())
