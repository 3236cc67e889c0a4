"""Each test that docs/guarantees.md names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Where tests are, by the ends of their names.
PLACES = {"rust_nif/crates": ".rs", "apps": ".erl", "tests": ".py", "python_workers/tests": ".py"}


def test_every_test_that_holds_a_guarantee_is_there() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and not line.startswith(("| Sentence", "| What", "|---"))]
    named = [re.findall(r"`([a-z_0-9]+)`", row.split("|")[2]) for row in rows]
    assert len(rows) > 10 and all(any(len(name) > 12 for name in names) for names in named), "every sentence has a test"
    code = "".join(
        file.read_text(errors="replace")
        for place, end in PLACES.items()
        for file in (ROOT / place).rglob(f"*{end}")
        if file.is_file()
    )
    defined = set(re.findall(r"^\s*(?:def |fn )?([a-z_0-9]{10,})\(", code, re.MULTILINE))
    missing = {name for names in named for name in names if name not in defined} - {"fdatasync"}
    assert not missing, missing
