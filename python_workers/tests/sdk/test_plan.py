"""Plans as data, as files and as pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from singularity_agents._plan import dot, mermaid, plan_message, read_plan, tree

PLAN = {
    "steps": [
        {"id": "a", "executor": "native"},
        {"id": "b", "executor": "crewai", "needs": ["a"], "timeout": "1.5s", "on_failure": "skip", "for_each": ["x", 1]},
    ],
    "output": "${steps.b.output}",
}


def test_a_plan_as_data_becomes_the_message() -> None:
    message = plan_message(PLAN)
    b = message.steps[1]
    assert (b.timeout.seconds, b.timeout.nanos, b.for_each, b.on_failure) == (1, 500_000_000, '["x", 1]', 2)
    assert message.output == "${steps.b.output}"


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"steps": [{"id": "a", "executer": "native"}]}, "executer"),
        ({"steps": "a"}, "must be a list"),
        ({"steps": [{"id": "a", "on_failure": "ignore"}]}, "must be fail or skip"),
        ({"step": []}, "must be a list"),
    ],
)
def test_what_is_wrong_is_named(plan: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan_message(plan)


def test_files_are_toml_or_json_and_say_where_they_are_wrong(tmp_path: Path) -> None:
    toml = tmp_path / "plan.toml"
    toml.write_text('description = "do it"\n[[steps]]\nid = "a"\nexecutor = "native"\n')
    assert read_plan(toml) == ("do it", {"steps": [{"id": "a", "executor": "native"}]})
    toml.write_text("steps = [")
    with pytest.raises(ValueError, match=r"plan\.toml"):
        read_plan(toml)
    json = tmp_path / "plan.json"
    json.write_text('{"steps": [{"id": "a", "executor": "native"}]}')
    assert read_plan(json)[1]["steps"][0]["id"] == "a"


def test_pictures_show_the_way_and_what_became_of_it() -> None:
    run = {"executor": "native", "usage": {"input_tokens": "3", "output_tokens": "4"}, "cost_micros": "1500000"}
    ran = {"steps": [{**PLAN["steps"][0], "state": "TASK_STATE_SUCCEEDED", "runs": [run]}, PLAN["steps"][1]]}  # type: ignore[index]
    assert "s0 --> s1" in mermaid(ran) and "native succeeded" in mermaid(ran)
    assert "s0 -> s1;" in dot(ran)
    lines = tree(ran)
    assert lines[0].startswith("a") and "7 tokens" in lines[0] and "$1.500000" in lines[0]
    assert lines[1].startswith("  b")
