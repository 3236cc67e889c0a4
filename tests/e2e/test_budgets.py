"""Money: a bill that adds up, limits of a task, an agent and a tenant, a task that waits for money, and a node that is killed."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import KillableNode, Provider, eventually

from singularity_agents import Client, SingularityError

#: Dollars per million tokens are micro-dollars per token: a call of 100 tokens in and 50 out costs 200.
PRICES = 'valid_from = "2026-01-01"\ninput = "1.00"\noutput = "2.00"\n'
DEAR = PRICES.replace(".00", "00.00")
INPUT, OUTPUT, COST = 100, 50, 200


class Upstream:
    """A provider that counts what it bills, in micro-dollars, and keeps to `max_tokens`."""

    def __init__(self) -> None:
        self.billed = 0
        self.calls = 0
        lock = threading.Lock()
        upstream = self

        class Handler(Provider):
            def do_POST(self) -> None:
                body = self.asked()
                out = min(OUTPUT, body.get("max_tokens") or body.get("max_completion_tokens") or OUTPUT)
                with lock:
                    upstream.calls += 1
                    upstream.billed += INPUT + 2 * out
                usage = {"prompt_tokens": INPUT, "completion_tokens": out, "total_tokens": INPUT + out}
                text = {"role": "assistant", "content": "done"}
                if body.get("stream"):
                    chunks = [{"choices": [{"index": 0, "delta": text}]}, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                              {"choices": [], "usage": usage}]  # fmt: skip
                    answer = "".join(f"data: {json.dumps(c)}\n\n" for c in chunks) + "data: [DONE]\n\n"
                    kind = "text/event-stream"
                else:
                    answer = json.dumps({"choices": [{"index": 0, "message": text, "finish_reason": "stop"}], "usage": usage})
                    kind = "application/json"
                self.answer(200, answer.encode(), kind)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


@pytest.fixture
def node(killable: Callable[..., KillableNode], upstream: Upstream) -> Callable[[str], KillableNode]:
    """Makes a node whose model `paid` is served by the upstream; with the budgets that are given."""

    def make(tenant: str = "") -> KillableNode:
        either = '[{ provider = "up", name = "dear" }, { provider = "up", name = "paid", priority = 2 }]'
        return killable(
            f'[providers.up]\ndialect = "openai"\nbase_url = "{upstream.url}"\nmodels = ["paid", "dear"]\n'
            f"[[models.paid.prices]]\n{PRICES}[[models.dear.prices]]\n{DEAR}[models.either]\nendpoints = {either}\n"
            + (f"[tenants.default]\n{tenant}\n" if tenant else "")
        )

    return make


def fails_for_money(client: Client, **options: Any) -> SingularityError:
    with pytest.raises(SingularityError) as refused:
        client.execute("x", model="paid", **options)
    assert refused.value.reason == "BUDGET_EXHAUSTED", refused.value
    return refused.value


def test_the_bill_adds_up_in_results_events_and_providers(node: Callable[[str], KillableNode], upstream: Upstream) -> None:
    with Client(node("").address, max_retries=0) as client:
        handles = [client.submit("x", model="paid") for _ in range(5)]
        costs = [handle.result("60s").metrics.cost_micros for handle in handles]
        assert costs == [COST] * 5 and upstream.billed == 5 * COST
        [call] = [e.data for e in client.watch(handles[0].id) if e.kind == "provider_call"]
        assert int(call["cost_micros"]) == COST
        [up] = [p for p in client.providers.list() if p.name == "up"]
        assert up.cost_micros == 5 * COST
        # Echo costs nothing, and that is known.
        assert client.execute("x", model="echo").metrics.cost_micros == 0


def test_a_task_spends_its_limit_and_no_more(node: Callable[[str], KillableNode], upstream: Upstream) -> None:
    with Client(node("").address, max_retries=0) as client:
        refused = fails_for_money(client, max_cost_micros=50)
        assert refused.metadata["level"] == "task" and upstream.billed == 0
        # It named no length, so it is given what the money pays for.
        assert client.execute("x", model="paid", max_cost_micros=5000).metrics.cost_micros == COST


def test_a_cheaper_model_goes_on_where_the_task_says_so(node: Callable[[str], KillableNode], upstream: Upstream) -> None:
    with Client(node("").address, max_retries=0) as client:
        task = client.submit("x", model="either", max_cost_micros=9000, max_tokens=OUTPUT, on_budget_end="cheaper_model")
        assert task.result("60s").metrics.cost_micros == COST
        assert [e.data["model"] for e in client.watch(task.id) if e.kind == "provider_call"] == ["paid"]
        with pytest.raises(SingularityError, match="budget"):
            client.execute("x", model="either", max_cost_micros=9000, max_tokens=OUTPUT)


def test_a_tenant_and_an_agent_spend_their_budgets_and_no_more(node: Callable[[str], KillableNode], upstream: Upstream) -> None:
    budgets = 'budget = { total_usd = "0.020" }\nagent_budgets = { coder = { day_usd = "0.005" } }\n'
    with Client(node(budgets).address, max_retries=0) as client:
        spent = 0
        for _ in range(40):
            try:
                spent += client.execute("x", model="paid", agent_type="coder").metrics.cost_micros or 0
            except SingularityError as refused:
                assert (refused.reason, refused.metadata["level"], refused.metadata["window"]) == (
                    "BUDGET_EXHAUSTED",
                    "agent",
                    "day",
                )
                break
        else:
            pytest.fail("the agent's budget has no end")
        assert 2000 < spent == upstream.billed <= 5000
        # Others of the tenant go on, until its own end.
        with ThreadPoolExecutor(8) as many:
            ends = list(many.map(lambda _: _cost(client), range(150)))
        assert upstream.billed == spent + sum(cost for cost in ends if cost) <= 20_000
        # A call is refused while others hold what it needs; one by one they spend what is left.
        eventually(lambda: _cost(client) is None)
        assert fails_for_money(client).metadata["level"] == "tenant"
        assert 10_000 < upstream.billed <= 20_000


def _called(upstream: Upstream, times: int) -> bool:
    return upstream.calls > times


def _cost(client: Client) -> int | None:
    try:
        return client.execute("x", model="paid", agent_type="assistant").metrics.cost_micros
    except SingularityError as refused:
        assert refused.reason == "BUDGET_EXHAUSTED", refused
        return None


def test_a_task_waits_for_money_and_goes_on_when_somebody_says_so(
    node: Callable[[str], KillableNode], upstream: Upstream
) -> None:
    killable = node("")
    with Client(killable.address, max_retries=0) as client:
        task = client.submit("x", model="paid", max_cost_micros=900, on_budget_end="wait")
        eventually(lambda: client.get(task.id).waiting_for == "BUDGET")
        assert upstream.calls == 0 and client.get(task.id).pending_inputs[0].kind == "budget"
        # It is a row: the question outlives the node.
        killable.kill()
        killable.start()
        # Each yes adds what it had at first; it asks again while that is not enough.
        while eventually(lambda: client.get(task.id).pending_inputs or client.get(task.id).state == "SUCCEEDED") is not True:
            assert len(client.get(task.id).answers) < 5
            client.signal(task.id, approve=True)
        assert task.wait("60s").state == "SUCCEEDED"
        denied = client.submit("x", model="paid", max_cost_micros=900, on_budget_end="wait")
        eventually(lambda: client.get(denied.id).waiting_for == "BUDGET")
        client.signal(denied.id, approve=False)
        end = denied.wait("60s")
        assert end.state == "FAILED" and end.error is not None and end.error.reason == "BUDGET_EXHAUSTED"


def test_a_kill_in_the_middle_frees_no_money_that_was_spent(node: Callable[[str], KillableNode], upstream: Upstream) -> None:
    limit = 200_000
    killable = node(f'budget = {{ total_usd = "{limit / 1e6}" }}\n')
    with Client(killable.address, max_retries=0, timeout="30s") as client:

        def some(_: int) -> None:
            with contextlib.suppress(SingularityError):
                client.execute("x", model="paid", max_attempts=1, max_tokens=OUTPUT)

        for _ in range(2):
            with ThreadPoolExecutor(8) as many:
                runs = [many.submit(some, n) for n in range(60)]
                before = upstream.calls
                eventually(functools.partial(_called, upstream, before + 10))
                killable.kill()
                killable.start()
                for run in runs:
                    run.result(timeout=120)
            assert upstream.billed <= limit
        # What is left is spent too, and then there is an end.
        eventually(lambda: _cost(client) is None, within_s=60)
        assert limit / 4 < upstream.billed <= limit
