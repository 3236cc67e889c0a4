"""What a LangGraph graph does beyond answering: it interrupts itself, and its nodes are steps that a user wants to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import Runnable
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphBubbleUp
from langgraph.pregel import Pregel
from langgraph.types import Command, Interrupt

from ...worker._engine import Engine
from ...worker._inputs import InputNeeded, question, value
from ...worker._scope import CURRENT, Scope
from ...worker._wire import tasks
from ._saver import EngineSaver

#: Nodes shown in one run; a loop beyond it goes on unseen.
_MAX_STEPS_SHOWN = 1000
#: Where an interrupt with data says what it asks.
_PROMPTS = ("question", "prompt", "message", "description", "action")


async def invoke(agent: Runnable[Any, Any], given: Any, config: Any) -> Any:
    """Runs an agent to its end, or until an interrupt that nobody has answered. Raises InputNeeded then.

    A graph with a saver of its own goes on from where it stands in it: after an answer, and with the engine's saver also after the
    end of its process. One without runs again from its beginning, with a saver for the length of the run: its model calls and tools
    are answered as before.
    """
    if not isinstance(agent, Pregel):
        return await agent.ainvoke(given, config)
    scope = CURRENT.get()
    answers = scope.answers if scope is not None else {}
    asked = 0
    options: dict[str, Any] = {}
    if scope is not None and isinstance(agent.checkpointer, EngineSaver):
        if await _stands(agent.checkpointer, scope):
            given = None
        # What a node gave is on disk before the next one begins.
        options["durability"] = "sync"
    if agent.checkpointer or answers:
        config["configurable"] = {"thread_id": scope.task_id if scope is not None else "local"}
    if agent.checkpointer and answers:
        pending = (await agent.aget_state(config)).interrupts
        if pending:
            # Whatever was asked is answered, and what waits in the saver was asked last.
            asked = sum(1 for name in answers if name.startswith("input-")) - len(pending)
            given, asked = _resume(pending, answers, asked)
    elif answers:
        agent = agent.copy({"checkpointer": InMemorySaver()})
    while True:
        state = await agent.ainvoke(given, config, **options)
        interrupts = state.get("__interrupt__") if isinstance(state, Mapping) else None
        if not interrupts:
            return state
        given, asked = _resume(interrupts, answers, asked)


async def _stands(saver: EngineSaver, scope: Scope) -> bool:
    """Whether an earlier attempt has brought the task's graph to a checkpoint, from which this one goes on.

    What the graph has done before it is not done again, so calls of tools and questions are counted by node from here on.
    """
    scope.place = _node
    return await saver.aget_tuple({"configurable": {"thread_id": scope.task_id}}) is not None


def _node() -> str:
    """The run of the node that the code belongs to: its name is made of checkpoint, node and step, so a resumed one has the same."""
    config = var_child_runnable_config.get()
    return str(((config or {}).get("configurable") or {}).get("__pregel_task_id") or "")


def _resume(interrupts: Sequence[Interrupt], answers: Mapping[str, tasks.InputAnswer], asked: int) -> tuple[Command[Any], int]:
    """The answers to interrupts in their order; raises InputNeeded for those without one."""
    names = {interrupt.id: f"input-{asked + number}" for number, interrupt in enumerate(interrupts, 1)}
    missing = [_asks(names[i.id], i.value) for i in interrupts if names[i.id] not in answers]
    if missing:
        raise InputNeeded(missing)
    return Command(resume={i.id: _said(i.value, value(answers[names[i.id]])) for i in interrupts}), asked + len(interrupts)


def _said(asked: Any, answer: Any) -> Any:
    """An answer in the words of who asked: LangChain's middleware for tools wants a decision for each of them."""
    if not isinstance(asked, Mapping) or "action_requests" not in asked or isinstance(answer, Mapping):
        return answer
    decision = {"type": "approve"} if answer is True else {"type": "reject"}
    if isinstance(answer, str):
        decision["message"] = answer
    return {"decisions": [decision] * len(asked["action_requests"])}


def _asks(input_id: str, asked: Any) -> tasks.InputRequested:
    if not isinstance(asked, Mapping):
        return question(input_id, "question", str(asked))
    prompt = next((str(asked[key]) for key in _PROMPTS if asked.get(key)), "the graph waits for an answer")
    # The word of LangChain's own middleware for tools that a person must allow.
    kind = "approval" if "action_requests" in asked else "question"
    return question(input_id, kind, prompt, {str(key): _plain(item) for key, item in asked.items()})


def _plain(item: Any) -> Any:
    if isinstance(item, Mapping):
        return {str(key): _plain(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [_plain(one) for one in item]
    return item if isinstance(item, (str, int, float, bool)) or item is None else str(item)


class NodeSteps(BaseCallbackHandler):
    """Begins and ends of a graph's nodes, as steps of the task."""

    run_inline = True

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[UUID, str] = {}
        self._shown = 0

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, metadata: dict[str, Any] | None = None, name: str = "", **_: Any
    ) -> None:
        """A node, or something inside of one, which is not shown."""
        if not name or (metadata or {}).get("langgraph_node") != name or self._shown >= _MAX_STEPS_SHOWN:
            return
        self._shown += 1
        self._open[run_id] = name
        self._engine.step("node", name)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        """It has ended."""
        self._end(run_id, False)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """It has failed, or asks for something."""
        self._end(run_id, not isinstance(error, (GraphBubbleUp, InputNeeded)))

    def _end(self, run_id: UUID, is_error: bool) -> None:
        name = self._open.pop(run_id, None)
        if name is not None:
            self._engine.step("node", name, started=False, is_error=is_error)
