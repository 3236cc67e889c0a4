"""Tasks side by side in one worker of each framework: none hears of another, and what cannot be shared is refused."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from singularity_agents._proto.singularity.agents.v1 import agent_service_pb2, common_pb2, provider_service_pb2, task_pb2
from singularity_agents._proto.singularity.worker.v1 import worker_pb2
from singularity_agents.worker import _frames as f

from ..worker.peer import Peer, chat_response
from .conftest import FRAMEWORKS

Start = Callable[[str], Peer]
#: Frameworks whose workers take several tasks.
SHARING = tuple(name for name in FRAMEWORKS if name != "crewai")
#: Tasks at once.
TASKS = 3


def bound(start: Start, tmp_path: Path, framework: str, entrypoint: str = "") -> Peer:
    """A worker for tasks side by side, with a tool of the user's where it runs the engine's own agent."""
    for name in ("entries", "ready", "code"):
        shutil.copy(Path(__file__).parent / f"sample_{name}.py", tmp_path / f"{name.replace('code', 'users_code')}.py")
    peer = start(framework)
    peer.bind(
        entrypoint,
        tmp_path,
        tools=() if entrypoint else ["users_code:double"],
        agent=agent_service_pb2.Agent(id="it", framework=framework, instructions="Be exact."),
        storage_dir=tmp_path,
        concurrency=TASKS,
    )
    return peer


class Node:
    """The node's part for all tasks: a round of their model calls is answered when each of them has asked."""

    def __init__(self, peer: Peer, answer: Callable[[str, int], Any]) -> None:
        self._peer = peer
        #: Gives a task's answer by its name and the number of its call.
        self._answer = answer
        self.asked: dict[str, list[provider_service_pb2.ChatRequest]] = defaultdict(list)
        self.begun: dict[str, list[worker_pb2.ToolBegin]] = defaultdict(list)
        self.results: dict[str, tuple[int, worker_pb2.Result]] = {}
        self._open: list[f.Frame] = []

    def run(self, cancelled: str = "") -> None:
        """Until all have ended; one may be cancelled when all wait for their first answer."""
        for slot in range(TASKS):
            task = task_pb2.AgentTask(description=f"about {name_of(slot)}")
            task.context.conversation_history.add(role=common_pb2.ROLE_USER).content.add(text=f"said {name_of(slot)}")
            agent = agent_service_pb2.Agent(id="it", instructions="Be exact.")
            self._peer.execute(task=task, slot=slot, fence=100 + slot, agent=agent)
        while len(self.results) < TASKS:
            frame = self._peer.next()
            name = name_of(frame.slot)
            if frame.type in (f.Type.RESULT, f.Type.CALL, f.Type.EVENT):
                assert frame.fence == 100 + frame.slot
            if frame.type == f.Type.RESULT:
                self.results[name] = (frame.kind, worker_pb2.Result.FromString(frame.payload))
            elif frame.type == f.Type.CALL and frame.kind == f.Call.CHAT:
                self._open.append(frame)
                self.asked[name].append(provider_service_pb2.ChatRequest.FromString(frame.payload))
            elif frame.type == f.Type.CALL:
                if frame.kind == f.Call.TOOL_BEGIN:
                    self.begun[name].append(worker_pb2.ToolBegin.FromString(frame.payload))
                self._peer.reply(frame, b"")
            if len(self._open) == TASKS - len(self.results):
                if cancelled and not self.results:
                    slot = next(c.slot for c in self._open if name_of(c.slot) == cancelled)
                    self._open = [c for c in self._open if c.slot != slot]
                    self._peer.send(f.Type.CANCEL, slot=slot, call_id=5000, fence=100 + slot)
                    continue
                self._round()

    def _round(self) -> None:
        for call in reversed(self._open):
            name = name_of(call.slot)
            response = self._answer(name, len(self.asked[name]))
            if call.flags & f.FLAG_STREAM:
                for part in response.message.content:
                    piece = provider_service_pb2.StreamChatResponse(text_delta=part.text).SerializeToString()
                    self._peer.reply(call, piece, f.FLAG_STREAM, f.Type.REPLY_CHUNK)
            self._peer.reply(call, response.SerializeToString())
        self._open = []

    def heard_of_their_own(self) -> None:
        """No model call of a task has words of another in it."""
        for name, requests in self.asked.items():
            for request in requests:
                assert name in str(request.messages), name
                for other in map(name_of, range(TASKS)):
                    assert other == name or other not in str(request.messages), f"{name} heard of {other}"


def name_of(slot: int) -> str:
    """What a task is about."""
    return ("apples", "pears", "plums")[slot]


def after_a_tool(tool: str, arguments: Callable[[str], str]) -> Callable[[str, int], Any]:
    """A model that calls a tool first, with arguments of the task's own."""
    return lambda name, number: (
        chat_response(tool_calls=[(f"c-{name}", tool, arguments(name))]) if number == 1 else chat_response(f"done {name}")
    )


