"""The user's code: its folder on the path, `module:object` to an object. Only the configuration file names either."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def add_folder(project: str) -> None:
    """Makes the modules of a project importable."""
    if project and project not in sys.path:
        sys.path.insert(0, project)


def resolve(reference: str) -> Any:
    """The object of `module:object` (`object` may be dotted), or the module alone. Raises LookupError saying what is there."""
    module_name, _, path = reference.partition(":")
    found: Any = importlib.import_module(module_name)
    for part in filter(None, path.split(".")):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = ", ".join(sorted(n for n in vars(found) if not n.startswith("_"))[:20])
            raise LookupError(f'"{reference}": {module_name} has no "{part}"; it has {names}') from None
    return found
