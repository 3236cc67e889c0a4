"""The door for model clients that a user's code builds itself: an OpenAI-compatible server on loopback, inside the worker.

Its address and a key without rights anywhere stand in OPENAI_BASE_URL and OPENAI_API_KEY, so `OpenAI()` in a user's code asks the engine's
models: metered, journaled, limited and fenced like every other call. Where it listens: :mod:`._door`.

It runs in threads of its own and hands each request to the loop. A client that blocks the loop it would be answered by is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from .._errors import SingularityError
from . import _door
from ._engine import Engine
from ._openai import chat_request, chunk_of, completion_of, embeddings_of, error_of, last_chunk_of
from ._scope import CURRENT, Scope
from ._wire import providers

#: Largest request, in bytes.
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
#: So much of a request that is too large is read before it is refused, in bytes.
MAX_DISCARD_BYTES: Final = 16 * MAX_BODY_BYTES
#: Requests at once; the next is refused.
MAX_REQUESTS: Final = 64
#: A client that sends nothing for so long is left, in seconds.
READ_TIMEOUT_S: Final = 60.0
#: A loop that has not taken a request by then is blocked by its own task, in seconds.
BLOCKED_AFTER_S: Final = 2.0


def serve(engine: Engine, loop: asyncio.AbstractEventLoop, running: Callable[[], list[Scope]], concurrency: int = 1) -> None:
    """Answers from now on, on behalf of the one task that runs; nothing where the worker has no door.

    Where several may run side by side every request is refused, also while there is but one: what is right by chance is no answer.
    """
    if _door.opened is not None:
        server = _Server(_door.opened, _Calls(engine, loop, running, concurrency))
        threading.Thread(target=server.serve_forever, name="openai-door", daemon=True).start()


class _Refused(Exception):
    """An answer that is an error: status, reason and a sentence."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class _Calls:
    """Requests on behalf of the running task."""

    def __init__(
        self, engine: Engine, loop: asyncio.AbstractEventLoop, running: Callable[[], list[Scope]], concurrency: int
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._running = running
        self._concurrency = concurrency
        self.slots = threading.BoundedSemaphore(MAX_REQUESTS)

    def _enter(self) -> Scope:
        if self._concurrency > 1:
            raise _Refused(
                409,
                "WRONG_STATE",
                f"several tasks run side by side in this worker (concurrency = {self._concurrency}), and a client of one's own does not "
                "say whose call it is: use the engine's model, or remove concurrency",
            )
        scopes = self._running()
        if len(scopes) != 1:
            raise _Refused(409, "WRONG_STATE", "no task runs in this worker")
        CURRENT.set(scopes[0])
        return scopes[0]

    def models(self) -> dict[str, Any]:
        """The task's model."""
        return {
            "object": "list",
            "data": [{"id": self._enter().model or "default", "object": "model", "owned_by": "singularity"}],
        }

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A whole answer."""
        scope = self._enter()
        return completion_of(self._wait(self._chat(chat_request(body), scope)))

    async def _chat(self, request: providers.ChatRequest, scope: Scope) -> providers.ChatResponse:
        try:
            return await self._engine.chat_raw(request, all_tools=True)
        except SingularityError as error:
            if not _unknown_model(error, request, scope):
                raise
        return await self._engine.chat_raw(request, all_tools=True)

    def stream(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """An answer in pieces."""
        scope = self._enter()
        request = chat_request(body)
        wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        pieces: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()

        async def run() -> None:
            try:
                await self._stream(request, scope, wants_usage, pieces.put)
            except BaseException as error:
                pieces.put(error)
                raise
            pieces.put(None)

        self._started(run())
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    async def _stream(
        self, request: providers.ChatRequest, scope: Scope, wants_usage: bool, put: Callable[[dict[str, Any]], None]
    ) -> None:
        while True:
            begun = False
            try:
                async for piece, response in self._engine.stream_raw(request):
                    if response is not None:
                        for last in last_chunk_of(response, wants_usage):
                            put(last)
                    elif piece.text_delta:
                        begun = True
                        put(chunk_of(piece.text_delta))
                return
            except SingularityError as error:
                if begun or not _unknown_model(error, request, scope):
                    raise

    def embed(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Vectors."""
        self._enter()
        given = body.get("input", [])
        texts = [given] if isinstance(given, str) else given
        if not texts or not all(isinstance(text, str) for text in texts):
            raise _Refused(400, "INVALID_FIELD", "input: must be a text or texts")
        return embeddings_of(self._wait(self._engine.embed(texts, model=body.get("model") or None)))

    def _started(self, coro: Any) -> Future[Any]:
        begun = threading.Event()

        async def marked() -> Any:
            begun.set()
            return await coro

        future = asyncio.run_coroutine_threadsafe(marked(), self._loop)
        if not begun.wait(BLOCKED_AFTER_S) and not begun.is_set():
            future.cancel()
            coro.close()
            raise _Refused(
                503,
                "WORKER_HUNG",
                "the agent's event loop is blocked by this very call: use the async client, or a function without async",
            )
        return future

    def _wait(self, coro: Any) -> Any:
        try:
            return self._started(coro).result()
        except FutureTimeoutError as error:
            raise _Refused(504, "PROVIDER_TIMEOUT", "the model did not answer in time") from error


def _unknown_model(error: SingularityError, request: providers.ChatRequest, scope: Scope) -> bool:
    """A name that users' code was written for and the engine does not have becomes the task's model."""
    if error.reason != "MODEL_NOT_FOUND" or request.model == scope.model:
        return False
    request.model = scope.model
    return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, door: _door.Door, calls: _Calls) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = door.listening
        self.key = door.key
        self.calls = calls

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.calls.slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.calls.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = READ_TIMEOUT_S
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Requests hold prompts."""

    def do_GET(self) -> None:
        """Models."""
        self._answer(lambda: self._route({"/v1/models": self.server.calls.models}))

    def do_POST(self) -> None:
        """Chat completions and embeddings."""
        self._answer(self._post)

    def _post(self) -> dict[str, Any] | None:
        body = self._body()
        calls = self.server.calls
        if self.path == "/v1/chat/completions" and body.get("stream"):
            self._events(calls.stream(body))
            return None
        return self._route({"/v1/chat/completions": lambda: calls.chat(body), "/v1/embeddings": lambda: calls.embed(body)})

    def _route(self, known: Mapping[str, Callable[[], dict[str, Any]]]) -> dict[str, Any]:
        self._checked()
        if self.path not in known:
            raise _Refused(404, "CAPABILITY_PENDING", f"{self.command} {self.path} is not served here; {', '.join(known)} is")
        return known[self.path]()

    def _checked(self) -> None:
        given = self.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not secrets.compare_digest(given.encode(), self.server.key.encode()):
            raise _Refused(401, "KEY_UNKNOWN", "the key is not the one in OPENAI_API_KEY of this worker")

    def _body(self) -> dict[str, Any]:
        self._checked()
        length = self.headers.get("content-length", "")
        if not length.isdigit():
            raise _Refused(411, "INVALID_FIELD", "content-length is missing")
        if int(length) > MAX_BODY_BYTES:
            self._discard(int(length))
            raise _Refused(413, "PAYLOAD_TOO_LARGE", f"{length} bytes, at most {MAX_BODY_BYTES} are taken")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise _Refused(400, "INVALID_FIELD", f"the body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise _Refused(400, "INVALID_FIELD", "the body must be an object")
        return body

    def _discard(self, length: int) -> None:
        """A client that still writes would not read the answer."""
        left = min(length, MAX_DISCARD_BYTES)
        while left > 0 and (got := len(self.rfile.read(min(left, 65536)))):
            left -= got

    def _answer(self, work: Callable[[], dict[str, Any] | None]) -> None:
        try:
            answer = work()
        except _Refused as refused:
            self._send(refused.status, {"error": {"message": str(refused), "type": refused.reason, "code": refused.reason}})
        except BaseException as error:
            self._send(*error_of(error))
        else:
            if answer is not None:
                self._send(200, answer)

    def _send(self, status: int, answer: Mapping[str, Any]) -> None:
        data = json.dumps(answer).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            if status >= 400:
                # The engine has tried as often as the task allows; the body may be unread.
                self.send_header("x-should-retry", "false")
                self.send_header("connection", "close")
                self.close_connection = True
            self.end_headers()
            self.wfile.write(data)

    def _events(self, pieces: Iterator[dict[str, Any]]) -> None:
        # The first piece decides: an error before it has a status of its own.
        first = next(pieces, None)
        self.close_connection = True
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            while first is not None:
                self._event(first)
                first = next(pieces, None)
        except Exception as error:
            self._event(error_of(error)[1])
            return
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: Mapping[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
