"""A reader and a writer who work one after the other."""

from crewai import Agent, Crew, Task


def crew(llm) -> Crew:
    """The engine hands its model over as `llm`."""
    reader = Agent(role="Reader", goal="Find what matters", backstory="Reads closely", llm=llm)
    writer = Agent(role="Writer", goal="Say it in one sentence", backstory="Writes briefly", llm=llm)
    facts = Task(description="List three facts about: {description}", expected_output="three facts", agent=reader)
    text = Task(description="Make one sentence of the facts", expected_output="one sentence", agent=writer)
    return Crew(agents=[reader, writer], tasks=[facts, text])
