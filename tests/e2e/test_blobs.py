"""Content over 64 KiB stands in files beside the database: read like any other, collected, checked, backed up, named when damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import KillableNode, eventually
from test_storage import cli

from singularity_agents import Client, SingularityError

LATER = datetime.now(UTC) + timedelta(hours=1)
#: Well over the size of a row, and unlike the content of another test's task.
LARGE = "large " * 30_000


def blobs(node: KillableNode) -> list[Path]:
    return [f for f in (node.folder / "data" / "blobs").iterdir() if f.is_file() and f.name != ".pause"]


def refused(ask: Callable[[], object]) -> SingularityError:
    with pytest.raises(SingularityError) as refused:
        ask()
    return refused.value


def test_a_large_task_is_read_as_it_was_sent_and_collected_once_it_is_deleted(killable: Callable[..., KillableNode]) -> None:
    node = killable('[store]\nkeep_blobs = "0s"\n')
    with Client(node.address) as client:
        done = client.execute(LARGE, framework="native", request_id="large")
        assert done.output == LARGE
        assert client.submit(LARGE, framework="native", request_id="large").id == done.task_id
    node.kill()
    node.start()
    with Client(node.address) as client:
        (listed,) = client.list("state=SUCCEEDED")
        for task in (client.get(done.task_id), listed):
            assert task.spec["description"] == LARGE and task.result is not None and task.result.output == done.output
        assert [e.kind for e in client.watch(done.task_id)][-1] == "state_changed"
        # The task, the recorded answer of the model, and the result.
        assert len(blobs(node)) == 3
        client.delete(done.task_id)
        eventually(lambda: not blobs(node))
        eventually(lambda: not list((node.folder / "data" / "blobs" / "trash").iterdir()))


def test_a_backup_takes_blobs_along_and_a_restored_one_works(killable: Callable[..., KillableNode], tmp_path: Path) -> None:
    node = killable()
    with Client(node.address) as client:
        done = client.execute(LARGE, framework="native")
        waiting = client.submit(LARGE + "later", framework="native", not_before=LATER).id
    copy = tmp_path / "restored" / "singularity.db"
    copy.parent.mkdir()
    backed_up = cli("store", "backup", copy, "--data-dir", node.folder / "data", "-o", "json")
    assert json.loads(backed_up.stdout)["blobs"] == 4, backed_up.stderr
    assert cli("store", "check", "--data-dir", copy.parent).returncode == 0
    node.kill()
    node.start(SINGULARITY_DATA_DIR=str(copy.parent))
    with Client(node.address) as client:
        result = client.get(done.task_id).result
        assert result is not None and result.output == done.output
        assert client.get(waiting).spec["description"] == LARGE + "later"


def test_a_blob_that_is_torn_or_missing_is_named_and_nothing_is_made_up(killable: Callable[..., KillableNode]) -> None:
    node = killable()
    with Client(node.address) as client:
        torn = client.submit(LARGE + "torn", framework="native", not_before=LATER).id
        (its,) = blobs(node)
        gone = client.submit(LARGE + "gone", framework="native", not_before=datetime.now(UTC) + timedelta(seconds=6)).id
        (others,) = set(blobs(node)) - {its}
    node.kill()
    its.write_bytes(its.read_bytes()[:70_000])
    others.unlink()
    checked = cli("store", "check", "--data-dir", node.folder / "data")
    assert checked.returncode == 4
    assert f"blob {its.name} of task {torn} is damaged" in checked.stdout
    assert f"blob {others.name} of task {gone} is missing" in checked.stdout
    backup = cli("store", "backup", node.folder / "copy.db", "--data-dir", node.folder / "data")
    assert backup.returncode == 2 and ("is damaged" in backup.stderr or "is missing" in backup.stderr)
    node.start()
    with Client(node.address, max_retries=0) as client:
        error = refused(lambda: client.get(torn))
        assert error.reason == "STORE_CORRUPT" and its.name in str(error)
        assert refused(lambda: client.list("state=WAITING")).reason == "STORE_CORRUPT"
        # Its time has come, and nobody knows what it was to do.
        *_, end = client.watch(gone)
        assert end.data["state"] == "FAILED" and end.data["error"]["reason"] == "STORE_CORRUPT"
        assert client.execute("well", framework="native").output == "well"
