"""A model whose answers a test writes down: an OpenAI-compatible server on loopback, and the same without one."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import Self

from .._errors import InvalidRequest, ProviderFailed

if TYPE_CHECKING:
    from .._proto.singularity.agents.v1 import provider_service_pb2

#: Seconds for the server's thread to end.
_STOP_TIMEOUT = 5.0


class ToolCall:
    """An answer that calls a tool."""

    def __init__(self, name: str, /, **arguments: Any) -> None:
        self.name = name
        self.arguments = arguments


@dataclass(frozen=True)
class Fail:
    """An answer that is an error of the provider: its HTTP status and words."""

    status: int = 500
    message: str = "scripted failure"


@dataclass(frozen=True)
class Billed:
    """An answer for which the provider counts so many tokens, in a test of money or limits."""

    answer: str | ToolCall | Sequence[ToolCall]
    input_tokens: int = 1
    output_tokens: int = 1


@dataclass(frozen=True)
class Asked:
    """One request that the model got."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[str] = field(default=())
    streams: bool = False

    @property
    def last(self) -> str:
        """Text of the last message."""
        return str(self.messages[-1].get("content") or "") if self.messages else ""


Answer: TypeAlias = "str | ToolCall | Sequence[ToolCall] | Fail | Billed"
Script: TypeAlias = "Answer | Callable[[Asked], Answer]"


class ScriptedModel:
    """Gives its answers in order, one per request; a function is asked with the request. Beyond the last one it fails.

    As a context manager (or in :class:`Node`) it listens on loopback as an OpenAI-compatible provider; `.local(scripted=...)`
    asks it without a network.
    """

    def __init__(self, *answers: Script) -> None:
        for answer in answers:
            if not (isinstance(answer, (str, ToolCall, Fail, Billed, list, tuple)) or callable(answer)):
                raise InvalidRequest(
                    f"an answer is {type(answer).__name__}, must be text, ToolCall, a list of them, Billed, Fail or a function",
                    reason="INVALID_FIELD",
                )
        self._answers = list(answers)
        self._lock = threading.Lock()
        self._server: http.server.ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        #: Every request so far.
        self.asked: list[Asked] = []

    @property
    def unused(self) -> int:
        """Answers that nobody asked for."""
        with self._lock:
            return max(0, len(self._answers) - len(self.asked))

    def answer(self, asked: Asked) -> Answer:
        """The answer to a request, which is recorded."""
        with self._lock:
            number = len(self.asked)
            self.asked.append(asked)
        if number >= len(self._answers):
            return Fail(400, f"the script has {len(self._answers)} answers, and this is request {number + 1}")
        script = self._answers[number]
        return script(asked) if callable(script) else script

    # --- without a network -----------------------------------------------------------------------------------------

    def chat(self, request: provider_service_pb2.ChatRequest) -> provider_service_pb2.ChatResponse:
        """A model call as protobuf. Raises ProviderFailed for a `Fail`."""
        from .._proto.singularity.agents.v1 import common_pb2
        from .._proto.singularity.agents.v1 import provider_service_pb2 as pb

        roles = {common_pb2.ROLE_ASSISTANT: "assistant", common_pb2.ROLE_SYSTEM: "system", common_pb2.ROLE_TOOL: "tool"}
        messages = [
            {"role": roles.get(m.role, "user"), "content": "".join(part.text for part in m.content)} for m in request.messages
        ]
        answer = self.answer(Asked(request.model, messages, tuple(tool.name for tool in request.tools)))
        if isinstance(answer, Fail):
            raise ProviderFailed(answer.message, reason="PROVIDER_REJECTED", metadata={"status": str(answer.status)})
        response = pb.ChatResponse(model=request.model, provider="scripted", finish_reason=pb.FINISH_REASON_STOP)
        if isinstance(answer, Billed):
            response.usage.input_tokens, response.usage.output_tokens = answer.input_tokens, answer.output_tokens
            answer = answer.answer
        response.message.role = common_pb2.ROLE_ASSISTANT
        if isinstance(answer, str):
            response.message.content.add(text=answer)
            return response
        for number, call in enumerate(_calls(answer)):
            response.message.tool_calls.add(id=f"call_{number}", name=call.name, arguments=json.dumps(call.arguments))
        response.finish_reason = pb.FINISH_REASON_TOOL_CALLS
        return response

    # --- as a server -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """Where it listens, for `base_url` of a provider or OPENAI_BASE_URL."""
        if self._server is None:
            raise InvalidRequest("the model does not listen: use it in a with block", reason="WRONG_STATE")
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def start(self) -> None:
        """Listens on a port of the kernel's choice."""
        if self._server is None:
            self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
            self._server.daemon_threads = True
            self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Listens no more."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(_STOP_TIMEOUT)
            self._server = self._thread = None


def _calls(answer: ToolCall | Sequence[ToolCall]) -> Sequence[ToolCall]:
    return [answer] if isinstance(answer, ToolCall) else answer


def _handler(model: ScriptedModel) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

        def do_POST(self) -> None:
            """Chat completions."""
            body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers.get("content-length", "0"))))
            tools = tuple(tool["function"]["name"] for tool in body.get("tools", ()))
            asked = Asked(body.get("model", ""), body.get("messages", []), tools, bool(body.get("stream")))
            answer = model.answer(asked)
            if isinstance(answer, Fail):
                self._send(answer.status, "application/json", json.dumps({"error": {"message": answer.message}}).encode())
            elif asked.streams:
                self._send(200, "text/event-stream", _events(asked.model, answer))
            else:
                self._send(200, "application/json", json.dumps(_completion(asked.model, answer)).encode())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _usage(answer: Answer) -> dict[str, int]:
    if isinstance(answer, Billed):
        read, wrote = answer.input_tokens, answer.output_tokens
    else:
        read, wrote = 1, len(answer.split()) if isinstance(answer, str) else 1
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


def _message(answer: Answer) -> tuple[dict[str, Any], str]:
    if isinstance(answer, Billed):
        answer = answer.answer
    if isinstance(answer, str):
        return {"role": "assistant", "content": answer}, "stop"
    assert not isinstance(answer, Fail)
    calls: list[dict[str, Any]] = [
        {"index": n, "id": f"call_{n}", "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
        for n, c in enumerate(_calls(answer))
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls"


def _completion(name: str, answer: Answer) -> dict[str, Any]:
    message, finish = _message(answer)
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "scripted", "object": "chat.completion", "model": name, "choices": [choice], "usage": _usage(answer)}


def _events(name: str, answer: Answer) -> bytes:
    message, finish = _message(answer)
    text = message["content"]
    deltas: list[dict[str, Any]] = [{"content": piece} for piece in _words(text)] if text is not None else [message]
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    chunks.append({"choices": [], "usage": _usage(answer)})
    lines = [f"data: {json.dumps({'id': 'scripted', 'model': name, **chunk})}\n\n" for chunk in chunks]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


def _words(text: str) -> list[str]:
    return [piece for piece in text.replace(" ", " \0").split("\0") if piece]
