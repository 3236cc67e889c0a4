"""Versions that the adapters are made for: those of the locks. Another one is refused by name before anything is imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

#: Packages that matter and their versions, by environment. A test holds them to `python_workers/locks`.
PINS: Final[dict[str, dict[str, str]]] = {
    "langchain": {"langchain": "1.4.7", "langchain-core": "1.7.2", "langgraph": "1.2.22"},
    "crewai": {"crewai": "1.15.30"},
    "autogen": {"autogen-agentchat": "0.7.5", "autogen-core": "0.7.5"},
    "semantic_kernel": {"semantic-kernel": "1.45.0"},
    "haystack": {"haystack-ai": "3.4.0"},
    "agent_framework": {"agent-framework-core": "1.23.0"},
}
#: Environments that hold more than one framework.
_SHARED: Final = {"langgraph": "langchain"}


class WrongVersion(ImportError):
    """A package is missing, or not the one of the lock; the message says which command makes it good."""


def environment(framework: str) -> str:
    """Name of the environment, and of the lock, of a framework."""
    name = framework.partition(":")[0]
    return _SHARED.get(name, name)


def versions(framework: str) -> dict[str, str]:
    """Installed versions of the packages that matter. Raises WrongVersion unless they are those of the lock."""
    name = environment(framework)
    found: dict[str, str] = {}
    for package, wanted in PINS[name].items():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            raise WrongVersion(
                f"{package} {wanted} is not installed here; run: singularity frameworks install {name} --force"
            ) from None
        if found[package] != wanted:
            raise WrongVersion(
                f"{package} {found[package]} is installed, the lock says {wanted}; run: singularity frameworks install {name} --force"
            )
    return found
