"""The protocol, step by step, with agents in plain Python."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from singularity_agents._proto.singularity.agents.v1 import agent_service_pb2, common_pb2, provider_service_pb2, task_pb2
from singularity_agents._proto.singularity.worker.v1 import worker_pb2
from singularity_agents.worker import _frames as f
from singularity_agents.worker._channel import Channel

from .peer import Peer, chat_response

Start = Callable[..., Peer]


def ran(peer: Peer, description: str = "hello", fence: int = 1) -> tuple[int, worker_pb2.Result]:
    peer.execute(description, fence=fence)
    return peer.result()


def test_hello_names_the_worker_and_carries_no_pid(start: Start) -> None:
    hello = start().hello()
    assert (hello.worker_id, hello.framework) == ("w-1", "custom")
    assert hello.versions["singularity-agents"] and hello.python_version and hello.rss_bytes > 0


def test_a_task_calls_the_model_and_answers(start: Start, project: Path) -> None:
    peer = start()
    ready = peer.bind("user_code:shout", project)
    assert {t.name for t in ready.tools} == {"add", "send"}
    peer.execute("hello")
    call = peer.expect(f.Type.CALL)
    assert (call.kind, call.fence, call.slot) == (f.Call.CHAT, 1, 0)
    request = provider_service_pb2.ChatRequest.FromString(call.payload)
    assert request.model == "default"
    assert request.messages[0].content[0].text == "hello"
    peer.reply(call, chat_response("quiet").SerializeToString())
    status, result = peer.result()
    assert status == f.Status.SUCCEEDED
    assert (result.result.output, result.result.task_id) == ("QUIET", "task-1")
    assert result.result.status == task_pb2.RESULT_STATUS_COMPLETED


def test_one_process_runs_task_after_task(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:plain", project)
    outputs = [ran(peer, f"n{n}", fence=n)[1].result.output for n in range(1, 200)]
    assert outputs == [f"n{n} 1" for n in range(1, 200)]


def test_json_like_data_is_structured_output(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:data", project)
    _, result = ran(peer, "a b")
    assert result.result.structured_output.struct_value.fields["n"].number_value == 2
    assert result.result.output == '{"words": ["a", "b"], "n": 2}'


def test_a_failure_is_typed_and_shows_the_users_frames_only(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:fails", project)
    status, result = ran(peer)
    assert status == f.Status.FAILED
    assert (result.error.reason, result.error.message) == ("FRAMEWORK_ERROR", "ValueError: no such thing")
    assert "user_code.py" in result.error.traceback and "worker/main.py" not in result.error.traceback


def test_exit_in_the_users_code_fails_the_task_and_not_the_worker(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:leaves", project)
    assert ran(peer)[0] == f.Status.FAILED
    assert ran(peer, fence=2)[0] == f.Status.FAILED
    assert peer.process.poll() is None


def test_the_engines_error_keeps_its_reason(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:shout", project)
    peer.execute()
    status, result = peer.result(lambda call: peer.refuse(call, "PROVIDER_QUOTA", "the account has no money left"))
    assert status == f.Status.FAILED
    assert (result.error.reason, result.error.message) == ("PROVIDER_QUOTA", "the account has no money left")


def test_a_sync_agent_runs_in_a_thread_with_a_waiting_engine(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:blocking", project)
    peer.execute()
    _, result = peer.result(lambda call: peer.reply(call, chat_response("done").SerializeToString()))
    assert result.result.output == "done!"


def test_pieces_of_a_generator_are_text_events(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:pieces", project)
    _, result = ran(peer, "one two")
    assert (peer.events(f.Event.TEXT), result.result.output) == ([b"one", b"two"], "onetwo")


def test_text_that_nobody_wants_is_not_sent(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:pieces", project)
    peer.execute("one two", want_text=False)
    assert peer.result()[1].result.output == "onetwo"
    assert peer.events(f.Event.TEXT) == []


def test_without_credit_events_wait_and_none_is_lost(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:flood", project)
    peer.starve = True
    peer.execute()
    held = [peer.expect(f.Type.EVENT) for _ in range(f.WINDOW_FRAMES)]
    with pytest.raises(TimeoutError):
        peer.next(within=0.4)
    assert peer.heartbeats, "the heartbeat needs no credit"
    peer.starve = False
    peer.send(f.Type.CREDIT, call_id=len(held), fence=sum(f.HEADER_BYTES + len(frame.payload) for frame in held))
    status, result = peer.result()
    assert status == f.Status.SUCCEEDED
    text = b"".join(peer.events(f.Event.TEXT)).decode()
    assert text == result.result.output == "".join(f"{n}," for n in range(500))


def test_tools_are_bracketed_and_recorded_results_are_used(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:tools", project)
    peer.execute("ann")
    begun: list[worker_pb2.ToolBegin] = []
    ended: list[worker_pb2.ToolEnd] = []

    def answer(call: f.Frame) -> None:
        if call.kind == f.Call.TOOL_BEGIN:
            begin = worker_pb2.ToolBegin.FromString(call.payload)
            begun.append(begin)
            recorded = begin.name == "send"
            content = "sent before" if recorded else ""
            peer.reply(call, worker_pb2.ToolBeginReply(recorded=recorded, content=content).SerializeToString())
        else:
            ended.append(worker_pb2.ToolEnd.FromString(call.payload))
            peer.reply(call, b"")

    _, result = peer.result(answer)
    assert result.result.output == "5 sent before 1", "the recorded tool did not run"
    assert [(b.name, b.arguments, b.replay) for b in begun] == [
        ("add", '{"a":2,"b":3}', common_pb2.TOOL_REPLAY_JOURNALED),
        ("send", '{"to":"ann"}', common_pb2.TOOL_REPLAY_ONCE),
    ]
    assert [(e.name, e.content, e.is_error) for e in ended] == [("add", "5", False)]


def test_a_tool_that_raises_is_recorded_as_an_error_and_raises(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:tools", project)
    peer.execute("nobody")
    ended: list[worker_pb2.ToolEnd] = []

    def answer(call: f.Frame) -> None:
        if call.kind == f.Call.TOOL_END:
            ended.append(worker_pb2.ToolEnd.FromString(call.payload))
        peer.reply(call, b"")

    status, result = peer.result(answer)
    assert (status, result.error.message) == (f.Status.FAILED, "ValueError: no address")
    assert (ended[-1].name, ended[-1].is_error) == ("send", True)


def test_a_tool_in_a_thread_is_bracketed_too(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:thread_tool", project)
    peer.execute()
    _, result = peer.result(lambda call: peer.reply(call, b""))
    assert result.result.output == "2"
    assert len([c for c in peer.seen if c.type == f.Type.CALL]) == 2


def test_engine_tools_travel_as_calls(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:engine_tool", project)
    peer.execute("17*23")
    call = peer.expect(f.Type.CALL)
    request = worker_pb2.ToolRequest.FromString(call.payload)
    assert (request.name, request.arguments) == ("calculate", '{"expression":"17*23"}')
    peer.reply(call, worker_pb2.ToolReply(content="391").SerializeToString())
    assert peer.result()[1].result.output == "391"


def test_what_has_not_come_yet_is_the_engines_typed_error(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:remembers", project)
    peer.execute()
    status, result = peer.result(lambda call: peer.refuse(call, "CAPABILITY_PENDING", "memory has not come yet", 12))
    assert (status, result.error.reason) == (f.Status.FAILED, "CAPABILITY_PENDING")


@pytest.mark.parametrize("agent", ["shout", "blocking", "stubborn"])
def test_cancel_ends_a_task_wherever_it_waits(start: Start, project: Path, agent: str) -> None:
    peer = start()
    peer.bind(f"user_code:{agent}", project)
    peer.execute()
    if agent != "stubborn":
        peer.expect(f.Type.CALL)
    else:
        beat_after(peer, 1)
    began = time.monotonic()
    peer.send(f.Type.CANCEL, call_id=5000, fence=1)
    status, result = peer.result()
    assert (status, result.error.reason) == (f.Status.CANCELLED, "TASK_CANCELLED")
    assert time.monotonic() - began < 1.0
    peer.execute(fence=2)
    peer.send(f.Type.CANCEL, call_id=5000, fence=2)
    assert peer.result()[0] == f.Status.CANCELLED


def test_a_result_within_the_grace_counts(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:waits_in_thread", project)
    may_end = project / "may-end"
    peer.execute(str(may_end))
    beat_after(peer, 1)
    peer.send(f.Type.CANCEL, call_id=5000, fence=1)
    # The thread cannot be interrupted: nothing but heartbeats is heard before it has ended.
    beat_after(peer, 3)
    may_end.touch()
    assert peer.result()[0] in (f.Status.CANCELLED, f.Status.SUCCEEDED)


def test_a_cancel_of_an_older_attempt_is_ignored(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:shout", project)
    peer.execute(fence=2)
    call = peer.expect(f.Type.CALL)
    peer.send(f.Type.CANCEL, call_id=100, fence=1)
    peer.reply(call, chat_response("fine").SerializeToString())
    assert peer.result()[0] == f.Status.SUCCEEDED


def test_what_a_run_leaves_behind_does_not_outlive_it(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:leaves_a_task", project)
    assert ran(peer)[1].result.output == "done"


def test_agents_as_class_factory_and_by_name(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:Summarise", project)
    peer.execute("text")
    call = peer.expect(f.Type.CALL)
    request = provider_service_pb2.ChatRequest.FromString(call.payload)
    assert [m.role for m in request.messages] == [common_pb2.ROLE_SYSTEM, common_pb2.ROLE_USER]
    peer.reply(call, chat_response("short").SerializeToString())
    assert peer.result()[1].result.output == "short"

    built = start()
    built.bind("user_code:build", project)
    history = task_pb2.AgentTask(description="last")
    history.context.conversation_history.add(role=common_pb2.ROLE_USER).content.add(text="first")
    built.execute(task=history)
    assert built.result()[1].result.output == "last after 1"

    named = start("custom")
    named.bind("user_code", project, agent=agent_service_pb2.Agent(id="x", framework="custom:plain"))
    assert ran(named, "by name")[1].result.output == "by name 1"


@pytest.mark.parametrize(
    ("entrypoint", "said"),
    [("user_code:nothing", 'has no "nothing"'), ("nowhere:x", "No module named 'nowhere'"), ("", "has no code")],
)
def test_code_that_cannot_be_loaded_says_why(start: Start, project: Path, entrypoint: str, said: str) -> None:
    peer = start()
    peer.hello()
    peer.init(entrypoint, project)
    frame = peer.expect(f.Type.READY)
    assert frame.flags & f.FLAG_ERROR
    error = worker_pb2.Error.FromString(frame.payload)
    assert error.reason == "WORKER_START_FAILED" and said in error.message


def test_a_task_that_cannot_be_read_fails_with_a_typed_error(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:plain", project)
    peer.send(f.Type.EXECUTE, fence=1, payload=b"\xff\xff\xff")
    status, result = peer.result()
    assert (status, result.error.reason) == (f.Status.FAILED, "WORKER_PROTOCOL_ERROR")
    assert ran(peer, fence=2)[0] == f.Status.SUCCEEDED


def test_health_is_answered(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:plain", project)
    peer.send(f.Type.HEALTH)
    assert worker_pb2.HealthReply.FromString(peer.expect(f.Type.HEALTH_REPLY).payload).ok


def test_both_beats_come_and_a_blocked_loop_shows(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:blocks_the_loop", project)
    beat_after(peer, 2)
    peer.execute()
    beat_after(peer, 6)
    first, last = peer.heartbeats[-3], peer.heartbeats[-1]
    assert last[0] == first[0] + 2, "the thread goes on"
    assert last[1] == first[1], "the loop does not"
    assert last[3] == 1 and last[4] > 0


@pytest.mark.parametrize("agent", ["plain", "blocks_the_loop"])
def test_the_end_of_the_channel_ends_the_process_within_a_second(start: Start, project: Path, agent: str) -> None:
    peer = start()
    peer.bind(f"user_code:{agent}", project)
    if agent != "plain":
        peer.execute()
        beat_after(peer, 2)
    began = time.monotonic()
    peer.socket.close()
    peer.process.wait(5)
    assert time.monotonic() - began < 1.0


def test_goodbye_ends_the_process(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:plain", project)
    peer.send(f.Type.GOODBYE)
    assert peer.process.wait(5) == 0


def test_a_drained_worker_finishes_what_runs_and_takes_no_more(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:shout", project)
    peer.execute("hello")
    call = peer.expect(f.Type.CALL)
    peer.send(f.Type.DRAIN)
    peer.send(f.Type.EXECUTE, slot=1, fence=2, payload=worker_pb2.Execute(task_id="t2").SerializeToString())
    status, refused = peer.result()
    assert status == f.Status.FAILED and refused.error.reason == "DRAINING"
    peer.reply(call, chat_response("done").SerializeToString())
    assert peer.result()[0] == f.Status.SUCCEEDED
    peer.expect(f.Type.GOODBYE)


def test_an_idle_worker_that_is_drained_says_goodbye_at_once(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:plain", project)
    peer.send(f.Type.DRAIN)
    peer.expect(f.Type.GOODBYE)


def test_a_wrong_version_ends_the_process(start: Start) -> None:
    peer = start()
    peer.hello()
    frame = bytearray(f.encode(f.Type.INIT, 0, 0, 0, 0, 0, b""))
    frame[4] = 9
    peer.socket.sendall(bytes(frame))
    assert peer.process.wait(5) == 70


def test_stacks_are_written_on_request(start: Start, project: Path) -> None:
    peer = start()
    peer.bind("user_code:plain", project)
    os.kill(peer.process.pid, signal.SIGUSR1)
    assert ran(peer)[0] == f.Status.SUCCEEDED


def beat_after(peer: Peer, count: int) -> None:
    """Reads until so many more heartbeats have come."""
    wanted = len(peer.heartbeats) + count
    while len(peer.heartbeats) < wanted:
        try:
            frame = peer.next(within=0.3)
        except TimeoutError:
            continue
        raise AssertionError(f"unexpected {f.Type(frame.type).name}")


def test_an_event_waits_for_the_next_frame_but_not_for_ever() -> None:
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)

    async def scenario() -> tuple[bytes, bytes]:
        channel = Channel(ours.detach(), lambda frame: None)
        assert channel.try_hold(f.Type.EVENT, f.Event.TOOL, 0, 0, 0, 1, b"begun")
        assert channel.try_send(f.Type.CALL, f.Call.CHAT, 0, 0, 1, 1, b"asked")
        together = theirs.recv(4096)
        assert channel.try_hold(f.Type.EVENT, f.Event.TOOL, 0, 0, 0, 1, b"alone")
        alone = await asyncio.get_running_loop().run_in_executor(None, theirs.recv, 4096)
        channel._sock.close()
        return together, alone

    together, alone = asyncio.run(scenario())
    assert [frame.payload for frame in f.Decoder().feed(together)] == [b"begun", b"asked"]
    assert [frame.payload for frame in f.Decoder().feed(alone)] == [b"alone"]
    theirs.close()
