"""For tests of users' own agents: a model that says what the test wants, and a real node.

>>> from singularity_agents.testing import Node, ScriptedModel, ToolCall
>>> model = ScriptedModel(ToolCall("count_words", text="one two"), "There are two.")
>>> with Node(my_agent, model=model) as node:
...     assert node.client.execute("How many words?", agent="my_agent").output == "There are two."
>>> assert "count_words" in model.asked[0].tools

Fixtures for pytest: `pytest_plugins = ["singularity_agents.testing.plugin"]`.
"""

from __future__ import annotations

from ._model import Asked, Billed, Fail, ScriptedModel, ToolCall
from ._node import Node

__all__ = ["Asked", "Billed", "Fail", "Node", "ScriptedModel", "ToolCall"]
