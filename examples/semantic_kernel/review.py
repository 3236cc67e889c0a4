"""A writer, then a critic: a sequential orchestration."""

from semantic_kernel.agents import ChatCompletionAgent, SequentialOrchestration


def review(service) -> SequentialOrchestration:
    """The engine hands its model over as `service`."""
    writer = ChatCompletionAgent(service=service, name="writer", description="writes", instructions="You write a slogan.")
    critic = ChatCompletionAgent(service=service, name="critic", description="judges", instructions="You improve the slogan.")
    return SequentialOrchestration(members=[writer, critic])
