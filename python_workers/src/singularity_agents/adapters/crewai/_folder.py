"""Project folders of CrewAI's own tools, `src/<package>/crew.py` with its YAML files, used as they are.

`project` names the folder; `entrypoint` is left out, or is `crew.py`, or `crew.py:ClassName` where there are several.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from .. import _project

#: The file that makes a package a crew's.
FILE: Final = "crew.py"
#: Where the packages of a project are.
_SOURCES: Final = "src"
#: Settings of an agent that name a model, or a method of the class that makes one.
_MODELS: Final = ("llm", "function_calling_llm")


def is_meant(reference: str, project: str) -> bool:
    """Whether an agent means a project folder: its entry point names the file, or it has none and the folder is one."""
    if reference:
        return reference.partition(":")[0] == FILE
    return bool(project) and bool(_files(project))


def resolve(reference: str, project: str) -> Callable[[], Any]:
    """What makes the crew, anew for each task. Its package becomes importable by its name; `.env` is not read.

    Raises LookupError saying what is there, where there is no crew or more than one.
    """
    files = _files(project)
    wanted = reference.partition(":")[2]
    if not files:
        raise LookupError(f"{project or '.'} has no {_SOURCES}/<package>/{FILE}")
    _project.add_folder(str(Path(project).resolve() / _SOURCES))
    classes = [cls for file in files for cls in _classes(importlib.import_module(f"{file.parent.name}.{file.stem}"))]
    fitting = [cls for cls in classes if wanted in ("", cls.__name__)]
    if len(fitting) != 1:
        known = ", ".join(sorted(cls.__name__ for cls in classes)) or "no class marked @CrewBase"
        raise LookupError(f'{project} has {known}; name one: entrypoint = "{FILE}:ClassName"')
    made = fitting[0]
    if not callable(getattr(made, "crew", None)):
        raise LookupError(f"{made.__name__} has no method crew(), which CrewAI's projects mark @crew")
    made.load_configurations = _without_models(made.load_configurations)
    return lambda: made().crew()


def _without_models(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Leaves names of models out of `agents.yaml`: the task's takes their place, and a name alone would ask for a provider's package."""

    def loaded(instance: Any) -> None:
        load(instance)
        for settings in instance.agents_config.values():
            for key in _MODELS:
                if isinstance(settings, dict) and isinstance(settings.get(key), str) and not hasattr(instance, settings[key]):
                    del settings[key]

    return loaded


def _files(project: str) -> list[Path]:
    return sorted(Path(project or ".").resolve().glob(f"{_SOURCES}/*/{FILE}"))


def _classes(module: ModuleType) -> list[Any]:
    """Classes of a module's own that `@CrewBase` has made."""
    found = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if getattr(cls, "is_crew_class", False)]
    return [cls for cls in found if cls.__module__ == module.__name__]
