"""A real gRPC server on loopback whose answers a test scripts: the far side of the wire, not a part of the package."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from singularity_agents._proto.singularity.agents.v1 import (
    agent_service_pb2,
    framework_service_pb2,
    memory_service_pb2,
    provider_service_pb2,
    schedule_service_pb2,
    task_service_pb2,
)

FILES = [
    task_service_pb2,
    agent_service_pb2,
    framework_service_pb2,
    provider_service_pb2,
    memory_service_pb2,
    schedule_service_pb2,
]


class Refusal(Exception):
    """What a scripted method answers instead of a message."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str | None,
        message: str = "refused",
        *,
        metadata: dict[str, str] | None = None,
        fields: dict[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.code, self.message = code, message
        status = status_pb2.Status(code=code.value[0], message=message)
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain="singularity.agents", metadata=metadata or {})
            status.details.append(_packed(info))
        if fields:
            bad = error_details_pb2.BadRequest()
            for field, description in fields.items():
                bad.field_violations.add(field=field, description=description)
            status.details.append(_packed(bad))
        if retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(retry_after * 1e9))
            status.details.append(_packed(retry))
        self.details = status.SerializeToString()


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


#: An answer: a message, a list of messages for a stream, a refusal, or a function of the request giving one of them.
Answer = Any


class ScriptedNode:
    """Answers by method name; `requests` keeps what came, `metadata` its headers."""

    def __init__(self) -> None:
        self.answers: dict[str, deque[Answer]] = defaultdict(deque)
        self.requests: list[tuple[str, Message]] = []
        self.metadata: list[dict[str, str]] = []
        self.address = ""

    def script(self, method: str, *answers: Answer) -> None:
        """Answers of a method, in order; the last one stays."""
        self.answers[method].extend(answers)

    def sent(self, method: str) -> list[Any]:
        """Requests that came for a method."""
        return [request for name, request in self.requests if name == method]

    def _next(self, method: str, request: Message, context: grpc.ServicerContext) -> Answer:
        self.requests.append((method, request))
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        queue = self.answers[method]
        if not queue:
            raise Refusal(grpc.StatusCode.UNIMPLEMENTED, "CAPABILITY_PENDING", "not here yet", metadata={"capability": method})
        answer = queue.popleft() if len(queue) > 1 else queue[0]
        return answer(request) if callable(answer) else answer

    def _unary(self, method: str) -> Callable[[Message, grpc.ServicerContext], Message]:
        def handle(request: Message, context: grpc.ServicerContext) -> Message:
            try:
                answer = self._next(method, request, context)
                if isinstance(answer, Refusal):
                    raise answer
            except Refusal as refusal:
                _abort(context, refusal)
            return answer

        return handle

    def _stream(self, method: str) -> Callable[[Message, grpc.ServicerContext], Iterator[Message]]:
        def handle(request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
            try:
                answer = self._next(method, request, context)
                if isinstance(answer, Refusal):
                    raise answer
                for item in answer:
                    if isinstance(item, Refusal):
                        raise item
                    yield item
            except Refusal as refusal:
                _abort(context, refusal)

        return handle

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Handlers of every method of the public API."""
        made = []
        for file in FILES:
            for service in file.DESCRIPTOR.services_by_name.values():
                methods = {}
                for method in service.methods:
                    kind = (
                        grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
                    )
                    behaviour = self._stream if method.server_streaming else self._unary
                    methods[method.name] = kind(
                        behaviour(method.name),
                        request_deserializer=method.input_type._concrete_class.FromString,
                        response_serializer=lambda message: message.SerializeToString(),
                    )
                made.append(grpc.method_handlers_generic_handler(service.full_name, methods))
        return made


def _abort(context: grpc.ServicerContext, refusal: Refusal) -> None:
    context.set_trailing_metadata((("grpc-status-details-bin", refusal.details),))
    context.abort(refusal.code, refusal.message)


@contextmanager
def running() -> Iterator[ScriptedNode]:
    """A scripted node that listens on a free port."""
    node = ScriptedNode()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(tuple(node.handlers()))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    node.address = f"127.0.0.1:{port}"
    try:
        yield node
    finally:
        server.stop(None).wait(5)
