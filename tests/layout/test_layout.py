"""The checks check: what the layout check refuses, and that locks and generated code fit together."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "python_workers" / "locks"

GOOD = """%% @doc Does one thing.
-module(good).
-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

-export([go/1]).

-type t() :: integer().

-spec go(t()) -> t().
go(X) -> X.
"""


def _load(name: str) -> ModuleType:
    if str(ROOT / "scripts") not in sys.path:
        sys.path.append(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _problems(text: str) -> list[str]:
    return [problem for _line, problem in _load("check_layout").check_text("good", text)]


def test_a_clean_module_passes() -> None:
    assert _problems(GOOD) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.replace("go(X) -> X", "go(X) ->\tX"), "tab"),
        (lambda t: t.replace("-> X.", "-> X. "), "blanks at the end"),
        (lambda t: t.replace("-> X.", "-> X. %" + "x" * 140), "columns"),
        (lambda t: t.rstrip("\n"), "no newline"),
        (lambda t: t.replace("%% @doc Does one thing.\n", ""), "no comment about the module"),
        (lambda t: t.replace("-module(good)", "-module(other)"), "not named like its file"),
        (lambda t: t.replace("-spec go(t()) -> t().\n", ""), "no -spec"),
        (lambda t: t + '-include("late.hrl").\n', "-include after code"),
    ],
)
def test_a_fault_of_layout_is_named(change, expected) -> None:  # type: ignore[no-untyped-def]
    assert any(expected in problem for problem in _problems(change(GOOD)))


def test_counts_are_read_from_what_the_suites_print() -> None:
    run_tests = _load("run_tests")
    assert run_tests.count_eunit("7 tests, 1 failures\n") == run_tests.Counts(6, 1)
    assert run_tests.count_ct("All 5 tests passed.\n") == run_tests.Counts(5, 0)
    assert run_tests.count_ct("Failed 1 tests. Passed 4 tests.\n") == run_tests.Counts(4, 1)
    text = "test result: ok. 5 passed; 0 failed; 0 ignored\ntest result: FAILED. 1 passed; 2 failed; 0 ignored\n"
    assert run_tests.count_cargo(text) == run_tests.Counts(6, 2)


@pytest.mark.parametrize("lock", sorted(LOCKS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_locked_package_has_an_exact_version_and_hashes(lock: Path) -> None:
    entries = re.split(r"\n(?=[a-z0-9])", lock.read_text())
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_one_protobuf_runtime_in_every_environment() -> None:
    versions = set()
    for name in ("dev", "langchain", "custom"):
        found = re.search(r"^protobuf==(\S+)", (LOCKS / f"{name}.txt").read_text(), re.MULTILINE)
        assert found is not None, name
        versions.add(found.group(1))
    assert len(versions) == 1


def test_stubs_import_each_other_inside_our_package() -> None:
    rewrite = _load("gen_proto").rewrite
    assert rewrite("from singularity.agents.v1 import task_pb2 as x\n") == (
        "from singularity_agents._proto.singularity.agents.v1 import task_pb2 as x\n"
    )
    assert rewrite("from google.protobuf import struct_pb2\n") == "from google.protobuf import struct_pb2\n"
