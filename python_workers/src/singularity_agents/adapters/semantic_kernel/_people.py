"""People in orchestrations: `ask_person` is the human response function of a handoff, and of group chats without one."""

from __future__ import annotations

from typing import Any

from semantic_kernel.contents import ChatHistory, ChatMessageContent
from semantic_kernel.contents.utils.author_role import AuthorRole

from .. import _chat, _people

#: Characters of a message that a person is shown.
_MAX_TEXT = 4000


def ask_person(history: ChatHistory | None = None) -> ChatMessageContent:
    """What the person of the task says to the last answer. Raises InputNeeded where nobody has said anything yet.

    >>> HandoffOrchestration(members=members, handoffs=handoffs, human_response_function=ask_person)
    """
    last = str(history.messages[-1].content) if history is not None and history.messages else _chat.last_answer()
    said = _people.words(_people.ask(last[:_MAX_TEXT] or "the agents wait for you"))
    return ChatMessageContent(role=AuthorRole.USER, content=said, name="user")


def seat(orchestration: Any) -> None:
    """Lets the manager of a group chat that asks for the user have one."""
    manager = getattr(orchestration, "_manager", None)
    if manager is not None and getattr(manager, "human_response_function", ask_person) is None:
        manager.human_response_function = ask_person
