"""Real tasks through every layer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from singularity_agents import CapabilityPending, Client, SingularityError, TaskFailed
from singularity_agents._local_node import LocalNode

LOCAL = {"model": "smollm2-135m"}
TOOL_CALL = 'echo?tool=multiply&args={"a":6,"b":7}'


def reason(error: pytest.ExceptionInfo[SingularityError]) -> str:
    return error.value.reason


# Forty tasks on the embedded model: one to four seconds each, more on a busy machine.
@pytest.mark.timeout(600)
def test_the_demos_tasks_come_out_right_every_time(client: Client) -> None:
    for _ in range(20):
        task = client.execute("Use the calculate tool: what is 17 * 23?", method="native", **LOCAL)
        assert "391" in task.output
        task = client.execute("Use the multiply tool to multiply 36 by 11.", agent="calculator", **LOCAL)
        assert "396" in task.output and task.executor == "langchain"


def test_a_native_task_streams_its_text_and_meters_its_calls(client: Client) -> None:
    handle = client.submit("one two three", method="native")
    text = "".join(str(e.data["text"]) for e in handle.watch() if e.kind == "text_delta")
    result = handle.result()
    assert text == result.output == "one two three"
    assert result.metrics.provider_calls == 1 and result.metrics.tokens_used.output_tokens == 3
    sequences = [e.sequence for e in client.watch(handle.id)]
    assert sequences == list(range(1, len(sequences) + 1))


def test_a_langchain_agent_calls_its_python_tool(client: Client) -> None:
    handle = client.submit("6 times 7", agent="calculator", model=TOOL_CALL)
    kinds = [e.kind for e in handle.watch()]
    result = handle.result()
    assert result.output == "42" and result.executor == "langchain"
    assert "tool_call" in kinds and "tool_result" in kinds and "worker_assigned" in kinds
    assert result.metrics.provider_calls == 2


def test_a_python_function_is_an_agent(client: Client) -> None:
    assert client.execute("hello", agent="shout").output == "HELLO"


def test_auto_records_why(client: Client) -> None:
    handle = client.submit("hello")
    handle.result()
    route = client.get(handle.id).route
    assert route is not None and route.executor == "native" and route.reason


def test_a_request_id_gives_the_same_task(client: Client) -> None:
    first = client.submit("x", request_id="e2e-1")
    assert client.submit("x", request_id="e2e-1").id == first.id
    with pytest.raises(SingularityError) as error:
        client.submit("y", request_id="e2e-1")
    assert reason(error) == "REQUEST_ID_REUSED"


def test_ids_may_be_shortened(client: Client) -> None:
    handle = client.submit("x")
    assert client.get(handle.id[-8:]).id == handle.id


@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        ("", {}, "INVALID_FIELD"),
        ("x" * (1024 * 1024 + 1), {}, "INVALID_FIELD"),
        ("x" * (5 * 1024 * 1024), {}, "PAYLOAD_TOO_LARGE"),
        ("x", {"agent": "nobody"}, "AGENT_NOT_FOUND"),
        ("x", {"agent_type": "reasearcher"}, "AGENT_NOT_FOUND"),
        ("x", {"framework": "lanchain"}, "INVALID_FIELD"),
        ("x", {"priority": 12}, "INVALID_FIELD"),
        ("x", {"max_steps": -1}, "INVALID_FIELD"),
        ("x", {"output_schema": {"type": "strnig"}}, "INVALID_FIELD"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_its_reason(client: Client, text: str, options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(SingularityError) as error:
        client.submit(text, **options)
    assert reason(error) == wanted
    assert client.execute("still here").output == "still here"


def test_an_unavailable_framework_falls_back_and_says_so(client: Client) -> None:
    handle = client.submit("x", framework="haystack")
    assert handle.result().executor == "native"
    route = client.get(handle.id).route
    assert route is not None and "disabled" in next(c.refused for c in route.candidates if c.executor == "haystack")


def nested(levels: int) -> bytes:
    """A SubmitTaskRequest whose output_schema is nested so deep, made by hand: the libraries refuse to."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    struct = b""
    for _ in range(levels):
        struct = field(1, field(1, b"a") + field(2, field(5, struct)))
    return field(1, field(4, b"x") + field(6, field(3, struct)))


@pytest.mark.parametrize("levels", [40, 1000, 10000])
def test_deep_nesting_is_refused_and_the_node_lives(node: LocalNode, client: Client, levels: int) -> None:
    with (
        grpc.insecure_channel(node.address) as channel,
        pytest.raises(grpc.RpcError) as error,
    ):
        channel.unary_unary("/singularity.agents.v1.TaskService/SubmitTask")(nested(levels), timeout=10)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert client.execute("still here").output == "still here"


