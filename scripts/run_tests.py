"""Runs every suite of every language, goes on after a failing one, and closes with one line: ``N passed, N failed``.

A suite that ends badly without naming a failed test (it did not compile, it hung) counts as one failure. After the suites,
processes that they left behind are one failure more.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from postgres_server import NoPostgres, Postgres

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
LOGS = BUILD / "test-logs"
DEV = BUILD / "venvs" / "dev" / "bin"
#: A suite that takes longer hangs; the long forms of the fault tests take about 40 minutes.
SUITE_TIMEOUT_S = 5400 if os.environ.get("SINGULARITY_LONG_TESTS") else 1800
#: Processes may take this long to end after the suite that started them.
LEFTOVER_GRACE_S = 5.0

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Counts:
    passed: int
    failed: int


@dataclass(frozen=True)
class Suite:
    name: str
    command: list[str]
    count: Callable[[str], Counts]
    folder: Path = ROOT
    needs_release: bool = False


def _total(pattern: str, text: str) -> int:
    return sum(int(number) for number in re.findall(pattern, text))


def count_eunit(text: str) -> Counts:
    """``7 tests, 1 failures, 2 skipped``, one line for each run."""
    failed = _total(r"\d+ tests?, (\d+) failures", text)
    return Counts(_total(r"(\d+) tests?, \d+ failures", text) - failed, failed)


def count_ct(text: str) -> Counts:
    """``All 5 tests passed.`` or ``Failed 1 tests. Passed 4 tests.``."""
    return Counts(_total(r"(?:All|Passed) (\d+) tests", text), _total(r"Failed (\d+) tests", text))


def count_cargo(text: str) -> Counts:
    """``test result: ok. 5 passed; 0 failed; …``, one line for each binary."""
    return Counts(_total(r"test result: \w+\. (\d+) passed", text), _total(r"test result: .*? (\d+) failed", text))


def count_junit(path: Path) -> Callable[[str], Counts]:
    """pytest says most exactly in its XML report."""

    def count(_text: str) -> Counts:
        if not path.exists():
            return Counts(0, 0)
        passed = failed = 0
        for suite in ElementTree.parse(path).getroot().iter("testsuite"):
            bad = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
            failed += bad
            passed += int(suite.get("tests", "0")) - bad - int(suite.get("skipped", "0"))
        return Counts(passed, failed)

    return count


def _pytest(name: str, tests: str, needs_release: bool = False) -> Suite:
    report = LOGS / f"{name}.xml"
    command = [
        str(DEV / "python"),
        "-m",
        "pytest",
        "-c",
        str(ROOT / "python_workers" / "pyproject.toml"),
        f"--rootdir={ROOT}",
        "-p",
        "no:cacheprovider",
        "-rfE",
        f"--junitxml={report}",
        tests,
    ]
    return Suite(name, command, count_junit(report), needs_release=needs_release)


def suites() -> list[Suite]:
    """All suites whose tests exist, the quick ones first."""
    found = [
        _pytest("layout", "tests/layout"),
        Suite("eunit", ["rebar3", "eunit"], count_eunit),
        Suite("ct", ["rebar3", "ct"], count_ct),
        Suite("cargo", ["cargo", "test", "--release", "--workspace", "--locked"], count_cargo, ROOT / "rust_nif"),
        _pytest("python", "python_workers/tests"),
    ]
    for name in ("guard", "release", "e2e", "faults", "conformance"):
        if (ROOT / "tests" / name).is_dir():
            found.append(_pytest(name, f"tests/{name}", needs_release=name != "guard"))
    return found


def run(suite: Suite) -> tuple[Counts, int]:
    """Runs one suite in a process group of its own; its output is shown and kept."""
    log = LOGS / f"{suite.name}.log"
    (LOGS / f"{suite.name}.xml").unlink(missing_ok=True)
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": str(BUILD / "rust"),
        "SINGULARITY_ENVS": str(BUILD / "venvs"),
        "SINGULARITY_RELEASE": str(BUILD / "prod" / "rel" / "singularityd"),
        "SINGULARITY_PYTHONPATH": str(ROOT / "python_workers" / "src"),
        "PATH": f"{DEV}:{os.environ['PATH']}",
    }
    with log.open("wb") as sink:
        process = subprocess.Popen(
            suite.command,
            cwd=suite.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
        signal.alarm(SUITE_TIMEOUT_S)
        assert process.stdout is not None
        for line in process.stdout:
            sink.write(line)
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
        code = process.wait()
        signal.alarm(0)
    text = _ANSI.sub("", log.read_text(errors="replace"))
    counts = suite.count(text)
    # pytest: 5 means that nothing was collected, which is no failure while a part has no tests yet.
    if code not in (0, 5) and counts.failed == 0:
        print(f"-- {suite.name} ended with {code} and named no failed test; its output: {log}")
        counts = Counts(counts.passed, 1)
    return counts, code


def processes_of_checkout() -> dict[int, str]:
    """Running programs that were built here: nodes, guards, workers, zygotes, model servers."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            program = os.readlink(entry / "exe")
        except OSError:
            continue
        started_here = re.match(rf"{re.escape(str(BUILD))}/(prod|test|venvs|rust)/", command) or program.startswith(str(BUILD))
        if started_here or f"{ROOT}/apps/agent_native/priv/bin/" in command:
            found[int(entry.name)] = command
    return found


def leftovers(before: dict[int, str]) -> dict[int, str]:
    """What runs now and did not before, after a grace."""
    deadline = time.monotonic() + LEFTOVER_GRACE_S
    while True:
        left = {pid: command for pid, command in processes_of_checkout().items() if pid not in before}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def main(names: list[str]) -> int:
    LOGS.mkdir(parents=True, exist_ok=True)
    # Suites that were deleted would go on running from here.
    shutil.rmtree(BUILD / "test" / "extras", ignore_errors=True)
    known = {suite.name: suite for suite in suites()}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no such suite: {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = [known[name] for name in names] or list(known.values())
    before = processes_of_checkout()
    with conformance_server():
        rows = run_all(chosen)
    left = leftovers(before)
    for pid, command in left.items():
        print(f"left behind: {pid} {command[:160]}")
    rows.append(("nothing left behind", Counts(0 if left else 1, 1 if left else 0), 0.0))

    print()
    for name, counts, seconds in rows:
        print(f"{name:20} {counts.passed:6} passed {counts.failed:4} failed {seconds:8.1f} s")
    passed = sum(counts.passed for _name, counts, _seconds in rows)
    failed = sum(counts.failed for _name, counts, _seconds in rows)
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


@contextlib.contextmanager
def conformance_server() -> Iterator[None]:
    """A PostgreSQL server for the suites that run the same tests on every back end; without one they run on the file alone."""
    try:
        server = Postgres()
    except NoPostgres as missing:
        print(f"-- not tested on PostgreSQL: {missing}", flush=True)
        yield
        return
    with server:
        os.environ["SINGULARITY_TEST_POSTGRES"] = server.url("postgres")
        yield


def run_all(chosen: list[Suite]) -> list[tuple[str, Counts, float]]:
    """Runs the suites one after the other: name, counts, seconds of each."""
    rows = []
    if any(suite.needs_release for suite in chosen):
        subprocess.run([ROOT / "scripts" / "release", "--quiet"], check=False)
    for suite in chosen:
        print(f"\n== {suite.name}: {' '.join(suite.command)}", flush=True)
        started = time.monotonic()
        counts, _code = run(suite)
        rows.append((suite.name, counts, time.monotonic() - started))
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
