"""Plain scripts that use the framework classes of the package against a node, each in the environment of its framework."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from google.rpc import error_details_pb2

from singularity_agents.testing import Node, ScriptedModel, ToolCall

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = Path(os.environ.get("SINGULARITY_ENVIRONMENTS", ROOT / "_build" / "venvs"))

CREW = """
from singularity_agents import Client, SingularityCrewAIIntegration

with Client() as client:
    integration = SingularityCrewAIIntegration(client)
    crew = integration.create_enhanced_crew({
        "agents": [{"role": "Reader", "goal": "Read", "backstory": "Reads", "tools": [
            {"type": "federated_ai", "name": "second_opinion", "description": "Asks another model."}]}],
        "tasks": [{"description": "Read", "expected_output": "facts", "agent_index": 0}],
        "memory": True,
    })
    print("said:", crew.kickoff().raw, crew.usage_metrics.successful_requests)
    print("kept:", client.memory.get("default", "moon").value)
"""

CHAIN = """
import asyncio
from singularity_agents import SingularityLangChainAgent

made = SingularityLangChainAgent(conversation="moon")

async def main():
    print("said:", await made.execute_with_langchain("Who are you?"))
    print("said:", await made.execute_with_langchain("And who am I?"))
    print("memory:", await made.access_distributed_memory("set", key="k", value="v"),
          await made.access_distributed_memory("get", key="k"))
    print("asked:", await made.execute_with_provider_federation("A word?"))
    print("tools:", sorted(tool.name for tool in made.create_langchain_tools()))
    print("optimized:", await made.optimize_execution("a\\nb", "parallel"))

asyncio.run(main())
print("kept:", [m.type for m in made.get_distributed_memory_adapter().messages])
"""


def run(framework: str, text: str, node: Node, folder: Path) -> str:
    """What a script prints."""
    python = ENVIRONMENTS / framework / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} is missing; run: singularity frameworks install {framework}")
    # Environments of workers have all that a client needs but one package, which comes from the tests' own.
    (folder / "more" / "google").mkdir(parents=True)
    (folder / "more" / "google" / "rpc").symlink_to(Path(error_details_pb2.__file__).parent)
    path = os.pathsep.join((str(ROOT / "python_workers" / "src"), str(folder / "more")))
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": path, "SINGULARITY_ADDRESS": node.address,
    }  # fmt: skip
    done = subprocess.run(
        [python, "-c", text], env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_crew_in_a_script(tmp_path: Path) -> None:
    remembers = ToolCall("distributed_memory", op="set", key="moon", value="bright")
    model = ScriptedModel(ToolCall("second_opinion", prompt="Is it so?"), "It is so.", remembers, "facts")
    with model, Node(model=model) as node:
        said = run("crewai", CREW, node, tmp_path)
    assert "said: facts 3" in said and "kept: bright" in said
    assert model.asked[1].last == "Is it so?" and "It is so." in model.asked[2].last


def test_a_chain_in_a_script(tmp_path: Path) -> None:
    model = ScriptedModel("I am an agent.", "You are a person.", "Word", "Done", "Done")
    with model, Node(model=model) as node:
        said = run("langchain", CHAIN, node, tmp_path)
    lines = said.splitlines()
    assert lines[:2] == ["said: I am an agent.", "said: You are a person."]
    assert "I am an agent." in str(model.asked[1].messages), "the conversation is remembered"
    assert lines[2].endswith(" v") and lines[3] == "asked: Word"
    assert lines[4] == "tools: ['ai_provider_federation', 'distributed_memory', 'performance_optimization']"
    assert lines[5:] == ['optimized: ["Done", "Done"]', "kept: ['human', 'ai', 'human', 'ai']"]
