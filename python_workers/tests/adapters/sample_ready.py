"""Ready objects, one for all tasks, in the tests of tasks side by side: each is made when it is first asked for, where its framework is."""

from __future__ import annotations

import importlib

import entries

_CLIENTS = {
    "autogen": "EngineChatCompletionClient",
    "haystack": "EngineChatGenerator",
    "semantic_kernel": "EngineChatCompletion",
    "agent_framework": "EngineChatClient",
}
_made = {}


def _client():
    for framework, name in _CLIENTS.items():
        try:
            return getattr(importlib.import_module(f"singularity_agents.adapters.{framework}._model"), name)()
        except ImportError:
            continue
    return None


def __getattr__(name):
    if name.startswith("_"):
        raise AttributeError(name)
    if name not in _made:
        _made[name] = getattr(entries, name)(_client())
    return _made[name]


def same_team(client):
    return __getattr__("round_robin")


def same_orchestration(service):
    return __getattr__("sequential")


def same_workflow(chat_client):
    return __getattr__("workflow")
