"""A writer and an editor who take turns until the editor is content."""

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination, TextMentionTermination
from autogen_agentchat.teams import RoundRobinGroupChat


def team(client) -> RoundRobinGroupChat:
    """The engine hands its model over as `client`."""
    writer = AssistantAgent("writer", client, system_message="You write two sentences about what is asked.")
    editor = AssistantAgent("editor", client, system_message="You improve the text. Answer APPROVED when it is good.")
    ends = TextMentionTermination("APPROVED", sources=["editor"]) | MaxMessageTermination(7)
    return RoundRobinGroupChat([writer, editor], termination_condition=ends)
