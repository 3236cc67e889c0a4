"""Names of an adapter's package that are imported, with the framework behind them, when they are first used (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The package's `__getattr__`; `homes` says in which of its modules each public name lives."""

    def find(name: str) -> Any:
        if home := homes.get(name):
            return getattr(import_module(f".{home}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


def ahead(*modules: str) -> None:
    """Imports what a framework imports in its first run: done before the fork it is shared by all workers."""
    for module in (*modules, "encodings.ascii"):
        import_module(module)
