"""A note for the notice board: written, shortened until it fits, and shown to a person before it goes out."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import interrupt

#: Words that fit on the board.
WORDS = 20
#: After so many drafts a person decides about the last one.
DRAFTS = 3


class State(TypedDict, total=False):
    """What the nodes hand on; `messages` begins with the task."""

    messages: Annotated[list[AnyMessage], add_messages]
    draft: str
    drafts: int


def graph(model: BaseChatModel, checkpointer: BaseCheckpointSaver[str]) -> Any:
    """The engine hands over its model, and a checkpointer on its store: a run that was cut or waited goes on where it was."""

    async def write(state: State) -> State:
        if draft := state.get("draft"):
            asked = f"Say it in at most {WORDS} words: {draft}"
        else:
            asked = f"Write a note of at most {WORDS} words: {state['messages'][-1].text}"
        answer = await model.ainvoke(asked)
        return {"draft": str(answer.text), "drafts": state.get("drafts", 0) + 1}

    def fits(state: State) -> Literal["write", "show"]:
        return "show" if len(state["draft"].split()) <= WORDS or state["drafts"] >= DRAFTS else "write"

    def show(state: State) -> State:
        answer = interrupt({"question": "May this go on the board? yes or no", "draft": state["draft"]})
        is_allowed = str(answer).strip().lower() == "yes"
        return {"messages": [AIMessage(state["draft"] if is_allowed else "The note was not put up.")]}

    builder = StateGraph(State)
    builder.add_node("write", write)
    builder.add_node("show", show)
    builder.add_edge(START, "write")
    builder.add_conditional_edges("write", fits)
    builder.add_edge("show", END)
    return builder.compile(checkpointer=checkpointer)
