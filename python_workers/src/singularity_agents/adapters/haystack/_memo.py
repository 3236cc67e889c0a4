"""What Haystack reads off functions anew in each run: the names of its own handlers for a span that nobody records, and the parameters
of a tool, twice for each call.
"""

from __future__ import annotations

from haystack.components.agents import tool_calling
from haystack.components.agents.state import state

from .. import _memo


def install() -> None:
    """Puts kept answers in place of the questions, in this process."""
    state.serialize_callable = _memo.of_functions(state.serialize_callable)
    tool_calling._resolve_parameter_types = _memo.of_functions(tool_calling._resolve_parameter_types)