def succeeded(node: Node, cancelled: str) -> Iterator[tuple[str, Any]]:
    """Name and end of each task that was not cancelled; the one that was has ended so."""
    for name, (status, result) in node.results.items():
        if name == cancelled:
            assert status == f.Status.CANCELLED
        else:
            assert status == f.Status.SUCCEEDED, result.error
            yield name, result


@pytest.mark.parametrize("framework", SHARING)
def test_agents_of_the_engines_making(start: Start, tmp_path: Path, framework: str) -> None:
    peer = bound(start, tmp_path, framework)
    for cancelled in ("", "pears", ""):
        # The second and third time agents that were kept run again.
        peer.seen.clear()
        node = Node(peer, after_a_tool("double", lambda name: f'{{"n": {len(name)}}}'))
        node.run(cancelled)
        node.heard_of_their_own()
        for name, result in succeeded(node, cancelled):
            assert result.result.output == f"done {name}"
            assert node.begun[name][0].arguments == f'{{"n":{len(name)}}}'
            assert node.asked[name][1].messages[-1].content[0].text == str(2 * len(name))
        for slot in range(TASKS):
            text = b"".join(e.payload for e in peer.seen if e.type == f.Type.EVENT and e.kind == f.Event.TEXT and e.slot == slot)
            assert text.decode() == ("" if name_of(slot) == cancelled else f"done {name_of(slot)}")


@pytest.mark.parametrize(
    ("framework", "entrypoint", "tool"),
    [
        ("langchain", "entries:chain", ""),
        ("langgraph", "entries:graph", ""),
        ("langgraph", "ready:graph", ""),
        ("autogen", "entries:round_robin", "measure"),
        ("haystack", "ready:haystack_agent", "measure"),
        ("haystack", "ready:pipeline", ""),
        ("semantic_kernel", "ready:kernel_agent", "Lab-measure"),
        ("semantic_kernel", "entries:sequential", ""),
        ("agent_framework", "ready:maf_agent", "measure"),
        ("agent_framework", "entries:workflow", ""),
    ],
)
@pytest.mark.parametrize("cancelled", ["", "pears"])
def test_what_users_bring(start: Start, tmp_path: Path, framework: str, entrypoint: str, tool: str, cancelled: str) -> None:
    peer = bound(start, tmp_path, framework, entrypoint)

    def answer(name: str, number: int) -> Any:
        if tool and number == 1:
            return chat_response(tool_calls=[(f"c-{name}", tool, f'{{"what": "{name}"}}')])
        return chat_response(f"done {name}")

    node = Node(peer, answer)
    node.run(cancelled)
    node.heard_of_their_own()
    for name, result in succeeded(node, cancelled):
        assert f"done {name}" in result.result.output
        if tool:
            assert [name in begin.arguments for begin in node.begun[name]] == [True]


@pytest.mark.parametrize(
    ("framework", "entrypoint"),
    [
        ("autogen", "ready:round_robin"),
        ("semantic_kernel", "ready:sequential"),
        ("agent_framework", "ready:workflow"),
    ],
)
def test_a_ready_object_with_state_is_refused(start: Start, tmp_path: Path, framework: str, entrypoint: str) -> None:
    said = refused(start, tmp_path, framework, entrypoint)
    assert said == (
        f'LookupError: "{entrypoint}" is one object, and concurrency = 3 runs 3 tasks side by side: '
        "name a function that makes one for each task"
    )


def test_crewai_takes_one_task_at_a_time(start: Start, tmp_path: Path) -> None:
    assert refused(start, tmp_path, "crewai", "entries:crew").startswith("LookupError: concurrency = 3: CrewAI runs one task")


@pytest.mark.parametrize(
    ("framework", "entrypoint"),
    [
        ("autogen", "ready:same_team"),
        ("semantic_kernel", "ready:same_orchestration"),
        ("agent_framework", "ready:same_workflow"),
    ],
)
def test_a_function_that_gives_one_object_again_fails_the_second_task(
    start: Start, tmp_path: Path, framework: str, entrypoint: str
) -> None:
    peer = bound(start, tmp_path, framework, entrypoint)
    peer.execute("one", slot=0, fence=100)
    peer.expect(f.Type.CALL, skip_events=True)
    peer.execute("two", slot=1, fence=101)
    while (frame := peer.next()).type != f.Type.RESULT:
        pass
    error = worker_pb2.Result.FromString(frame.payload).error
    assert frame.slot == 1 and f'"{entrypoint}" gives the same object again' in error.message


def refused(start: Start, tmp_path: Path, framework: str, entrypoint: str) -> str:
    """What READY says where the agent cannot be loaded."""
    for name in ("entries", "ready"):
        shutil.copy(Path(__file__).parent / f"sample_{name}.py", tmp_path / f"{name}.py")
    peer = start(framework)
    peer.hello()
    agent = agent_service_pb2.Agent(id="it", framework=framework)
    peer.init(entrypoint, tmp_path, agent=agent, storage_dir=tmp_path, concurrency=TASKS)
    frame = peer.expect(f.Type.READY)
    assert frame.flags & f.FLAG_ERROR
    error = worker_pb2.Error.FromString(frame.payload)
    assert error.reason == "WORKER_START_FAILED"
    return error.message
