"""Graphs of the end-to-end tests: they ask a model, and two people at once."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import interrupt

from singularity_agents.adapters.langchain._model import EngineChatModel


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    draft: str
    editor: str
    lawyer: str


async def draft(state: State) -> dict[str, Any]:
    answer = await EngineChatModel().ainvoke("step 1")
    return {"draft": str(answer.text)}


def editor(state: State) -> dict[str, Any]:
    return {"editor": interrupt({"question": "Is it well written?", "draft": state["draft"]})}


def lawyer(state: State) -> dict[str, Any]:
    return {"lawyer": interrupt("Is it lawful?")}


def publish(state: State) -> dict[str, Any]:
    return {"messages": [AIMessage(f"{state['draft']}: {state['editor']}, {state['lawyer']}")]}


def _builder() -> Any:
    builder = StateGraph(State)
    builder.add_node("draft", draft)
    builder.add_node("editor", editor)
    builder.add_node("lawyer", lawyer)
    builder.add_node("publish", publish)
    builder.add_edge(START, "draft")
    builder.add_edge("draft", "editor")
    builder.add_edge("draft", "lawyer")
    builder.add_edge(["editor", "lawyer"], "publish")
    builder.add_edge("publish", END)
    return builder


graph = _builder().compile()
saved_graph = _builder().compile(checkpointer=InMemorySaver())
