"""Spans around tasks, with the extra `otel`: the GenAI names of OpenTelemetry.

Without the extra, or before an application has set a tracer provider, this costs nothing. The text of a task is added
only where `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true` says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ._models import Task

if TYPE_CHECKING:
    from ._calls import Call

try:
    from opentelemetry import trace as _trace
except ImportError:  # the extra is not installed
    _trace = None  # type: ignore[assignment]

#: The environment variable of OpenTelemetry by which people opt in to prompts in spans.
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


class TaskSpan:
    """The span of a submitted task; does nothing where there is none."""

    def __init__(self, span: Any | None) -> None:
        self._span = span

    def ended(self, task: Task) -> None:
        """Records what is known of the task."""
        if self._span is None or not self._span.is_recording():
            return
        self._span.set_attribute("singularity.task.id", task.id)
        self._span.set_attribute("singularity.task.state", task.state)
        if task.error:
            self._span.set_attribute("error.type", task.error.reason)
        if task.result:
            used = task.result.metrics.tokens_used
            self._span.set_attribute("gen_ai.usage.input_tokens", used.input_tokens)
            self._span.set_attribute("gen_ai.usage.output_tokens", used.output_tokens)
            self._span.set_attribute("singularity.task.executor", task.result.executor)


@contextmanager
def task_span(call: Call[Task]) -> Iterator[TaskSpan]:
    """`invoke_agent NAME` around a submit or an execute."""
    if _trace is None:
        yield TaskSpan(None)
        return
    request: Any = call.request
    task = request.task
    name = task.agent_id or task.agent_type or "assistant"
    attributes: dict[str, str] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "singularity",
        "gen_ai.agent.name": name,
    }
    if task.requirements.model:
        attributes["gen_ai.request.model"] = task.requirements.model
    if os.environ.get(CAPTURE, "").lower() == "true":
        attributes["gen_ai.input.messages"] = task.description
    tracer = _trace.get_tracer("singularity_agents")
    kind = _trace.SpanKind.CLIENT
    with tracer.start_as_current_span(f"invoke_agent {name}", kind=kind, attributes=attributes) as span:
        yield TaskSpan(span)
