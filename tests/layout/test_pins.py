"""The versions that adapters accept are those of the locks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINS = ROOT / "python_workers" / "src" / "singularity_agents" / "adapters" / "_pins.py"


def pins() -> dict[str, dict[str, str]]:
    """The table, read without importing the package."""
    for node in ast.parse(PINS.read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "PINS":
            assert node.value is not None
            table: dict[str, dict[str, str]] = ast.literal_eval(node.value)
            return table
    raise AssertionError("no PINS")


@pytest.mark.parametrize("environment", sorted(pins()))
def test_adapters_accept_what_is_locked(environment: str) -> None:
    lock = (ROOT / "python_workers" / "locks" / f"{environment}.txt").read_text()
    locked = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", lock, re.MULTILINE))
    assert {package: locked.get(package) for package in pins()[environment]} == pins()[environment]


def test_the_protobuf_modules_are_readable_in_every_environment() -> None:
    def version(name: str) -> tuple[int, ...]:
        found = re.search(r"^protobuf==(\S+)", (ROOT / "python_workers" / "locks" / f"{name}.txt").read_text(), re.MULTILINE)
        assert found is not None, name
        return tuple(int(part) for part in found.group(1).split("."))

    # A runtime reads the code of its own generator and of older ones.
    assert all(version(name) >= version("proto") for name in ("dev", "custom", *pins()))
