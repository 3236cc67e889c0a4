"""Golden bytes of frames and messages, the same that Erlang and Rust read: what one side writes the others understand.

`UPDATE_VECTORS=1 pytest python_workers/tests/worker/test_vectors.py` writes them anew; a change of them is a change of the protocol.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from google.protobuf.message import Message

from singularity_agents._proto.singularity.agents.v1 import common_pb2, provider_service_pb2, task_pb2, task_service_pb2
from singularity_agents._proto.singularity.worker.v1 import worker_pb2
from singularity_agents.worker import _frames as f

FOLDER = Path(__file__).resolve().parents[3] / "tests" / "vectors" / "wire"


def _task() -> task_pb2.AgentTask:
    task = task_pb2.AgentTask(description="Größe?", agent_type="researcher", labels={"b": "2", "a": "1"})
    task.context.conversation_history.add(role=common_pb2.ROLE_USER).content.add(text="hello")
    task.requirements.output_schema.update({"type": "object", "required": ["x"], "maxProperties": 1.0})
    task.execution_hints.priority = 9
    task.execution_hints.retry.max_attempts = 2
    return task


def _chat() -> provider_service_pb2.ChatRequest:
    chat = provider_service_pb2.ChatRequest(model="default", temperature=0.5, max_tokens=7, stop=["END"])
    chat.messages.add(role=common_pb2.ROLE_SYSTEM).content.add(text="be short")
    call = chat.messages.add(role=common_pb2.ROLE_ASSISTANT).tool_calls.add(id="c1", name="add", arguments='{"a":1}')
    chat.messages.add(role=common_pb2.ROLE_TOOL, tool_call_id=call.id).content.add(text="2")
    chat.tools.add(name="add", description="adds").parameters.update({"z": None, "a": [True, "x"]})
    return chat


#: Messages of every boundary, with maps whose order must not matter.
MESSAGES: dict[str, Message] = {
    "task": _task(),
    "chat": _chat(),
    "embed": provider_service_pb2.EmbedRequest(model="e", input=["one", ""], dimensions=3),
    "signal": task_service_pb2.SignalTaskRequest(task_id="t", input_id="input-1", approve=False, request_id="r"),
    "execute": worker_pb2.Execute(
        task_id="t", task=_task(), attempt=2, answers=[task_pb2.InputAnswer(input_id="input-1", input="Ana")]
    ),
    "asked": worker_pb2.Result(inputs=[task_pb2.InputRequested(input_id="input-1", kind="approval", prompt="Go?")]),
    "tool_end": worker_pb2.ToolEnd(name="add", arguments='{"a":1}', occurrence=1, content="2", tool_call_id="c1"),
}

#: Every type once: type, kind, flags, slot, call id, fence, payload.
FRAMES = [
    (type_, (3 * int(type_)) % 13, int(type_) % 8, int(type_), 2**40 + int(type_), 2**33 + int(type_), bytes(range(int(type_))))
    for type_ in f.Type
]


def _frame_lines() -> str:
    rows = []
    for type_, kind, flags, slot, call_id, fence, payload in FRAMES:
        whole = f.encode(type_, kind, flags, slot, call_id, fence, payload)
        rows.append(
            f"{type_.name.lower()} {int(type_)} {kind} {flags} {slot} {call_id} {fence} {payload.hex() or '-'} {whole.hex()}\n"
        )
    return "# type number kind flags slot call_id fence payload frame (with its length)\n" + "".join(rows)


def _message_lines() -> str:
    rows = []
    for name, message in MESSAGES.items():
        data = message.SerializeToString(deterministic=True)
        rows.append(f"{name} {message.DESCRIPTOR.full_name} {hashlib.sha256(data).hexdigest()} {data.hex()}\n")
    return "# name type sha256 (the canonical hash, version 1) bytes\n" + "".join(rows)


@pytest.mark.parametrize(("name", "lines"), [("frames.txt", _frame_lines), ("messages.txt", _message_lines)])
def test_what_is_written_is_what_stands_there(name: str, lines: object) -> None:
    made = lines()  # type: ignore[operator]
    if os.environ.get("UPDATE_VECTORS"):
        (FOLDER / name).write_text(made)
    assert made == (FOLDER / name).read_text()


def test_frames_are_read_back_in_pieces() -> None:
    stream = b"".join(f.encode(*row) for row in FRAMES)
    decoder = f.Decoder()
    got = [frame for at in range(0, len(stream), 7) for frame in decoder.feed(stream[at : at + 7])]
    assert [tuple(frame) for frame in got] == [(int(row[0]), *row[1:]) for row in FRAMES]


def test_messages_are_read_back() -> None:
    for line in (FOLDER / "messages.txt").read_text().splitlines()[1:]:
        name, _, _, data = line.split()
        assert type(MESSAGES[name]).FromString(bytes.fromhex(data)) == MESSAGES[name]
