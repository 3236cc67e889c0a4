"""Layout of Erlang files (there is no formatter to be had): what a reader relies on, checked line by line.

* no tabs, no blanks at the end of a line, a newline at the end of the file, at most 140 columns
* a comment about the module stands before ``-module``, and the module is named like its file
* order: module, behaviours, includes, exports, then everything else; one ``-export`` before the first function
* every exported function has a ``-spec`` directly before it (tests, being exported by a parse transform, are exempt)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_COLUMNS = 140

#: Attributes in the order in which they may begin.
_ORDER = {"module": 0, "behaviour": 1, "behavior": 1, "include": 2, "include_lib": 2, "export": 3, "export_type": 3}
_NAMES = ["-module", "-behaviour", "-include", "-export", "code"]
_ATTRIBUTE = re.compile(r"^-(\w+)\s*\(")
_FUNCTION = re.compile(r"^([a-z]\w*|'[^']+')\(")
_SPEC = re.compile(r"^-spec\s+([a-z]\w*|'[^']+')\s*\(")
_EXPORT = re.compile(r"-export\(\s*\[(.*?)\]\s*\)\s*\.", re.DOTALL)
_EXPORTED = re.compile(r"([a-z]\w*|'[^']+')\s*/\s*\d+")


def check_text(name: str, text: str, is_test: bool = False) -> Iterator[tuple[int, str]]:
    """Yields (line, what is wrong) for one module."""
    lines = text.split("\n")
    if not text.endswith("\n"):
        yield len(lines), "no newline at the end of the file"
    for number, line in enumerate(lines, 1):
        if "\t" in line:
            yield number, "tab"
        if line != line.rstrip():
            yield number, "blanks at the end of the line"
        if len(line) > MAX_COLUMNS:
            yield number, f"{len(line)} columns, at most {MAX_COLUMNS}"
    yield from _check_module(name, lines)
    yield from _check_order(lines)
    if not is_test:
        yield from _check_specs(text, lines)


def _check_module(name: str, lines: list[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if line.startswith("-module("):
            if line.strip() != f"-module({name}).":
                yield number, f"module is not named like its file ({name})"
            if not any(before.startswith("%%") and len(before.strip("% ")) > 0 for before in lines[: number - 1]):
                yield number, "no comment about the module before -module"
            return
    yield 1, "no -module"


def _check_order(lines: list[str]) -> Iterator[tuple[int, str]]:
    reached = 0
    for number, line in enumerate(lines, 1):
        attribute = _ATTRIBUTE.match(line)
        if attribute is None:
            if _FUNCTION.match(line):
                reached = len(_NAMES) - 1
            continue
        rank = _ORDER.get(attribute.group(1))
        if rank is None:
            continue
        if rank < reached:
            yield number, f"{_NAMES[rank]} after {_NAMES[reached]}"
        reached = max(reached, rank)


def _check_specs(text: str, lines: list[str]) -> Iterator[tuple[int, str]]:
    exported = {name for body in _EXPORT.findall(re.sub(r"%.*", "", text)) for name in _EXPORTED.findall(body)}
    specified = {match.group(1) for line in lines if (match := _SPEC.match(line))}
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        match = _FUNCTION.match(line)
        if match is None or match.group(1) in seen:
            continue
        seen.add(match.group(1))
        if match.group(1) in exported and match.group(1) not in specified:
            yield number, f"{match.group(1)} is exported and has no -spec"


def main() -> int:
    found = 0
    files = sorted([*ROOT.glob("apps/*/src/**/*.erl"), *ROOT.glob("apps/*/test/**/*.erl")])
    for path in files:
        is_test = "test" in path.relative_to(ROOT).parts
        for number, problem in check_text(path.stem, path.read_text(), is_test):
            found += 1
            print(f"{path.relative_to(ROOT)}:{number}: {problem}")
    print(f"{len(files)} modules, {found} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
