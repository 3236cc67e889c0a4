"""Plays the node at the other end of a real worker process: the protocol on a socket pair, nothing of ours replaced."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from singularity_agents._proto.singularity.agents.v1 import agent_service_pb2, provider_service_pb2, task_pb2
from singularity_agents._proto.singularity.worker.v1 import worker_pb2
from singularity_agents.worker import _frames as f

SOURCES = Path(__file__).resolve().parents[2] / "src"
#: Seconds that any single answer may take.
PATIENCE_S = 20.0

Chat = Callable[[provider_service_pb2.ChatRequest], provider_service_pb2.ChatResponse]


class Peer:
    """A worker process and the node's side of its channel."""

    def __init__(
        self,
        framework: str,
        python: str = sys.executable,
        cwd: Path | None = None,
        patience_s: float = PATIENCE_S,
        more_path: Sequence[Path] = (),
    ) -> None:
        self._patience_s = patience_s
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(patience_s)
        self.socket = ours
        path = os.pathsep.join(map(str, (SOURCES, *more_path)))
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "HOME": str(cwd or "/nonexistent")}
        self.process = subprocess.Popen(
            [python, "-m", "singularity_agents.worker.main", str(theirs.fileno()), "w-1", framework],
            pass_fds=[theirs.fileno()], env=environment, cwd=cwd, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        self._decoder = f.Decoder()
        self._frames: list[f.Frame] = []
        self.seen: list[f.Frame] = []
        self.grants = f.ReceiveCredit()
        #: Set to keep the worker without credit.
        self.starve = False
        self.heartbeats: list[tuple[int, int, int, int, int]] = []

    def send(
        self, type_: int, kind: int = 0, flags: int = 0, slot: int = 0, call_id: int = 0, fence: int = 0, payload: bytes = b""
    ) -> None:
        """Writes a frame."""
        self.socket.sendall(f.encode(type_, kind, flags, slot, call_id, fence, payload))

    def next(self, within: float | None = None) -> f.Frame:
        """The next frame other than CREDIT and HEARTBEAT; counted ones are acknowledged."""
        deadline = time.monotonic() + (within or self._patience_s)
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                if frame.type == f.Type.HEARTBEAT:
                    self.heartbeats.append(struct.unpack(">QQIIQ", frame.payload))
                    continue
                if frame.type == f.Type.CREDIT:
                    continue
                if frame.type in f.COUNTED and not self.starve:
                    self.acknowledge(frame)
                self.seen.append(frame)
                return frame
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no frame came")
            self.socket.settimeout(left)
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError("the worker closed the channel")
            self._frames += self._decoder.feed(data)

    def acknowledge(self, frame: f.Frame) -> None:
        """Counts a frame as consumed and grants back at half a window."""
        owed = self.grants.consumed(f.HEADER_BYTES + len(frame.payload))
        if owed is not None:
            self.send(f.Type.CREDIT, call_id=owed[0], fence=owed[1])

    def expect(self, type_: f.Type, within: float | None = None, skip_events: bool = False) -> f.Frame:
        """The next frame, which must be of this type."""
        frame = self.next(within)
        while skip_events and frame.type == f.Type.EVENT:
            frame = self.next(within)
        assert frame.type == type_, f"{f.Type(frame.type).name}, expected {type_.name}: {frame.payload[:300]!r}"
        return frame

    def hello(self) -> worker_pb2.Hello:
        """The worker's first frame."""
        return worker_pb2.Hello.FromString(self.expect(f.Type.HELLO).payload)

    def bind(
        self,
        entrypoint: str = "",
        project: Path | None = None,
        tools: Sequence[str] = (),
        agent: agent_service_pb2.Agent | None = None,
        storage_dir: Path | None = None,
        concurrency: int = 0,
    ) -> worker_pb2.Ready:
        """HELLO, INIT, READY."""
        self.hello()
        self.init(entrypoint, project, tools, agent, storage_dir, concurrency)
        frame = self.expect(f.Type.READY)
        assert not frame.flags & f.FLAG_ERROR, worker_pb2.Error.FromString(frame.payload)
        return worker_pb2.Ready.FromString(frame.payload)

    def init(
        self,
        entrypoint: str,
        project: Path | None,
        tools: Sequence[str] = (),
        agent: agent_service_pb2.Agent | None = None,
        storage_dir: Path | None = None,
        concurrency: int = 0,
    ) -> None:
        """INIT."""
        init = worker_pb2.Init(
            entrypoint=entrypoint,
            project=str(project or ""),
            tools=tools,
            agent=agent or agent_service_pb2.Agent(id="tested"),
            tenant="default",
            config_json="{}",
            storage_dir=str(storage_dir or ""),
            engine_version="0.1.0",
            concurrency=concurrency,
        )
        self.send(f.Type.INIT, payload=init.SerializeToString())

    def execute(
        self, description: str = "hello", *, fence: int = 1, slot: int = 0, want_text: bool = True, **more: object
    ) -> None:
        """EXECUTE of a task with this description."""
        task = more.pop("task", None) or task_pb2.AgentTask(description=description)
        execute = worker_pb2.Execute(task_id=f"task-{fence}", task=task, attempt=1, model="default", **more)  # type: ignore[arg-type]
        flags = f.FLAG_WANT_TEXT if want_text else 0
        self.send(f.Type.EXECUTE, flags=flags, slot=slot, fence=fence, payload=execute.SerializeToString())

    def result(self, answer: Callable[[f.Frame], None] | None = None) -> tuple[int, worker_pb2.Result]:
        """The RESULT; CALLs before it go to `answer`."""
        while True:
            frame = self.next()
            if frame.type == f.Type.RESULT:
                return frame.kind, worker_pb2.Result.FromString(frame.payload)
            if frame.type == f.Type.CALL and answer is not None:
                answer(frame)

    def reply(self, call: f.Frame, payload: bytes, flags: int = 0, type_: f.Type = f.Type.REPLY) -> None:
        """Answers a CALL."""
        self.send(type_, call.kind, flags, call.slot, call.call_id, call.fence, payload)

    def refuse(self, call: f.Frame, reason: str, message: str = "refused", code: int = 9) -> None:
        """Answers a CALL with an error."""
        error = worker_pb2.Error(reason=reason, message=message, code=code)
        self.reply(call, error.SerializeToString(), f.FLAG_ERROR)

    def events(self, kind: f.Event) -> list[bytes]:
        """Payloads of the events seen so far."""
        return [frame.payload for frame in self.seen if frame.type == f.Type.EVENT and frame.kind == kind]

    def close(self) -> None:
        """Ends the process if it has not ended."""
        self.socket.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def chat_response(text: str = "", tool_calls: Sequence[tuple[str, str, str]] = ()) -> provider_service_pb2.ChatResponse:
    """An answer of a model; tool calls are (id, name, arguments)."""
    response = provider_service_pb2.ChatResponse(model="scripted", provider="scripted")
    if text:
        response.message.content.add(text=text)
    for id_, name, arguments in tool_calls:
        response.message.tool_calls.add(id=id_, name=name, arguments=arguments)
    calls = provider_service_pb2.FINISH_REASON_TOOL_CALLS
    response.finish_reason = calls if tool_calls else provider_service_pb2.FINISH_REASON_STOP
    response.usage.input_tokens = 10
    response.usage.output_tokens = 5
    return response
