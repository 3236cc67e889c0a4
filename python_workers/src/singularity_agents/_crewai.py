"""`SingularityCrewAIIntegration`: a known name whose framework has no adapter in this version."""

from __future__ import annotations

from typing import Any

from ._errors import CapabilityPending


class SingularityCrewAIIntegration:
    """Crews on the engine. Making one raises CapabilityPending until the adapter is there."""

    def __init__(self, *args: Any, **options: Any) -> None:
        raise CapabilityPending(
            'CrewAI has no adapter in this version; use framework = "langchain", or run the crew in an @agent function',
            reason="CAPABILITY_PENDING",
            metadata={"capability": "crewai"},
        )
