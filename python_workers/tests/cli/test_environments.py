"""`frameworks install` on the smallest environment, and what it says where it cannot."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from singularity_agents._environments import Wanted
from singularity_agents._locks import COPY, STAMP, WrongLock, merge, parse, verify, write
from singularity_agents.adapters import _pins
from singularity_agents.cli import main
from singularity_agents.cli._environments import place


def test_an_environment_is_made_from_its_lock_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SINGULARITY_ENVS", str(tmp_path))
    assert main(["frameworks", "install", "custom", "-o", "json"]) == 0
    assert '"installed"' in capfd.readouterr().out
    lock = place().locks / "custom.txt"
    assert (tmp_path / "custom" / STAMP).read_text().strip() == hashlib.sha256(lock.read_bytes()).hexdigest()
    assert (tmp_path / "custom" / COPY).read_text() == lock.read_text()
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
    (tmp_path / "custom" / STAMP).write_text(Wanted("custom").digest(place()))
    interpreter = tmp_path / "haystack" / "bin" / "python"
    interpreter.symlink_to(sys.executable)
    with subprocess.Popen([interpreter, "-c", "input()"], stdin=subprocess.PIPE) as process:
        # No node answers here, so nobody knows which open tasks began in an earlier lock.
        assert main(["frameworks", "gc", "--address", "127.0.0.1:1", "--max-retries", "0", "--dry-run", "-o", "json"]) == 0
        said = {row["environment"]: row["state"] for row in json.loads(capfd.readouterr().out)["environments"]}
        assert said["autogen"].startswith("kept: no node answers")
        assert main(["frameworks", "gc", "--offline", "--dry-run", "-o", "json"]) == 0
        said = {row["environment"]: row["state"] for row in json.loads(capfd.readouterr().out)["environments"]}
        assert said == {"autogen": "stale", "haystack": f"in use by process {process.pid}"}
        assert (tmp_path / "autogen").exists()
        assert main(["frameworks", "gc", "--offline"]) == 0
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


HASH = " --hash=sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a==1", "lock:1: a==1 has no --hash"),
        ("\n# of a\na>=1" + HASH, 'lock:3: "a>=1" is no package'),
        ("-e .", 'lock:1: "-e" is no package'),
        ("--index-url https://me:word@example.com", 'lock:1: "--index-url" is no package'),
        ("--index-url=https://me:word@example.com", 'lock:1: "--index-url" is no package'),
        ("a @ https://example.com/a.whl" + HASH, "is no package"),
        (f"a==1{HASH}\nA==2{HASH}", "lock:2: a stands there twice, as 1 and as 2"),
    ],
)
def test_what_is_no_lock_is_refused_by_its_line(text: str, said: str) -> None:
    with pytest.raises(WrongLock) as refused:
        parse(text, "lock")
    assert said in str(refused.value) and "word" not in str(refused.value)


def test_a_lock_is_read_and_written_as_uv_writes_it() -> None:
    hashes = f"--hash=sha256:{'b' * 64} \\\n    --hash=sha256:{'a' * 64}"
    text = f"Some_Package[extra]==1.0 ; sys_platform == 'linux' \\\n    {hashes}\n    # via x\n"
    pins = parse(text, "lock")
    assert list(pins) == ["some-package"] and pins["some-package"].marker == "sys_platform == 'linux'"
    assert parse(write(pins.values()), "again") == pins


def test_two_locks_that_do_not_fit_name_every_package_and_both_versions() -> None:
    ours = parse(f"a==1{HASH}\nb==2{HASH}\nc==3{HASH}", "ours")
    with pytest.raises(WrongLock, match=r"a 9 \(the lock of langchain has 1\), c 9 \(the lock of langchain has 3\)"):
        merge("langchain", ours, parse(f"a==9{HASH}\nb==2{HASH}\nc==9{HASH}\nd==4{HASH}", "theirs"), "theirs")
    assert [p.name for p in merge("langchain", ours, parse(f"d==4{HASH}", "theirs"), "theirs")] == ["a", "b", "c", "d"]


def test_an_environment_is_held_to_every_package_of_its_lock(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    there = packages / "some_package-1.0.dist-info"
    there.mkdir(parents=True)
    (there / "METADATA").write_text("Name: Some.Package\nVersion: 1.0\n")
    (tmp_path / STAMP).write_text("abc\n")
    (tmp_path / COPY).write_text(f"some-package==1.0{HASH}\nelsewhere==1 ; sys_platform == 'win32'{HASH}\n")
    verify(tmp_path, "abc", "make it")
    with pytest.raises(WrongLock, match=r"made from another lock \(abc\) than the one that is there \(def\); run: make it"):
        verify(tmp_path, "def", "make it")
    (tmp_path / COPY).write_text(f"some-package==1.1{HASH}\n")
    with pytest.raises(
        WrongLock, match=r"some-package 1\.0 is installed in the environment .*, the lock says 1\.1; run: make it"
    ):
        verify(tmp_path, "abc", "make it")
    (tmp_path / COPY).write_text(f"another==2{HASH}\n")
    with pytest.raises(WrongLock, match="another 2 is not installed"):
        verify(tmp_path, "abc", "make it")
    (tmp_path / STAMP).unlink()
    with pytest.raises(WrongLock, match="is not whole"):
        verify(tmp_path, "abc", "make it")


def test_the_installer_needs_neither_grpc_nor_anything_else() -> None:
    """A node starts it with whatever interpreter the machine has."""
    code = "import sys, singularity_agents._environments; print([m for m in ('grpc', 'google', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
