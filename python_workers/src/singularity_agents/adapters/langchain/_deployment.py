"""`langgraph.json`: a project of LangGraph's own tools, used as it is by `entrypoint = "langgraph.json:GRAPH"`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from .. import _project

#: Name of the file, in the folder that `project` names.
FILE: Final = "langgraph.json"


def is_meant(reference: str) -> bool:
    """Whether an entry point names the file."""
    return reference.partition(":")[0] == FILE


def resolve(reference: str, project: str) -> Any:
    """The graph, or what makes it. Without a name the only one there is. Its local `dependencies` become importable.

    `env` is not read: secrets are the engine's. Raises LookupError saying what is wrong with the file, or which graphs it has.
    """
    root = Path(project or ".").resolve()
    try:
        said = json.loads((root / FILE).read_text("utf-8"))
        graphs = {str(name): _path(value) for name, value in said["graphs"].items()}
        folders = [str(item) for item in said.get("dependencies", ()) if str(item).startswith(".")]
    except OSError as error:
        raise LookupError(f"{root / FILE} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LookupError(f"{root / FILE}: {type(error).__name__}: {error}; it must have graphs: name to file:object") from None
    for folder in folders:
        _project.add_folder(str((root / folder).resolve()))
    name = reference.partition(":")[2] or (next(iter(graphs)) if len(graphs) == 1 else "")
    if name not in graphs:
        raise LookupError(f'{root / FILE} has no graph "{name}"; it has: {", ".join(sorted(graphs)) or "none"}')
    module, _, path = graphs[name].rpartition(":")
    if not module.endswith(".py"):
        return _project.resolve(graphs[name])
    found = _loaded((root / module).resolve())
    if not hasattr(found, path):
        raise LookupError(f'{root / FILE}: {module} has no "{path}"')
    return getattr(found, path)


def _path(value: Any) -> str:
    """`file:object`, or a dictionary with it under `path`."""
    found = value["path"] if isinstance(value, dict) else value
    if not isinstance(found, str) or not found.rpartition(":")[0]:
        raise ValueError(f"{found!r} is no file:object")
    return found


def _loaded(file: Path) -> ModuleType:
    """The module of a file, by the name that its folder on the path gives it, so that it is not there twice."""
    for folder in sys.path:
        if folder and file.is_relative_to(folder):
            parts = file.relative_to(folder).with_suffix("").parts
            if parts and all(part.isidentifier() for part in parts):
                return importlib.import_module(".".join(parts))
    spec = importlib.util.spec_from_file_location(file.stem.replace("-", "_"), file)
    if spec is None or spec.loader is None or not file.is_file():
        raise LookupError(f"{file} is no Python file")
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made
