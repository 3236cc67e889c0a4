"""Every reason of an error has a page and a test that makes it happen: here over gRPC, or where `ELSEWHERE` says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import ROOT, config, openai_provider
from test_tasks import nested

from singularity_agents import Client, SingularityError
from singularity_agents._local_node import LocalNode
from singularity_agents.testing import Asked, Fail, ScriptedModel

#: What a provider answers for a model of this name.
PROVIDER = {
    "auth": Fail(401, "bad key"),
    "quota": Fail(402, "insufficient credit"),
    "refused": Fail(403, "flagged by moderation"),
    "missing": Fail(404, "the model does not exist"),
    "large": Fail(413, "request too large"),
    "rejected": Fail(422, "this parameter is not known"),
    "limited": Fail(429, "too many requests"),
    "unavailable": Fail(500, "internal error"),
    "overloaded": Fail(529, "overloaded"),
    "long": Fail(400, "This model's maximum context length is 10 tokens"),
}

#: Reasons that another test makes happen: its file, and a word of it.
ELSEWHERE = {
    "CAPABILITY_DISABLED": ("tests/e2e/test_configuration_table.py", "CAPABILITY_DISABLED"),
    "ATTEMPT_FENCED": ("rust_nif/crates/agent_store/src/tests.rs", "Reason::AttemptFenced"),
    "BUNDLE_INVALID": ("tests/e2e/test_bundles.py", "BUNDLE_INVALID"),
    "REPLAY_MISSING": ("tests/e2e/test_bundles.py", "REPLAY_MISSING"),
    "DISK_LOW": ("rust_nif/crates/agent_store/src/sqlite/mod.rs", "errors_of_the_disk_have_their_own_reasons"),
    "STORE_CORRUPT": ("rust_nif/crates/agent_store/src/tests.rs", "Reason::StoreCorrupt"),
    "STORE_UNAVAILABLE": ("apps/agent_execution/test/native_panic_SUITE.erl", "reason := store_unavailable"),
    "MEMORY_NOT_FOUND": ("tests/e2e/test_memory.py", "MEMORY_NOT_FOUND"),
    "VERSION_CONFLICT": ("tests/e2e/test_memory.py", "VERSION_CONFLICT"),
    "SCHEDULE_NOT_FOUND": ("tests/e2e/test_schedules.py", "SCHEDULE_NOT_FOUND"),
    "NATIVE_DOWN": ("apps/agent_execution/test/native_panic_SUITE.erl", "native_down"),
    "NATIVE_PANIC": ("apps/agent_execution/test/execution_core_tests.erl", "step_down"),
    "QUEUE_FULL": ("apps/agent_execution/test/native_task_SUITE.erl", "reason := queue_full"),
    "DRAINING": ("apps/agent_execution/test/native_task_SUITE.erl", "reason := draining"),
    "KEY_MISSING": ("tests/e2e/test_keys.py", "ask(folder, address, None) is grpc.StatusCode.UNAUTHENTICATED"),
    "KEY_UNKNOWN": ("tests/e2e/test_keys.py", '"another-key-of-some-length") is grpc.StatusCode.UNAUTHENTICATED'),
    "NODE_LOST": ("tests/e2e/test_faults.py", "NODE_LOST"),
    "POISON_TASK": ("tests/e2e/test_faults.py", "POISON_TASK"),
    "WORKER_CRASHED": ("tests/e2e/test_faults.py", "WORKER_CRASHED"),
    "WORKER_PROTOCOL_ERROR": ("tests/e2e/test_faults.py", "WORKER_PROTOCOL_ERROR"),
    "WORKER_OOM": ("tests/e2e/test_faults.py", "WORKER_OOM"),
    "WORKER_PROCESS_LIMIT": ("tests/e2e/test_bad_code.py", "WORKER_PROCESS_LIMIT"),
    "WORKER_SHARED": ("tests/e2e/test_concurrency.py", "WORKER_SHARED"),
    "WORKER_HUNG": ("apps/agent_execution/test/execution_core_tests.erl", "worker_hung"),
    "FRAMEWORK_UNAVAILABLE": ("apps/agent_execution/test/framework_task_SUITE.erl", "reason := framework_unavailable"),
    "UNSUPPORTED_FIELD": ("apps/agent_execution/test/execution_router_tests.erl", "unsupported_field"),
    "TASK_CANCELLED": ("tests/e2e/test_faults.py", "CANCELLED"),
    "REPLAY_NOT_ALLOWED": ("apps/agent_execution/test/execution_core_tests.erl", "unjournaled_tools"),
    "TASK_ALREADY_TERMINAL": ("tests/e2e/test_waiting.py", "TASK_ALREADY_TERMINAL"),
    "PROVIDER_TIMEOUT": ("tests/e2e/test_tasks.py", "PROVIDER_TIMEOUT"),
    "PROVIDER_STREAM_CUT": ("tests/e2e/test_tasks.py", "PROVIDER_STREAM_CUT"),
    "PROVIDER_BAD_RESPONSE": ("tests/e2e/test_tasks.py", "PROVIDER_BAD_RESPONSE"),
    "PROVIDER_RESPONSE_TOO_LARGE": ("tests/vectors/provider_cases/oa-unary-huge-body.json", "response_too_large"),
    "HEARTBEAT_TIMEOUT": ("tests/e2e/test_waiting.py", "test_a_task_that_shows_no_progress_is_given_up"),
    "BUDGET_EXHAUSTED": ("tests/e2e/test_budgets.py", "BUDGET_EXHAUSTED"),
    "DELEGATION_TOO_DEEP": ("tests/e2e/test_delegation.py", "DELEGATION_TOO_DEEP"),
    "OUTPUT_SCHEMA_MISMATCH": ("tests/e2e/test_fitting.py", "OUTPUT_SCHEMA_MISMATCH"),
    "TOOL_FAILED": ("python_workers/tests/worker/test_worker.py", "test_a_tool_that_raises_is_recorded_as_an_error_and_raises"),
}

#: Reasons that nothing gives yet, or that no test can bring about from outside.
LATER = {
    "CURSOR_TOO_OLD": "watching over several nodes",
    "SANDBOX_UNAVAILABLE": "required sandboxes",
    "NO_PROVIDER_MATCHES": "selection",
    "COMMIT_AMBIGUOUS": "a disk that fails in the middle of a commit",
    "OVERLOADED": "20,000 open calls",
    "RATE_LIMITED": "thousands of requests of one tenant at once",
    "QUOTA_EXCEEDED": "ten thousand agents",
    "INTERNAL": "a fault of the engine's own",
}


@pytest.fixture(scope="module")
def refusing() -> Iterator[LocalNode]:
    def answer(asked: Asked) -> Fail:
        return PROVIDER[asked.model]

    with ScriptedModel(*[answer] * 100) as model:
        scripted = openai_provider("scripted", model.base_url, *PROVIDER)
        with LocalNode(config("http://127.0.0.1:9/v1") + scripted) as node:
            yield node


@pytest.fixture
def asking(refusing: LocalNode) -> Iterator[Client]:
    with Client(refusing.address, max_retries=0, timeout="60s") as client:
        yield client


def ends(client: Client, **options: Any) -> str:
    """Reason of a task's end."""
    task = client.submit("x", max_attempts=1, **options).wait("60s")
    assert task.error is not None, task.state
    return task.error.reason


