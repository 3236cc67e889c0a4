"""Workers on this machine for a node on another one: `singularity worker`.

Each place holds one worker process with a guard of its own, as the node has for those beside it, and one call of
`WorkerService.Attach` that carries its frames. What the guard says and is told travels in CONTROL frames. Whichever of the two ends
takes the other along: a call that is cut kills the process, a process that ends ends the call; then the place attaches anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from ._errors import SingularityError, WrongState
from ._proto.singularity.agents.v1 import worker_service_pb2
from ._proto.singularity.worker.v1 import worker_pb2
from ._transport import Target, error_of
from .worker import _frames as f

_METHOD: Final = "/singularity.agents.v1.WorkerService/Attach"
#: The message of a zygote's guard that its framework is imported.
_READY: Final = 23
#: KILL at once, as a control message.
_KILL: Final = struct.pack(">BI", 1, 0)
#: Seconds in which a framework must be imported, a guard must connect, and a killed tree must be gone.
_IMPORT_S, _CONNECT_S, _GONE_S = 60.0, 5.0, 5.0
#: Seconds that the node gets to end a call whose worker has ended.
_CLOSE_S: Final = 2.0
#: First and largest pause before a place attaches again, in seconds.
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0
#: Seconds between questions whether the line is still one, and without a word of the node after which it is none.
_PING_S, _SILENCE_S = 2.0, 8.0
_PING: Final = f.encode(f.Type.CONTROL, 0, 0, 0, 0, 0, b"")[4:]
#: What nobody may set right by trying again.
_FINAL: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"})
_SLACK_BYTES: Final = 64


class Place(NamedTuple):
    """What a worker of this machine is made of."""

    guard: Path
    python: Path
    #: Folders of our own package, as in `PYTHONPATH`; empty where it is installed in the environment.
    source: str
    environment: str
    #: Folders of user code that workers may read. The only one stands in for the node's own.
    projects: Sequence[Path]
    max_memory: int
    max_processes: int


class Port:
    """A guard: its messages on descriptors 3 and 4, each behind its length."""

    def __init__(self, guard: Path, *arguments: str | Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # Out of the way of 3 and 4, which the guard has.
        high_in, high_out = (_above(fd) for fd in (theirs_in, theirs_out))
        actions = [(os.POSIX_SPAWN_DUP2, high_in, 3), (os.POSIX_SPAWN_DUP2, high_out, 4)]
        null = os.open(os.devnull, os.O_RDWR)
        actions += [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
        try:
            self.pid = os.posix_spawn(guard, [str(guard), *map(str, arguments)], {}, file_actions=actions, setsid=True)
        finally:
            for fd in (high_in, high_out, null):
                os.close(fd)
        self._in, self._out = ours_in, ours_out
        self._reader: asyncio.StreamReader | None = None
        self._transport: asyncio.BaseTransport | None = None

    async def open(self) -> None:
        """Begins to read."""
        loop = asyncio.get_running_loop()
        self._reader = asyncio.StreamReader()
        reader = self._reader
        self._transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._in, "rb", buffering=0)
        )

    async def message(self) -> bytes | None:
        """The next message; None: the guard has ended."""
        assert self._reader is not None
        try:
            (length,) = struct.unpack(">I", await self._reader.readexactly(4))
            return await self._reader.readexactly(length)
        except asyncio.IncompleteReadError:
            return None

    def tell(self, message: bytes) -> None:
        """Sends a command; a guard that has ended needs none."""
        with contextlib.suppress(OSError):
            os.write(self._out, struct.pack(">I", len(message)) + message)

    async def close(self) -> None:
        """The guard sees its end and takes the tree down; waits for it."""
        with contextlib.suppress(OSError):
            os.close(self._out)
        await asyncio.get_running_loop().run_in_executor(None, os.waitpid, self.pid, 0)
        if self._transport is not None:
            self._transport.close()


def _above(fd: int) -> int:
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved


class Attachments:
    """A zygote and the places of its workers."""

    def __init__(self, target: Target, place: Place, count: int, say: Callable[[str], None]) -> None:
        self._target = target
        self._place = place
        self._count = count
        self._say = say
        self._host = re.sub(r"[^0-9A-Za-z_.-]", "-", socket.gethostname())[:40]

    async def run(self) -> None:
        """Until it is cancelled, or the node refuses. Raises its error then."""
        folder = Path(tempfile.mkdtemp(prefix="sgy-"))
        try:
            async with self._zygote(folder / "z") as ended:
                self._say(f"{self._place.environment} is imported; {self._count} workers attach to {self._target.address}")
                places = [asyncio.ensure_future(self._held(folder, number)) for number in range(1, self._count + 1)]
                try:
                    done, _ = await asyncio.wait({ended, *places}, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                finally:
                    for place in places:
                        place.cancel()
                    await asyncio.gather(*places, return_exceptions=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def _zygote(self, path: Path) -> AsyncIterator[asyncio.Future[None]]:
        port = Port(
            self._place.guard, "run", *self._variables(), "--", self._place.python, "-P", "-m", "singularity_agents.worker.zygote",
            "--socket", path, "--framework", self._place.environment,
        )  # fmt: skip
        await port.open()
        ended: asyncio.Future[None] | None = None
        try:
            await asyncio.wait_for(self._imported(port), _IMPORT_S)
            ended = asyncio.ensure_future(self._ended(port))
            yield ended
        except asyncio.TimeoutError:
            raise WrongState("the framework was not imported in time", reason="FRAMEWORK_UNAVAILABLE") from None
        finally:
            if ended is not None:
                ended.cancel()
            await port.close()

    @staticmethod
    async def _imported(port: Port) -> None:
        lines: list[str] = []
        while (message := await port.message()) is not None:
            if message[0] == _READY:
                return
            lines.append(message[2:].decode("utf-8", "replace"))
        said = lines[-1] if lines else "it said nothing"
        raise WrongState(f"the framework could not be imported: {said}", reason="FRAMEWORK_UNAVAILABLE")

    @staticmethod
    async def _ended(port: Port) -> None:
        """Reads what the zygote says: it must never wait for a reader. Raises at its end."""
        while await port.message() is not None:
            pass
        raise WrongState("the process that forks workers has ended", reason="WORKER_START_FAILED")

    async def _held(self, folder: Path, number: int) -> None:
        """One place: attaches again and again."""
        pause, turn = _FIRST_PAUSE_S, 0
        while True:
            turn += 1
            work = folder / f"w{number}-{turn}"
            try:
                await self._attached(folder, work, f"{self._host}-{number}")
                pause = _FIRST_PAUSE_S
            except SingularityError as error:
                if error.reason in ("KEY_UNKNOWN", "KEY_MISSING") or error.reason in _FINAL:
                    raise
                self._say(f"place {number}: {error}; again in {pause:.1f} s")
            except OSError as error:
                self._say(f"place {number}: {error}; again in {pause:.1f} s")
            finally:
                shutil.rmtree(work, ignore_errors=True)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MAX_PAUSE_S)

    async def _attached(self, folder: Path, work: Path, name: str) -> None:
        """One worker from its fork to its end."""
        credentials = self._target.tls.credentials() if self._target.tls else None
        options = [
            *((name, value) for name, value in self._target.options() if "message_length" not in name),
            ("grpc.max_receive_message_length", f.MAX_FRAME_BYTES + _SLACK_BYTES),
            ("grpc.max_send_message_length", f.MAX_FRAME_BYTES + _SLACK_BYTES),
            # A connection of its own: it may be cut without the others.
            ("grpc.use_local_subchannel_pool", 1),
        ]  # fmt: skip
        channel = (
            grpc.aio.secure_channel(self._target.address, credentials, options)
            if credentials
            else grpc.aio.insecure_channel(self._target.address, options)
        )
        async with channel:
            call: Any = channel.stream_stream(
                _METHOD,
                request_serializer=worker_service_pb2.AttachRequest.SerializeToString,
                response_deserializer=worker_service_pb2.AttachResponse.FromString,
            )(metadata=self._target.metadata)
            try:
                await call.wait_for_connection()
                await call.initial_metadata()
                if call.done():
                    await call.read()
                os.mkdir(work, 0o700)
                await self._carried(call, folder / f"d{work.name[1:]}", work, name)
            except grpc.aio.AioRpcError as error:
                raise error_of(error, self._target) from None
            finally:
                call.cancel()

    async def _carried(self, call: Any, data: Path, work: Path, name: str) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(data))
            listener.listen(1)
            listener.setblocking(False)
            guard = Port(self._place.guard, *self._worker_arguments(data, work, name))
            try:
                await guard.open()
                loop = asyncio.get_running_loop()
                sock, _ = await asyncio.wait_for(loop.sock_accept(listener), _CONNECT_S)
            except asyncio.TimeoutError:
                await guard.close()
                raise WrongState("the guard did not connect", reason="WORKER_START_FAILED") from None
            except BaseException:
                await guard.close()
                raise
            finally:
                os.unlink(data)
        reader, writer = await asyncio.open_connection(sock=sock, limit=f.MAX_FRAME_BYTES)
        sending = asyncio.Lock()

        async def send(frame: bytes) -> None:
            async with sending:
                await call.write(worker_service_pb2.AttachRequest(frame=frame))

        up = asyncio.ensure_future(_up(reader, send))
        line = Line()
        down = asyncio.ensure_future(_down(call, writer, guard, line, lambda frame: self._here(frame, work)))
        silence = asyncio.ensure_future(line.silent(send))
        reports = asyncio.ensure_future(_reports(guard, send))
        try:
            await asyncio.wait({down, reports, silence}, return_when=asyncio.FIRST_COMPLETED)
            if not reports.done():
                # The call has ended: so does the worker, whatever it does now.
                guard.tell(_KILL)
                await asyncio.wait({reports}, timeout=_GONE_S)
            else:
                await asyncio.wait({up}, timeout=_CLOSE_S)
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await call.done_writing()
                await asyncio.wait({down}, timeout=_CLOSE_S)
            if down.done() and not down.cancelled() and (error := down.exception()) is not None:
                raise error
        finally:
            for task in (up, down, reports, silence):
                task.cancel()
            await asyncio.gather(up, down, reports, silence, return_exceptions=True)
            writer.close()
            await guard.close()

    def _here(self, frame: bytes, work: Path) -> bytes:
        """INIT names folders of the node's machine: those of this one take their place."""
        if frame[1] != f.Type.INIT:
            return frame
        head, init = frame[: f.HEADER_BYTES], worker_pb2.Init.FromString(frame[f.HEADER_BYTES :])
        init.storage_dir = str(work)
        if init.project and Path(init.project) not in self._place.projects and len(self._place.projects) == 1:
            init.project = str(self._place.projects[0])
        return head + init.SerializeToString()

    def _variables(self) -> list[str]:
        path = f"{self._place.python.parent}:/usr/local/bin:/usr/bin:/bin"
        named = {
            "PATH": path, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0",
            "OPENBLAS_NUM_THREADS": "1", **({"PYTHONPATH": self._place.source} if self._place.source else {}),
        }  # fmt: skip
        return [part for name, value in named.items() for part in ("--env", f"{name}={value}")]

    def _worker_arguments(self, data: Path, work: Path, name: str) -> list[str | Path]:
        place = self._place
        folder = place.python.parent.parent
        readable = [folder, *_base(folder), *map(Path, filter(None, place.source.split(":"))), *place.projects]
        return [
            "worker", "--data", data, "--zygote", data.parent / "z", "--worker-id", name, "--mode", "auto", "--dir", work,
            *self._variables(), "--max-memory", str(place.max_memory), "--max-processes", str(place.max_processes),
            *(part for path in readable for part in ("--allow-read", path)), "--allow-write", work,
        ]  # fmt: skip


