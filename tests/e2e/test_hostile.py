"""Requests that are wrong in odd ways: each is refused by its field, in an answer that every client can read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from singularity_agents import Client, SingularityError
from singularity_agents._calls import Call, list_memories
from singularity_agents._local_node import LocalNode
from singularity_agents._proto.singularity.agents.v1 import memory_service_pb2 as me
from singularity_agents._proto.singularity.agents.v1 import schedule_service_pb2 as sc
from singularity_agents._proto.singularity.agents.v1 import task_pb2 as ta
from singularity_agents._proto.singularity.agents.v1 import task_service_pb2 as ts

#: A time that a task may wait for.
NEXT_YEAR = datetime.now(UTC) + timedelta(days=200)
Bad = Callable[[Client, str], object]
TASK = {"description": "x", "execution_hints": {"method": "EXECUTION_METHOD_NATIVE"}}
NO_TASK = "01a21887-dbdd-76ed-bd72-b7ae243de777"
NO_VERSION = me.DeleteMemoryRequest(namespace="notes", key="x", expected_version=-1)


def raw(client: Client, service: str, method: str, request: Any, answer: Any) -> Any:
    """A request that the client's own methods cannot make."""
    call = Call(f"/singularity.agents.v1.{service}/{method}", request, answer, lambda message: message)
    return client.run(call)


#: What is asked of an ended task, and the reason and the word that the answer must have.
REFUSED: dict[str, tuple[Bad, str, str]] = {
    "no id": (lambda c, _: c.get(""), "INVALID_FIELD", "task_id"),
    "an id of any length": (lambda c, _: c.get("f" * 100_000), "TASK_NOT_FOUND", "there is no task"),
    "an id with a zero byte": (lambda c, _: c.get("\0" * 36), "TASK_NOT_FOUND", "there is no task"),
    "a fork at an event that never was": (lambda c, task: c.fork(task, after=10_000), "INVALID_FIELD", "after"),
    "a long reason": (lambda c, task: c.cancel(task, reason="x" * 1025), "INVALID_FIELD", "reason"),
    "a long reason for many": (lambda c, _: c.cancel_all("state=QUEUED", reason="x" * 1025), "INVALID_FIELD", "reason"),
    "a long name of many retries": (
        lambda c, _: c.retry_all("state=FAILED", request_id="x" * 92),
        "INVALID_FIELD",
        "request_id",
    ),
    "an open quote": (lambda c, _: list(c.list(filter='agent="crew')), "FILTER_INVALID", "quote"),
    "a zone of any length": (
        lambda c, _: c.schedules.create("x", cron="0 9 * * *", time_zone="x" * 100_000),
        "INVALID_FIELD",
        "time_zone",
    ),
    "a cron of any length": (lambda c, _: c.schedules.create("x", cron="* " * 50_000), "INVALID_FIELD", "cron"),
    "an interval without end": (
        lambda c, _: c.schedules.create("x", every="100000000h"),
        "INVALID_FIELD",
        "interval",
    ),
    "a cron with an empty place": (lambda c, _: c.schedules.create("x", cron="0 1,,2 * * *"), "INVALID_FIELD", "cron"),
    "a schedule for nobody": (
        lambda c, _: c.schedules.create("x", every="1h", agent="nobody"),
        "AGENT_NOT_FOUND",
        "nobody",
    ),
    "a parent that is no task": (
        lambda c, _: raw(c, "TaskService", "SubmitTask", ts.SubmitTaskRequest(task={**TASK, "parent_task_id": NO_TASK}), ta.Task),
        "INVALID_FIELD",
        "parent_task_id",
    ),
    "a version that cannot be": (
        lambda c, _: raw(c, "MemoryService", "DeleteMemory", NO_VERSION, me.DeleteMemoryResponse),
        "INVALID_FIELD",
        "expected_version",
    ),
    "a request id of another schedule": (
        lambda c, _: [
            raw(
                c,
                "ScheduleService",
                "CreateSchedule",
                sc.CreateScheduleRequest(
                    schedule={"interval": {"seconds": 3600}, "task": TASK}, schedule_id=name, request_id="same"
                ),
                sc.Schedule,
            )
            for name in ("one-of-two", "two-of-two")
        ],
        "REQUEST_ID_REUSED",
        "request_id",
    ),
    "a schedule that may not start": (
        lambda c, _: c.schedules.create("x", every="1h", not_before=NEXT_YEAR),
        "INVALID_FIELD",
        "not_before",
    ),
}


@pytest.fixture(scope="module")
def ended(node: LocalNode) -> str:
    with Client(node.address) as client:
        return client.execute("shout", agent="shout").task_id


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_by_its_field(client: Client, ended: str, what: str) -> None:
    ask, reason, word = REFUSED[what]
    with pytest.raises(SingularityError) as error:
        ask(client, ended)
    assert (error.value.reason, word in str(error.value)) == (reason, True), error.value
    assert len(str(error.value)) < 2000, "an answer does not repeat what was sent"


def test_a_page_token_belongs_to_its_list(client: Client) -> None:
    for n in range(3):
        client.memory.put(f"pages-{n % 2}", f"key{n}", "x")
        client.memory.put("pages-0", f"more{n}", "x")
    first = client.run(list_memories("pages-0", "", 1, ""))
    assert first.next_token
    assert client.run(list_memories("pages-0", "", 1, first.next_token)).items
    for namespace, token in (("pages-1", first.next_token), ("pages-0", "junk")):
        with pytest.raises(SingularityError) as error:
            client.run(list_memories(namespace, "", 1, token))
        assert error.value.reason == "PAGE_TOKEN_INVALID"
