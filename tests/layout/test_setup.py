"""The set-up where things are missing, and where it is interrupted: with made-up package tools first on the path."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Only the functions: the part behind "The steps" does the work.
FUNCTIONS = """set -euo pipefail; source "$ROOT/scripts/lib.sh"
eval "$(sed -n '/^APT_PACKAGES/,/^# --- The steps/p' "$ROOT/scripts/setup")"
"""


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def bash(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{folder}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "ROOT": str(ROOT), "CALLS": str(folder / "calls"), **environment}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=30)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A machine on which only rebar3 is missing: dpkg-query knows the rest."""
    program(tmp_path, "dpkg-query", 'for last; do :; done; [ "$last" = rebar3 ] && exit 1; echo installed')
    program(tmp_path, "apt-get", 'echo "apt-get $*" >> "$CALLS"')
    program(tmp_path, "sudo", 'echo "sudo $*" >> "$CALLS"; exec "$@"')
    return tmp_path


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_root_installs_what_is_missing_and_nothing_else(bare: Path) -> None:
    program(bare, "id", "echo 0")
    done = bash(FUNCTIONS + "install_packages", bare)
    assert done.returncode == 0, done.stderr
    assert calls(bare) == ["apt-get -qq update", "apt-get -qq -y install --no-install-recommends rebar3"]


def test_others_ask_for_it_with_sudo(bare: Path) -> None:
    program(bare, "id", "echo 1000")
    assert bash(FUNCTIONS + "install_packages", bare).returncode == 0
    assert [line.split()[0] for line in calls(bare)] == ["sudo", "apt-get"] * 2


def test_where_nothing_is_missing_nothing_is_asked(bare: Path) -> None:
    program(bare, "dpkg-query", "echo installed")
    assert bash(FUNCTIONS + "install_packages", bare).returncode == 0
    assert not (bare / "calls").exists()


def test_without_dpkg_the_list_is_clear(bare: Path) -> None:
    hidden = 'command() { case "$2" in dpkg-query | erl | protoc) return 1 ;; *) builtin command "$@" ;; esac; }; '
    done = bash(FUNCTIONS + hidden + "check_tools", bare)
    assert done.returncode == 1
    assert "install these first" in done.stderr and "erl" in done.stderr and "protoc" in done.stderr


def test_an_old_rust_is_named(bare: Path) -> None:
    program(bare, "cargo", "echo cargo 1.80.0")
    done = bash("RUST_FLOOR=91; " + FUNCTIONS + "check_tools", bare)
    assert done.returncode == 1 and "too old" in done.stderr


def _interruptible() -> None:
    """Whoever runs the tests in the background has Ctrl-C ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_step_that_was_interrupted_runs_again(tmp_path: Path) -> None:
    script = f"""
        source "$ROOT/scripts/lib.sh"; STAMPS={tmp_path}/stamps
        work() {{ echo began >> {tmp_path}/log; [ -e {tmp_path}/go ] || sleep 30; echo ended >> {tmp_path}/log; }}
        step slow key "a slow step" work
    """
    environment = {**os.environ, "ROOT": str(ROOT)}
    first = subprocess.Popen(
        ["bash", "-ec", script], env=environment, start_new_session=True, stderr=subprocess.DEVNULL, preexec_fn=_interruptible
    )
    deadline = time.monotonic() + 10
    while not (tmp_path / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait(10) != 0
    assert not (tmp_path / "stamps" / "slow").exists()
    (tmp_path / "go").touch()
    for _ in range(2):
        assert bash(script, tmp_path).returncode == 0
    assert (tmp_path / "log").read_text().split() == ["began", "began", "ended"], "done once, it is not done again"
