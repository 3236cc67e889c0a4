"""Memory of agents and conversations that tasks go on with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import KillableNode, LocalNode, eventually, openai_provider

from singularity_agents import Client, SingularityError
from singularity_agents.testing import Asked, ScriptedModel


def test_values_have_versions_and_a_writer_that_saw_an_old_one_is_refused(client: Client) -> None:
    space = "users/1"
    first = client.memory.put(space, "city", "Paris", expected_version=0)
    assert (first.version, first.value) == (1, "Paris")
    client.memory.put(space, "city", {"name": "Lyon", "since": [2019, 2024]}, expected_version=1)
    with pytest.raises(SingularityError) as refused:
        client.memory.put(space, "city", "Nice", expected_version=1)
    assert (refused.value.reason, refused.value.metadata["current_version"]) == ("VERSION_CONFLICT", "2")
    assert client.memory.get(space, "city").value == {"name": "Lyon", "since": [2019, 2024]}
    assert [v.version for v in client.memory.versions(space, "city")] == [2, 1]
    assert [i.key for i in client.memory.list(space, prefix="c")] == ["city"]
    client.memory.delete(space, "city")
    with pytest.raises(SingularityError) as gone:
        client.memory.get(space, "city")
    assert gone.value.reason == "MEMORY_NOT_FOUND"


@pytest.mark.parametrize(
    ("namespace", "key", "field"),
    [
        ("", "k", "namespace"),
        ("a//b", "k", "namespace"),
        ("a/" * 16 + "b", "k", "namespace"),
        ("a", "", "key"),
        ("a", "\n", "key"),
    ],
)
def test_bad_names_are_refused_with_their_field(client: Client, namespace: str, key: str, field: str) -> None:
    with pytest.raises(SingularityError) as refused:
        client.memory.put(namespace, key, 1)
    assert refused.value.reason == "INVALID_FIELD"
    assert [v.field for v in refused.value.fields] == [field]


def test_search_says_that_it_has_not_come(client: Client) -> None:
    with pytest.raises(SingularityError) as refused:
        client.memory.search("users/1", "city")
    assert refused.value.reason == "CAPABILITY_PENDING"


def test_the_command_line_shows_values_and_conversations(node: LocalNode) -> None:
    def cli(*arguments: str) -> str:
        command = [sys.executable, "-m", "singularity_agents.cli", "--address", node.address, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    cli("memory", "put", "cli/1", "answer", "42", "--ttl", "1h")
    assert json.loads(cli("memory", "get", "cli/1", "answer", "-o", "json"))["value"] == 42
    assert "answer" in cli("memory", "list", "cli/1")
    assert "42" in cli("memory", "versions", "cli/1", "answer")
    cli("memory", "delete", "cli/1", "answer", "--if-version", "1")


@pytest.mark.parametrize("agent", [{"framework": "native"}, {"agent_type": "assistant", "framework": "langchain"}])
def test_a_task_goes_on_with_the_conversation_of_its_namespace(
    killable: Callable[..., KillableNode], agent: dict[str, str]
) -> None:
    heard: list[list[str]] = []

    def answer(asked: Asked) -> str:
        heard.append([str(m["content"]) for m in asked.messages if m["role"] in ("user", "assistant")])
        return f"answer {len(heard)}"

    with ScriptedModel(*[answer] * 3) as model:
        node = killable(openai_provider("scripted", model.base_url, "scripted"))
        with Client(node.address, timeout="60s") as client:
            client.execute("I am Ana", model="scripted", memory_namespace="chat/7", **agent)
            node.kill()
        node.start()
        with Client(node.address, timeout="60s") as client:
            client.execute("who am I?", model="scripted", memory_namespace="chat/7", **agent)
            client.execute("and here?", model="scripted", memory_namespace="chat/8", **agent)
            assert heard == [["I am Ana"], ["I am Ana", "answer 1", "who am I?"], ["and here?"]]
            said = [(m.role, m.text) for m in client.memory.messages("chat/7")]
            assert said == [("USER", "I am Ana"), ("ASSISTANT", "answer 1"), ("USER", "who am I?"), ("ASSISTANT", "answer 2")]
            with pytest.raises(SingularityError) as refused:
                client.submit("x", memory_namespace="chat/7", durability="EPHEMERAL")
            assert [v.field for v in refused.value.fields] == ["task.context.memory_namespace"]


def test_values_outlive_a_kill_of_the_node(killable: Callable[..., KillableNode]) -> None:
    node = killable()
    with Client(node.address) as client:
        version = client.memory.put("users/2", "n", 1).version
        client.memory.append("users/2", "default", ("user", "hello"))
    node.kill()
    node.start()
    with Client(node.address) as client:
        assert client.memory.get("users/2", "n").version == version
        assert [m.text for m in client.memory.messages("users/2")] == ["hello"]
        client.memory.put("users/2", "short", 1, ttl="1s")

        def expired() -> bool:
            return all(i.key != "short" for i in client.memory.list("users/2"))

        eventually(expired)
