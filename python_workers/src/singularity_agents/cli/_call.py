"""`call Service.Method JSON`: any method of the public API, like grpcurl, without another tool."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from .._calls import Call
from .._proto.singularity.agents.v1 import (
    agent_service_pb2,
    framework_service_pb2,
    memory_service_pb2,
    provider_service_pb2,
    schedule_service_pb2,
    task_service_pb2,
)
from ._io import did_you_mean
from ._main import OK, Context

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ._main import Parser

#: Files whose services can be called.
_FILES = (
    task_service_pb2, agent_service_pb2, framework_service_pb2, provider_service_pb2, memory_service_pb2, schedule_service_pb2,
)  # fmt: skip


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the command."""
    call = commands.add_parser("call", parents=[shared], help="call any method of the API")
    call.description = """example: singularity call TaskService.GetTask '{"task_id": "9c41e7d0"}'"""
    call.add_argument("method", nargs="?", metavar="SERVICE.METHOD", help="absent: list them")
    call.add_argument("request", nargs="?", default="{}", metavar="JSON", help='the request; "-" reads it from stdin')
    call.set_defaults(run=call_method)


def methods() -> dict[str, tuple[str, Any]]:
    """Methods by short name: full service name and descriptor."""
    services = [service for file in _FILES for service in file.DESCRIPTOR.services_by_name.values()]
    services.append(_health())
    found = {}
    for service in services:
        short = service.name if service.full_name.startswith("singularity.") else service.full_name
        for method in service.methods:
            found[f"{short}.{method.name}"] = (service.full_name, method)
    return found


def _health() -> Any:
    """grpc.health.v1, which needs no package of its own for two small messages."""
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="health.proto", package="grpc.health.v1", syntax="proto3")
    file.message_type.add(name="HealthCheckRequest").field.add(
        name="service", number=1, type=kind.TYPE_STRING, label=kind.LABEL_OPTIONAL
    )
    response = file.message_type.add(name="HealthCheckResponse")
    status = response.enum_type.add(name="ServingStatus")
    for number, name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        status.value.add(name=name, number=number)
    response.field.add(
        name="status", number=1, type=kind.TYPE_ENUM, label=kind.LABEL_OPTIONAL,
        type_name=".grpc.health.v1.HealthCheckResponse.ServingStatus",
    )  # fmt: skip
    for name, stream in (("Check", False), ("Watch", True)):
        if not file.service:
            file.service.add(name="Health")
        file.service[0].method.add(
            name=name, server_streaming=stream, input_type=".grpc.health.v1.HealthCheckRequest",
            output_type=".grpc.health.v1.HealthCheckResponse",
        )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName("grpc.health.v1.Health")


def call_method(ctx: Context) -> int:
    """Calls it and prints what comes."""
    known = methods()
    name = ctx.args.method
    if name is None:
        for each in sorted(known):
            ctx.io.line(each)
        return OK
    name = name.removeprefix("singularity.agents.v1.").replace("/", ".")
    if name not in known:
        raise ValueError(f"there is no method {name}{_close(name, known)}; `singularity call` lists them")
    service, method = known[name]
    request = _request(method, sys.stdin.read() if ctx.args.request == "-" else ctx.args.request)
    answer = message_factory.GetMessageClass(method.output_type)
    call: Call[Any] = Call(
        f"/{service}/{method.name}", request, answer, _plain, repeatable=method.name.startswith(("Get", "List"))
    )
    with ctx.client() as client:
        answers: Iterator[Any] = client.stream(call) if method.server_streaming else iter([client.run(call)])
        for item in answers:
            ctx.io.value(item)
    return OK


def _close(name: str, known: dict[str, tuple[str, Any]]) -> str:
    from .._errors import SingularityError

    return did_you_mean(SingularityError("", metadata={"name": name}), known)


def _request(method: Any, text: str) -> Message:
    """The request of a JSON text. Raises ValueError saying what is wrong."""
    request: Message = message_factory.GetMessageClass(method.input_type)()
    try:
        ParseDict(json.loads(text), request)
    except (json.JSONDecodeError, ParseError) as error:
        fields = ", ".join(field.name for field in method.input_type.fields)
        raise ValueError(f"the request is not a {method.input_type.name}: {error} (it has {fields})") from None
    return request


def _plain(message: Message) -> dict[str, Any]:
    data: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return data
