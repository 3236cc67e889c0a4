"""Several tasks in one process: each has its own answers, events, output and end."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from singularity_agents._errors import SingularityError
from singularity_agents._proto.singularity.agents.v1 import provider_service_pb2
from singularity_agents._proto.singularity.worker.v1 import worker_pb2
from singularity_agents.worker import _frames as f
from singularity_agents.worker import _output
from singularity_agents.worker._calls import Calls
from singularity_agents.worker._channel import Channel
from singularity_agents.worker._scope import CURRENT, Scope, TrackedThreads, outside, task_factory

from .peer import Peer, chat_response

Start = Callable[..., Peer]
Results = dict[int, tuple[int, worker_pb2.Result]]


def bound(start: Start, tmp_path: Path, agent: str, concurrency: int = 2) -> Peer:
    """A worker for tasks side by side."""
    shutil.copy(Path(__file__).parent / "sample_neighbours.py", tmp_path / "neighbours.py")
    peer = start()
    peer.bind(f"neighbours:{agent}", tmp_path, concurrency=concurrency)
    return peer


def results(peer: Peer, count: int, answer: Callable[[f.Frame], None] | None = None) -> Results:
    """So many RESULTs, by slot; CALLs before them go to `answer`."""
    ended: Results = {}
    while len(ended) < count:
        frame = peer.next()
        if frame.type == f.Type.RESULT:
            ended[frame.slot] = (frame.kind, worker_pb2.Result.FromString(frame.payload))
        elif frame.type == f.Type.CALL and answer is not None:
            answer(frame)
    return ended


def said(call: f.Frame) -> str:
    """What a model is asked."""
    return provider_service_pb2.ChatRequest.FromString(call.payload).messages[-1].content[0].text


def echo(peer: Peer) -> Callable[[f.Frame], None]:
    """Answers a model call with what it asks."""

    def answer(call: f.Frame) -> None:
        if call.flags & f.FLAG_STREAM:
            piece = provider_service_pb2.StreamChatResponse(text_delta=said(call))
            peer.reply(call, piece.SerializeToString(), f.FLAG_STREAM, f.Type.REPLY_CHUNK)
        peer.reply(call, chat_response(said(call)).SerializeToString())

    return answer


def logs(peer: Peer) -> dict[tuple[int, int], list[tuple[str, str, str]]]:
    """Level, source and words of the lines of log, by slot and fence."""
    found: dict[tuple[int, int], list[tuple[str, str, str]]] = defaultdict(list)
    for frame in peer.seen:
        if frame.type == f.Type.EVENT and frame.kind == f.Event.LOG:
            event = worker_pb2.LogEvent.FromString(frame.payload)
            found[frame.slot, frame.fence].append((event.level, event.source, event.message))
    return found


def calls(peer: Peer, count: int) -> list[f.Frame]:
    """So many CALLs; events before them are passed over."""
    return [peer.expect(f.Type.CALL, skip_events=True) for _ in range(count)]


@pytest.mark.parametrize("agent", ["asks", "streams", "asks_in_thread"])
def test_two_tasks_run_at_once_and_each_gets_its_own_answer(start: Start, tmp_path: Path, agent: str) -> None:
    peer = bound(start, tmp_path, agent)
    peer.execute("one", slot=0, fence=7)
    peer.execute("two", slot=1, fence=8)
    open_ = calls(peer, 2)
    assert {(c.slot, c.fence, said(c)) for c in open_} == {(0, 7, "one"), (1, 8, "two")}
    assert len({c.call_id for c in open_}) == 2
    for call in sorted(open_, key=lambda c: -c.slot):
        echo(peer)(call)
    ended = results(peer, 2)
    assert {slot: r.result.output for slot, (_, r) in ended.items()} == {0: "one", 1: "two"}
    assert {slot: r.result.task_id for slot, (_, r) in ended.items()} == {0: "task-7", 1: "task-8"}


def test_events_carry_the_slot_and_the_fence_of_their_task(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "asks")
    peer.execute("one", slot=0, fence=7)
    peer.execute("two", slot=1, fence=8)
    results(peer, 2, echo(peer))
    assert logs(peer) == {(0, 7): [("info", "agent", "log of one")], (1, 8): [("info", "agent", "log of two")]}
    text = {(e.slot, e.fence, e.payload) for e in peer.seen if e.type == f.Type.EVENT and e.kind == f.Event.TEXT}
    assert text == {(0, 7, b"text of one"), (1, 8, b"text of two")}


def test_a_slot_is_free_again_with_its_result(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "asks")
    peer.execute("waits", slot=1, fence=1)
    (waits,) = calls(peer, 1)
    for fence in range(2, 50):
        peer.execute(f"n{fence}", slot=0, fence=fence)
        assert results(peer, 1, echo(peer))[0][1].result.output == f"n{fence}"
    echo(peer)(waits)
    assert results(peer, 1)[1][1].result.output == "waits"


def test_there_are_as_many_slots_as_init_says(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "asks")
    peer.execute("one", slot=2, fence=1)
    status, refused = results(peer, 1)[2]
    assert (status, refused.error.reason) == (f.Status.FAILED, "WORKER_PROTOCOL_ERROR")
    peer.execute("one", slot=0, fence=2)
    calls(peer, 1)
    peer.execute("another", slot=0, fence=3)
    assert results(peer, 1)[0][1].error.message == "a task runs in this slot"


@pytest.mark.parametrize("agent", ["asks", "streams", "asks_in_thread"])
def test_a_cancel_in_a_model_call_leaves_the_neighbour(start: Start, tmp_path: Path, agent: str) -> None:
    peer = bound(start, tmp_path, agent)
    peer.execute("one", slot=0, fence=7)
    peer.execute("two", slot=1, fence=8)
    open_ = {c.slot: c for c in calls(peer, 2)}
    # A fence that is not the task's ends nothing.
    peer.send(f.Type.CANCEL, slot=1, call_id=5000, fence=7)
    peer.send(f.Type.CANCEL, slot=0, call_id=5000, fence=7)
    assert results(peer, 1)[0][0] == f.Status.CANCELLED
    echo(peer)(open_[1])
    status, result = results(peer, 1)[1]
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "two")


@pytest.mark.parametrize("other", ["swallow x", "leaves"])
def test_what_is_ended_with_a_task_is_its_own(start: Start, tmp_path: Path, other: str) -> None:
    peer = bound(start, tmp_path, "either")
    peer.execute("asks two", slot=1, fence=8)
    (call,) = calls(peer, 1)
    peer.execute(other, slot=0, fence=7)
    if other != "leaves":
        until_busy(peer, 2)
        peer.send(f.Type.CANCEL, slot=0, call_id=5000, fence=7)
    status, _ = results(peer, 1)[0]
    assert status == (f.Status.SUCCEEDED if other == "leaves" else f.Status.CANCELLED)
    echo(peer)(call)
    status, result = results(peer, 1)[1]
    assert (status, result.result.output) == (f.Status.SUCCEEDED, "two")


def test_a_cancel_does_not_wait_for_a_neighbours_thread(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "either")
    may_end = tmp_path / "may-end"
    peer.execute(f"thread {may_end}", slot=0, fence=7)
    peer.execute("asks two", slot=1, fence=8)
    calls(peer, 1)
    until_busy(peer, 2)
    peer.send(f.Type.CANCEL, slot=1, call_id=5000, fence=8)
    assert results(peer, 1)[1][0] == f.Status.CANCELLED
    # And its own thread is waited for.
    peer.send(f.Type.CANCEL, slot=0, call_id=5000, fence=7)
    with pytest.raises(TimeoutError):
        peer.next(within=0.4)
    may_end.touch()
    assert results(peer, 1)[0][0] in (f.Status.CANCELLED, f.Status.SUCCEEDED)


def test_a_call_that_blocks_the_loop_reads_its_neighbours_frames(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "blocks", concurrency=3)
    peer.execute("one", slot=0, fence=1)
    (first,) = calls(peer, 1)
    peer.execute("two", slot=1, fence=2)
    peer.execute("three", slot=2, fence=3)
    peer.send(f.Type.CANCEL, slot=2, call_id=5000, fence=3)
    echo(peer)(first)
    ended = results(peer, 3, echo(peer))
    assert [ended[slot][0] for slot in range(3)] == [f.Status.SUCCEEDED, f.Status.SUCCEEDED, f.Status.CANCELLED]
    assert [ended[slot][1].result.output for slot in range(2)] == ["one", "two"]


def test_a_drained_worker_says_goodbye_after_the_last_result(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "asks")
    peer.execute("one", slot=0, fence=7)
    peer.execute("two", slot=1, fence=8)
    open_ = calls(peer, 2)
    peer.send(f.Type.DRAIN)
    for call in open_:
        echo(peer)(call)
    assert set(results(peer, 2)) == {0, 1}
    peer.expect(f.Type.GOODBYE)


def test_prints_are_events_of_their_own_task(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "prints")
    for slot, name in enumerate(("one", "two")):
        peer.execute(name, slot=slot, fence=7 + slot)
    results(peer, 2, echo(peer))
    for slot, name in enumerate(("one", "two")):
        lines = logs(peer)[slot, 7 + slot]
        assert [line for level, _, line in lines if level == "info"] == [
            *(f"{name} {number}" for number in range(3)), f"{name} in a thread", f"{name} has no end",
        ]  # fmt: skip
        assert [line for level, _, line in lines if level == "warning"] == [f"to stderr {name}"]
        assert {source for _, source, _ in lines} == {"worker"}


def test_output_beyond_what_may_wait_is_dropped_and_counted(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "prints_much")
    peer.starve = True
    peer.execute("20000", slot=0, fence=7)
    held = [peer.expect(f.Type.EVENT) for _ in range(f.WINDOW_FRAMES)]
    until_busy(peer, 0)
    peer.starve = False
    peer.send(f.Type.CREDIT, call_id=len(held), fence=sum(f.HEADER_BYTES + len(frame.payload) for frame in held))
    assert results(peer, 1)[0][0] == f.Status.SUCCEEDED
    lines = [line for _, _, line in logs(peer)[0, 7]]
    dropped = int(lines.pop().split(" ")[0])
    assert dropped > 0 and dropped + len(lines) == 20000
    assert [int(line[:8]) for line in lines] == sorted(int(line[:8]) for line in lines)
    # What was printed are 20 MB, and at most 4 waited.
    assert max(beat[4] for beat in peer.heartbeats) - peer.heartbeats[0][4] < 40 * 1024 * 1024


def test_a_line_has_16_kib_at_most(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "prints_long")
    peer.execute("x", slot=1, fence=7)
    assert results(peer, 1)[1][0] == f.Status.SUCCEEDED
    first, second = (line for _, _, line in logs(peer)[1, 7])
    assert first == "y" * _output.MAX_LINE_BYTES
    assert second == "ä" * (_output.MAX_LINE_BYTES // 2)


def test_what_an_agent_prints_in_one_go_is_all_there(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "prints_at_once")
    peer.execute("x", slot=1, fence=7)
    results(peer, 1)
    assert [line for _, _, line in logs(peer)[1, 7]] == [str(number) for number in range(500)]


def test_what_no_task_prints_goes_where_it_always_went(start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    peer = bound(start, tmp_path, "prints_elsewhere")
    peer.execute("x", slot=1, fence=7)
    assert results(peer, 1)[1][1].result.output == "1"
    assert logs(peer) == {}
    assert set(capfd.readouterr().out.splitlines()) == {"of nobody", "past it"}


def test_one_task_at_a_time_prints_to_the_guards_pipe(start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    peer = bound(start, tmp_path, "prints_at_once", concurrency=1)
    peer.execute("x", fence=7)
    results(peer, 1)
    peer.send(f.Type.GOODBYE)
    peer.process.wait(5)
    assert logs(peer) == {}
    assert len(capfd.readouterr().out.splitlines()) == 500


def test_what_was_printed_before_a_question_is_not_lost(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "asks_person")
    peer.execute("x", fence=7)
    assert results(peer, 1)[0][0] == f.Status.INPUT_REQUESTED
    assert [line for _, _, line in logs(peer)[0, 7]] == ["before the question"]


def test_what_a_process_of_a_task_prints_goes_to_the_pipe(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    peer = bound(start, tmp_path, "forks")
    peer.execute("x", fence=7)
    assert results(peer, 1)[0][1].result.output == "utf-8 False"
    assert [line for _, _, line in logs(peer)[0, 7]] == ["of the task"]
    assert capfd.readouterr().out == "of the child\n"


def test_events_that_wait_outlive_the_run_that_queued_them(start: Start, tmp_path: Path) -> None:
    peer = bound(start, tmp_path, "logs_much")
    peer.starve = True
    peer.execute("logs", slot=0, fence=7)
    held = [peer.expect(f.Type.EVENT) for _ in range(f.WINDOW_FRAMES)]
    peer.execute("asks", slot=1, fence=8)
    until_busy(peer, 1)
    peer.starve = False
    peer.send(f.Type.CREDIT, call_id=len(held), fence=sum(f.HEADER_BYTES + len(frame.payload) for frame in held))
    assert {slot: r.result.output for slot, (_, r) in results(peer, 2, echo(peer)).items()} == {0: "logged", 1: "asks"}
    assert [line for _, _, line in logs(peer)[0, 7]] == [str(number) for number in range(200)]


def test_frames_that_wait_for_credit_leave_while_the_loop_is_blocked() -> None:
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)

    async def scenario() -> list[f.Frame]:
        channel = Channel(ours.detach(), lambda frame: None)
        for number in range(f.WINDOW_FRAMES):
            assert channel.try_send(f.Type.EVENT, f.Event.LOG, 0, 0, number, 1, b"")
        waiting = [asyncio.ensure_future(channel.send_counted(f.Type.CALL, f.Call.CHAT, 0, 1, n, 2, b"")) for n in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.sleep(0)
        theirs.sendall(f.encode(f.Type.CREDIT, 0, 0, 0, f.WINDOW_FRAMES, 1 << 20, b""))
        # As a call does that blocks the loop: no other task gets a turn.
        channel.read_now()
        frames = f.Decoder().feed(theirs.recv(1 << 20))
        await asyncio.gather(*waiting, return_exceptions=True)
        channel._sock.close()
        return frames

    frames = asyncio.run(scenario())
    assert [frame.call_id for frame in frames if frame.type == f.Type.CALL] == [0, 2]
    theirs.close()


def test_a_cancel_fails_the_open_calls_of_its_task_alone() -> None:
    ours, theirs = socket.socketpair()

    async def scenario() -> list[object]:
        channel = Channel(ours.detach(), lambda frame: None)
        calls = Calls(channel)
        scopes = [Scope(0, 1, False), Scope(1, 2, False)]

        async def last(scope: Scope) -> bytes:
            CURRENT.set(scope)
            return [payload async for _, payload in calls.stream(f.Call.CHAT, b"")][-1]

        async def one(scope: Scope) -> bytes:
            CURRENT.set(scope)
            return await calls.call(f.Call.CHAT, b"")

        running = [asyncio.ensure_future(kind(scope)) for scope in scopes for kind in (one, last)]
        await asyncio.sleep(0)
        calls.fail_all(scopes[0], SingularityError("ended", reason="TASK_CANCELLED"))
        for call_id in range(1, 5):
            calls.replied(f.Frame(f.Type.REPLY, f.Call.CHAT, 0, 1, call_id, 2, b"answer"))
        ended = await asyncio.gather(*running, return_exceptions=True)
        channel._sock.close()
        return [end.message if isinstance(end, SingularityError) else end for end in ended]

    assert asyncio.run(scenario()) == ["ended", "ended", b"answer", b"answer"]
    theirs.close()


def test_threads_are_waited_for_by_task() -> None:
    async def scenario() -> list[str]:
        order: list[str] = []
        threads = TrackedThreads(2)
        loop = asyncio.get_running_loop()
        slow, quick = Scope(0, 1, False), Scope(1, 2, False)
        for scope, seconds in ((slow, 0.3), (quick, 0.0)):
            token = CURRENT.set(scope)
            loop.run_in_executor(threads, time.sleep, seconds)
            CURRENT.reset(token)

        async def waits(scope: Scope, name: str) -> None:
            await threads.idle(scope)
            order.append(name)

        await asyncio.gather(waits(slow, "slow"), waits(quick, "quick"))
        await threads.idle(slow)
        return order

    assert asyncio.run(scenario()) == ["quick", "slow"]


def test_a_task_of_the_workers_own_belongs_to_no_scope() -> None:
    async def scenario() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(task_factory)  # type: ignore[arg-type]
        scope = Scope(0, 1, False)
        token = CURRENT.set(scope)
        own = outside(loop, asyncio.sleep(0))
        before = len(scope.born)
        born = loop.create_task(asyncio.sleep(0))
        CURRENT.reset(token)
        await asyncio.gather(own, born)
        return before, len(scope.born)

    assert asyncio.run(scenario()) == (0, 1)


def until_busy(peer: Peer, in_flight: int) -> None:
    """Reads until a heartbeat says that so many tasks run."""
    while not peer.heartbeats or peer.heartbeats[-1][3] != in_flight:
        try:
            frame = peer.next(within=0.3)
        except TimeoutError:
            continue
        raise AssertionError(f"unexpected {f.Type(frame.type).name}")
