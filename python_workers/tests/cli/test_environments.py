"""`frameworks install` on the smallest environment, and what it says where it cannot."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from singularity_agents.adapters import _pins
from singularity_agents.cli import main
from singularity_agents.cli._environments import STAMP, lock_hash, place


def test_an_environment_is_made_from_its_lock_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SINGULARITY_ENVS", str(tmp_path))
    assert main(["frameworks", "install", "custom", "-o", "json"]) == 0
    assert '"installed"' in capfd.readouterr().out
    lock = place().locks / "custom.txt"
    assert (tmp_path / "custom" / STAMP).read_text().strip() == hashlib.sha256(lock.read_bytes()).hexdigest()
    subprocess.run([tmp_path / "custom" / "bin" / "python", "-c", "import google.protobuf"], check=True, timeout=60)
    assert main(["frameworks", "install", "custom"]) == 0
    assert "there already" in capfd.readouterr().out


def test_stale_environments_are_deleted_and_those_in_use_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SINGULARITY_ENVS", str(tmp_path))
    for name in ("autogen", "haystack", "custom", "mine"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (tmp_path / "autogen" / STAMP).write_text("of another lock\n")
    (tmp_path / "custom" / STAMP).write_text(lock_hash(place().locks / "custom.txt"))
    interpreter = tmp_path / "haystack" / "bin" / "python"
    interpreter.symlink_to(sys.executable)
    with subprocess.Popen([interpreter, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert main(["frameworks", "gc", "--dry-run", "-o", "json"]) == 0
        said = {row["framework"]: row["state"] for row in json.loads(capfd.readouterr().out)["environments"]}
        assert said == {"autogen": "stale", "haystack": f"in use by process {process.pid}"}
        assert (tmp_path / "autogen").exists()
        assert main(["frameworks", "gc"]) == 0
        assert "deleted" in capfd.readouterr().out
        assert sorted(p.name for p in tmp_path.iterdir()) == ["custom", "haystack", "mine"]
        process.communicate(b"\n", timeout=20)


def test_an_unknown_framework_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["frameworks", "install", "autogpt"]) == 4
    err = capfd.readouterr().err
    assert "autogpt" in err and "autogen" in err


def test_another_version_than_the_locks_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pins, "version", lambda package: "1.6.1")
    with pytest.raises(_pins.WrongVersion, match=r"crewai 1\.6\.1 is installed, the lock says .*frameworks install crewai"):
        _pins.versions("crewai")
