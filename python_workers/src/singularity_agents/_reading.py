"""Where a reader is in the events of a task, over reconnections."""

from __future__ import annotations

from . import _models as m


class Reading:
    """The cursor of a watch, and how much of the text was read.

    Text comes as it is made, ahead of its numbered batch; the batch says it once more. A reader is given each part once: what is ahead
    has no number (`sequence` 0), and the batch that follows has its number and only the text that is new.
    """

    def __init__(self, after: int) -> None:
        self.after = after
        self._attempt = 0
        self._end = 0

    def take(self, event: m.Event) -> m.Event:
        """The event as the reader shall see it."""
        if event.kind == "attempt_started":
            self._attempt, self._end = event.attempt, 0
        ahead = event.kind == "text_delta" and bool(event.data.get("ahead"))
        if not ahead:
            self.after = event.sequence or self.after
        if event.kind != "text_delta":
            return event
        text, offset = event.text.encode(), int(event.data.get("offset", 0))
        known = self._end if event.attempt == self._attempt else 0
        skip = min(max(known - offset, 0), len(text))
        self._attempt, self._end = event.attempt, max(known, offset + len(text))
        # Pieces end between characters, so the part is whole ones.
        data = {**event.data, "text": text[skip:].decode(errors="replace"), "offset": offset + skip}
        return event.model_copy(update={"data": data, "sequence": 0 if ahead else event.sequence})
