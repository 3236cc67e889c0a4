"""The engine as an agent sees it: model calls, tools, events. One object per worker; the running task is found by context."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from google.protobuf.message import Message as ProtoMessage

from .._durations import DurationLike, seconds
from .._errors import SingularityError
from . import _artifacts as artifacts
from . import _delegate
from . import _frames as f
from ._calls import Calls
from ._delegate import Delegated
from ._events import Events
from ._inputs import InputNeeded, input_name, occurrence_in, question, tool_input_id, value
from ._memory import Record, in_words, keep_requests, read_request
from ._relevance import limit_tools
from ._scope import Scope
from ._wire import arguments_text, common, providers, tasks, to_struct, worker

__all__ = ["REPLAY", "ChatReply", "Delegated", "Engine", "Question", "SyncEngine", "ToolError"]

_T = TypeVar("_T")
_M = TypeVar("_M", bound=ProtoMessage)

_ROLES: Final = {
    "user": common.ROLE_USER,
    "assistant": common.ROLE_ASSISTANT,
    "system": common.ROLE_SYSTEM,
    "tool": common.ROLE_TOOL,
}
REPLAY: Final = {
    "safe": common.TOOL_REPLAY_SAFE,
    "journaled": common.TOOL_REPLAY_JOURNALED,
    "once": common.TOOL_REPLAY_ONCE,
}
_FINISH: Final = {
    providers.FINISH_REASON_STOP: "stop",
    providers.FINISH_REASON_LENGTH: "length",
    providers.FINISH_REASON_TOOL_CALLS: "tool_calls",
    providers.FINISH_REASON_CONTENT_FILTER: "content_filter",
    providers.FINISH_REASON_REFUSAL: "refusal",
    providers.FINISH_REASON_PAUSE: "pause",
}

#: What :meth:`Engine.chat` takes as prompt: a text, or messages as dicts (`role`, `content`) or protobuf.
Prompt = str | Sequence["Mapping[str, Any] | common.Message"]


class ToolError(SingularityError):
    """A tool ran and failed; `message` is what it says to the model."""


class Recorded(NamedTuple):
    """What a tool said when it ran in an earlier attempt."""

    content: str
    is_error: bool


class Question(NamedTuple):
    """One question to a person or a client; `kind` is question, approval or client_tool."""

    prompt: str
    kind: str = "question"
    payload: Mapping[str, Any] | None = None
    #: Seconds that it waits at most; None: as long as the task.
    within_s: float | None = None


class ChatReply(str):
    """The model's text, which is a `str`, with what came beside it."""

    __slots__ = ("response",)
    response: providers.ChatResponse

    @property
    def finish_reason(self) -> str:
        """stop, length, tool_calls, content_filter, refusal, pause or other."""
        return finish_name(self.response)

    @property
    def tool_calls(self) -> list[dict[str, str]]:
        """Tools that the model wants called: `id`, `name`, `arguments` (JSON text)."""
        return [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in self.response.message.tool_calls]

    @property
    def model(self) -> str:
        """The model that answered."""
        return self.response.model

    @property
    def provider(self) -> str:
        """The provider that answered."""
        return self.response.provider


def finish_name(response: providers.ChatResponse) -> str:
    """stop, length, tool_calls, content_filter, refusal, pause or other."""
    return _FINISH.get(response.finish_reason, "other")


def text_of(message: common.Message) -> str:
    """The text parts of a message, joined."""
    parts = message.content
    return parts[0].text if len(parts) == 1 else "".join(part.text for part in parts)


def reply_of(response: providers.ChatResponse) -> ChatReply:
    """The reply of a response."""
    reply = ChatReply(text_of(response.message))
    reply.response = response
    return reply


def message_of(item: Mapping[str, Any] | common.Message) -> common.Message:
    """A protobuf message of a dict with `role` and `content`."""
    if isinstance(item, common.Message):
        return item
    message = common.Message(role=_ROLES[item["role"]], tool_call_id=item.get("tool_call_id", ""), name=item.get("name", ""))
    if content := item.get("content"):
        message.content.add(text=content)
    for call in item.get("tool_calls", ()):
        arguments = call.get("arguments", "{}")
        text = arguments if isinstance(arguments, str) else arguments_text(arguments)
        message.tool_calls.add(id=call.get("id", ""), name=call["name"], arguments=text)
    return message


