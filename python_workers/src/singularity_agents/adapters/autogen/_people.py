"""People in a team: user proxies, and handoffs to a user who is no member, as questions of the task."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from autogen_agentchat.agents import UserProxyAgent
from autogen_agentchat.agents._user_proxy_agent import cancellable_input
from autogen_agentchat.base import TaskResult
from autogen_agentchat.messages import BaseChatMessage, HandoffMessage, TextMessage
from autogen_agentchat.teams import Swarm

from .. import _people

#: Characters of a message that a person is shown.
_MAX_TEXT = 4000


def seat(proxy: UserProxyAgent) -> None:
    """Has a user proxy ask through the engine, unless it has a way of its own: nobody sits at a worker's terminal."""
    if proxy.input_func not in (cancellable_input, input):
        return
    heard = ""
    stream: Any = proxy.on_messages_stream

    async def ask(prompt: str, cancellation_token: Any = None) -> str:
        return _people.words(_people.ask(heard or prompt, payload={"agent": proxy.name}))

    async def on_messages_stream(messages: Sequence[BaseChatMessage], cancellation_token: Any) -> AsyncGenerator[Any, None]:
        nonlocal heard
        heard = messages[-1].to_text()[:_MAX_TEXT] if messages else ""
        async for item in stream(messages, cancellation_token):
            yield item

    proxy.input_func = ask
    proxy._is_async = True
    setattr(proxy, "on_messages_stream", on_messages_stream)  # noqa: B010  (an instance's own, beside the class's)


def answer_to_handoff(runs: Any, result: TaskResult) -> BaseChatMessage | None:
    """What the user says to a handoff that ended the run; None where it ended with anything else.

    Raises InputNeeded where nobody has answered yet.
    """
    last = result.messages[-1] if result.messages else None
    if not isinstance(last, HandoffMessage) or last.target in _members(runs):
        return None
    said = _people.words(_people.ask(last.content[:_MAX_TEXT], payload={"agent": last.source, "user": last.target}))
    if isinstance(runs, Swarm):
        return HandoffMessage(source=last.target, target=last.source, content=said)
    return TextMessage(source=last.target, content=said)


def _members(runs: Any) -> set[str]:
    return {member.name for member in getattr(runs, "_participants", ())}
