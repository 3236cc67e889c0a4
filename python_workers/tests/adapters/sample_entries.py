"""Users' own crews, teams, pipelines, orchestrations and workflows in the tests: each is imported where its framework is."""

from __future__ import annotations

RAN = []


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
