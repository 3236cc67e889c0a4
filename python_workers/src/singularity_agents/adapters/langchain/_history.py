"""A conversation in the engine's memory, as LangChain's own class for one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, messages_from_dict, messages_to_dict

from ...worker._engine import Engine

#: Messages that are kept; older ones are dropped.
MAX_MESSAGES: Final = 200


class EngineChatHistory(BaseChatMessageHistory):
    """Messages under one key of the engine's memory, the last 200 of them.

    The synchronous methods wait, so they belong into threads; on a worker's loop use those that begin with `a`. Whoever writes
    last wins: two runs of one conversation at the same time lose messages of one of them.
    """

    def __init__(self, engine: Engine, conversation: str) -> None:
        self._engine = engine
        #: Key in memory.
        self.key = f"conversation:{conversation}"

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """Oldest first."""
        return self._engine.wait(self.aget_messages())

    async def aget_messages(self) -> list[BaseMessage]:
        """Oldest first."""
        found = await self._engine.memory("get", key=self.key)
        return messages_from_dict(json.loads(found)) if found else []

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Adds to the end."""
        self._engine.wait(self.aadd_messages(messages))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Adds to the end."""
        kept = [*await self.aget_messages(), *messages][-MAX_MESSAGES:]
        await self._engine.memory("set", key=self.key, value=json.dumps(messages_to_dict(kept), ensure_ascii=False))

    def clear(self) -> None:
        """Forgets them."""
        self._engine.wait(self.aclear())

    async def aclear(self) -> None:
        """Forgets them."""
        await self._engine.memory("set", key=self.key, value="[]")