class Engine:
    """What the code of a task may ask for. Everything is metered, limited and fenced by the engine itself."""

    def __init__(self, calls: Calls, events: Events, loop: asyncio.AbstractEventLoop, thread: int | None = None) -> None:
        self._calls = calls
        self._events = events
        self._loop = loop
        #: The loop's own thread; the one that makes the engine where none is named.
        self._thread = threading.get_ident() if thread is None else thread

    def on_loop(self) -> bool:
        """Whether the calling code runs on the loop itself, where waiting would end in nothing."""
        return threading.get_ident() == self._thread

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine on the loop and waits for it, in a thread of a task. Raises the task's gate where it is closed."""
        try:
            self._calls.scope()
            if self.on_loop():
                raise RuntimeError("this would block the event loop; await it")
        except BaseException:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def soon(self, function: Callable[[], object]) -> None:
        """Calls a function on the loop. From any thread."""
        self._loop.call_soon_threadsafe(function)

    # --- models ---------------------------------------------------------------------------------------------------

    async def chat(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        model: str | None = None,
        tools: Iterable[Any] = (),
        tool_choice: str = "",
        schema: Mapping[str, Any] | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        on_text: Callable[[str], object] | None = None,
    ) -> ChatReply:
        """Asks a model once. With `on_text` the text comes in pieces as well.

        `model` is a model or alias of the configuration; left out, it is the task's. Raises the engine's error, a
        :class:`~singularity_agents.ProviderFailed` where the model call failed.
        """
        request = self._request(prompt, system, model, tools, tool_choice, schema, temperature, seed, max_tokens, stop)
        if on_text is None:
            return reply_of(await self.chat_raw(request))
        async for piece, response in self.stream_raw(request):
            if response is not None:
                return reply_of(response)
            if piece.text_delta:
                on_text(piece.text_delta)
        raise SingularityError("the stream ended without an answer", reason="PROVIDER_STREAM_CUT")

    async def stream(self, prompt: Prompt, *, system: str | None = None, model: str | None = None) -> AsyncIterator[str]:
        """The text of one model call in pieces."""
        request = self._request(prompt, system, model, (), "", None, None, None, None, ())
        async for piece, response in self.stream_raw(request):
            if response is None and piece.text_delta:
                yield piece.text_delta

    def _request(
        self,
        prompt: Prompt,
        system: str | None,
        model: str | None,
        tools: Iterable[Any],
        tool_choice: str,
        schema: Mapping[str, Any] | None,
        temperature: float | None,
        seed: int | None,
        max_tokens: int | None,
        stop: Sequence[str],
    ) -> providers.ChatRequest:
        request = providers.ChatRequest(model=model or self._calls.scope().model, tool_choice=tool_choice, stop=stop)
        if system:
            request.messages.add(role=common.ROLE_SYSTEM).content.add(text=system)
        if isinstance(prompt, str):
            request.messages.add(role=common.ROLE_USER).content.add(text=prompt)
        else:
            request.messages.extend([message_of(item) for item in prompt])
        for tool in tools:
            request.tools.append(tool if isinstance(tool, common.ToolDefinition) else tool.definition())
        if schema is not None:
            request.output_schema.CopyFrom(to_struct(schema))
        if temperature is not None:
            request.temperature = temperature
        if seed is not None:
            request.seed = seed
        if max_tokens is not None:
            request.max_tokens = max_tokens
        return request

    async def chat_raw(self, request: providers.ChatRequest, *, all_tools: bool = False) -> providers.ChatResponse:
        """One model call as protobuf; with `all_tools` the model is shown all tools of the request, however many."""
        if not all_tools:
            self._limit(request)
        response = providers.ChatResponse()
        response.ParseFromString(await self._calls.call(f.Call.CHAT, request.SerializeToString()))
        return response

    def _limit(self, request: providers.ChatRequest) -> None:
        """Where there are many tools the model is shown those that fit; the task's events say so once."""
        scope = self._calls.scope()
        if scope.tool_limit and (left_out := limit_tools(request, scope.tool_limit, scope.description)) and not scope.tools_said:
            scope.tools_said = True
            self.log(f"{left_out} tools that fit the task least are not shown to the model", source="optimization")

    def chat_raw_blocking(self, request: providers.ChatRequest) -> providers.ChatResponse:
        """One model call as protobuf, for synchronous code."""
        self._limit(request)
        return providers.ChatResponse.FromString(self._call_from_anywhere(f.Call.CHAT, request.SerializeToString()))

    async def stream_raw(
        self, request: providers.ChatRequest
    ) -> AsyncIterator[tuple[providers.StreamChatResponse, providers.ChatResponse | None]]:
        """One streamed model call as protobuf: pieces, and with the last one the whole answer."""
        self._limit(request)
        async for last, payload in self._calls.stream(f.Call.CHAT, request.SerializeToString()):
            piece = providers.StreamChatResponse()
            if last:
                piece.final.ParseFromString(payload)
                yield piece, piece.final
                return
            piece.ParseFromString(payload)
            yield piece, None

    async def embed(self, texts: str | Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """Vectors of texts."""
        request = providers.EmbedRequest(model=model or "", input=[texts] if isinstance(texts, str) else texts)
        response = providers.EmbedResponse()
        response.ParseFromString(await self._calls.call(f.Call.EMBED, request.SerializeToString()))
        return [list(embedding.values) for embedding in response.embeddings]

    # --- tools ----------------------------------------------------------------------------------------------------

    async def tool(self, name: str, /, **arguments: Any) -> str:
        """Calls a tool of the engine. Raises :class:`ToolError` where the tool says so."""
        content, is_error = await self.tool_raw(name, arguments_text(arguments))
        if is_error:
            raise ToolError(content, reason="TOOL_FAILED", metadata={"tool": name})
        return content

    async def tool_raw(self, name: str, arguments: str, tool_call_id: str = "") -> tuple[str, bool]:
        """Calls a tool of the engine with JSON text; gives its text and whether it failed."""
        request = worker.ToolRequest(name=name, arguments=arguments, tool_call_id=tool_call_id)
        reply = worker.ToolReply()
        reply.ParseFromString(await self._calls.call(f.Call.TOOL, request.SerializeToString()))
        return reply.content, reply.is_error

    def tool_raw_blocking(self, name: str, arguments: str, tool_call_id: str = "") -> tuple[str, bool]:
        """The same for synchronous code."""
        request = worker.ToolRequest(name=name, arguments=arguments, tool_call_id=tool_call_id)
        reply = worker.ToolReply.FromString(self._call_from_anywhere(f.Call.TOOL, request.SerializeToString()))
        return reply.content, reply.is_error

    async def run_tool(
        self,
        name: str,
        arguments: str,
        replay: str,
        body: Callable[[], Awaitable[str]],
        tool_call_id: str = "",
        passes: Callable[[BaseException], bool] = lambda error: False,
    ) -> tuple[str, bool, BaseException | None]:
        """Runs a tool of this worker between TOOL_BEGIN and TOOL_END; a recorded result is given without running it.

        The engine makes the task's events of the two; a tool that is `safe` has no bracket and sends its events itself.

        Gives the text, whether it is an error, and what the tool raised. An error that `passes` is no result and goes on, and so does a
        question that the tool asks: a run that is resumed begins the tool again.
        """
        bracket = self._bracket(name, arguments, replay, tool_call_id)
        if replay != "safe":
            recorded = await self._begin(bracket)
            if recorded is not None:
                return recorded.content, recorded.is_error, None
        else:
            bracket.started()
        error: BaseException | None = None
        try:
            content, failed = await body(), False
        except InputNeeded:
            # It was not cut: the whole run stops here on purpose, and nobody needs to decide whether the tool may run again.
            if replay != "safe":
                await self._calls.tell(f.Call.TOOL_END, bracket.withdraw())
            raise
        except Exception as raised:
            if passes(raised):
                if replay != "safe":
                    await self._calls.tell(f.Call.TOOL_END, bracket.withdraw())
                raise
            error, content, failed = raised, f"{type(raised).__name__}: {raised}", True
        if replay != "safe":
            await self._calls.tell(f.Call.TOOL_END, bracket.end(content, failed))
        else:
            bracket.finished(content, failed)
        return content, failed, error

    def run_tool_blocking(
        self,
        name: str,
        arguments: str,
        replay: str,
        body: Callable[[], str],
        tool_call_id: str = "",
        passes: Callable[[BaseException], bool] = lambda error: False,
    ) -> tuple[str, bool, BaseException | None]:
        """The same for synchronous code, in a thread of the task or on the loop itself."""
        bracket = self._bracket(name, arguments, replay, tool_call_id)
        if replay != "safe":
            recorded = self._begin_blocking(bracket)
            if recorded is not None:
                return recorded.content, recorded.is_error, None
        else:
            bracket.started()
        error: BaseException | None = None
        try:
            content, failed = body(), False
        except InputNeeded:
            if replay != "safe":
                self._tell_from_anywhere(f.Call.TOOL_END, bracket.withdraw())
            raise
        except Exception as raised:
            if passes(raised):
                if replay != "safe":
                    self._tell_from_anywhere(f.Call.TOOL_END, bracket.withdraw())
                raise
            error, content, failed = raised, f"{type(raised).__name__}: {raised}", True
        if replay != "safe":
            self._tell_from_anywhere(f.Call.TOOL_END, bracket.end(content, failed))
        else:
            bracket.finished(content, failed)
        return content, failed, error

    async def _begin(self, bracket: _Bracket) -> Recorded | None:
        try:
            return bracket.recorded(await self._calls.call(f.Call.TOOL_BEGIN, bracket.begin()))
        except SingularityError as error:
            decided = bracket.decided(error)
        if decided is not None:
            await self._calls.tell(f.Call.TOOL_END, bracket.end(*decided))
            return decided
        return bracket.recorded(await self._calls.call(f.Call.TOOL_BEGIN, bracket.begin("journaled")))

    def _begin_blocking(self, bracket: _Bracket) -> Recorded | None:
        try:
            return bracket.recorded(self._call_from_anywhere(f.Call.TOOL_BEGIN, bracket.begin()))
        except SingularityError as error:
            decided = bracket.decided(error)
        if decided is not None:
            self._tell_from_anywhere(f.Call.TOOL_END, bracket.end(*decided))
            return decided
        return bracket.recorded(self._call_from_anywhere(f.Call.TOOL_BEGIN, bracket.begin("journaled")))

    def _bracket(self, name: str, arguments: str, replay: str, tool_call_id: str) -> _Bracket:
        return _Bracket(self, self._calls.scope(), name, arguments, replay, tool_call_id)

    def _call_from_anywhere(self, kind: f.Call, payload: bytes) -> bytes:
        if threading.get_ident() == self._thread:
            return self._calls.call_blocking(kind, payload)
        self._calls.scope()
        return asyncio.run_coroutine_threadsafe(self._calls.call(kind, payload), self._loop).result()

    def _tell_from_anywhere(self, kind: f.Call, payload: bytes) -> None:
        if threading.get_ident() == self._thread:
            self._calls.tell_blocking(kind, payload)
        else:
            self._calls.scope()
            asyncio.run_coroutine_threadsafe(self._calls.tell(kind, payload), self._loop).result()

    # --- events ---------------------------------------------------------------------------------------------------

    def text(self, piece: str) -> None:
        """Shows a piece of the answer to whoever watches the task. From any thread."""
        scope = self._calls.scope()
        if scope.want_text and piece:
            self._emit(scope, f.Event.TEXT, piece.encode())

    def step(self, kind: str, name: str, *, started: bool = True, is_error: bool = False) -> None:
        """Reports the start or the end of a step of the framework's own. From any thread."""
        event = worker.StepEvent(started=started, kind=kind, name=name, is_error=is_error)
        self._emit(self._calls.scope(), f.Event.STEP, event.SerializeToString())

    def log(self, message: str, *, level: str = "info", source: str = "agent") -> None:
        """A line of log of the task. From any thread."""
        event = worker.LogEvent(level=level, source=source, message=message)
        self._emit(self._calls.scope(), f.Event.LOG, event.SerializeToString())

    def _emit(self, scope: Scope, kind: f.Event, payload: bytes) -> None:
        if threading.get_ident() == self._thread:
            self._events.emit(scope, kind, payload)
        else:
            self._loop.call_soon_threadsafe(self._events.emit, scope, kind, payload)

    async def drain(self) -> None:
        """Waits until the events so far are on their way: what a fast writer does between pieces."""
        if self._events.waiting:
            await self._events.drain()

    def artifact(self, name: str, data: bytes | str, media_type: str = "") -> None:
        """Gives a file to whoever reads the task's result: up to 1 MiB, 2 MiB in all. From any thread.

        `media_type` left out is text/plain for text and application/octet-stream for bytes. A name that was given before is replaced.
        Raises ValueError where it is too large or has no name.
        """
        artifacts.add(self._calls.scope().artifacts, name, data, media_type)

    # --- memory ---------------------------------------------------------------------------------------------------

    async def memory(self, op: str, **arguments: Any) -> str:
        """Reads or writes the task's memory in words: `op` is get, set, delete, list or search, with `key`, `value`, `query`."""
        return await in_words(self, op, arguments)

    async def memory_raw(self, request: worker.MemoryRequest, answer: type[_M]) -> _M:
        """One call of memory as protobuf."""
        made = answer()
        made.ParseFromString(await self._calls.call(f.Call.MEMORY, request.SerializeToString()))
        return made

    async def keep(self, records: Sequence[Record]) -> None:
        """Writes records of the task, which its later attempts read and nobody else; they go with the task."""
        for request in keep_requests(records):
            await self._calls.call(f.Call.MEMORY, request.SerializeToString())

    def keep_blocking(self, records: Sequence[Record]) -> None:
        """The same for synchronous code."""
        for request in keep_requests(records):
            self._call_from_anywhere(f.Call.MEMORY, request.SerializeToString())

    async def kept(self) -> list[tuple[str, bytes]]:
        """The records of the task."""
        found: list[tuple[str, bytes]] = []
        more = True
        while more:
            after = found[-1][0] if found else ""
            page = await self.memory_raw(read_request(after), worker.KeptRecords)
            found += [(record.key, record.data) for record in page.records]
            more = page.more
        return found

    def kept_blocking(self) -> list[tuple[str, bytes]]:
        """The same for synchronous code."""
        found: list[tuple[str, bytes]] = []
        more = True
        while more:
            request = read_request(found[-1][0] if found else "").SerializeToString()
            page = worker.KeptRecords.FromString(self._call_from_anywhere(f.Call.MEMORY, request))
            found += [(record.key, record.data) for record in page.records]
            more = page.more
        return found

    # --- subtasks -------------------------------------------------------------------------------------------------

    async def delegate(self, description: str, *, cache: str = "bypass", **options: Any) -> str:
        """Has somebody else do a part of the task, and gives the text of the answer.

        Options: `framework` (`native`, which is the default, `auto`, a framework, `custom:NAME`), `agent`, `model`, `output_schema`,
        `max_tokens`, `timeout`. It runs inside the task: on its account, under its deadline, ended with it. Its end is kept, so an agent
        that runs again is told the same. `cache` is `use` where answers of equal model calls may be given again. Raises its error.
        """
        (end,) = await self.delegate_all([{"description": description, **options}], cache=cache)
        return _delegate.output_of(end)

    async def delegate_all(self, subtasks: Sequence[str | Mapping[str, Any]], *, cache: str = "bypass") -> list[Delegated]:
        """The same for up to 64 subtasks side by side, each a description or its options with `description`.

        Gives the ends in their order; one that failed has `error`, and the others go on.
        """
        asked = _delegate.request(subtasks, cache)
        return _delegate.ends(await self._calls.call(f.Call.DELEGATE, _delegate.numbered(asked, self._calls.scope())))

    async def ask(
        self,
        prompt: str,
        *,
        payload: Mapping[str, Any] | None = None,
        kind: str = "question",
        timeout: DurationLike | None = None,
    ) -> Any:
        """Asks a person: gives their words, or the data of their answer; raises `TimeoutError` if nobody answers for so long.

        While nobody has answered the task waits, without a process; the agent then starts again from its beginning, its model
        calls and tools answered as before. Questions are known by their order, so ask them in the same one every time.
        """
        return self._asked(prompt, kind, payload, timeout)

    async def approve(
        self, prompt: str, *, payload: Mapping[str, Any] | None = None, timeout: DurationLike | None = None
    ) -> bool:
        """Asks a person for a yes or a no; waits as :meth:`ask` does."""
        return bool(self._asked(prompt, "approval", payload, timeout))

    async def client_tool(self, name: str, *, timeout: DurationLike | None = None, **arguments: Any) -> Any:
        """Has the client run a tool of its own: it sees name and arguments in `pending_inputs`, and signals the result.

        Waits as :meth:`ask` does; gives the result's text, or its data.
        """
        return self._asked(name, "client_tool", {"name": name, "arguments": arguments}, timeout)

    def heartbeat(self) -> None:
        """Says that the task goes on, where it has a `heartbeat_timeout` and is silent for long otherwise. From any thread."""
        self._emit(self._calls.scope(), f.Event.BEAT, b"")

    def answers_to(self, questions: Sequence[Question]) -> list[Any]:
        """What was answered to questions that are shown at once. From any thread: nothing is waited for.

        Raises InputNeeded with those that have no answer yet, `TimeoutError` where nobody answered one in time.
        """
        scope = self._calls.scope()
        place = scope.place()
        before = scope.asked[place]
        scope.asked[place] += len(questions)
        names = [input_name(place, before + number) for number in range(1, len(questions) + 1)]
        missing = [
            question(name, asked.kind, asked.prompt, asked.payload, asked.within_s)
            for name, asked in zip(names, questions, strict=True)
            if name not in scope.answers
        ]
        if missing:
            raise InputNeeded(missing)
        return [value(scope.answers[name]) for name in names]

    def _asked(self, prompt: str, kind: str, payload: Mapping[str, Any] | None, timeout: DurationLike | None) -> Any:
        return self.answers_to([Question(prompt, kind, payload, None if timeout is None else seconds(timeout))])[0]

    async def select_provider(self, **requirements: Any) -> str:
        """Which provider and model would be chosen, "provider/model", without asking it.

        `requirements` are fields of `TaskRequirements`: `model` (left out, the task's), `allowed_providers`, `denied_providers`,
        `data_tags`, `min_quality`, `max_tokens` and others. Raises ValueError for one that there is not.
        """
        wanted = tasks.TaskRequirements(**requirements)
        wanted.model = wanted.model or self._calls.scope().model
        answer = await self._calls.call(
            f.Call.SELECT_PROVIDER, providers.SelectProviderRequest(requirements=wanted).SerializeToString()
        )
        chosen = providers.SelectProviderResponse.FromString(answer)
        return f"{chosen.provider}/{chosen.model}"

    async def optimize(self, task: str, goal: str = "") -> str:
        """Has a part of the task done in the way that suits a goal: gives its text.

        `goal`: `parallel` (each line of `task` is a subtask, all side by side; their texts as a JSON list), `cache` (an equal model call is
        answered as before), or anything else: the engine's own agent does it, told the goal.
        """
        if goal == "parallel":
            lines = [line.strip() for line in task.splitlines() if line.strip()]
            return json.dumps([_delegate.output_of(end) for end in await self.delegate_all(lines)], ensure_ascii=False)
        if goal == "cache":
            return await self.delegate(task, cache="use")
        return await self.delegate(f"{task}\n\nGoal: {goal}" if goal else task)


class _Bracket:
    """TOOL_BEGIN and TOOL_END of one execution."""

    __slots__ = ("_arguments", "_engine", "_id", "_name", "_occurrence", "_replay", "_scope")

    def __init__(self, engine: Engine, scope: Scope, name: str, arguments: str, replay: str, tool_call_id: str) -> None:
        self._engine = engine
        self._scope = scope
        self._name = name
        self._arguments = arguments
        self._replay = replay
        self._id = tool_call_id
        place = scope.place()
        key = (place, name, arguments)
        self._occurrence = occurrence_in(place, scope.begun[key])
        scope.begun[key] += 1

    def begin(self, replay: str = "") -> bytes:
        return worker.ToolBegin(
            name=self._name,
            arguments=self._arguments,
            occurrence=self._occurrence,
            replay=REPLAY[replay or self._replay],
            tool_call_id=self._id,
        ).SerializeToString()

    def decided(self, error: SingularityError) -> Recorded | None:
        """What a person has decided of a call that an earlier attempt may have made: a result, or None to run it.

        Raises InputNeeded while nobody has, and the error itself if it is another.
        """
        if error.reason != "REPLAY_NOT_ALLOWED":
            raise error
        input_id = tool_input_id(self._name, self._arguments, self._occurrence)
        answer = self._scope.answers.get(input_id)
        if answer is None:
            prompt = (
                f"The tool {self._name} was cut in an earlier attempt, and nobody here knows whether it had its effect. "
                "Approve to run it again, or give its result."
            )
            details = {"tool": self._name, "arguments": self._arguments}
            raise InputNeeded([question(input_id, "approval", prompt, details)]) from error
        if answer.WhichOneof("answer") == "approve":
            return None if answer.approve else Recorded(f"it was decided not to run {self._name} again", True)
        given = value(answer)
        return Recorded(given if isinstance(given, str) else json.dumps(given), False)

    @staticmethod
    def recorded(payload: bytes) -> Recorded | None:
        reply = worker.ToolBeginReply.FromString(payload)
        return Recorded(reply.content, reply.is_error) if reply.recorded else None

    def end(self, content: str, is_error: bool) -> bytes:
        return worker.ToolEnd(
            name=self._name, arguments=self._arguments, occurrence=self._occurrence, content=content, is_error=is_error,
            tool_call_id=self._id,
        ).SerializeToString()  # fmt: skip

    def withdraw(self) -> bytes:
        return worker.ToolEnd(
            name=self._name, arguments=self._arguments, occurrence=self._occurrence, withdrawn=True, tool_call_id=self._id
        ).SerializeToString()

    def started(self) -> None:
        self._event(worker.ToolEvent(id=self._event_id(), name=self._name, arguments=self._arguments))

    def finished(self, content: str, is_error: bool) -> None:
        self._event(worker.ToolEvent(id=self._event_id(), name=self._name, finished=True, content=content, is_error=is_error))

    def _event_id(self) -> str:
        return self._id or f"{self._name}-{self._occurrence}"

    def _event(self, event: worker.ToolEvent) -> None:
        self._engine._emit(self._scope, f.Event.TOOL, event.SerializeToString())


class SyncEngine:
    """The engine for synchronous agents: the same methods, each waits for its answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._engine, name)
        if not inspect.iscoroutinefunction(attribute):
            return attribute
        loop = self._engine._loop

        def wait(*args: Any, **kwargs: Any) -> Any:
            # Made in the thread of the task: the gate and the running task come along with its context.
            self._engine._calls.scope()
            if threading.get_ident() == self._engine._thread:
                raise RuntimeError(f"engine.{name} would block the event loop; make the function async and await it")
            return asyncio.run_coroutine_threadsafe(attribute(*args, **kwargs), loop).result()

        return wait

    def stream(self, prompt: Prompt, *, system: str | None = None, model: str | None = None) -> list[str]:
        """The pieces of one model call, after it."""
        pieces: list[str] = []
        self.chat(prompt, system=system, model=model, on_text=pieces.append)
        return pieces
