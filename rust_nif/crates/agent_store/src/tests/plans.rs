//! Ends of steps of a plan: kept with the answers of their last call, apart from each other, and taken over by a fork.

use agent_core::plan::machine::Kept as KeptRun;

use super::*;
use journal::{Change, Kind, Lookup, Scope};

fn kept(store: &TaskStore, id: &str, fence: i64, n: u8, kind: Kind, call: u8) {
    let run = pb::PlanStepRun { step_id: format!("s{n}"), order: i32::from(n), ..Default::default() };
    let answers = vec![(key(call, Kind::Chat), vec![call]), (key(n, kind), run.encode_to_vec())];
    write(store, WriteOp::Answers { id: id.into(), fence, answers }).unwrap();
}

fn fork(store: &TaskStore, of: &str) -> String {
    let id = uuid::Uuid::now_v7().to_string();
    let spec = pb::AgentTask { description: "x".into(), ..Default::default() };
    let mut h = header(&spec, &id, &id, "t", now_ms());
    h.fork_of = of.to_owned();
    write(store, WriteOp::Submit { header: Box::new(h), spec: Box::new(spec), run: true, route: None }).unwrap();
    id
}

fn names(store: &TaskStore, id: &str) -> Vec<(KeptRun, String)> {
    let mut all: Vec<(i32, KeptRun, String)> =
        store.plan_runs(id).unwrap().into_iter().map(|(kept, run)| (run.order, kept, run.step_id)).collect();
    all.sort_by_key(|(order, _, _)| *order);
    all.into_iter().map(|(_, kept, name)| (kept, name)).collect()
}

#[test]
fn the_next_attempt_finds_the_ends_of_steps_and_they_are_no_answers_of_models() {
    for place in places("plan_runs") {
        let store = place.open();
        let (id, _) = submit(&store, false, None, "x", true);
        kept(&store, &id, 1, 1, Kind::Step, 11);
        kept(&store, &id, 1, 2, Kind::StepFailed, 12);
        lose(&store, &id, 1);
        assert_eq!(names(&store, &id), [(KeptRun::Done, "s1".into()), (KeptRun::Failed, "s2".into())]);
        let session = store.read_session(&id, 2).unwrap();
        assert_eq!(session.ask(key(11, Kind::Chat).question, true), Lookup::Recorded(vec![11]));
        let run = pb::PlanStepRun::default().encode_to_vec();
        let late = write(&store, WriteOp::Answers { id: id.clone(), fence: 1, answers: vec![(key(3, Kind::Step), run)] });
        assert_eq!(late.unwrap_err().reason, Reason::AttemptFenced);
        place.stop(&store);
    }
}

#[test]
fn a_fork_takes_over_steps_that_succeeded_and_none_once_one_was_undone() {
    for place in places("plan_fork") {
        let store = place.open();
        let (id, _) = submit(&store, false, None, "x", true);
        kept(&store, &id, 1, 1, Kind::Step, 11);
        kept(&store, &id, 1, 2, Kind::StepFailed, 12);
        assert_eq!(names(&store, &fork(&store, &id)), [(KeptRun::Done, "s1".into())]);
        kept(&store, &id, 1, 1, Kind::StepUndone, 13);
        assert_eq!(names(&store, &fork(&store, &id)), []);
        place.stop(&store);
    }
}

#[test]
fn steps_side_by_side_ask_under_names_of_their_own_and_a_second_try_is_answered() {
    for place in places("plan_scopes") {
        let store = place.open();
        let (id, _) = submit(&store, false, None, "x", true);
        let scope = |name: &str, life| Scope { name: name.into(), life };
        let asked = |name: &str| (Kind::Chat, scope(name, 1).hash([9; 32]));
        assert_ne!(asked("a"), asked("b"));
        assert_eq!(scope("", 1).hash([9; 32]), [9; 32]);
        let session = store.session(&id, 1, 1).unwrap();
        let Lookup::Live { key, .. } = session.ask(asked("a"), false) else { panic!("nothing is recorded") };
        journal(&store, &id, 1, key, Change::Answer(vec![1])).unwrap();
        // The same try asks a second time: another question. The next try of the step starts anew.
        assert!(matches!(session.ask(asked("a"), false), Lookup::Live { .. }));
        let again = store.read_life(&id, 1, &scope("a", 2)).unwrap();
        assert_eq!(again.ask(asked("a"), false), Lookup::Recorded(vec![1]));
        assert!(matches!(again.ask(asked("b"), false), Lookup::Live { .. }));
        assert!(session.life(&scope("a", 2)).is_some() && session.life(&scope("a", 3)).is_none());
        place.stop(&store);
    }
}
