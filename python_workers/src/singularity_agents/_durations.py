"""Durations: "30s", "1.5h", seconds or a timedelta, as people write them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TypeAlias

#: What every parameter that is a duration takes: text with a unit, seconds, or a timedelta.
DurationLike: TypeAlias = str | int | float | timedelta

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|min|s|m|h|d|w)")


def seconds(value: DurationLike) -> float:
    """Seconds of a duration. Raises ValueError naming what would be right."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (int, float)):
        return float(value)
    text = value.strip().lower()
    at, total = 0, 0.0
    while match := _PART.match(text, at):
        total += float(match[1]) * _SECONDS[match[2]]
        at = match.end()
    if at == 0 or at != len(text):
        raise ValueError(f'"{value}" is not a duration; write a number and a unit, for example "30s", "5m", "1.5h"')
    return total


def show(value: float) -> str:
    """Seconds for people: three digits and a unit."""
    if value < 0.001:
        return f"{value * 1e6:.0f} us"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 100:
        return f"{value:.3g} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    if value < 172800:
        return f"{value / 3600:.0f} h"
    return f"{value / 86400:.0f} d"
