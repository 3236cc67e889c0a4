"""A pipeline: a prompt with the question in it, and a model."""

from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.dataclasses import ChatMessage


def pipeline(generator) -> Pipeline:
    """The engine hands its model over as `generator`, and the task's text to the input named `query`."""
    made = Pipeline()
    made.add_component("prompt", ChatPromptBuilder(template=[ChatMessage.from_user("Answer in one sentence: {{query}}")]))
    made.add_component("model", generator)
    made.connect("prompt.prompt", "model.messages")
    return made