def test_bytes_that_are_no_message_are_refused(node: LocalNode) -> None:
    for body in (b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x03\x22\x01\xff"):
        with (
            grpc.insecure_channel(node.address) as channel,
            pytest.raises(grpc.RpcError) as error,
        ):
            channel.unary_unary("/singularity.agents.v1.TaskService/SubmitTask")(body, timeout=10)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("down", "PROVIDER_UNAVAILABLE"), ("garbage", "PROVIDER_BAD_RESPONSE"), ("wrong", "PROVIDER_BAD_RESPONSE"),
        ("refuses-key", "PROVIDER_AUTH"),
        ("cut", "PROVIDER_STREAM_CUT"), ("slow", "PROVIDER_TIMEOUT"), ("nobody", "PROVIDER_UNAVAILABLE"),
        ("no-such-model", "MODEL_NOT_FOUND"),
    ],
)  # fmt: skip
def test_a_bad_provider_gives_a_typed_error(client: Client, model: str, wanted: str) -> None:
    task = client.submit("x", method="native", model=model, max_attempts=1).wait("60s")
    assert task.error is not None and task.error.reason == wanted
    assert "canary" not in json.dumps(task.error.model_dump(mode="json"))


@pytest.mark.parametrize("options", [{"method": "native"}, {"agent": "calculator"}])
def test_a_provider_that_a_task_denies_serves_none_of_its_calls(client: Client, options: Any) -> None:
    task = client.submit("hello", model="echo", denied_providers=["echo"], **options).wait("60s")
    assert task.error is not None and "denied_providers" in json.dumps(task.error.model_dump(mode="json"))
    assert client.execute("hello", model="echo", allowed_providers=["echo"], method="native").output == "hello"
    tagged = client.submit("hello", model="echo", data_tags=["secret"], method="native").wait("60s")
    assert tagged.error is not None and tagged.error.reason == "NO_PROVIDER_MATCHES"


def test_what_has_not_come_says_so(client: Client) -> None:
    with pytest.raises(SingularityError) as error:
        client.memory.search("n", "k")
    assert reason(error) == "CAPABILITY_PENDING"


def test_a_users_exception_is_the_tasks_error_and_costs_no_worker(
    client: Client,
) -> None:
    task = client.submit("x", agent="raises").wait("60s")
    assert task.error is not None and task.error.reason == "FRAMEWORK_ERROR"
    assert "the user's own words" in task.error.message and task.attempts == 1


def test_code_that_cannot_be_loaded_is_named(client: Client) -> None:
    task = client.submit("x", agent="broken").wait("60s")
    assert task.error is not None and task.error.reason == "WORKER_START_FAILED"
    assert "no_such_module" in task.error.message


def test_many_at_once(client: Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        outputs = list(
            pool.map(
                lambda i: client.execute(f"task {i}", durability="ephemeral").output,
                range(200),
            )
        )
    assert outputs == [f"task {i}" for i in range(200)]


def test_a_worker_reads_no_secret_and_dials_nothing(client: Client, node: LocalNode) -> None:
    beam = next(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _runs(p, node.log.parent))
    state = node.log.parent / "state"
    files = {
        "environ": f"/proc/{beam}/environ", "maps": f"/proc/{beam}/maps", "database": str(node.log.parent / "data" / "singularity.db"),
        "config": str(node.log.parent / "singularity.toml"), "passwords": "/etc/shadow",
        **{f"state-{p.name}": str(p) for p in state.rglob("*cookie*") if p.is_file()},
    }  # fmt: skip
    asked = json.dumps({"files": files, "port": int(node.address.rsplit(":", 1)[1])})
    found = json.loads(client.execute(asked, agent="spy").output)
    assert {found[name] for name in files} <= {
        "PermissionError",
        "FileNotFoundError",
    }, found
    assert found["dial"] == "PermissionError"
    assert len(found["pids"]) <= 3
    found["env"].remove("OPENAI_API_KEY")  # of the door inside the worker, without rights anywhere else
    assert not [n for n in found["env"] if "KEY" in n or "SECRET" in n or "TOKEN" in n or n.startswith("ROOTDIR")]


def _runs(process: Path, folder: Path) -> bool:
    try:
        return b"beam" in (process / "cmdline").read_bytes() and str(folder).encode() in (process / "environ").read_bytes()
    except OSError:
        return False


def test_time_in_which_nothing_runs_is_not_counted_as_duration(client: Client) -> None:
    with pytest.raises(TaskFailed) as error:
        client.execute(
            "x",
            agent_type="assistant",
            method="native",
            model="echo?fail=503",
            max_duration="1s",
            max_attempts=3,
            initial_backoff="2s",
        )
    assert error.value.reason == "PROVIDER_UNAVAILABLE", "each attempt is short; the pauses between them are not"


@pytest.mark.parametrize(
    ("field", "options"),
    [("task.plan.steps", {"plan": {"steps": [{"id": "a", "executor": "workflow"}]}})],
)
def test_a_wish_that_cannot_be_kept_is_refused(client: Client, field: str, options: Any) -> None:
    with pytest.raises(CapabilityPending) as error:
        client.submit("x", **options)
    assert error.value.metadata["field"] == field
