//! Plans run by an executor that answers at once, and is killed wherever the test says.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::plan::violations;

fn step(id: &str, needs: &[&str], input: &str) -> pb::PlanStep {
    crate::plan::step(id, "native", needs, input)
}

fn task(steps: Vec<pb::PlanStep>, max_parallel: i32) -> pb::AgentTask {
    let plan = pb::ExecutionPlan { steps, ..Default::default() };
    assert_eq!(violations(&plan), vec![]);
    pb::AgentTask {
        description: "the task".into(),
        plan: Some(plan),
        execution_hints: Some(pb::ExecutionHints { max_parallel, ..Default::default() }),
        ..Default::default()
    }
}

/// What a run does: by its description, which holds the step's id.
type Answers<'a> = &'a dyn Fn(&str, &pb::AgentTask, &str) -> Result<String, Reason>;

/// An engine around the machine. Its disk outlives the machine.
struct World<'a> {
    task: pb::AgentTask,
    answers: Answers<'a>,
    disk: Vec<(Kept, pb::PlanStepRun)>,
    /// Runs that began, by step, over all attempts.
    began: Vec<(String, u32)>,
    stopped: usize,
    most: usize,
}

enum End {
    Finished(Box<Result<pb::AgentResult, AgentError>>),
    Parked,
    Killed,
}

impl<'a> World<'a> {
    fn new(task: pb::AgentTask, answers: Answers<'a>) -> Self {
        Self { task, answers, disk: Vec::new(), began: Vec::new(), stopped: 0, most: 0 }
    }

    /// Runs an attempt, killed after so many events if it has not ended by then.
    fn attempt(&mut self, events: usize) -> End {
        let mut plan = Plan::new("t", &self.task).unwrap();
        plan.restore(self.disk.iter().cloned());
        let mut queue = VecDeque::from([Event::Go]);
        let mut open: HashSet<RunId> = HashSet::new();
        for _ in 0..events {
            let Some(event) = queue.pop_front() else { panic!("the plan is stuck") };
            if let Event::Ended { run, .. } = &event {
                open.remove(run);
            }
            for effect in plan.step(event) {
                match effect {
                    Effect::Run { run, executor, task, .. } => {
                        assert!(open.insert(run), "{run:?} runs twice");
                        self.most = self.most.max(open.len());
                        self.began.push((plan.step_id(run).to_owned(), run.index));
                        let end = match (self.answers)(plan.step_id(run), &task, &executor) {
                            Ok(output) => RunEnd::Succeeded(Box::new(pb::AgentResult { output, ..Default::default() })),
                            Err(reason) => RunEnd::Failed(AgentError::new(reason, "it failed")),
                        };
                        let report = Report { executor, attempts: 1, ..Default::default() };
                        queue.push_back(Event::Ended { run, end, report });
                    }
                    Effect::Keep { run, kept, record } => {
                        self.disk.push((kept, *record));
                        queue.push_back(Event::Kept { run });
                    }
                    Effect::Stop(run) => {
                        self.stopped += 1;
                        queue.retain(|e| !matches!(e, Event::Ended { run: r, .. } if *r == run));
                        queue.push_back(Event::Ended { run, end: RunEnd::Stopped, report: Report::default() });
                    }
                    Effect::Again => queue.push_back(Event::Go),
                    Effect::Started(_) | Effect::Finished(_) | Effect::Warning { .. } => {}
                    Effect::Finish(end) => return End::Finished(end),
                    Effect::Park(_) => return End::Parked,
                }
            }
        }
        End::Killed
    }

    fn result(&mut self) -> Result<pb::AgentResult, AgentError> {
        match self.attempt(usize::MAX) {
            End::Finished(end) => *end,
            _ => panic!("no end"),
        }
    }

    fn runs_of(&self, id: &str) -> usize {
        self.began.iter().filter(|(step, _)| step == id).count()
    }
}

fn echo(id: &str, task: &pb::AgentTask, _: &str) -> Result<String, Reason> {
    Ok(format!("{id}({})", task.description))
}

#[test]
fn outputs_flow_along_the_needs_and_the_last_step_answers() {
    let steps =
        vec![step("a", &[], ""), step("b", &["a"], "b of ${steps.a.output}"), step("c", &["a", "b"], "${steps.b.output}+${task.input}")];
    let mut world = World::new(task(steps, 8), &echo);
    let result = world.result().unwrap();
    assert_eq!(result.output, "c(b(b of a(the task))+the task)");
    assert_eq!((result.executor.as_str(), result.steps.len()), ("native", 3));
}

