"""`frameworks install` on the smallest environment, and what it says where it cannot."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from singularity_agents.adapters import _pins
from singularity_agents.cli import main
from singularity_agents.cli._environments import STAMP, place


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


def test_an_unknown_framework_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["frameworks", "install", "autogpt"]) == 4
    err = capfd.readouterr().err
    assert "autogpt" in err and "autogen" in err


def test_another_version_than_the_locks_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pins, "version", lambda package: "1.6.1")
    with pytest.raises(_pins.WrongVersion, match=r"crewai 1\.6\.1 is installed, the lock says .*frameworks install crewai"):
        _pins.versions("crewai")