def provider(model: str) -> Callable[[Client], str]:
    return lambda client: ends(client, method="native", model=model)


def refused(call: Callable[[Client], object]) -> Callable[[Client], str]:
    def run(client: Client) -> str:
        with pytest.raises(SingularityError) as error:
            call(client)
        return error.value.reason

    return run


def reuse(client: Client) -> None:
    client.submit("one", request_id="the-same")
    client.submit("two", request_id="the-same")


def stale(client: Client) -> None:
    made = client.agents.create("researcher", agent_id="stale")
    client.agents.update("stale", instructions="x", etag=made.etag)
    client.agents.update("stale", instructions="y", etag=made.etag)


HAPPENS: dict[str, Callable[[Client], str]] = {
    "AGENT_NOT_FOUND": refused(lambda c: c.submit("x", agent="nobody")),
    "CAPABILITY_PENDING": refused(lambda c: c.submit("x", plan={"steps": [{"id": "a", "executor": "workflow"}]})),
    "FILTER_INVALID": refused(lambda c: list(c.list(filter="no such thing"))),
    "INVALID_FIELD": refused(lambda c: c.submit("")),
    "MODEL_NOT_FOUND": provider("missing"),
    "PAYLOAD_TOO_LARGE": refused(lambda c: c.submit("x" * 5_000_000)),
    "REQUEST_ID_REUSED": refused(reuse),
    "ETAG_MISMATCH": refused(stale),
    "TASK_NOT_FOUND": refused(lambda c: c.get("0" * 36)),
    "WRONG_STATE": refused(lambda c: c.retry(c.submit("x", method="native", model="echo?latency=60000ms").id)),
    "FRAMEWORK_ERROR": lambda c: ends(c, agent="raises"),
    "ITERATION_LIMIT": lambda c: ends(
        c, method="native", model="echo?tool=now&args={}&forever=1", max_steps=1, tools=["now"]
    ),
    "TASK_TIMEOUT": lambda c: ends(c, method="native", model="echo?latency=60000ms", max_duration="200ms"),
    "WORKER_START_FAILED": lambda c: ends(c, agent="broken"),
    "PROVIDER_AUTH": provider("auth"),
    "PROVIDER_QUOTA": provider("quota"),
    "PROVIDER_REFUSED": provider("refused"),
    "PROVIDER_REJECTED": provider("rejected"),
    "PROVIDER_RATE_LIMITED": provider("limited"),
    "PROVIDER_UNAVAILABLE": provider("unavailable"),
    "PROVIDER_OVERLOADED": provider("overloaded"),
    "CONTEXT_TOO_LONG": provider("long"),
}  # fmt: skip