#[test]
fn a_list_is_run_over_with_its_own_limit_and_gives_a_list() {
    let list = |id: &str, task: &pb::AgentTask, _: &str| {
        if id == "list" { Ok(r#"[{"n": 1}, {"n": 2}, {"n": 3}]"#.to_owned()) } else { Ok(task.description.clone()) }
    };
    let mut each = step("each", &["list"], "${index}:${item.n}");
    each.for_each = "${steps.list.output}".into();
    each.max_parallel = 2;
    let mut world = World::new(task(vec![step("list", &[], ""), each], 8), &list);
    let result = world.result().unwrap();
    assert_eq!(result.output, r#"["0:1","1:2","2:3"]"#);
    assert_eq!(world.most, 2);
    assert_eq!(json::from_value(&result.structured_output.unwrap()), serde_json::json!(["0:1", "1:2", "2:3"]));
}

#[test]
fn a_step_whose_condition_is_false_is_skipped_and_gives_null() {
    let mut no = step("no", &["a"], "");
    no.condition = "${steps.a.output} contains 'nothing of this'".into();
    let mut world = World::new(task(vec![step("a", &[], ""), no, step("b", &["no"], "[${steps.no.output}]")], 8), &echo);
    assert_eq!(world.result().unwrap().output, "b([])");
    assert_eq!(world.runs_of("no"), 0);
}

#[test]
fn lists_of_none_and_of_one_that_may_fail_stay_lists() {
    let mut none = step("none", &[], "${item}");
    none.for_each = "[]".into();
    let mut one = step("third", &["none"], "${item}");
    (one.for_each, one.on_failure) = ("[1]".into(), pb::OnStepFailure::Skip as i32);
    let mut world = World::new(task(vec![none, one], 8), &third_fails);
    world.task.plan.as_mut().unwrap().output = "${steps.none.output}${steps.third.output}".into();
    assert_eq!(world.result().unwrap().output, "[][null]");
    assert_eq!(world.disk.len(), 2);
}

#[test]
fn what_undoes_and_asks_somebody_has_not_undone() {
    let mut a = step("a", &[], "");
    a.compensation = "undo".into();
    let mut plan = Plan::new("t", &task(vec![a, step("b", &["a"], ""), step("undo", &[], "")], 8)).unwrap();
    let mut next = |event| plan.step(event);
    let (a, b, undo) = (RunId { step: 0, index: 0 }, RunId { step: 1, index: 0 }, RunId { step: 2, index: 0 });
    let ended = |run, end| Event::Ended { run, end, report: Report::default() };
    next(Event::Go);
    next(ended(a, RunEnd::Succeeded(Box::default())));
    next(Event::Kept { run: a });
    next(ended(b, RunEnd::Failed(AgentError::new(Reason::ToolFailed, "x"))));
    next(Event::Kept { run: b });
    next(ended(undo, RunEnd::Asked(Vec::new())));
    let end = next(Event::Kept { run: undo });
    assert!(matches!(&end[..], [Effect::Finish(e)] if e.as_ref().as_ref().unwrap_err().metadata["not_undone"] == "a"), "{end:?}");
}

#[test]
fn nobody_takes_over_from_a_run_whose_tools_may_not_run_again() {
    let mut a = step("a", &[], "");
    (a.executor, a.fallback_executors) = ("crewai".into(), vec!["native".into()]);
    let mut plan = Plan::new("t", &task(vec![a], 8)).unwrap();
    plan.step(Event::Go);
    let run = RunId { step: 0, index: 0 };
    let end = RunEnd::Failed(AgentError::new(Reason::WorkerCrashed, "x"));
    let report = Report { unjournaled: true, ..Report::default() };
    assert!(matches!(plan.step(Event::Ended { run, end, report })[..], [Effect::Keep { kept: Kept::Failed, .. }]));
}

#[test]
fn a_condition_that_is_no_boolean_fails_its_step_by_field() {
    let mut bad = step("bad", &["a"], "");
    bad.condition = "${steps.a.output}".into();
    let error = World::new(task(vec![step("a", &[], ""), bad], 8), &echo).result().unwrap_err();
    assert_eq!(error.reason, Reason::InvalidField);
    assert_eq!(error.metadata["step"], "bad");
    assert!(error.message.contains("steps[1].condition: is a text, must be true or false"), "{}", error.message);
}

#[test]
fn a_missing_field_of_an_output_fails_its_step_by_name() {
    let error = World::new(task(vec![step("a", &[], ""), step("b", &["a"], "${steps.a.output.x}")], 8), &echo).result().unwrap_err();
    assert!(error.message.contains("the output of step \"a\" has no \"x\""), "{}", error.message);
}

#[test]
fn another_executor_takes_over_before_a_step_fails() {
    let picky =
        |_: &str, _: &pb::AgentTask, executor: &str| if executor == "native" { Ok("done".into()) } else { Err(Reason::FrameworkError) };
    let mut a = step("a", &[], "");
    (a.executor, a.fallback_executors) = ("crewai".into(), vec!["haystack".into(), "native".into()]);
    let mut world = World::new(task(vec![a], 8), &picky);
    assert_eq!(world.result().unwrap().executor, "native");
    assert_eq!(world.runs_of("a"), 3);
}

fn saga(a: &str, b: &str) -> Vec<pb::PlanStep> {
    let mut first = step("first", &[], "");
    first.compensation = a.into();
    let mut second = step("second", &["first"], "");
    second.compensation = b.into();
    vec![
        first,
        second,
        step("third", &["second"], ""),
        step("other", &["first"], ""),
        step("undo1", &[], "undo ${steps.first.output}"),
        step("undo2", &[], "undo ${steps.second.output}"),
    ]
}

fn third_fails(id: &str, task: &pb::AgentTask, executor: &str) -> Result<String, Reason> {
    if id == "third" { Err(Reason::ToolFailed) } else { echo(id, task, executor) }
}

#[test]
fn a_failed_plan_is_undone_in_reverse_order() {
    let mut world = World::new(task(saga("undo1", "undo2"), 1), &third_fails);
    let error = world.result().unwrap_err();
    assert_eq!((error.reason, error.metadata["step"].as_str()), (Reason::ToolFailed, "third"));
    assert_eq!(error.metadata["undone"], "second, first");
    let order: Vec<&str> = world.began.iter().map(|(id, _)| id.as_str()).filter(|id| id.starts_with("undo")).collect();
    assert_eq!(order, ["undo2", "undo1"]);
}

#[test]
fn a_plan_that_was_failing_does_not_start_what_it_had_stopped() {
    for kill in 1..40 {
        let mut world = World::new(task(saga("undo1", "undo2"), 2), &third_fails);
        if matches!(world.attempt(kill), End::Finished(_)) {
            break;
        }
        let failed_before = world.disk.iter().any(|(kept, _)| *kept == Kept::Failed);
        let began = world.began.len();
        assert_eq!(world.result().unwrap_err().metadata["undone"], "second, first");
        if failed_before {
            assert!(world.began[began..].iter().all(|(id, _)| id.starts_with("undo")), "kill after {kill} events");
        }
    }
}

#[test]
fn a_step_that_may_fail_does_not_end_the_plan() {
    let mut b = step("third", &[], "");
    b.on_failure = pb::OnStepFailure::Skip as i32;
    let mut world = World::new(task(vec![b, step("c", &["third"], "[${steps.third.output}]")], 8), &third_fails);
    let result = world.result().unwrap();
    assert_eq!(result.output, "c([])");
    assert!(result.steps[0].is_error);
}

#[test]
fn money_that_is_gone_pauses_and_the_next_attempt_goes_on() {
    let broke = |id: &str, _: &pb::AgentTask, _: &str| if id == "b" { Err(Reason::BudgetExhausted) } else { Ok("x".into()) };
    let mut t = task(vec![step("a", &[], ""), step("b", &["a"], ""), step("c", &["b"], "")], 8);
    t.requirements = Some(pb::TaskRequirements { on_budget_end: pb::OnBudgetEnd::Wait as i32, ..Default::default() });
    let mut world = World::new(t, &broke);
    assert_eq!(world.result().unwrap_err().reason, Reason::BudgetExhausted);
    world.answers = &echo;
    world.result().unwrap();
    assert_eq!((world.runs_of("a"), world.runs_of("b"), world.runs_of("c")), (1, 2, 1));
}

#[test]
fn a_question_parks_the_plan_once_what_runs_has_ended() {
    let mut plan = Plan::new("t", &task(vec![step("a", &[], ""), step("b", &[], "")], 8)).unwrap();
    let runs: Vec<RunId> =
        plan.step(Event::Go).iter().filter_map(|e| if let Effect::Run { run, .. } = e { Some(*run) } else { None }).collect();
    let asked = RunEnd::Asked(vec![pb::InputRequested { input_id: "q".into(), ..Default::default() }]);
    assert!(plan.step(Event::Ended { run: runs[0], end: asked, report: Report::default() }).is_empty());
    let done = RunEnd::Succeeded(Box::default());
    plan.step(Event::Ended { run: runs[1], end: done, report: Report::default() });
    let parked = plan.step(Event::Kept { run: runs[1] });
    assert!(matches!(parked[..], [Effect::Finished(_), Effect::Park(ref inputs)] if inputs[0].input_id == "a:q"));
    let answer = |id: &str| pb::InputAnswer { input_id: id.into(), ..Default::default() };
    let answers = [answer("a:q"), answer("b:q"), answer("q")];
    let given: Vec<String> = plan.answers_to(runs[0], &answers).into_iter().map(|a| a.input_id).collect();
    assert_eq!(given, ["q"]);
}

#[test]
fn the_form_of_the_answer_is_asked_of_the_last_step_alone_and_a_template_is_checked() {
    let schema = json::to_struct(&serde_json::json!({"type": "object", "required": ["n"]}));
    let mut t = task(vec![step("a", &[], ""), step("b", &["a"], "")], 8);
    t.requirements = Some(pb::TaskRequirements { output_schema: Some(schema), ..Default::default() });
    let asked = |id: &str, task: &pb::AgentTask, _: &str| {
        assert_eq!(task.requirements.as_ref().unwrap().output_schema.is_some(), id == "b");
        Ok(r#"{"n": 1}"#.to_owned())
    };
    assert!(World::new(t.clone(), &asked).result().unwrap().structured_output.is_some());
    t.plan.as_mut().unwrap().output = "not JSON: ${steps.a.output}".into();
    let open = |_: &str, _: &pb::AgentTask, _: &str| Ok("{}".to_owned());
    assert_eq!(World::new(t, &open).result().unwrap_err().reason, Reason::OutputSchemaMismatch);
}

/// Any DAG: a step needs some of those before it.
fn plans() -> impl Strategy<Value = Vec<pb::PlanStep>> {
    prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 0..3), 0u8..6), 1..14).prop_map(|specs| {
        let mut steps: Vec<pb::PlanStep> = Vec::new();
        for (i, (needs, kind)) in specs.into_iter().enumerate() {
            let needs: HashSet<String> = if i == 0 { HashSet::new() } else { needs.iter().map(|n| format!("s{}", n.index(i))).collect() };
            let mut s = step(&format!("s{i}"), &needs.iter().map(String::as_str).collect::<Vec<_>>(), "");
            s.input = std::iter::once(format!("s{i}"))
                .chain(needs.iter().map(|n| format!("${{steps.{n}.output}}")))
                .collect::<Vec<_>>()
                .join(" ");
            match kind {
                0 => s.condition = "1 == 2".into(),
                1 => s.for_each = "[1, 2, 3]".into(),
                2 => s.on_failure = pb::OnStepFailure::Skip as i32,
                _ => {}
            }
            steps.push(s);
        }
        steps
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn killed_anywhere_it_ends_as_if_it_had_not_been_and_nothing_kept_runs_twice(
        steps in plans(), parallel in 1i32..5, failing in prop::collection::hash_set(0usize..20, 0..2), kills in prop::collection::vec(1usize..30, 0..6),
    ) {
        let fails: HashSet<String> = failing.iter().map(|n| format!("s{n}")).collect();
        let answers = |id: &str, task: &pb::AgentTask, executor: &str| if fails.contains(id) { Err(Reason::ToolFailed) } else { echo(id, task, executor) };
        let mut whole = World::new(task(steps.clone(), parallel), &answers);
        let expected = whole.result();
        prop_assert!(whole.most <= usize::try_from(parallel).unwrap());

        let mut world = World::new(task(steps.clone(), parallel), &answers);
        for kill in kills {
            if let End::Finished(_) = world.attempt(kill) {
                // A second attempt of a plan that has ended changes nothing.
                break;
            }
        }
        let got = world.result();
        match (&expected, &got) {
            (Ok(a), Ok(b)) => {
                prop_assert_eq!(&a.output, &b.output);
                let kept: HashMap<(String, i32), usize> = world.disk.iter().fold(HashMap::new(), |mut all, (_, r)| {
                    *all.entry((r.step_id.clone(), r.index)).or_default() += 1;
                    all
                });
                prop_assert!(kept.values().all(|n| *n == 1), "an end was kept twice: {:?}", kept);
            }
            (Err(a), Err(b)) => prop_assert_eq!(a.reason, b.reason),
            other => prop_assert!(false, "{:?}", other),
        }
        // A run begins again only if its end was not kept: at most once more for each attempt that was killed.
        let needs: HashMap<String, Vec<String>> = steps.iter().map(|s| (s.id.clone(), s.needs.clone())).collect();
        let mut first: HashMap<String, usize> = HashMap::new();
        world.began.iter().enumerate().for_each(|(at, (id, _))| { first.entry(id.clone()).or_insert(at); });
        for (id, at) in &first {
            for need in &needs[id] {
                prop_assert!(first.get(need).is_none_or(|before| before < at), "{id} began before {need}");
            }
        }
    }

    #[test]
    fn any_events_end_it_at_most_once(steps in plans(), events in prop::collection::vec((0u8..5, 0u32..6, 0u32..3), 0..80)) {
        let mut plan = Plan::new("t", &task(steps, 3)).unwrap();
        let mut ends = 0;
        for (kind, step, index) in events {
            let run = RunId { step, index };
            let event = match kind {
                0 => Event::Go,
                1 => Event::Kept { run },
                2 => Event::Ended { run, end: RunEnd::Succeeded(Box::default()), report: Report::default() },
                3 => Event::Ended { run, end: RunEnd::Failed(AgentError::new(Reason::Internal, "x")), report: Report::default() },
                _ => Event::Ended { run, end: RunEnd::Asked(Vec::new()), report: Report::default() },
            };
            ends += plan.step(event).iter().filter(|e| matches!(e, Effect::Finish(_) | Effect::Park(_))).count();
        }
        prop_assert!(ends <= 1);
    }
}

/// A task whose plan a model makes.
fn planned() -> pb::AgentTask {
    let hints = pb::ExecutionHints { planning: pb::PlanningMode::Model as i32, ..Default::default() };
    let task = pb::AgentTask { description: "the task".into(), execution_hints: Some(hints), ..Default::default() };
    pb::AgentTask { plan: Some(propose::proposal(&task)), ..task }
}

const MADE: &str = r#"{"steps": [{"id": "a", "task": "do a"}, {"id": "b", "task": "do b"}, {"id": "c", "task": "do c", "needs": ["a"]}]}"#;

fn planner(id: &str, _: &pb::AgentTask, _: &str) -> Result<String, Reason> {
    Ok(if id == "plan" { MADE.to_owned() } else { format!("<{id}>") })
}

#[test]
fn a_plan_that_a_model_makes_runs_side_by_side_and_is_put_together() {
    let mut world = World::new(planned(), &planner);
    assert_eq!(world.result().unwrap().output, "<answer>");
    assert_eq!(world.most, 2);
    let begun: Vec<&str> = world.began.iter().map(|(step, _)| step.as_str()).collect();
    assert_eq!(begun, ["plan", "a", "b", "c", "answer"]);
}

#[test]
fn a_plan_that_stays_bad_becomes_one_step() {
    let mut world = World::new(planned(), &|id, task, _| {
        Ok(if id == "answer" { format!("did {}", task.description) } else { "{\"steps\": 7}".to_owned() })
    });
    assert_eq!(world.result().unwrap().output, "did the task");
    let begun: Vec<&str> = world.began.iter().map(|(step, _)| step.as_str()).collect();
    assert_eq!(begun, ["plan", "repair", "answer"]);
}

proptest! {
    #[test]
    fn a_made_plan_that_is_killed_anywhere_repeats_no_kept_step(kills in prop::collection::vec(1usize..9, 0..5), bad in any::<bool>()) {
        let answers = |id: &str, task: &pb::AgentTask, executor: &str| match id {
            "plan" if bad => Ok("sorry".to_owned()),
            "repair" => Ok(MADE.to_owned()),
            _ => planner(id, task, executor),
        };
        let mut world = World::new(planned(), &answers);
        let mut ended = None;
        for events in kills {
            let kept: Vec<String> = world.disk.iter().map(|(_, r)| r.step_id.clone()).collect();
            let before = world.began.len();
            if let End::Finished(end) = world.attempt(events) {
                ended = Some(end);
            }
            prop_assert!(world.began[before..].iter().all(|(step, _)| !kept.contains(step)));
            if ended.is_some() {
                break;
            }
        }
        let result = ended.map_or_else(|| world.result(), |end| *end).unwrap();
        prop_assert_eq!(result.output, "<answer>");
    }
}
