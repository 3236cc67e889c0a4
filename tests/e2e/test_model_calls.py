"""What a task says of its model calls reaches each of them: kept answers, second requests, answers that are gone on with, quality, keys."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import HERE, KillableNode, Provider, openai_provider

from singularity_agents import Client, SingularityError
from singularity_agents._local_node import free_port

#: Dollars per million tokens: an answer of the upstream costs (10 + 5) micro-dollars.
PRICES = 'prices = [{ valid_from = "2026-01-01", input = "1.00", output = "1.00" }]\n'
COST = 15
#: Longer than any of these tests waits, in seconds.
LATE = 30.0
#: Calls whose times are known before a second request is made.
ENOUGH = 20


#: An agent in a worker that asks the engine's model once.
ASKER = f'[agents.asker]\nframework = "custom:e2e"\nproject = "{HERE}"\nentrypoint = "e2e_agents:asks"\n'
MODELS = """
[models.alike]
endpoints = [
  { provider = "one", name = "x", context_tokens = 8000, family = "alike", capabilities = ["tools", "prefill", "images"] },
  { provider = "two", name = "y", context_tokens = 32000, family = "alike" },
]
[models.mixed]
endpoints = [{ provider = "one", name = "x", family = "one", context_tokens = 8000 }, { provider = "two", name = "y", family = "two" }]
"""


class Upstream:
    """A provider whose answer is its name; late, or broken off behind some text, where the test says so."""

    def __init__(self, name: str) -> None:
        self.asked: list[dict[str, Any]] = []
        self.late = threading.Event()
        self.breaks_off_behind: str | None = None
        self._ends = threading.Event()
        upstream = self

        class Handler(Provider):
            def do_POST(self) -> None:
                body = self.asked()
                upstream.asked.append(body)
                if upstream.late.is_set():
                    upstream._ends.wait(LATE)
                text = upstream.breaks_off_behind or name
                usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
                if body.get("stream"):
                    events = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]}]
                    if upstream.breaks_off_behind is None:
                        events += [
                            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                            {"choices": [], "usage": usage},
                        ]
                    answer, kind = "".join(f"data: {json.dumps(e)}\n\n" for e in events), "text/event-stream"
                else:
                    message = {"role": "assistant", "content": text}
                    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
                    answer, kind = json.dumps(whole), "application/json"
                    if upstream.breaks_off_behind is not None:
                        self.send_response(200)
                        self.send_header("content-length", str(len(answer)))
                        self.end_headers()
                        self.wfile.write(answer[: len(answer) // 2].encode())
                        self.close_connection = True
                        return
                self.answer(200, answer.encode(), kind)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._ends.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def pair() -> Iterator[tuple[Upstream, Upstream]]:
    one, two = Upstream("one"), Upstream("two")
    yield one, two
    one.close()
    two.close()


@pytest.fixture
def node(killable: Callable[..., KillableNode], pair: tuple[Upstream, Upstream]) -> Callable[..., KillableNode]:
    """Makes a node whose model `m` is served by both, the first one first; `more` is added to its configuration."""

    def make(more: str = "", **environment: str) -> KillableNode:
        one, two = pair
        endpoint = 'family = "f", capabilities = ["tools", "prefill"]'
        return killable(
            openai_provider("one", one.url, "x")
            + openai_provider("two", two.url, "y")
            + f"[models.m]\n{PRICES}endpoints = [\n"
            + f'  {{ provider = "one", name = "x", priority = 1, quality = 0.5, {endpoint} }},\n'
            + f'  {{ provider = "two", name = "y", priority = 2, quality = 0.9, {endpoint} }},\n]\n'
            + more,
            **environment,
        )

    return make


def calls_of(client: Client, task_id: str) -> list[dict[str, Any]]:
    return [event.data for event in client.watch(task_id) if event.kind == "provider_call"]


@pytest.mark.parametrize("agent", ["assistant", "own"])
def test_an_equal_call_of_another_task_is_answered_again_free_and_marked(
    node: Callable[..., KillableNode], pair: tuple[Upstream, Upstream], agent: str
) -> None:
    """Of a native task and of one in a worker."""
    who: dict[str, Any] = {"agent_type": "assistant"} if agent == "assistant" else {"agent": "asker"}
    with Client(node(ASKER).address, max_retries=0) as client:

        def ask(**options: Any) -> tuple[Any, list[dict[str, Any]]]:
            task = client.submit("the same question", model="m", **who, **options)
            return task.result("60s"), calls_of(client, task.id)

        first, _ = ask(cache="use")
        # Not the same task, of which a worker would not even be asked.
        again, [call] = ask(cache="use", max_steps=7)
        assert (again.output, again.metrics.cost_micros, again.metrics.cache_hit) == (first.output, 0, True)
        assert call["cache_hit"] and first.metrics.cost_micros == COST and not first.metrics.cache_hit
        assert len(pair[0].asked) == 1
        plain, _ = ask()
        refreshed, _ = ask(cache="refresh")
        assert (plain.metrics.cost_micros, refreshed.metrics.cost_micros, len(pair[0].asked)) == (COST, COST, 3)


def test_a_late_endpoint_loses_against_a_second_request(
    node: Callable[..., KillableNode], pair: tuple[Upstream, Upstream]
) -> None:
    with Client(node().address, max_retries=0) as client:
        for n in range(ENOUGH):
            client.execute(f"{n}", model="m", agent_type="assistant")
        pair[0].late.set()
        task = client.submit("hurry", model="m", agent_type="assistant", hedge=True)
        assert task.result("20s").output == "two"
        [call] = calls_of(client, task.id)
        assert (call["provider"], call["hedged"]) == ("two", True)


def test_an_answer_that_breaks_off_is_gone_on_with_where_the_task_allows_it(
    node: Callable[..., KillableNode], pair: tuple[Upstream, Upstream]
) -> None:
    pair[0].breaks_off_behind = "and so the first "
    with Client(node().address, max_retries=0) as client:
        options: dict[str, Any] = {"model": "m", "agent_type": "assistant", "max_attempts": 1}
        task = client.submit("tell", stream_policy="resume", **options)
        assert task.result("60s").output == "and so the first two"
        text = "".join(event.data["text"] for event in client.watch(task.id) if event.kind == "text_delta")
        assert text == "and so the first two"
        [call] = calls_of(client, task.id)
        assert (call["provider"], call["resumed"]) == ("two", True)
        assert pair[1].asked[0]["messages"][-1] == {"role": "assistant", "content": "and so the first"}
        with pytest.raises(SingularityError) as broken:
            client.execute("tell", **options)
        assert broken.value.reason == "PROVIDER_STREAM_CUT"


@pytest.mark.parametrize("agent", ["assistant", "own"])
def test_an_answer_that_breaks_off_begins_anew_where_the_task_allows_it(
    node: Callable[..., KillableNode], pair: tuple[Upstream, Upstream], agent: str
) -> None:
    pair[0].breaks_off_behind = "and so the first "
    who: dict[str, Any] = {"agent_type": "assistant"} if agent == "assistant" else {"agent": "asker"}
    with Client(node(ASKER).address, max_retries=0) as client:
        task = client.submit("tell", stream_policy="restart", model="m", max_attempts=1, **who)
        assert task.result("60s").output == "two"
        # Nothing was shown that would have to be taken back.
        assert [event.data["text"] for event in client.watch(task.id) if event.kind == "text_delta"] == []
        assert [call["provider"] for call in calls_of(client, task.id)] == ["two"]


def test_the_list_of_models_says_what_the_configuration_says(node: Callable[..., KillableNode], pair: Any) -> None:
    with Client(node(MODELS).address, max_retries=0) as client:
        listed = {model.name: model for model in client.providers.models()}
        assert (listed["alike"].context, listed["alike"].family) == (32000, "alike")
        assert listed["alike"].capabilities == ["images", "json_schema", "prefill", "streaming", "tools"]
        assert (listed["mixed"].context, listed["mixed"].family) == (8000, "")


def test_a_task_that_wants_quality_is_served_by_who_has_it(
    node: Callable[..., KillableNode], pair: tuple[Upstream, Upstream]
) -> None:
    with Client(node().address, max_retries=0) as client:
        assert client.execute("x", model="m", agent_type="assistant").output == "one"
        assert client.execute("x", model="m", agent_type="assistant", min_quality=0.8).output == "two"
        with pytest.raises(SingularityError) as nobody:
            client.execute("x", model="m", agent_type="assistant", min_quality=0.95)
        assert nobody.value.reason == "NO_PROVIDER_MATCHES"
        choice = client.providers.select(model="m", min_quality=0.8)
        assert choice.provider == "two" and "quality of 0.90" in choice.reason
        assert [c.refused for c in choice.candidates if c.provider == "one"] == ["its quality is 0.50, min_quality is 0.80"]


def test_the_budget_of_a_key_pays_for_the_tasks_that_were_submitted_with_it(
    node: Callable[..., KillableNode], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    poor, rich = "the-key-of-the-poor-one", "the-key-of-the-rich-one"
    (folder / "poor").write_text(poor)
    (folder / "rich").write_text(rich)
    budgets = f'{{ file = "{folder}/poor", budget = {{ day_usd = "0.002500" }} }}, {{ file = "{folder}/rich" }}'
    http_address = f"127.0.0.1:{free_port()}"
    killable = node(f"[tenants.acme]\nkeys = [{budgets}]\n", SINGULARITY_HTTP_ADDRESS=http_address)
    options: dict[str, Any] = {"model": "m", "agent_type": "assistant", "max_tokens": 5}
    with (
        Client(killable.address, api_key=poor, max_retries=0) as ours,
        Client(killable.address, api_key=rich, max_retries=0) as theirs,
    ):
        spent = 0
        for _ in range(300):
            try:
                spent += ours.execute("x", **options).metrics.cost_micros or 0
            except SingularityError as refused:
                assert (refused.reason, refused.metadata["level"]) == ("BUDGET_EXHAUSTED", "key")
                assert refused.metadata["window"] == "day"
                break
        else:
            pytest.fail("the budget of the key has no end")
        assert 0 < spent <= 2500
        assert theirs.execute("x", **options).metrics.cost_micros == COST
        [budget] = ours.providers.budgets()
        assert (budget.level, budget.window, budget.limit_micros) == ("key", "day", 2500)
        assert spent <= budget.spent_micros + budget.lent_micros <= 2500
        assert ours.get(ours.submit("x", **options).id).key_id == budget.name
        spending = theirs.providers.spending()
        assert spending.cost_micros >= spent + COST and spending.unpriced_requests == 0
    # A person and a collector see the same.
    environment = {**os.environ, "SINGULARITY_API_KEY": poor, "SINGULARITY_ADDRESS": killable.address}
    shown = subprocess.run(
        [sys.executable, "-m", "singularity_agents.cli", "budgets"],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert budget.name in shown.stdout and "$0.0025" in shown.stdout
    request = urllib.request.Request(f"http://{http_address}/metrics", headers={"authorization": f"Bearer {rich}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert 'singularity_cost_dollars_total{tenant="acme"} 0.000' in answer.read().decode()
