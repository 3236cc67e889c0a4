"""Users' own crews, teams, pipelines, orchestrations and workflows in the tests: each is imported where its framework is."""

from __future__ import annotations

RAN = []


def chain(engine):
    from langchain.agents import create_agent

    from singularity_agents.adapters.langchain import EngineChatModel

    return create_agent(EngineChatModel(), [])


def graph(engine):
    from langgraph.graph import END, START, MessagesState, StateGraph

    from singularity_agents.adapters.langchain import EngineChatModel

    async def write(state):
        return {"messages": [await EngineChatModel().ainvoke(state["messages"])]}

    made = StateGraph(MessagesState)
    made.add_node("write", write)
    made.add_edge(START, "write")
    made.add_edge("write", END)
    return made.compile()


def crew(llm, tools):
    from crewai import Agent, Crew, Task
    from crewai.tools import tool

    @tool("measure")
    def measure(what: str) -> str:
        """Measures something."""
        RAN.append(what)
        return f"{what}: {len(RAN)}"

    reader = Agent(role="Reader", goal="Read", backstory="Reads", llm=llm, tools=[measure])
    writer = Agent(role="Writer", goal="Write", backstory="Writes")
    first = Task(description="Read about {topic}", expected_output="facts", agent=reader)
    second = Task(description="Write it up", expected_output="a text", agent=writer)
    return Crew(agents=[reader, writer], tasks=[first, second])


def round_robin(client):
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.conditions import MaxMessageTermination
    from autogen_agentchat.teams import RoundRobinGroupChat

    def measure(what: str) -> str:
        """Measures something."""
        RAN.append(what)
        return f"{what}: {len(RAN)}"

    first = AssistantAgent("reader", client, tools=[measure], max_tool_iterations=3)
    return RoundRobinGroupChat([first, AssistantAgent("writer", client)], termination_condition=MaxMessageTermination(3))


def selector(client):
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.conditions import MaxMessageTermination
    from autogen_agentchat.teams import SelectorGroupChat

    members = [AssistantAgent(name, client, description=name) for name in ("reader", "writer")]
    return SelectorGroupChat(members, client, termination_condition=MaxMessageTermination(2))


def swarm(client):
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.conditions import MaxMessageTermination
    from autogen_agentchat.teams import Swarm

    first = AssistantAgent("reader", client, handoffs=["writer"])
    return Swarm([first, AssistantAgent("writer", client)], termination_condition=MaxMessageTermination(5))


def pipeline(generator):
    from haystack import Pipeline
    from haystack.components.builders import ChatPromptBuilder
    from haystack.dataclasses import ChatMessage

    made = Pipeline()
    made.add_component("prompt", ChatPromptBuilder(template=[ChatMessage.from_user("Asked: {{query}}")]))
    made.add_component("model", generator)
    made.connect("prompt.prompt", "model.messages")
    return made


def haystack_agent(generator):
    from haystack.components.agents import Agent
    from haystack.tools import create_tool_from_function

    def measure(what: str) -> str:
        """Measures something."""
        RAN.append(what)
        return f"{what}: {len(RAN)}"

    return Agent(chat_generator=generator, tools=[create_tool_from_function(measure)])


def _members(service):
    from semantic_kernel.agents import ChatCompletionAgent

    return [ChatCompletionAgent(service=service, name=name, description=name) for name in ("reader", "writer")]


def sequential(service):
    from semantic_kernel.agents import SequentialOrchestration

    return SequentialOrchestration(members=_members(service))


def concurrent(service):
    from semantic_kernel.agents import ConcurrentOrchestration

    return ConcurrentOrchestration(members=_members(service))


def group_chat(service):
    from semantic_kernel.agents import GroupChatOrchestration, RoundRobinGroupChatManager

    return GroupChatOrchestration(members=_members(service), manager=RoundRobinGroupChatManager(max_rounds=2))


def handoff(service):
    from semantic_kernel.agents import HandoffOrchestration, OrchestrationHandoffs

    members = _members(service)
    return HandoffOrchestration(members=members, handoffs=OrchestrationHandoffs().add("reader", "writer", "to write"))


def kernel_agent(service):
    from semantic_kernel.agents import ChatCompletionAgent
    from semantic_kernel.functions import kernel_function

    class Lab:
        @kernel_function(name="measure", description="Measures something.")
        def measure(self, what: str) -> str:
            RAN.append(what)
            return f"{what}: {len(RAN)}"

    return ChatCompletionAgent(service=service, name="lab", plugins=[Lab()])


def maf_agent(client):
    from agent_framework import Agent, tool

    @tool(approval_mode="never_require")
    def measure(what: str) -> str:
        """Measures something."""
        RAN.append(what)
        return f"{what}: {len(RAN)}"

    return Agent(client, "You measure.", name="lab", tools=[measure])


