"""The class of an agent's state, made once: CrewAI puts the id of a flow into it by a new class in each run, a quarter of what a task
cost, and classes stay in memory for long.
"""

from __future__ import annotations

from crewai.agents.agent_executor import AgentExecutor
from crewai.flow.flow import FlowState


def install() -> None:
    """Gives the executor of agents a state that has its id, in this process."""
    state = AgentExecutor._initial_state_t
    if not issubclass(state, FlowState):
        AgentExecutor._initial_state_t = type("StateWithId", (FlowState, state), {"__module__": __name__})
