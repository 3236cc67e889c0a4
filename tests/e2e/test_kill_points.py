"""The node is ended at named points of its work, each time as by a power cut: what was not synced to the disk is forgotten.

Every task that was acknowledged ends, once; what was answered and recorded is not paid for again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CountingModel, KillableNode, eventually, openai_provider

from singularity_agents import Client, SingularityError

HERE = Path(__file__).resolve().parent
LONG = bool(os.environ.get("SINGULARITY_LONG_TESTS"))

#: Every write of a task's life, before its commit and after it; and what the store does by itself.
ALL = [
    *(f"{when}:{op}" for op in ("submit", "claim", "journal", "tool_begin", "finish", "events", "requeue", "park", "signal", "attempt")
      for when in ("before", "after")),
    "before:route", "before:cancel_request", "after:cancel_request", "migrate", "checkpoint",
    "blob:written", "blob:synced", "blob:renamed", "blob:sealed",
]  # fmt: skip
#: `make test` takes these; `make test-faults` all of them, several times.
SOME = [
    "before:submit",
    "after:submit",
    "before:journal@2",
    "after:journal@3",
    "before:finish",
    "after:finish",
    "after:park",
    "migrate",
    "blob:written@2",
    "blob:renamed",
    "blob:sealed@2",
]
POINTS = [f"{point}@{n}" for point in ALL for n in (1, 2, 5)] if LONG else SOME


@pytest.fixture(scope="session")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library to preload; see forget.c."""
    library = tmp_path_factory.mktemp("forget") / "forget.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "forget.c", "-ldl"], check=True)
    return library


def forget(data: Path) -> None:
    """What was not synced has never been written."""
    for file in [f for f in data.iterdir() if ".db" in f.name and not f.name.endswith((".synced", ".syncs", ".next"))]:
        synced = file.with_name(f"{file.name}.synced")
        if synced.exists():
            synced.rename(file)
        else:
            file.unlink()
    blobs = data / "blobs"
    if blobs.is_dir():
        names, contents = (
            set(f.read_text().split()) if (f := data / f"blobs.{kind}").exists() else set() for kind in ("names", "contents")
        )
        for blob in [f for f in blobs.iterdir() if f.is_file() and f.name != ".pause"]:
            if blob.name not in names:
                blob.unlink()
            elif blob.name[:64] not in contents:
                blob.write_bytes(b"")


#: Questions that more than one call of the work asks.
UNDISTURBED = {"step 1": 2}


class Work:
    """Tasks of every kind, sent until they are acknowledged; each has a request id of its own."""

    def __init__(self, prefix: str) -> None:
        self.acknowledged: dict[str, str] = {}
        self._wanted = {
            f"{prefix}-native": {"task": "step native", "framework": "native"},
            f"{prefix}-steps": {"task": "steps", "agent_type": "steps"},
            f"{prefix}-tool": {"task": "what time is it", "framework": "native", "tools": ["now"]},
            f"{prefix}-asks": {"task": "may I?", "agent_type": "asks_people"},
            f"{prefix}-once": {"task": "effect", "agent_type": "slow_once"},
            f"{prefix}-large": {"task": "step " + "large " * 20_000, "framework": "native"},
        }

    def submit(self, client: Client) -> None:
        """Raises if the node is gone; what was acknowledged before stays so."""
        for request_id, options in self._wanted.items():
            options = {**options, "model": "counted"}
            self.acknowledged[request_id] = client.submit(options.pop("task"), request_id=request_id, **options).id

    def answer(self, client: Client) -> bool:
        """Answers what is asked; True once all have ended."""
        tasks = [client.get(task) for task in self.acknowledged.values()]
        for task in tasks:
            for question in task.pending_inputs if task.state == "WAITING" else []:
                if question.kind == "approval":
                    client.signal(task.id, input_id=question.input_id, approve=True)
                else:
                    client.signal(task.id, input_id=question.input_id, input="yes")
        return len(tasks) == len(self._wanted) and all(task.ended for task in tasks)


def until_it_dies(node: KillableNode, work: Work) -> None:
    """Works until the node is gone, or everything is done without it."""
    with Client(node.address, max_retries=0, timeout="20s") as client:
        try:
            work.submit(client)
            eventually(lambda: not node.running() or work.answer(client), within_s=30)
            client.cancel(client.submit("loop", agent_type="loop").id, grace="0s")
        except SingularityError:
            eventually(lambda: not node.running(), within_s=30)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("power_cut", [False, True] if LONG else [True])
@pytest.mark.parametrize("point", POINTS)
def test_nothing_acknowledged_is_lost_wherever_the_node_ends(
    killable: Callable[..., KillableNode], counting: CountingModel, forgetful: Path, point: str, power_cut: bool
) -> None:
    preload = {"LD_PRELOAD": str(forgetful)} if power_cut else {}
    fault = {"AGENT_FAULT_INJECTION": "1", "AGENT_FAULT_POINT": point}
    node = killable(openai_provider("counting", counting.model.base_url, "counted"), starts=False, **preload)
    work = Work(point)
    node.start(**fault, may_die=True)
    if node.running():
        until_it_dies(node, work)
    reached = not node.running()
    node.kill_if_running()
    if power_cut:
        forget(node.folder / "data")
    acknowledged = dict(work.acknowledged)

    node.start()
    with Client(node.address, max_retries=0, timeout="60s") as client:
        for task in acknowledged.values():
            client.get(task)
        # Unanswered submits are sent again, answered ones too: the same tasks.
        work.submit(client)
        assert {name: work.acknowledged[name] for name in acknowledged} == acknowledged
        eventually(lambda: work.answer(client), within_s=60)
        for name, task in work.acknowledged.items():
            ended = client.get(task)
            assert ended.state == "SUCCEEDED", (name, ended.error)
            ends = [e for e in client.watch(task) if e.kind == "state_changed" and e.data.get("state") == "SUCCEEDED"]
            assert len(ends) == 1
            sequences = [e.sequence for e in client.watch(task)]
            assert sequences == list(range(1, len(sequences) + 1))
    # What was under way may be asked once more: one call of each task, two of `steps`. What was recorded is not.
    repeated = {text: n - UNDISTURBED.get(text, 1) for text, n in counting.counts.items()}
    assert all(0 <= n <= UNDISTURBED.get(text, 1) for text, n in repeated.items()), counting.counts
    assert sum(repeated.values()) <= 5, counting.counts
    if not LONG:
        assert reached, f"{point} was never reached"


def test_every_awaited_commit_is_synced(killable: Callable[..., KillableNode], forgetful: Path) -> None:
    """A native task with one call awaits two commits."""
    node = killable(LD_PRELOAD=str(forgetful))
    log = node.folder / "data" / "singularity.db-wal.syncs"
    tasks = 20
    with Client(node.address) as client:
        client.execute("warm", framework="native")
        before = log.stat().st_size
        for n in range(tasks):
            client.execute(f"task {n}", framework="native")
    assert log.stat().st_size - before >= 2 * tasks
