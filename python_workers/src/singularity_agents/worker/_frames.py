"""Frames of the data channel (``docs/port_protocol.md``, section 1) and their credit. Pure."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

VERSION: Final = 1
#: Largest frame either side accepts, in bytes, header included.
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
#: Frames and bytes that may be unacknowledged in one direction.
WINDOW_FRAMES: Final = 64
WINDOW_BYTES: Final = 1024 * 1024

FLAG_ERROR: Final = 1
FLAG_STREAM: Final = 2
FLAG_WANT_TEXT: Final = 4

_HEADER = struct.Struct(">IBBBBIQQ")
_LENGTH = struct.Struct(">I")
_BEAT = struct.Struct(">QQIIQ")
#: Header bytes behind the length field.
HEADER_BYTES: Final = _HEADER.size - _LENGTH.size


class Type(IntEnum):
    """Frame types."""

    HELLO = 1
    READY = 2
    INIT = 3
    HEALTH = 4
    HEALTH_REPLY = 5
    EXECUTE = 6
    CANCEL = 7
    EVENT = 8
    RESULT = 9
    CALL = 10
    REPLY = 11
    REPLY_CHUNK = 12
    CREDIT = 13
    HEARTBEAT = 14
    DRAIN = 15
    GOODBYE = 16
    #: Between the node and the guard of a worker of another machine; never on a worker's own channel.
    CONTROL = 17


class Call(IntEnum):
    """Kinds of CALL."""

    CHAT = 1
    EMBED = 2
    MEMORY = 3
    TOOL = 4
    TOOL_BEGIN = 5
    TOOL_END = 6
    DELEGATE = 7
    INPUT = 8
    SELECT_PROVIDER = 9
    OPTIMIZE = 10
    BATCH = 11
    SECRET = 12


class Event(IntEnum):
    """Kinds of EVENT."""

    TEXT = 1
    STEP = 2
    TOOL = 3
    LOG = 4
    SPAN = 5
    BEAT = 6


class Status(IntEnum):
    """Kinds of RESULT."""

    SUCCEEDED = 1
    FAILED = 2
    CANCELLED = 3
    INPUT_REQUESTED = 4


#: Types that cost credit, whoever sends them.
COUNTED: Final = frozenset({Type.EVENT, Type.CALL, Type.RESULT, Type.EXECUTE, Type.REPLY, Type.REPLY_CHUNK})


class Frame(NamedTuple):
    """A received frame; `payload` is a view that lives as long as the frame."""

    type: int
    kind: int
    flags: int
    slot: int
    call_id: int
    fence: int
    payload: bytes


class FrameError(Exception):
    """The other side broke the framing: nothing after it can be trusted."""


def encode(type_: int, kind: int, flags: int, slot: int, call_id: int, fence: int, payload: bytes) -> bytes:
    """A whole frame with its length. Raises FrameError over 16 MiB."""
    length = HEADER_BYTES + len(payload)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _HEADER.pack(length, VERSION, type_, kind, flags, slot, call_id, fence) + payload


def heartbeat(thread_beat: int, loop_beat: int, lag_us: int, in_flight: int, rss: int) -> bytes:
    """Payload of a HEARTBEAT frame."""
    return _BEAT.pack(thread_beat, loop_beat, min(lag_us, 0xFFFFFFFF), in_flight, rss)


class Decoder:
    """Takes bytes as they come, gives whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Frames that are complete now. Raises FrameError on a wrong length or version."""
        frames: list[Frame] = []
        if self._buffer:
            self._buffer += data
            data = bytes(self._buffer)
            self._buffer.clear()
        at, end = 0, len(data)
        while end - at >= 4:
            (length,) = _LENGTH.unpack_from(data, at)
            if not HEADER_BYTES <= length <= MAX_FRAME_BYTES:
                raise FrameError(f"a frame's length is {length}")
            if end - at < 4 + length:
                break
            _, version, type_, kind, flags, slot, call_id, fence = _HEADER.unpack_from(data, at)
            if version != VERSION:
                raise FrameError(f"protocol version {version}, this worker speaks {VERSION}")
            frames.append(Frame(type_, kind, flags, slot, call_id, fence, data[at + 4 + HEADER_BYTES : at + 4 + length]))
            at += 4 + length
        if at < end:
            self._buffer += data[at:]
        return frames


class SendCredit:
    """What this side may still send."""

    __slots__ = ("bytes", "frames")

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0

    def may_send(self, size: int) -> bool:
        """True when a counted frame of `size` bytes (header included) may go now."""
        # The other side grants at half a window: what it owes may be less than that for ever, and no frame may wait for it.
        if self.frames * 2 < WINDOW_FRAMES and self.bytes * 2 < WINDOW_BYTES:
            return True
        return self.frames < WINDOW_FRAMES and self.bytes + size <= WINDOW_BYTES

    def sent(self, size: int) -> None:
        """Charges a frame."""
        self.frames += 1
        self.bytes += size

    def granted(self, frames: int, size: int) -> None:
        """The other side has consumed this much."""
        self.frames = max(0, self.frames - frames)
        self.bytes = max(0, self.bytes - size)


class ReceiveCredit:
    """What this side owes in grants."""

    __slots__ = ("bytes", "frames")

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0

    def consumed(self, size: int) -> tuple[int, int] | None:
        """Counts a consumed frame; gives what to grant once half a window is owed."""
        self.frames += 1
        self.bytes += size
        if self.frames * 2 < WINDOW_FRAMES and self.bytes * 2 < WINDOW_BYTES:
            return None
        owed = (self.frames, self.bytes)
        self.frames = self.bytes = 0
        return owed