@pytest.mark.parametrize("reason", sorted(HAPPENS))
def test_it_happens(asking: Client, reason: str) -> None:
    assert HAPPENS[reason](asking) == reason


@pytest.mark.parametrize(
    ("reason", "method", "message"),
    [("NESTING_TOO_DEEP", "SubmitTask", nested(40)), ("PAGE_TOKEN_INVALID", "ListTasks", b"\x12\x01x")],
)
def test_what_the_sdk_does_not_send_happens_too(refusing: LocalNode, reason: str, method: str, message: bytes) -> None:
    with grpc.insecure_channel(refusing.address) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(f"/singularity.agents.v1.TaskService/{method}")(message, timeout=10)
    assert reason.encode() in dict(error.value.trailing_metadata())["grpc-status-details-bin"]


def test_every_reason_has_a_page_and_a_test() -> None:
    table = (ROOT / "rust_nif/crates/agent_core/src/error.rs").read_text()
    reasons = set(re.findall(r'^    \w+ "[a-z_]+" "([A-Z_]+)" \d+ (?:true|false);', table, re.MULTILINE))
    pages = {page.stem for page in (ROOT / "docs/errors").glob("*.md")} - {"README"}
    assert reasons == pages
    tested = {*HAPPENS, *ELSEWHERE, *LATER, "NESTING_TOO_DEEP", "PAGE_TOKEN_INVALID"}
    assert tested == reasons, tested ^ reasons
    for reason, (file, word) in ELSEWHERE.items():
        assert word in Path(ROOT, file).read_text(), f"{reason}: {file} does not say {word}"
