"""Every part killed or stopped in turn, while workers with escaped children run: nothing is left, and nobody else is hurt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .harness import ROOT, Process, Worker, Zygote, all_gone, descendants, hit, parent, processes, program, stop_and_wait

MODES = ["auto", "plain"]
#: The tree of a part that was hit is gone within this on an idle machine; ten times that is allowed here.
SOON_S = 5.0


def _pair(zygote: Zygote, mode: str) -> tuple[Worker, Worker]:
    """The one that is hit, and a neighbour that must not notice."""
    pair = zygote.worker("stubborn", mode), zygote.worker("stubborn", mode)
    for worker in pair:
        assert worker.line() == "ready"
    return pair


def _end(worker: Worker) -> None:
    tree = worker.tree()
    worker.port.kill()
    assert worker.port.until("gone")["proof"] != "unconfirmed"
    all_gone(tree)
    worker.port.wait()


def _init_of(worker: Worker) -> int | None:
    keeper = parent(worker.pid)
    for pid in descendants(keeper):
        if program(pid).startswith(b"port_guard\0init"):
            return pid
    return None


@pytest.mark.parametrize("mode", MODES)
def test_guard_killed(zygote: Zygote, mode: str) -> None:
    worker, neighbour = _pair(zygote, mode)
    tree = worker.tree()
    hit(worker.port.pid, signal.SIGKILL)
    assert worker.port.wait() == -signal.SIGKILL
    all_gone(tree, SOON_S)
    assert all(p.alive() for p in neighbour.tree())
    _end(neighbour)


@pytest.mark.parametrize("mode", MODES)
def test_worker_killed_leaves_no_children(zygote: Zygote, mode: str) -> None:
    worker, neighbour = _pair(zygote, mode)
    tree = worker.tree()
    hit(worker.pid, signal.SIGKILL)
    assert worker.port.until("exited")["signal"] == signal.SIGKILL
    assert worker.port.until("gone")["proof"] == ("namespace" if worker.up["mode"] == "namespace" else "descendants")
    all_gone(tree, SOON_S)
    assert worker.port.wait() == 128 + signal.SIGKILL
    _end(neighbour)


@pytest.mark.parametrize("mode", MODES)
def test_keeper_killed(zygote: Zygote, mode: str) -> None:
    worker, neighbour = _pair(zygote, mode)
    tree = worker.tree()
    hit(parent(worker.pid), signal.SIGKILL)
    gone = worker.port.until("gone")
    assert gone["proof"] == ("namespace" if worker.up["mode"] == "namespace" else "unconfirmed")
    # Without a namespace the guard of the zygote finds what the keeper left.
    all_gone(tree, SOON_S)
    assert all(p.alive() for p in neighbour.tree())
    _end(neighbour)


def test_init_killed(zygote: Zygote) -> None:
    worker, neighbour = _pair(zygote, "auto")
    init = _init_of(worker)
    if init is None:
        pytest.skip("no namespaces here")
    tree = worker.tree()
    hit(init, signal.SIGKILL)
    assert worker.port.until("gone")["proof"] == "namespace"
    all_gone(tree, SOON_S)
    _end(neighbour)


@pytest.mark.parametrize("part", ["zygote", "zygote guard"])
@pytest.mark.parametrize("mode", MODES)
def test_a_dead_zygote_costs_no_running_worker(zygote: Zygote, mode: str, part: str) -> None:
    worker, neighbour = _pair(zygote, mode)
    trees = worker.tree() | neighbour.tree()
    zygote_process = Process.of(zygote.pid)
    hit(zygote.pid if part == "zygote" else zygote.port.pid, signal.SIGKILL)
    all_gone([zygote_process], SOON_S)
    assert all(p.alive() for p in trees)
    with pytest.raises((AssertionError, TimeoutError, OSError)):
        zygote.worker("quiet", mode)
    _end(worker)
    _end(neighbour)


@pytest.mark.parametrize("mode", MODES)
def test_data_channel_closed(zygote: Zygote, mode: str) -> None:
    worker, neighbour = _pair(zygote, mode)
    tree = worker.tree()
    worker.data.close()
    assert worker.port.until("gone")["proof"] != "unconfirmed"
    all_gone(tree, SOON_S)
    _end(neighbour)


@pytest.mark.parametrize("mode", MODES)
def test_port_closed(zygote: Zygote, mode: str) -> None:
    worker, neighbour = _pair(zygote, mode)
    tree = worker.tree()
    worker.port.close()
    all_gone(tree, SOON_S)
    worker.port.wait()
    _end(neighbour)


@pytest.mark.parametrize("part", ["worker", "keeper", "init"])
@pytest.mark.parametrize("mode", MODES)
def test_kill_of_a_tree_with_a_stopped_part(zygote: Zygote, mode: str, part: str) -> None:
    worker, neighbour = _pair(zygote, mode)
    target = {"worker": worker.pid, "keeper": parent(worker.pid), "init": _init_of(worker)}[part]
    if target is None:
        pytest.skip("no namespace")
    tree = worker.tree()
    keeper = parent(worker.pid)
    stop_and_wait(target)
    worker.port.kill()
    gone = worker.port.until("gone")
    if part == "keeper":
        # A stopped parent reaps nothing: without a namespace there is no proof, and none is claimed.
        assert gone["proof"] == ("namespace" if worker.up["mode"] == "namespace" else "unconfirmed")
        hit(keeper, signal.SIGCONT)
    else:
        assert gone["proof"] != "unconfirmed"
    all_gone(tree, SOON_S)
    worker.port.wait()
    _end(neighbour)


@pytest.mark.parametrize("mode", MODES)
def test_a_stopped_guard_is_killed_by_its_pid(zygote: Zygote, mode: str) -> None:
    worker, neighbour = _pair(zygote, mode)
    tree = worker.tree()
    stop_and_wait(worker.port.pid)
    hit(worker.port.pid, signal.SIGKILL)
    all_gone(tree, SOON_S)
    worker.port.wait()
    _end(neighbour)


#: A node of its own process: a zygote, two workers of each mode, then it only waits to be killed.
_NODE = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from guard.harness import Zygote
zygote = Zygote(Path(sys.argv[1]))
workers = [zygote.worker("stubborn", mode) for mode in ("auto", "plain", "auto", "plain")]
assert all(worker.line() == "ready" for worker in workers)
print(zygote.port.pid, zygote.pid, *(worker.port.pid for worker in workers), flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("stopped", ["nothing", "guards", "keepers", "inits", "zygote", "zygote guard"])
def test_node_killed(folder: Path, stopped: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _NODE, str(folder)], stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
    ) as node:
        assert node.stdout is not None
        zygote_guard, zygote, *guards = map(int, node.stdout.readline().split())
        everything = set(processes(descendants(node.pid)))
        assert len(everything) > 4 * 5
        programs = {p.pid: program(p.pid) for p in everything}
        targets = {
            "nothing": [],
            "guards": guards,
            "keepers": [pid for pid, line in programs.items() if line.startswith(b"port_guard\0keep")],
            "inits": [pid for pid, line in programs.items() if line.startswith(b"port_guard\0init")],
            "zygote": [zygote],
            "zygote guard": [zygote_guard],
        }[stopped]
        for pid in targets:
            stop_and_wait(pid)
        os.kill(node.pid, signal.SIGKILL)
        try:
            all_gone(everything, SOON_S)
        finally:
            for process in everything:
                if process.alive():
                    hit(process.pid, signal.SIGKILL)
