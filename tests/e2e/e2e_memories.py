"""Code of the end-to-end tests of memory: graphs on the engine's saver and store, and what a graph asks of both."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import interrupt

from singularity_agents import SingularityError
from singularity_agents.adapters.langchain._model import EngineChatModel
from singularity_agents.worker._memory import Memory
from singularity_agents.worker._runtime import engine


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    said: Annotated[list[str], lambda old, new: old + new]


def one_node(node: Any, **compiled: Any) -> Any:
    """A graph of one node, whose text is the answer."""

    async def run(state: State) -> dict[str, Any]:
        return {"messages": [AIMessage(json.dumps(await node(str(state["messages"][-1].text))))]}

    builder = StateGraph(State)
    builder.add_node("run", run)
    builder.add_edge(START, "run")
    builder.add_edge("run", END)
    return builder.compile(**compiled)


def conformance(checkpointer: Any) -> Any:
    """The public suite for checkpointers, against the engine's."""

    async def check(_: str) -> Any:
        from langgraph.checkpoint.conformance import checkpointer_test, validate

        @checkpointer_test(name="engine")
        async def engine() -> Any:
            yield checkpointer

        report = await validate(engine)
        return {name: [r.detected, r.passed, r.tests_passed, r.failures] for name, r in report.results.items()}

    return one_node(check)


def kept(store: Any, memory: Any) -> Any:
    """Everything that LangGraph's store can be asked for."""

    async def use(what: str) -> Any:
        if what == "read":
            found = await store.aget(("users", "a/b"), "likes")
            return [found.value, await memory.get("count"), await memory.messages("talk")]
        await store.aput(("users", "a/b"), "likes", {"food": "figs", "score": 5})
        await store.aput(("users", "c"), "likes", {"food": "plums", "score": 3})
        await store.aput(("users", "c"), "gone", {"x": 1})
        await store.adelete(("users", "c"), "gone")
        await store.adelete(("users", "c"), "never there")
        await store.aput(("short",), "k", {"x": 1}, ttl=0.001)
        await asyncio.to_thread(store.put, ("threads",), "k", {"from": "a thread"})
        first = await memory.put("count", 1, expected_version=0)
        second = await memory.put("count", first + 1, expected_version=first)
        try:
            await memory.put("count", 9, expected_version=first)
            refused = ""
        except SingularityError as error:
            refused = error.reason
        await memory.append("talk", ("user", "hello"), ("assistant", "hi"))
        try:
            await store.asearch(("users",), query="fruit")
            meaning = ""
        except SingularityError as error:
            meaning = error.reason
        found = await store.asearch(("users",))
        high = await store.asearch(("users",), filter={"score": {"$gt": 4}})
        return {
            "found": [[list(item.namespace), item.key, item.value["food"]] for item in found],
            "high": [item.value["food"] for item in high],
            "second page": [item.value["food"] for item in await store.asearch(("users",), limit=1, offset=1)],
            "namespaces": [list(n) for n in await store.alist_namespaces(prefix=("users",))],
            "depth": [list(n) for n in await store.alist_namespaces(max_depth=1) if n != ("short",)],
            "thread": (await store.aget(("threads",), "k")).value,
            "versions": [first, second], "refused": refused, "meaning": meaning, "list": await memory.list(),
        }  # fmt: skip

    return one_node(use)


def three_steps(checkpointer: BaseCheckpointSaver[str], memory: Memory) -> Any:
    """Each step asks the model and uses a tool with the same words; the second one is killed once, and may ask a person."""

    @tool
    async def stamp(text: str) -> int:
        """Counts how often it has run."""
        times = await memory.get("stamps", 0) + 1
        await memory.put("stamps", times)
        return times

    def step(name: str) -> Any:
        async def run(state: State) -> dict[str, Any]:
            answer = await EngineChatModel().ainvoke([HumanMessage(f"step {name}")])
            said = f"{answer.text} {await stamp.ainvoke({'text': 'the same'})}"
            told = str(state["messages"][0].text)
            if name == "2" and "die" in told and not await memory.get("died", False):
                await memory.put("died", True)
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "2" and "interrupt" in told:
                said += f" {interrupt('Well?')}"
            if name in ("1", "2") and "ask" in told:
                said += f" {await engine().ask(f'Well, {name}?')}"
            return {"said": [said], **({"messages": [AIMessage("; ".join([*state["said"], said]))]} if name == "3" else {})}

        return run

    builder = StateGraph(State)
    for name in ("1", "2", "3"):
        builder.add_node(name, step(name))
    builder.add_edge(START, "1")
    builder.add_edge("1", "2")
    builder.add_edge("2", "3")
    builder.add_edge("3", END)
    return builder.compile(checkpointer=checkpointer)
