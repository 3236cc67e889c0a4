"""Approvals of tools, and what a workflow asks for: questions of the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from agent_framework import Content, Message

from ...worker._engine import Question
from .. import _people

#: Characters of a question.
_MAX_TEXT = 4000


async def run(agent: Any, messages: list[Message]) -> Any:
    """Runs an agent until it needs nobody's approval any more. Raises InputNeeded where nobody has decided."""
    session = agent.create_session()
    response = await agent.run(messages, session=session)
    while requests := response.user_input_requests:
        decided = _people.ask_all([_approval(request) for request in requests])
        said = [r.to_function_approval_response(d is True) for r, d in zip(requests, decided, strict=True)]
        response = await agent.run(Message("user", said), session=session)
    return response


def answers(events: list[Any]) -> dict[str, Any]:
    """Answers to the requests of a workflow, by their ids."""
    decided = _people.ask_all([_request(event) for event in events])
    return {event.request_id: _response(event, said) for event, said in zip(events, decided, strict=True)}


def _approval(request: Content) -> Question:
    call = request.function_call
    shown = {"tool": call.name, "arguments": call.parse_arguments() or {}} if call is not None else {}
    return Question(f"May the tool {shown.get('tool', '')} run?", "approval", shown)


def _request(event: Any) -> Question:
    data = event.data
    if isinstance(data, Content) and data.type == "function_approval_request":
        return _approval(data)
    shown: Any = asdict(data) if is_dataclass(data) and not isinstance(data, type) else data
    if not isinstance(shown, Mapping):
        return Question(str(shown)[:_MAX_TEXT], "question", {"executor": event.source_executor_id})
    plain = {str(key): item if isinstance(item, (str, int, float, bool)) else str(item) for key, item in shown.items()}
    prompt = next(
        (str(plain[key]) for key in ("question", "prompt", "message") if plain.get(key)), "the workflow waits for an answer"
    )
    return Question(prompt[:_MAX_TEXT], "question", {"executor": event.source_executor_id, **plain})


def _response(event: Any, said: Any) -> Any:
    data = event.data
    if isinstance(data, Content) and data.type == "function_approval_request":
        return data.to_function_approval_response(said is True)
    return _people.words(said) if event.response_type is str else said
