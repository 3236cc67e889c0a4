"""Agents of the end-to-end tests that say which packages and which Python they run on."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

from singularity_agents import agent


@agent("says_version")
async def says_version(task: Any, engine: Any) -> str:
    return importlib.metadata.version("greetings-of-tests")


@agent("says_python")
async def says_python(task: Any, engine: Any) -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


@agent("asks_first")
async def asks_first(task: Any, engine: Any) -> str:
    answer = await engine.ask("go on?")
    return f"{answer} with {importlib.metadata.version('greetings-of-tests')}"
