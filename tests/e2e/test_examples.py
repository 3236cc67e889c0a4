"""Every project under examples/: the agent on a scripted model, and the commands of its README as they stand there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from conftest import eventually

from singularity_agents._local_node import free_port, serving
from singularity_agents._transport import Target
from singularity_agents.testing import Node, ScriptedModel, ToolCall

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
#: What the last command prints, with the provider of the example's file.
SAID: Final = {
    "agent_framework": "The history of tea",
    "autogen": "Why do leaves fall?",
    "crewai": "Rivers of Finland",
    "haystack": "Answer in one sentence: What is a pipeline?",
    "langchain": "3.20 euros",
    "langgraph": "The lift is out of order until Monday",
    "semantic_kernel": "echo echo echo echo echo echo",
}


def agent_of(example: str) -> str:
    """The agent as its file configures it, wherever the node runs."""
    text = (EXAMPLES / example / "singularity.toml").read_text().partition("[providers.")[0]
    return text.replace(f'project = "examples/{example}"', f'project = "{EXAMPLES / example}"')


def test_each_framework_has_an_example_that_is_tested() -> None:
    assert {file.parent.name for file in EXAMPLES.glob("*/README.md") if "```console" in file.read_text()} == set(SAID)


@pytest.mark.parametrize("example", ["agent_framework", "autogen", "crewai", "haystack", "semantic_kernel"])
def test_the_example_runs(example: str) -> None:
    model = ScriptedModel("first", "second: APPROVED", "more")
    with model, Node(model=model, config=agent_of(example)) as node:
        assert node.client.execute("What is it?", agent=f"{example}_example").output in ("first", "second: APPROVED")
    assert "What is it?" in str(model.asked[0].messages)


def test_the_desk_of_langchain_looks_the_price_up() -> None:
    model = ScriptedModel(ToolCall("price_of", item="Tea"), lambda asked: f"Tea is {asked.last}.")
    with model, Node(model=model, config=agent_of("langchain")) as node:
        result = node.client.execute("What does tea cost?", agent="langchain_example")
    assert result.output == "Tea is 3.20 euros."
    assert list(model.asked[0].tools) == ["price_of"]


@pytest.mark.parametrize(("answer", "said"), [("yes", "Closed on Monday."), ("no", "The note was not put up.")])
def test_the_note_of_langgraph_is_shortened_and_waits_for_a_person(answer: str, said: str) -> None:
    long = "Closed " + "and closed " * 20
    model = ScriptedModel(long, "Closed on Monday.")
    with model, Node(model=model, config=agent_of("langgraph")) as node:
        handle = node.client.submit("We are closed", agent="langgraph_example")
        eventually(lambda: handle.get().state == "WAITING")
        (asked,) = handle.get().pending_inputs
        assert asked.payload["draft"] == "Closed on Monday."
        node.client.signal(handle.id, input=answer)
        task = handle.wait("60s")
    assert task.output == said
    assert len(model.asked) == 2, "it goes on at its checkpoint"
    assert long.strip() in model.asked[1].last


@pytest.mark.parametrize("example", sorted(SAID))
def test_the_commands_of_the_readme_run(example: str, tmp_path: Path) -> None:
    commands = [line[2:] for line in (EXAMPLES / example / "README.md").read_text().splitlines() if line.startswith("$ ")]
    (start,) = (line for line in commands if line.endswith("&"))
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ, "SINGULARITY_ADDRESS": address, "SINGULARITY_HTTP_ADDRESS": "off", "SINGULARITY_DIST_PORT": str(free_port()),
        "SINGULARITY_DATA_DIR": str(tmp_path / "data"), "SINGULARITY_STATE_DIR": str(tmp_path / "state"),
    }  # fmt: skip
    before, after = commands[: commands.index(start)], commands[commands.index(start) + 1 :]
    shell("\n".join(before), environment)
    with node_of(start.removesuffix("&"), address, environment, tmp_path / "log"):
        assert SAID[example] in shell("\n".join(after), environment)


def shell(commands: str, environment: dict[str, str]) -> str:
    """Runs them from the root of the checkout; each must succeed. Gives what they print."""
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def node_of(command: str, address: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """The node that a command of a README starts in the background."""
    with log.open("wb") as out:
        # The shell becomes the node: what ends one ends the other.
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"], cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        eventually(lambda: serving(Target(address)) or process.poll() is not None, within_s=120)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)
