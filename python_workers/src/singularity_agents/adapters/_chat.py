"""What the chat clients of all frameworks share: one request of plain messages, one call, its text shown to whoever watches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

from .._errors import SingularityError
from ..worker import _runtime
from ..worker._engine import text_of
from ..worker._inputs import InputNeeded
from ..worker._scope import CURRENT, Scope
from ..worker._wire import common, providers, to_struct

_T = TypeVar("_T")

#: Notes of a run: its last text, the engine's last refusal, a question that a tool left open, and the schema of the answer.
LAST_ANSWER: Final = "adapter.last_answer"
_REFUSED: Final = "adapter.refused"
_WAITS: Final = "adapter.waits"
_WAKE: Final = "adapter.wake"
SCHEMA: Final = "adapter.schema"
TEMPERATURE: Final = "adapter.temperature"
#: Notes of a run: model calls that it may make, and has made.
MAX_STEPS: Final = "adapter.max_steps"
_STEPS: Final = "adapter.steps"


# Definitions by tool object: frameworks offer the same tools again for every call of a model.
_definitions: dict[int, tuple[Any, common.ToolDefinition]] = {}
_MAX_DEFINITIONS: Final = 1000


class StepLimit(Exception):
    """A default agent has made all the model calls that its task allows."""


def request(
    messages: Iterable[common.Message],
    tools: Iterable[common.ToolDefinition] = (),
    *,
    model: str = "",
    tool_choice: str = "",
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
    schema: Mapping[str, Any] | None = None,
) -> providers.ChatRequest:
    """A model call; what is left out is the task's."""
    scope = CURRENT.get()
    notes = scope.notes if scope is not None else {}
    made = providers.ChatRequest(
        model=model or (scope.model if scope is not None else ""), messages=messages, tools=tools, tool_choice=tool_choice,
        stop=stop,
    )  # fmt: skip
    wanted = schema if schema is not None else notes.get(SCHEMA)
    if wanted is not None:
        made.output_schema.CopyFrom(to_struct(wanted))
    temperature = notes.get(TEMPERATURE) if temperature is None else temperature
    if temperature is not None:
        made.temperature = temperature
    if max_tokens is not None:
        made.max_tokens = max_tokens
    if seed is not None:
        made.seed = seed
    return made


def definition(tool: _T, make: Callable[[_T], common.ToolDefinition]) -> common.ToolDefinition:
    """What the model reads of a tool, made once for each tool object."""
    known = _definitions.get(id(tool))
    if known is None or known[0] is not tool:
        if len(_definitions) >= _MAX_DEFINITIONS:
            _definitions.clear()
        known = _definitions[id(tool)] = (tool, make(tool))
    return known[1]


