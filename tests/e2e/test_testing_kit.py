"""What users' own tests use: a real node with their agents on a scripted model; and a node for one command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import e2e_agents
import pytest

from singularity_agents import NotFound, TaskFailed
from singularity_agents.testing import Node, ScriptedModel


@pytest.fixture(scope="module")
def kit() -> Iterator[Node]:
    model = ScriptedModel(*[lambda asked: f"you said {asked.last}"] * 20)
    with Node(e2e_agents.shout, e2e_agents.asks, e2e_agents.raises, model=model) as node:
        yield node


def test_an_agent_of_the_test_runs_on_the_node_and_its_model_is_the_script(kit: Node) -> None:
    handle = e2e_agents.asks.submit("hello", client=kit.client)
    result = handle.result(timeout=60)
    assert result.output == "you said hello"
    assert result.executor == "custom:asks"


def test_many_tasks_keep_their_order(kit: Node) -> None:
    words = [f"word{n}" for n in range(12)]
    results = e2e_agents.shout.map(words, client=kit.client, concurrency=4)
    assert [getattr(r, "output", r) for r in results] == [word.upper() for word in words]


def test_the_first_error_of_many_is_raised_or_stands_in_the_list(kit: Node) -> None:
    with pytest.raises(TaskFailed):
        e2e_agents.raises.map(["a", "b"], client=kit.client, max_attempts=1)
    errors = e2e_agents.raises.map(["a"], client=kit.client, return_exceptions=True, max_attempts=1)
    assert isinstance(errors[0], TaskFailed)


def test_an_agent_that_the_node_does_not_know_says_what_to_add(kit: Node) -> None:
    with pytest.raises(NotFound, match=r"(?s)\[agents.count\].*entrypoint = \"e2e_agents:count\""):
        e2e_agents.count.submit("x", client=kit.client)


@pytest.mark.parametrize("model", ["gpt-4o", "vendor/gpt-4"])
def test_run_with_a_model_and_a_key_needs_no_node(model: str, tmp_path: Path) -> None:
    with ScriptedModel(*["It is four."] * 3) as scripted:
        environment = {
            **os.environ, "OPENAI_API_KEY": "sk-canary", "OPENAI_BASE_URL": scripted.base_url,
            "SINGULARITY_ADDRESS": "127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "singularity_agents.cli", "run", "What is 2+2?", "--model", model],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "It is four." in done.stdout
    assert scripted.asked[0].model == model
    assert "sk-canary" not in done.stdout + done.stderr


def test_a_known_model_does_not_stand_for_a_shorter_name(kit: Node, tmp_path: Path) -> None:
    """`scripted` is known to the node; `script`, with which it begins, is not."""
    with ScriptedModel("from a node of its own") as scripted:
        environment = {**os.environ, "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": scripted.base_url}
        done = subprocess.run(
            [sys.executable, "-m", "singularity_agents.cli", "run", "hi", "--model", "script", "--address", kit.address],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "from a node of its own" in done.stdout
