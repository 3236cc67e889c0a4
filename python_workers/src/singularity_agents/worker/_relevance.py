"""Which tools a model is shown where there are many: a model that reads fifty of them pays for all and chooses worse."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from ._wire import common, providers

#: Words of two letters and more; `searchOrders` and `search_orders` are two.
_WORD: Final = re.compile(r"[A-Z]?[a-z0-9]{2,}|[A-Z]{2,}|[^\W\d_A-Za-z]{2,}")
#: A word of a tool's name counts as so many of its description.
_NAME_WEIGHT: Final = 3
#: Longest text that is looked at, in characters: the end of what is asked says most.
_MAX_TEXT: Final = 20_000


def limit_tools(request: providers.ChatRequest, limit: int, task: str) -> int:
    """Leaves the `limit` tools in a request that fit best what is asked, in their order; gives how many were left out.

    What is asked is the task and the last message of a user. A tool stays that the conversation has used, that the text names, or that
    `tool_choice` names; there may be more than `limit` of those.
    """
    if limit <= 0 or len(request.tools) <= limit:
        return 0
    asked = f"{task}\n{_last_of_user(request.messages)}"[-_MAX_TEXT:]
    used = {call.name for message in request.messages for call in message.tool_calls} | {request.tool_choice}
    must = {i for i, tool in enumerate(request.tools) if tool.name in used or tool.name in asked}
    scores = _scores(_words(asked), request.tools)
    best = sorted((i for i in range(len(request.tools)) if i not in must), key=lambda i: (-scores[i], i))
    kept = must | set(best[: max(0, limit - len(must))])
    left_out = len(request.tools) - len(kept)
    stay = [tool for i, tool in enumerate(request.tools) if i in kept]
    del request.tools[:]
    request.tools.extend(stay)
    return left_out


def _last_of_user(messages: Iterable[common.Message]) -> str:
    last = ""
    for message in messages:
        if message.role == common.ROLE_USER:
            last = "".join(part.text for part in message.content)
    return last


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)}


def _scores(asked: set[str], tools: Sequence[common.ToolDefinition]) -> list[float]:
    """How much of what is asked each tool speaks of; a word that all tools have says nothing."""
    named = [_words(tool.name) for tool in tools]
    told = [_words(tool.description) for tool in tools]
    spread = Counter(word for name, text in zip(named, told, strict=True) for word in name | text)

    def weight(word: str) -> float:
        return math.log(1 + len(tools) / spread[word])

    return [
        sum(weight(word) * (_NAME_WEIGHT if word in name else 1) for word in asked & (name | text))
        for name, text in zip(named, told, strict=True)
    ]
