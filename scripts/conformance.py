"""Writes docs/conformance.md, frameworks and behaviours, from the reports of the suites `python` and `e2e` (scripts/test)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "_build" / "test-logs"
PAGE = ROOT / "docs" / "conformance.md"
FRAMEWORKS: Final = ("langchain", "langgraph", "crewai", "autogen", "haystack", "semantic_kernel", "agent_framework")
#: Behaviour and the test that shows it, by the beginning of its name.
BEHAVIOURS: Final = {
    "answers a plain task": "test_answers_a_plain_task",
    "text while the model speaks": "test_text_is_shown",
    "steps of the framework": "test_steps_of_the_framework",
    "tool of the engine": "test_a_tool_of_the_engine",
    "tool of the user, recorded": "test_a_tool_of_the_worker_is_recorded",
    "error of a tool": "test_what_a_tool_raises",
    "parallel tools": "test_several_tools_at_once",
    "history": "test_history_and_preferences",
    "limit of steps": "test_the_step_limit",
    "structured output": "test_structured_output",
    "refusal keeps its reason": "test_the_engines_refusal",
    "tool in doubt waits": "test_a_tool_in_doubt",
    "a tool asks a person": "test_a_tool_asks_a_person",
    "a person asked by its own means": "test_a_person_is_asked_by",
    "memory of the engine by a tool": "test_a_model_remembers_by_the_tool",
    "budget stop": "test_a_budget_that_is_spent",
    "waits for money": "test_a_budget_that_is_spent_waits",
    "long result of a tool": "test_a_long_result_of_a_tool",
    "usage is the engine's": "test_usage_is_counted",
    "telemetry silent": "test_telemetry_is_silent",
    "cancel in a model call": "test_cancel_in_a_model_call",
    "cancel with proof": "test_is_cancelled_with_proof",
    "cancel while computing": "test_is_cancelled_while_it_computes",
    "cancel in a tool's child process": "test_is_cancelled_in_a_child_process",
    "resume after kill -9": "test_resumes_after_a_kill",
    "tasks side by side in one process": "test_agents_of_the_engines_making",
}
#: What a framework cannot have, and why.
CANNOT: Final = {
    ("tasks side by side in one process", "crewai"): "no: a crew's objects and events are of its whole process "
    "([crewai_event_bus](https://docs.crewai.com/en/concepts/event-listener) is one), refused with these words",
}
#: Bad code of users', which harms a worker in the same way whatever its framework: what it does, and the beginning of its test's name.
BAD_CODE: Final = {
    "module with a syntax error, a missing import, an exception": "test_a_module_that_cannot_be_imported",
    "entry point that is not there": "test_an_entry_point_that_is_not_there",
    "closes descriptors 3 and 4; `os._exit`": "test_a_worker_that_cuts_itself_off",
    "an exception, an exit, an interrupt, endless recursion": "test_whatever_a_run_raises",
    "`os.setsid` and a double fork to escape": "test_a_daemon_that_escaped",
    "looks for secrets": "test_a_worker_reads_no_secret",
    "endless loop in C code": "test_a_loop_in_c_code",
    "400 children, each with `setsid`": "test_a_worker_that_multiplies",
    "fork bomb, exponential": "test_a_fork_bomb_is_ended_whole",
    "fork bomb, exponential, without a namespace": "test_a_fork_bomb_is_ended_without",
    "memory bomb": "test_a_worker_that_takes_too_much_memory",
    "writes garbage to its channel": "test_a_worker_that_breaks_the_protocol",
    "100 MB of output": "test_a_hundred_megabytes",
    "result that is no data": "test_a_result_that_is_no_data",
}
#: What a row says beside its cell.
NOTES: Final = {
    "fork bomb, exponential, without a namespace": "best effort: the guard looks ten times a second and kills the group at once; processes "
    "with sessions of their own are killed as they become orphans, and whoever forks faster than that is not caught. No cgroup is used",
}


def outcomes(files: list[Path]) -> dict[tuple[str, str], bool]:
    """Whether a test passed for a framework, in each of its forms."""
    found: dict[tuple[str, str], bool] = {}
    for file in files:
        for case in ElementTree.parse(file).getroot().iter("testcase"):
            name, _, form = case.get("name", "").partition("[")
            framework = next((f for f in FRAMEWORKS if f in form.rstrip("]").split("-")), None)
            if framework is None or case.find("skipped") is not None:
                continue
            passed = case.find("failure") is None and case.find("error") is None
            found[name, framework] = found.get((name, framework), True) and passed
    return found


def cell(found: dict[tuple[str, str], bool], test: str, framework: str) -> str:
    """yes, NO, or that no report has it."""
    seen = [passed for (name, of), passed in found.items() if of == framework and name.startswith(test)]
    return "not run" if not seen else "yes" if all(seen) else "NO"


def page(found: dict[tuple[str, str], bool]) -> str:
    """The table."""
    lines = [
        "# Conformance",
        "",
        "Made by `scripts/conformance.py` from the reports of `scripts/test python e2e`; each cell is a test. LangGraph shares LangChain's",
        "adapter, and has tests of its own. Steps and questions by a framework's own means are tested with agents, crews, teams,",
        "pipelines, orchestrations, graphs and workflows of a user's; all else with the framework's default agent.",
        "",
        "| | " + " | ".join(FRAMEWORKS) + " |",
        "|---" * (len(FRAMEWORKS) + 1) + "|",
    ]
    for behaviour, test in BEHAVIOURS.items():
        cells = [CANNOT.get((behaviour, framework)) or cell(found, test, framework) for framework in FRAMEWORKS]
        lines.append(f"| {behaviour} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bad_code(files: list[Path]) -> str:
    """The table of what bad code does to its own worker, and to nothing else."""
    passed: dict[str, list[bool]] = {}
    for file in files:
        for case in ElementTree.parse(file).getroot().iter("testcase"):
            if case.find("skipped") is None:
                name = case.get("name", "").partition("[")[0]
                passed.setdefault(name, []).append(case.find("failure") is None and case.find("error") is None)
    lines = [
        "",
        "## Bad code",
        "",
        "A typed error, no process left behind, the node and its other tasks untouched:",
        "",
        "| | | |",
        "|---|---|---|",
    ]
    for what, test in BAD_CODE.items():
        seen = [p for name, all_of in passed.items() if name.startswith(test) for p in all_of]
        lines.append(f"| {what} | {'not run' if not seen else 'yes' if all(seen) else 'NO'} | {NOTES.get(what, '')} |")
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> int:
    """Reads the reports that are named, or those of the last run."""
    files = [Path(name) for name in names] or [LOGS / "python.xml", LOGS / "e2e.xml"]
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        print(f"run scripts/test python e2e first: {', '.join(missing)} is missing", file=sys.stderr)
        return 2
    PAGE.write_text(page(outcomes(files)) + bad_code(files))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
