"""Chat completions as OpenAI's clients write and read them, from and to the engine's messages."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from google.protobuf.json_format import ParseError

from .._errors import SingularityError
from ._wire import common, providers, to_struct

_ROLES: Final = {
    "system": common.ROLE_SYSTEM, "developer": common.ROLE_SYSTEM, "user": common.ROLE_USER, "assistant": common.ROLE_ASSISTANT,
    "tool": common.ROLE_TOOL,
}  # fmt: skip
_FINISH: Final = {
    providers.FINISH_REASON_LENGTH: "length", providers.FINISH_REASON_TOOL_CALLS: "tool_calls",
    providers.FINISH_REASON_CONTENT_FILTER: "content_filter",
}  # fmt: skip
#: Status of an error by its reason; another is the provider's fault.
_STATUS: Final = {
    "INVALID_FIELD": 400, "PROVIDER_REJECTED": 400, "CONTEXT_TOO_LONG": 400, "PAYLOAD_TOO_LARGE": 413, "MODEL_NOT_FOUND": 404,
    "PROVIDER_RATE_LIMITED": 429, "PROVIDER_QUOTA": 429, "TASK_CANCELLED": 409, "WRONG_STATE": 409, "CAPABILITY_PENDING": 501,
    "PROVIDER_TIMEOUT": 504, "BUDGET_EXHAUSTED": 402,
}  # fmt: skip


def _wrong(field: str, what: str) -> SingularityError:
    return SingularityError(f"{field}: {what}", reason="INVALID_FIELD", metadata={"field": field})


def chat_request(body: Mapping[str, Any]) -> providers.ChatRequest:
    """A request of POST /v1/chat/completions. Raises INVALID_FIELD naming what the engine cannot express."""
    if body.get("n") not in (None, 1):
        raise _wrong("n", "only one answer is given")
    request = providers.ChatRequest(model=str(body.get("model") or ""))
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "must be a list with a message")
    for number, message in enumerate(messages):
        _message(request.messages.add(), message, f"messages[{number}]")
    for number, tool in enumerate(body.get("tools") or ()):
        _tool(request.tools.add(), tool, f"tools[{number}]")
    choice = body.get("tool_choice")
    if isinstance(choice, Mapping):
        choice = (choice.get("function") or {}).get("name")
    request.tool_choice = str(choice or "")
    _format(request, body.get("response_format"))
    try:
        if body.get("temperature") is not None:
            request.temperature = body["temperature"]
        if body.get("seed") is not None:
            request.seed = body["seed"]
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        if limit is not None:
            request.max_tokens = limit
        stop = body.get("stop") or ()
        request.stop.extend([stop] if isinstance(stop, str) else stop)
    except (TypeError, ValueError) as error:
        raise _wrong("temperature, seed, max_tokens or stop", str(error)) from error
    return request


def _format(request: providers.ChatRequest, given: Any) -> None:
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "json_schema":
        request.output_schema.CopyFrom(to_struct((given.get("json_schema") or {}).get("schema") or {}))
    elif kind == "json_object":
        request.output_schema.CopyFrom(to_struct({"type": "object"}))
    elif kind not in (None, "text"):
        raise _wrong("response_format", f"type {kind!r} is not known; text, json_object and json_schema are")


def _message(made: common.Message, given: Any, field: str) -> None:
    if not isinstance(given, Mapping) or given.get("role") not in _ROLES:
        raise _wrong(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
    made.role = _ROLES[given["role"]]
    made.tool_call_id = str(given.get("tool_call_id") or "")
    made.name = str(given.get("name") or "")
    content = given.get("content")
    for part in [content] if isinstance(content, str) else content or ():
        text = (
            part
            if isinstance(part, str)
            else part.get("text")
            if isinstance(part, Mapping) and part.get("type") == "text"
            else None
        )
        if text is None:
            raise _wrong(f"{field}.content", "only text is taken here")
        if text:
            made.content.add(text=text)
    for call in given.get("tool_calls") or ():
        function = call.get("function") or {}
        made.tool_calls.add(
            id=str(call.get("id") or ""), name=str(function.get("name") or ""), arguments=function.get("arguments") or "{}"
        )


def _tool(made: common.ToolDefinition, given: Any, field: str) -> None:
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not function.get("name"):
        raise _wrong(field, "must be a function with a name")
    made.name = str(function["name"])
    made.description = str(function.get("description") or "")
    if isinstance(function.get("parameters"), Mapping):
        made.parameters.CopyFrom(to_struct(function["parameters"]))


def _usage(usage: common.Usage) -> dict[str, int]:
    total = usage.input_tokens + usage.output_tokens
    return {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens, "total_tokens": total}


def _tool_calls(message: common.Message) -> list[dict[str, Any]]:
    calls: Sequence[common.ToolCall] = message.tool_calls
    return [{"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls]


def _envelope(kind: str, **more: Any) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), **more}


def completion_of(response: providers.ChatResponse) -> dict[str, Any]:
    """A whole answer."""
    text = "".join(part.text for part in response.message.content)
    calls = _tool_calls(response.message)
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    if calls:
        message["tool_calls"] = calls
    if response.refusal:
        message["refusal"] = response.refusal
    choice = {"index": 0, "message": message, "finish_reason": _FINISH.get(response.finish_reason, "stop")}
    return _envelope("chat.completion", model=response.model, choices=[choice], usage=_usage(response.usage))


def chunk_of(text: str) -> dict[str, Any]:
    """A piece of text."""
    delta = {"role": "assistant", "content": text}
    return _envelope("chat.completion.chunk", model="", choices=[{"index": 0, "delta": delta, "finish_reason": None}])


def last_chunk_of(response: providers.ChatResponse, wants_usage: bool) -> Iterator[dict[str, Any]]:
    """The end of a stream: tool calls, why it ended, and the usage where it was asked for."""
    calls = [{"index": number, **call} for number, call in enumerate(_tool_calls(response.message))]
    finish = _FINISH.get(response.finish_reason, "stop")
    choice = {"index": 0, "delta": {"tool_calls": calls} if calls else {}, "finish_reason": finish}
    yield _envelope("chat.completion.chunk", model=response.model, choices=[choice])
    if wants_usage:
        yield _envelope("chat.completion.chunk", model=response.model, choices=[], usage=_usage(response.usage))


def embeddings_of(vectors: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Vectors."""
    data = [{"object": "embedding", "index": number, "embedding": list(vector)} for number, vector in enumerate(vectors)]
    return {"object": "list", "data": data}


def error_of(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    if isinstance(error, SingularityError):
        reason, message = error.reason, error.message
    elif isinstance(error, (AttributeError, TypeError, ValueError, ParseError)):
        reason, message = "INVALID_FIELD", f"the request cannot be read: {type(error).__name__}"
    else:
        reason, message = "INTERNAL", type(error).__name__
    status = _STATUS.get(reason, 500 if reason == "INTERNAL" else 502)
    return status, {"error": {"message": f"{reason}: {message}", "type": reason, "code": reason}}
