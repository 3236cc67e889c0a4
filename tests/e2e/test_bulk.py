"""Cancel and retry by filter, and forks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import CountingModel, KillableNode, LocalNode, eventually, openai_provider

from singularity_agents import Client, SingularityError


def test_what_a_filter_finds_is_cancelled_and_retried(client: Client) -> None:
    ids = {client.submit("loop", agent_type="loop", labels={"job": "bulk"}).id for _ in range(3)}
    done = client.execute("shout", agent_type="shout", labels={"job": "bulk"}).task_id
    dry = client.cancel_all("label.job=bulk", dry_run=True)
    assert {o.task_id for o in dry.outcomes} == ids
    assert "CANCELLED" not in {client.get(i).state for i in ids}, "a dry run does nothing"
    outcomes = client.cancel_all("label.job=bulk", grace="0s").outcomes
    assert {(o.task_id, o.state) for o in outcomes} == {(i, "CANCELLED") for i in ids}
    assert client.get(done).state == "SUCCEEDED"

    assert {o.task_id for o in client.retry_all("label.job=bulk state=SUCCEEDED", dry_run=True).outcomes} == {done}
    again = client.retry_all("label.job=bulk state=SUCCEEDED", request_id="bulk-retry")
    same = client.retry_all("label.job=bulk state=SUCCEEDED", request_id="bulk-retry")
    new = again.outcomes[0].new_task_id
    assert client.get(new).retry_of == done
    assert new in {o.new_task_id for o in same.outcomes}, "sent again, it is not retried twice"


@pytest.mark.parametrize(("filter", "reason"), [("", "INVALID_FIELD"), ("  ", "INVALID_FIELD"), ("colour=red", "FILTER_INVALID")])
def test_a_filter_is_needed(client: Client, filter: str, reason: str) -> None:
    for bulk in (client.cancel_all, client.retry_all):
        with pytest.raises(SingularityError) as refused:
            bulk(filter)
        assert refused.value.reason == reason


def test_the_command_line_works_on_many(node: LocalNode, client: Client) -> None:
    task = client.submit("loop", agent_type="loop", labels={"job": "cli-bulk"}).id
    command = [sys.executable, "-m", "singularity_agents.cli", "--address", node.address]

    def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)

    dry = cli("cancel", "--filter", "label.job=cli-bulk", "--dry-run")
    assert task[-8:] in dry.stdout and dry.returncode == 0, dry.stderr
    assert "CANCELLED" in cli("cancel", "--filter", "label.job=cli-bulk", "--grace", "0s").stdout
    assert cli("cancel").returncode == 2


def test_a_fork_pays_only_for_what_differs(killable: Callable[..., KillableNode], counting: CountingModel) -> None:
    node = killable(openai_provider("counting", counting.model.base_url, "counted"))
    with Client(node.address, timeout="60s") as client:
        whole = client.submit("steps", agent_type="steps", model="counted").id
        eventually(lambda: client.get(whole).state == "SUCCEEDED", within_s=60)
        asked = counting.counts.total()
        assert asked >= 3
        same = client.fork(whole)
        assert client.wait(same.id).state == "SUCCEEDED"
        assert counting.counts.total() == asked, "every answer was given again"
        copy = client.get(same.id)
        assert (copy.fork_of, copy.result.metrics.provider_calls_replayed) == (whole, asked) if copy.result else False
        # Up to the event behind the first answer: the others are asked anew.
        first = next(e.sequence for e in client.watch(whole) if e.kind == "provider_call")
        part = client.fork(whole, after=first)
        assert client.wait(part.id).state == "SUCCEEDED"
        assert asked < counting.counts.total() < 2 * asked