def workflow(chat_client):
    from agent_framework import Agent, WorkflowBuilder

    reader = Agent(chat_client, "You read.", name="reader")
    writer = Agent(chat_client, "You write.", name="writer")
    return WorkflowBuilder(start_executor=reader, output_from=[writer]).add_edge(reader, writer).build()


def wrong(nonsense, more):
    """A factory whose parameters nobody knows."""


def careful_chain(engine):
    from langchain.agents import create_agent
    from langchain.agents.middleware import HumanInTheLoopMiddleware
    from langchain_core.tools import tool

    from singularity_agents.adapters.langchain import EngineChatModel

    @tool
    def measure(what: str) -> str:
        """Measures something."""
        RAN.append(what)
        return f"{what}: {len(RAN)}"

    return create_agent(EngineChatModel(), [measure], middleware=[HumanInTheLoopMiddleware({"measure": True})])


def interrupted_graph(engine):
    from langchain_core.messages import AIMessage
    from langgraph.graph import END, START, MessagesState, StateGraph
    from langgraph.types import interrupt

    async def write(state):
        return {"messages": [AIMessage(f"well: {interrupt({'question': 'Is it good?'})}")]}

    made = StateGraph(MessagesState)
    made.add_node("write", write)
    made.add_edge(START, "write")
    made.add_edge("write", END)
    return made.compile()


def reviewed_crew(llm):
    from crewai import Agent, Crew, Task

    writer = Agent(role="Writer", goal="Write", backstory="Writes", llm=llm)
    return Crew(agents=[writer], tasks=[Task(description="Write", expected_output="a text", agent=writer, human_input=True)])


def proxied(client):
    from autogen_agentchat.agents import AssistantAgent, UserProxyAgent
    from autogen_agentchat.conditions import MaxMessageTermination
    from autogen_agentchat.teams import RoundRobinGroupChat

    members = [AssistantAgent("writer", client), UserProxyAgent("boss")]
    return RoundRobinGroupChat(members, termination_condition=MaxMessageTermination(4))


def handed_to_user(client):
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.conditions import HandoffTermination, MaxMessageTermination
    from autogen_agentchat.teams import Swarm

    ends = HandoffTermination("user") | MaxMessageTermination(8)
    return Swarm([AssistantAgent("writer", client, handoffs=["user"])], termination_condition=ends)


def confirmed(generator):
    from haystack.components.agents import Agent
    from haystack.hooks.human_in_the_loop import (
        AlwaysAskPolicy,
        BlockingConfirmationStrategy,
        ConfirmationHook,
        SimpleConsoleUI,
    )
    from haystack.tools import create_tool_from_function

    def measure(what: str) -> str:
        """Measures something."""
        RAN.append(what)
        return f"{what}: {len(RAN)}"

    asks = BlockingConfirmationStrategy(confirmation_policy=AlwaysAskPolicy(), confirmation_ui=SimpleConsoleUI())
    hooks = {"before_tool": [ConfirmationHook({"*": asks})]}
    return Agent(chat_generator=generator, tools=[create_tool_from_function(measure)], hooks=hooks)


def handoff_to_person(service):
    from semantic_kernel.agents import HandoffOrchestration, OrchestrationHandoffs

    from singularity_agents.adapters.semantic_kernel import ask_person

    handoffs = OrchestrationHandoffs().add("reader", "writer", "to write")
    return HandoffOrchestration(members=_members(service), handoffs=handoffs, human_response_function=ask_person)


def approved_tool(client):
    from agent_framework import Agent, tool

    @tool(approval_mode="always_require")
    def measure(what: str) -> str:
        """Measures something."""
        RAN.append(what)
        return f"{what}: {len(RAN)}"

    return Agent(client, "You measure.", name="lab", tools=[measure])


def integrated_crew(engine):
    from crewai.tools import tool

    from singularity_agents import SingularityCrewAIIntegration

    @tool("measure")
    def measure(what: str) -> str:
        """Measures something."""
        RAN.append(what)
        return f"{what}: {len(RAN)}"

    parameters = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
    tools = [
        {"type": "native_enhanced", "name": "calculate", "description": "Calculates.", "parameters": parameters},
        {"type": "federated_ai", "name": "second_opinion", "requirements": {"model": "clever"}},
        {"type": "standard", "tool": measure},
    ]
    config = {
        "agents": [{"role": "Reader", "goal": "Read", "backstory": "Reads", "tools": tools}],
        "tasks": [{"description": "Read about {description}", "expected_output": "facts", "agent_index": 0}],
        "process": "sequential",
        "memory": True,
    }
    return SingularityCrewAIIntegration(engine).create_enhanced_crew(config)
