use proptest::prelude::*;

use super::*;

const GOOD: &str = r#"Here it is: ```json
{"steps": [{"id": "a", "task": "find ${x}"}, {"id": "b", "task": "look", "executor": "crewai"}, {"id": "c", "task": "cut", "needs": ["a", "b"]}]}
```"#;

fn task() -> pb::AgentTask {
    let hints = pb::ExecutionHints { planning: pb::PlanningMode::Model as i32, ..Default::default() };
    pb::AgentTask {
        description: "the task".into(),
        preferred_framework: "crewai".into(),
        execution_hints: Some(hints),
        ..Default::default()
    }
}

fn answered(answers: &[(&str, &str)]) -> pb::ExecutionPlan {
    let run = |(id, output): &(&str, &str)| {
        (Kept::Done, pb::PlanStepRun { step_id: (*id).into(), output: (*output).into(), ..Default::default() })
    };
    let task = task();
    grown(&task, proposal(&task), &answers.iter().map(run).collect::<Vec<_>>())
}

fn ids(plan: &pb::ExecutionPlan) -> Vec<&str> {
    plan.steps.iter().map(|s| s.id.as_str()).collect()
}

fn wrong(answer: &str) -> Vec<String> {
    create_execution_plan(answer, &Limits::of(&task())).unwrap_err()
}

fn chain(n: usize) -> String {
    let step = |i: usize| json!({"id": format!("s{i}"), "task": "x", "needs": if i > 0 { vec![format!("s{}", i - 1)] } else { vec![] }});
    json!({"steps": (0..n).map(step).collect::<Vec<_>>()}).to_string()
}

#[test]
fn a_good_plan_grows_behind_its_step_and_is_put_together() {
    let plan = answered(&[("plan", GOOD)]);
    assert_eq!(check::violations(&plan), vec![]);
    assert_eq!(ids(&plan), ["plan", "a", "b", "c", "answer"]);
    assert_eq!(plan.steps[1].needs, ["plan"]);
    assert_eq!(plan.steps[2].executor, "crewai");
    assert_eq!(plan.steps[4].needs, ["a", "b", "c"]);
    assert!(plan.steps[1].input.starts_with("find $${x}"));
    assert_eq!(origin(&plan), pb::PlanOrigin::Model);
}

#[test]
fn a_bad_plan_is_repaired_once_and_then_the_task_is_one_step() {
    let asked_again = answered(&[("plan", "no")]);
    assert_eq!(ids(&asked_again), ["plan", "repair"]);
    assert!(asked_again.steps[1].input.contains("not JSON"));
    let repaired = answered(&[("plan", "no"), ("repair", GOOD)]);
    assert_eq!((ids(&repaired).len(), origin(&repaired)), (6, pb::PlanOrigin::Repaired));
    let single = answered(&[("plan", "no"), ("repair", "{}")]);
    assert_eq!((ids(&single), origin(&single)), (vec!["plan", "repair", "answer"], pb::PlanOrigin::Fallback));
    assert_eq!(answered(&[("plan", "no"), ("repair", "{}"), ("answer", GOOD)]), single);
}

#[test]
fn every_fault_names_its_field() {
    let all =
        wrong(r#"{"steps": [{"id": "answer", "task": "", "tools": ["rm"]}, {"id": "b", "task": "x", "executor": "root"}], "loop": 1}"#);
    for want in ["loop:", "steps[0].tools:", "steps[0].task:", "steps[0].id:", "steps[1].executor: \"root\" is not one of native, crewai"] {
        assert!(all.iter().any(|f| f.starts_with(want)), "{want} in {all:?}");
    }
    let circle = wrong(r#"{"steps": [{"id": "a", "task": "x", "needs": ["b"]}, {"id": "b", "task": "x", "needs": ["a"]}]}"#);
    assert!(circle[0].contains("in a circle: a, b"), "{circle:?}");
    assert!(wrong(r#"{"steps": [{"id": "a", "task": "x", "needs": ["z"]}]}"#)[0].contains("no step is called \"z\""));
}

#[test]
fn endless_plans_are_refused() {
    assert!(wrong(&chain(10_001))[0].contains("bytes, must be at most"));
    let wide = json!({"steps": vec![json!({"id": "a", "task": "x"}); 5000]}).to_string();
    assert_eq!(wrong(&wide), ["steps: 5000 of them, must be 1 to 16"]);
    assert_eq!(wrong(&chain(MAX_STEPS + 1)), ["steps: 17 of them, must be 1 to 16"]);
    assert_eq!(wrong(&chain(MAX_DEPTH + 1)), ["steps: 7 in a row need each other, must be at most 6"]);
    assert!(create_execution_plan(&chain(MAX_DEPTH), &Limits::of(&task())).is_ok());
    let mut deep = task();
    deep.execution_hints.get_or_insert_default().max_plan_depth = 9;
    assert!(create_execution_plan(&chain(9), &Limits::of(&deep)).is_ok());
    assert!(create_execution_plan(&chain(10), &Limits::of(&deep)).is_err());
    assert!(wrong(&"[".repeat(100_000))[0].starts_with("it is not JSON"));
}

#[test]
fn the_effort_of_a_subtask_weighs_its_providers_and_nothing_else() {
    let mut task = task();
    task.requirements = Some(pb::TaskRequirements { model: "m".into(), expected_output: "a poem".into(), ..Default::default() });
    let answer =
        r#"{"steps": [{"id": "a", "task": "x", "effort": "low"}, {"id": "b", "task": "x", "effort": "high"}, {"id": "c", "task": "x"}]}"#;
    let steps = decompose_task(&task, &proposal(&task), answer);
    let of = |i: usize| steps[i].requirements.clone();
    let quality = |i| of(i).and_then(|r| r.weights).map(|w| w.quality);
    assert_eq!((quality(0), quality(1), of(2)), (Some(0.1), Some(10.0), None));
    assert_eq!((of(0).unwrap().model.as_str(), of(0).unwrap().expected_output.as_str()), ("m", ""));
    assert!(wrong(r#"{"steps": [{"id": "a", "task": "x", "effort": "huge"}]}"#)[0].starts_with("steps[0].effort"));
}

#[test]
fn a_task_that_did_not_ask_does_not_grow() {
    let task = pb::AgentTask::default();
    assert_eq!(decompose_task(&task, &proposal(&task), GOOD), vec![]);
}

proptest! {
    #[test]
    fn any_answer_gives_a_plan_without_faults_or_faults(
        text in ".{0,200}",
        parts in prop::collection::vec(
            ("[a-c\\$\\{]{0,3}", ".{0,20}", prop::collection::vec("[a-c]", 0..3), prop::option::of("(native|crewai|x)")), 0..5),
    ) {
        let steps: Vec<Value> = parts
            .iter()
            .map(|(id, task, needs, executor)| match executor {
                Some(executor) => json!({"id": id, "task": task, "needs": needs, "executor": executor}),
                None => json!({"id": id, "task": task, "needs": needs}),
            })
            .collect();
        for answer in [text.clone(), json!({"steps": steps}).to_string()] {
            match create_execution_plan(&answer, &Limits::of(&task())) {
                Ok(_) => prop_assert_eq!(check::violations(&answered(&[("plan", &answer)])), vec![]),
                Err(faults) => prop_assert!(!faults.is_empty()),
            }
        }
    }
}