class Line:
    """Whether the node is heard: it answers an empty CONTROL frame with one."""

    def __init__(self) -> None:
        self._heard = time.monotonic()

    def heard(self) -> None:
        """A frame came."""
        self._heard = time.monotonic()

    async def silent(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Asks now and then; returns when nothing came for too long."""
        while time.monotonic() - self._heard < _SILENCE_S:
            # A line that takes nothing more is one that nobody is heard on either.
            with contextlib.suppress(asyncio.TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.wait_for(send(_PING), _PING_S)
            await asyncio.sleep(_PING_S)


async def _up(reader: asyncio.StreamReader, send: Callable[[bytes], Awaitable[None]]) -> None:
    """Frames of the worker."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while True:
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            if length > f.MAX_FRAME_BYTES:
                # Nothing behind it can be trusted: the node is given what it refuses.
                await send(b"")
                return
            await send(await reader.readexactly(length))


async def _down(call: Any, writer: asyncio.StreamWriter, guard: Port, line: Line, here: Callable[[bytes], bytes]) -> None:
    """Frames for the worker, and commands for its guard. Raises where the call ended with an error."""
    while (message := await call.read()) is not grpc.aio.EOF:
        frame: bytes = message.frame
        line.heard()
        if len(frame) < f.HEADER_BYTES:
            return
        if frame[1] == f.Type.CONTROL:
            if len(frame) > f.HEADER_BYTES:
                guard.tell(frame[f.HEADER_BYTES :])
            continue
        frame = here(frame)
        with contextlib.suppress(ConnectionError):
            writer.write(struct.pack(">I", len(frame)) + frame)
            await writer.drain()


async def _reports(guard: Port, send: Callable[[bytes], Awaitable[None]]) -> None:
    """What the guard says, until it ends."""
    while (message := await guard.message()) is not None:
        frame = f.encode(f.Type.CONTROL, 0, 0, 0, 0, 0, message)[4:]
        # A call that is cut hears nothing; the guard is read to its end all the same.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await send(frame)


def _base(environment: Path) -> list[Path]:
    """Where the interpreter lies that the environment was made from."""
    with contextlib.suppress(OSError):
        for line in (environment / "pyvenv.cfg").read_text().splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "home":
                return [Path(value.strip()).parent]
    return []


def attach(target: Target, place: Place, count: int, say: Callable[[str], None]) -> None:
    """Holds `count` workers attached until it is interrupted. Raises the node's refusal."""

    async def until_told() -> None:
        loop, main = asyncio.get_running_loop(), asyncio.current_task()
        assert main is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, main.cancel)
        await Attachments(target, place, count, say).run()

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(until_told())


__all__ = ["Place", "attach"]
