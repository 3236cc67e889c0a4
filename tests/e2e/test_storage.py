"""The folder of the data: full, read-only, in use, damaged, checked and backed up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import KillableNode, eventually

from singularity_agents import Client, SingularityError
from singularity_agents._local_node import free_port, program

LATER = datetime.now(UTC) + timedelta(hours=1)


def cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "singularity_agents.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def works(client: Client) -> bool:
    """Whether the node takes work again: the listener comes back behind its store."""
    try:
        return client.execute("room again", framework="native").output == "room again"
    except SingularityError:
        return False


def refused_start(node: KillableNode, data: Path) -> str:
    """A node that does not start: what it says."""
    environment = {
        **os.environ,
        "SINGULARITY_CONFIG": str(node.folder / "singularity.toml"),
        "SINGULARITY_DATA_DIR": str(data),
        "SINGULARITY_STATE_DIR": str(node.folder / "second-state"),
        "SINGULARITY_ADDRESS": "127.0.0.1:0",
        "SINGULARITY_HTTP_ADDRESS": "off",
        "SINGULARITY_DIST_PORT": str(free_port()),
    }
    ended = subprocess.run(program(), env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode != 0
    return ended.stdout + ended.stderr


def test_a_backup_of_a_running_node_holds_what_was_acknowledged(killable: Callable[..., KillableNode], tmp_path: Path) -> None:
    node = killable()
    data = node.folder / "data"
    with Client(node.address) as client:
        done = client.execute("kept", framework="native").task_id
        waiting = client.submit("later", framework="native", not_before=LATER).id
        loop = client.submit("loop", agent_type="loop").id
        copy = tmp_path / "restored" / "singularity.db"
        copy.parent.mkdir()
        backed_up = cli("store", "backup", copy, "--data-dir", data)
        assert backed_up.returncode == 0, backed_up.stderr
        assert cli("store", "backup", copy, "--data-dir", data).returncode == 2, "nothing is overwritten"
        checked = cli("store", "check", "--data-dir", copy.parent, "-o", "json")
        assert json.loads(checked.stdout)["tasks"] == {"RUNNING": 1, "WAITING": 1, "SUCCEEDED": 1}
        client.cancel(loop, grace="0s")
    node.kill()
    node.start(SINGULARITY_DATA_DIR=str(copy.parent))
    with Client(node.address) as client:
        assert client.get(done).state == "SUCCEEDED"
        assert client.get(waiting).state == "WAITING"
        # It ran when the copy was made, so it runs again.
        assert eventually(lambda: t if (t := client.get(loop)).attempts == 2 else None).state == "RUNNING"
        client.cancel(loop, grace="0s")


def test_damage_is_found_by_the_check(killable: Callable[..., KillableNode], tmp_path: Path) -> None:
    node = killable()
    with Client(node.address) as client:
        for n in range(30):
            client.execute(f"{n}" * 4000, framework="native")
    copy = tmp_path / "copy.db"
    assert cli("store", "backup", copy, "--data-dir", node.folder / "data").returncode == 0
    content = bytearray(copy.read_bytes())
    # The head of every page but the first: what lies in the middle of one may be content that no check knows.
    for page in range(1, len(content) // 8192):
        content[page * 8192 : page * 8192 + 16] = b"\xff" * 16
    copy.write_bytes(content)
    checked = cli("store", "check", "--file", copy)
    assert (checked.returncode, "damaged" in checked.stdout) == (4, True), checked
    assert cli("store", "check", "--data-dir", tmp_path).returncode == 2


def test_a_second_node_on_one_folder_does_not_start(killable: Callable[..., KillableNode]) -> None:
    node = killable()
    assert "in use by another node" in refused_start(node, node.folder / "data")
    with Client(node.address) as client:
        assert client.execute("still here", framework="native").output == "still here"


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted")
def test_a_full_disk_refuses_work_and_loses_nothing(killable: Callable[..., KillableNode], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        node = killable(starts=False)
        node.start(SINGULARITY_DATA_DIR=str(disk / "data"))
        acknowledged: list[str] = []
        reasons: set[str] = set()
        with Client(node.address, max_retries=0, timeout="30s") as client:
            for n in range(60):
                try:
                    acknowledged.append(client.submit(f"{n} " + "x" * 700_000, framework="native", not_before=LATER).id)
                except SingularityError as refused:
                    reasons.add(refused.reason)
        assert acknowledged and reasons
        assert reasons <= {"DISK_LOW", "STORE_UNAVAILABLE", "COMMIT_AMBIGUOUS", "NATIVE_DOWN", "UNAVAILABLE"}, reasons
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        with Client(node.address, timeout="60s") as client:
            eventually(lambda: works(client), within_s=40)
            assert all(client.get(task).state == "WAITING" for task in acknowledged)
        node.kill()
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_a_folder_that_cannot_be_written_is_named(killable: Callable[..., KillableNode], tmp_path: Path) -> None:
    """A file stands where the folder should be: root may write to a read-only folder all the same."""
    node = killable(starts=False)
    place = tmp_path / "no-folder"
    place.write_text("a file")
    environment = {"SINGULARITY_DATA_DIR": str(place)}
    node.start_in_vain(**environment)
    assert "no-folder" in node.log()
