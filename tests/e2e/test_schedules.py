"""Tasks by the clock, on a real node."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from conftest import KillableNode, eventually

from singularity_agents import Client, SingularityError
from singularity_agents._models import Task


def of_schedule(client: Client, schedule_id: str) -> list[Task]:
    return client.list(f"label.schedule={schedule_id}", order_by="create_time asc")


def test_a_schedule_starts_tasks_until_it_is_paused(client: Client) -> None:
    made = client.schedules.create("tick", every="1s", schedule_id="ticks", framework="native")
    assert (made.state, len(made.next_times)) == ("active", 5)
    tasks = eventually(lambda: found if len(found := of_schedule(client, "ticks")) >= 2 else None)
    assert {t.spec["description"] for t in tasks} == {"tick"}
    paused = client.schedules.pause("ticks")
    assert (paused.state, paused.next_times) == ("paused", [])
    assert client.schedules.get("ticks").fired >= 2
    extra = client.schedules.trigger("ticks")
    assert extra.id in {t.id for t in of_schedule(client, "ticks")}
    assert client.schedules.resume("ticks").state == "active"
    assert "ticks" in [s.id for s in client.schedules.list()]
    client.schedules.delete("ticks")
    with pytest.raises(SingularityError) as gone:
        client.schedules.get("ticks")
    assert gone.value.reason == "SCHEDULE_NOT_FOUND"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"cron": "soon"}, "schedule.cron"),
        ({"cron": "0 0 * * *", "time_zone": "Mars"}, "schedule.time_zone"),
        ({"every": "0.5s"}, "schedule.interval"),
        ({"every": "1h", "schedule_id": "no spaces"}, "schedule_id"),
        ({"every": "1h", "priority": 11}, "schedule.task.execution_hints.priority"),
    ],
)
def test_a_bad_schedule_is_refused_with_its_field(client: Client, options: dict[str, object], field: str) -> None:
    with pytest.raises(SingularityError) as refused:
        client.schedules.create("x", **options)  # type: ignore[arg-type]
    assert field in [v.field for v in refused.value.fields]


def test_the_next_time_is_left_out_while_the_last_task_runs(client: Client) -> None:
    client.schedules.create("loop", every="1s", schedule_id="slow", agent_type="loop")
    try:
        eventually(lambda: client.schedules.get("slow").skipped >= 2)
        assert len(of_schedule(client, "slow")) == 1
    finally:
        client.schedules.delete("slow")
        client.cancel_all("label.schedule=slow", grace="0s")


def test_the_old_task_makes_room_where_that_is_wanted(client: Client) -> None:
    client.schedules.create("loop", every="1s", schedule_id="latest", agent_type="loop", overlap="CANCEL_OLD")
    try:
        eventually(lambda: [t.state for t in of_schedule(client, "latest")].count("CANCELLED") >= 1)
    finally:
        client.schedules.delete("latest")
        client.cancel_all("label.schedule=latest", grace="0s")


def test_a_schedule_that_is_deleted_as_it_fires_leaves_no_task_behind(client: Client) -> None:
    """The fire is in the cancel of the old task, which takes its grace, when the schedule goes."""
    live = {"QUEUED", "RUNNING", "WAITING"}
    client.schedules.create("loop", every="1s", schedule_id="going", agent_type="loop", overlap="CANCEL_OLD")
    eventually(lambda: [t for t in of_schedule(client, "going") if t.cancel_requested])
    client.schedules.delete("going")
    eventually(lambda: not [t for t in of_schedule(client, "going") if t.state in live], within_s=20)
    # What would come late comes before another schedule, made now, has fired twice.
    client.schedules.create("tick", every="1s", schedule_id="clock", framework="native")
    try:
        eventually(lambda: client.schedules.get("clock").fired >= 2)
        assert [t.state for t in of_schedule(client, "going") if t.state in live] == []
    finally:
        client.schedules.delete("clock")


def test_times_fire_once_although_the_node_is_killed_at_any_moment(killable: Callable[..., KillableNode]) -> None:
    node = killable()
    with Client(node.address) as client:
        client.schedules.create("tick", every="1s", schedule_id="kept", framework="native", overlap="ALLOW", catch_up="1h")
        eventually(lambda: len(of_schedule(client, "kept")) >= 2)
    node.kill()
    node.start()
    with Client(node.address) as client:
        enough = eventually(lambda: s if (s := client.schedules.get("kept")).fired >= 6 else None, within_s=40)
        client.schedules.pause("kept")
        tasks = of_schedule(client, "kept")
        names = [t.request_id for t in tasks]
        assert len(set(names)) == len(names) >= enough.fired
        # None was left out: the times are a second apart.
        times = sorted(int(name.rsplit("@", 1)[1]) for name in names)
        assert [later - earlier for earlier, later in itertools.pairwise(times)] == [1000] * (len(times) - 1)