def definition_as(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> common.ToolDefinition:
    """What the model reads of a tool that runs in this worker; without a schema it takes no arguments. It must not be changed."""
    return _definition_of(name, description or "", json.dumps(parameters or {"type": "object", "properties": {}}))


# By content: some frameworks write their tools' schemas anew for every call of a model.
@lru_cache(_MAX_DEFINITIONS)
def _definition_of(name: str, description: str, parameters: str) -> common.ToolDefinition:
    return common.ToolDefinition(
        name=name, description=description, parameters=to_struct(json.loads(parameters)), kind=common.TOOL_KIND_PYTHON
    )


async def ask(asked: providers.ChatRequest) -> providers.ChatResponse:
    """One call; its text is shown as it comes where the task's is wanted."""
    scope = CURRENT.get()
    if scope is None or not scope.want_text:
        _allowed(scope, asked)
        try:
            return _kept(scope, await _runtime.engine().chat_raw(asked))
        except SingularityError as error:
            raise _noted(scope, asked, error) from None
    async for piece in pieces(asked):
        if isinstance(piece, providers.ChatResponse):
            return piece
    raise AssertionError("unreachable: pieces end with an answer or an error")


async def pieces(asked: providers.ChatRequest) -> AsyncIterator[str | providers.ChatResponse]:
    """One streamed call: its text in pieces, which are shown as well, and the whole answer last."""
    scope = CURRENT.get()
    engine = _runtime.engine()
    _allowed(scope, asked)
    try:
        async for piece, response in engine.stream_raw(asked):
            if response is not None:
                yield _kept(scope, response)
                return
            if text := piece.text_delta:
                engine.text(text)
                yield text
        raise SingularityError("the stream ended without an answer", reason="PROVIDER_STREAM_CUT")
    except SingularityError as error:
        raise _noted(scope, asked, error) from None


def ask_blocking(asked: providers.ChatRequest) -> providers.ChatResponse:
    """The same for synchronous code: in a thread of the task, or on the loop itself, whose text then comes at the end."""
    engine = _runtime.engine()
    if not engine.on_loop():
        return engine.wait(ask(asked))
    scope = CURRENT.get()
    _allowed(scope, asked)
    try:
        response = _kept(scope, engine.chat_raw_blocking(asked))
    except SingularityError as error:
        raise _noted(scope, asked, error) from None
    engine.text(text_of(response.message))
    return response


def wait_for_answer(needed: InputNeeded) -> None:
    """A tool has left a question open: no further call goes out, whatever the framework makes of the exception."""
    scope = CURRENT.get()
    if scope is not None and _WAITS not in scope.notes:
        scope.notes[_WAITS] = needed
        scope.gate = SingularityError("the task waits for an answer", reason="WRONG_STATE")
        asked: asyncio.Future[None] | None = scope.notes.get(_WAKE)
        if asked is not None:
            _runtime.engine().soon(asked.cancel)


async def settled(run: Awaitable[_T]) -> _T:
    """Awaits a framework's run; what the engine said counts, not the words that the framework wrapped it in.

    Raises InputNeeded where a tool has asked, StepLimit where the run used up its calls, and the engine's own error where a
    model call was refused last.
    """
    scope = CURRENT.get()
    notes: dict[str, Any] = scope.notes if scope is not None else {}
    # A question may be asked in a task of the framework's own, of whose end the framework never learns. Ended, this says that one was; a
    # task in its place would be the run's, and would have to be ended with it.
    asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    notes[_WAKE] = asked
    work = asyncio.ensure_future(run)
    try:
        ends: set[asyncio.Future[Any]] = {work, asked}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if (needed := notes.get(_WAITS)) is not None:
            raise needed
        result = await work
    except Exception as error:
        if (needed := notes.get(_WAITS)) is not None:
            raise needed from None
        if _over(notes):
            raise StepLimit from error
        if (refused := notes.get(_REFUSED)) is not None and refused[1] is not error:
            raise refused[1] from error
        raise
    finally:
        asked.cancel()
        # Whatever still runs is ended with the run, by the worker.
        work.cancel()
    if (needed := notes.get(_WAITS)) is not None:
        raise needed
    if _over(notes):
        raise StepLimit
    return result


def last_answer() -> str:
    """The last text that a model gave in this run."""
    scope = CURRENT.get()
    return scope.notes.get(LAST_ANSWER, "") if scope is not None else ""


def _kept(scope: Scope | None, response: providers.ChatResponse) -> providers.ChatResponse:
    if scope is not None:
        scope.notes.pop(_REFUSED, None)
        if text := text_of(response.message):
            scope.notes[LAST_ANSWER] = text
    return response


def _noted(scope: Scope | None, asked: providers.ChatRequest, error: SingularityError) -> SingularityError:
    if scope is not None:
        scope.notes[_REFUSED] = (asked, error)
    return error


def _allowed(scope: Scope | None, asked: providers.ChatRequest) -> None:
    """Raises the engine's refusal where a framework repeats the call that it was for, StepLimit where no more calls are allowed."""
    if scope is None:
        return
    if (refused := scope.notes.get(_REFUSED)) is not None and refused[0] == asked:
        raise refused[1]
    scope.notes[_STEPS] = scope.notes.get(_STEPS, 0) + 1
    if _over(scope.notes):
        raise StepLimit(f"the task allows {scope.notes[MAX_STEPS]} model calls")


def _over(notes: Mapping[str, Any]) -> bool:
    limit = notes.get(MAX_STEPS)
    return limit is not None and notes.get(_STEPS, 0) > limit
