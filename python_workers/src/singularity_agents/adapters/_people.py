"""Questions that a framework puts to a person by its own means: each becomes one of the task's, and the run ends until it is answered.

The run then starts again from its top; its model calls and recorded tools are answered as before, and the question by its number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..worker import _runtime
from ..worker._engine import Question
from ..worker._inputs import InputNeeded
from . import _chat


def ask(prompt: str, kind: str = "question", payload: Mapping[str, Any] | None = None) -> Any:
    """The answer: words, a yes or a no, or data. From any thread of the task, and on its loop. Raises InputNeeded without one."""
    return ask_all([Question(prompt, kind, payload)])[0]


def ask_all(questions: Sequence[Question]) -> list[Any]:
    """The answers to several questions that a person sees at once. Raises InputNeeded with those that have none."""
    try:
        return _runtime.engine().answers_to(questions)
    except InputNeeded as needed:
        _chat.wait_for_answer(needed)
        raise


def words(answer: Any, yes: str = "yes", no: str = "no") -> str:
    """An answer as text, where a framework knows no other: `yes` and `no` are the words of a bare decision."""
    if answer is None:
        return ""
    if isinstance(answer, bool):
        return yes if answer else no
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
