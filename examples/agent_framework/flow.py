"""A workflow: a researcher, then a writer."""

from agent_framework import Agent, Workflow, WorkflowBuilder


def flow(chat_client) -> Workflow:
    """The engine hands its model over as `chat_client`."""
    researcher = Agent(chat_client, "You gather facts.", name="researcher")
    writer = Agent(chat_client, "You write one paragraph of the facts.", name="writer")
    return WorkflowBuilder(start_executor=researcher, output_from=[writer]).add_edge(researcher, writer).build()
