"""What is kept of a function or a class, and what is asked anew."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

from singularity_agents.adapters import _memo


class Asked:
    """Work that says how often it was done."""

    def __init__(self) -> None:
        self.of: list[Any] = []

    def __call__(self, thing: Any, **options: Any) -> dict[str, Any]:
        self.of.append(thing)
        return {"number": len(self.of), **options}


class Sample:
    def method(self) -> None: ...


def function() -> None: ...


def test_a_function_is_asked_once_and_as_a_method_once_more() -> None:
    asked = Asked()
    answer = _memo.of_functions(asked)
    assert answer(function) == answer(function) == {"number": 1}
    assert answer(Sample().method) == answer(Sample().method) == {"number": 2}
    assert answer(Sample.method) == {"number": 3}


def test_other_callables_are_asked_each_time() -> None:
    asked = Asked()
    answer = _memo.of_functions(asked)
    made = functools.partial(function)
    assert answer(made) != answer(made)


def test_a_class_is_asked_once_and_its_answer_is_a_copy() -> None:
    asked = Asked()
    answer = _memo.of_classes(asked)
    answer(Sample)["number"] = 99
    assert answer(Sample) == {"number": 1}


def test_options_and_things_that_are_no_class_are_worked_out_each_time() -> None:
    asked = Asked()
    answer = _memo.of_classes(asked)
    assert answer(Sample, deep=True) == {"number": 1, "deep": True}
    assert answer(list[int]) != answer(list[int])


def test_nothing_is_held_alive() -> None:
    def passing() -> None: ...

    answer = _memo.of_functions(lambda thing: thing.__name__)
    answer(passing)
    gone = weakref.ref(passing)
    del passing
    gc.collect()
    assert gone() is None
