"""The user's LangChain code in the tests."""

import time

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import tool as lc_tool
from langgraph.graph import END, START, MessagesState, StateGraph

from singularity_agents import tool
from singularity_agents.adapters.langchain import EngineChatModel, SingularityLangChainAgent

RAN = []


@tool(replay="journaled")
def double(n: int) -> int:
    """Doubles a number."""
    RAN.append(n)
    return 2 * n


@lc_tool
def fail(why: str) -> str:
    """Fails."""
    raise ValueError(why)


@lc_tool
async def slow(seconds: float) -> str:
    """Waits in a thread-blocking way."""
    time.sleep(seconds)  # noqa: ASYNC251
    return "waited"


@lc_tool
def slow_sync(seconds: float) -> str:
    """Waits in a thread."""
    time.sleep(seconds)
    return "waited"


agent = create_agent(EngineChatModel(), [fail, slow_sync], system_prompt="Mine.")


def build(engine):
    async def think(state: MessagesState):
        return {"messages": [await EngineChatModel(model="other").ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_edge(START, "think")
    graph.add_edge("think", END)
    return graph.compile()


def sync_graph():
    def think(state: MessagesState):
        return {"messages": [EngineChatModel().invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_edge(START, "think")
    graph.add_edge("think", END)
    return graph.compile()


def streaming_graph():
    async def think(state: MessagesState):
        whole = None
        async for chunk in EngineChatModel().astream(state["messages"]):
            whole = chunk if whole is None else whole + chunk
        return {"messages": [whole]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_edge(START, "think")
    graph.add_edge("think", END)
    return graph.compile()


def with_memory():
    made = SingularityLangChainAgent()
    return create_agent(made.get_optimal_llm(), made.create_langchain_tools())


def by_name(llm, tools, config):
    return create_agent(llm, tools, system_prompt=f"Options: {sorted(config)}")


def by_type(mine: BaseChatModel, name: str = "unused"):
    return create_agent(mine, [], system_prompt="By type.")


def unknown(llm, nonsense):
    return create_agent(llm, [], checkpointer=nonsense)
