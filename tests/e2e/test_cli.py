"""The command line on a real node, as a person uses it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from conftest import eventually

from singularity_agents import Client
from singularity_agents._local_node import LocalNode, free_port, serving
from singularity_agents._transport import Target

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, "-m", "singularity_agents.cli"]


def cli(node: LocalNode | None, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    address = ["--address", node.address] if node else []
    return subprocess.run([*COMMAND, *arguments, *address], capture_output=True, text=True, timeout=120, cwd=cwd)


def test_a_good_configuration_passes_and_a_bad_one_names_line_key_and_remedy(tmp_path: Path) -> None:
    for name in ("native_first", "framework_first"):
        assert cli(None, "config", "check", str(ROOT / "config" / f"{name}.toml")).returncode == 0
    bad = tmp_path / "bad.toml"
    bad.write_text('[server]\nadress = "127.0.0.1:1"\n')
    done = cli(None, "config", "check", str(bad))
    assert done.returncode == 4
    assert f"{bad}:2" in done.stderr
    assert 'did you mean "address"' in done.stderr


def test_run_prints_the_answer_alone_and_the_rest_beside_it(node: LocalNode) -> None:
    done = cli(node, "run", "hello there")
    assert (done.returncode, done.stdout) == (0, "hello there\n"), "piped, the answer is all that stdout holds"
    assert "native" in done.stderr and "cost" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr, "no colour where nobody looks"


def test_cancel_shows_its_proof(node: LocalNode, client: Client) -> None:
    handle = client.submit("x", agent="loop")
    eventually(lambda: handle.get().worker_pid)
    done = cli(node, "cancel", handle.id[-8:], "--grace", "0s", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert '"confirmed_dead": true' in done.stdout


def test_doctor_and_report_say_what_is_there(node: LocalNode, tmp_path: Path) -> None:
    # Until the embedded model has loaded, the doctor rightly finds it missing.
    eventually(lambda: cli(node, "doctor").returncode == 0, within_s=60)
    done = cli(node, "doctor")
    for line in ("sandbox", "store", "providers", "frameworks", "isolation"):
        assert line in done.stdout
    assert cli(node, "report", cwd=tmp_path).returncode == 0
    with tarfile.open(tmp_path / "report.tar.gz") as report:
        assert "report/doctor.json" in report.getnames()


def test_any_method_can_be_called_and_a_wrong_one_has_a_suggestion(node: LocalNode) -> None:
    done = cli(node, "call", "FrameworkService.ListFrameworks", "{}")
    assert {f["name"] for f in json.loads(done.stdout)["frameworks"]} >= {"langchain", "custom"}
    wrong = cli(node, "call", "TaskService.GetTsk", "{}")
    assert wrong.returncode == 2
    assert 'Did you mean "TaskService.GetTask"' in wrong.stderr


@pytest.mark.parametrize("arguments", [["get", "00000000"], ["run", "x", "--agent", "nobody"], ["memory", "search", "x", "y"]])
def test_a_refusal_is_on_stderr_with_its_reason(node: LocalNode, arguments: list[str]) -> None:
    done = cli(node, *arguments)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error ")


def test_without_a_node_it_says_how_to_start_one() -> None:
    done = subprocess.run([*COMMAND, "list", "--address", "127.0.0.1:9"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "singularity up" in done.stderr


def typed(
    command: list[str], environment: dict[str, str], talk: list[tuple[bytes, bytes]], limit_s: float = 60
) -> tuple[int, bytes]:
    """Runs a command in a terminal: waits for each text and types its answer. Gives the exit code and what was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(environment)
        os.execv(command[0], command)
    shown, at, deadline = b"", 0, time.monotonic() + limit_s
    pending = list(talk)
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                break
        if pending and pending[0][0] in shown[at:]:
            at = len(shown)
            os.write(terminal, pending.pop(0)[1])
    os.close(terminal)
    assert not pending, f"{pending[0][0]!r} did not come: {shown[-2000:].decode(errors='replace')}"
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_top_refreshes_in_place_and_leaves_the_terminal_as_it_was(node: LocalNode) -> None:
    # Two frames: the second one is drawn over the first.
    frame = b"\x1b[H"
    top = [*COMMAND, "top", "--address", node.address]
    code, shown = typed(top, {"COLUMNS": "80", "TERM": "xterm"}, [(frame, b""), (frame, b"q")], limit_s=30)
    assert code == 0
    assert shown.count(frame) >= 2
    assert b"TASK" in shown and b"STATE" in shown
    assert shown.index(b"\x1b[?1049h") < shown.index(b"\x1b[?1049l"), "the screen of before comes back"


def test_up_starts_a_node_that_ctrl_c_stops_and_the_shell_looks_into_it(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(
        '[providers.echo]\ndialect = "echo"\n[models.default]\nendpoints = [{ provider = "echo", name = "echo" }]\n'
    )
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "SINGULARITY_STATE_DIR": str(tmp_path / "state"), "SINGULARITY_DIST_PORT": str(free_port()), "SINGULARITY_ADDRESS": address,
        "SINGULARITY_HTTP_ADDRESS": "off",
        "TERM": "xterm",
    }  # fmt: skip
    up = [*COMMAND, "up", "--config", str(tmp_path / "node.toml"), "--data-dir", str(tmp_path / "data")]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(environment)
        # Whoever runs the tests in the background has Ctrl-C ignored, and a shell cannot trap what was ignored before it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execv(up[0], up)
    reader = subprocess.Popen(["cat"], stdin=terminal, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: serving(Target(address)), within_s=60)
        with Client(address) as client:
            task = client.execute("hello").task_id
        code, shown = typed(
            [*COMMAND, "shell"],
            environment,
            [(b"1> ", f'agent_execution:why("{task[-8:]}").\r'.encode()), (b"SUCCEEDED", b"\x07"), (b"-->", b"q\r")],
        )
        assert code == 0 and b"on native" in shown
        assert serving(Target(address)), "leaving the shell leaves the node"
        os.write(terminal, b"\x03")
        ended = eventually(lambda: os.waitpid(pid, os.WNOHANG)[0] and True, within_s=60)
        assert ended and not serving(Target(address))
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((tmp_path / "state" / "run" / "pid").read_text()), signal.SIGKILL)
        reader.kill()
        reader.wait()
        os.close(terminal)
