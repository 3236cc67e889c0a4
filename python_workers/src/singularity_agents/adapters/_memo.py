"""Answers that are the same for as long as a function or a class lives, worked out once: frameworks ask anew in each call."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary


def of_functions(work: Callable[[Callable[..., Any]], Any]) -> Callable[[Callable[..., Any]], Any]:
    """`work`, done once for each function, and once for it as a method; each time for other callables. Its answer must not be changed."""
    known: WeakKeyDictionary[FunctionType, dict[bool, Any]] = WeakKeyDictionary()

    def answer(function: Callable[..., Any]) -> Any:
        is_method = isinstance(function, MethodType)
        inner = function.__func__ if isinstance(function, MethodType) else function
        if not isinstance(inner, FunctionType):
            return work(function)
        kept = known.setdefault(inner, {})
        if is_method not in kept:
            kept[is_method] = work(function)
        return kept[is_method]

    return answer


def of_classes(work: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`work`, done once for each class; its answer is copied. What is no class, or is asked with options, is worked out each time."""
    known: WeakKeyDictionary[type, dict[str, Any]] = WeakKeyDictionary()

    def answer(cls: Any, **options: Any) -> dict[str, Any]:
        if options or not isinstance(cls, type):
            return work(cls, **options)
        if (kept := known.get(cls)) is None:
            kept = known[cls] = work(cls)
        return dict(kept)

    return answer
