//! Behaviour of the facade, the same on every back end.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use agent_core::header::header;

use super::*;
use crate::ledger::{LedgerChange, LedgerOp};

mod blobs;
mod plans;

/// A database of one test; what it leaves is removed.
struct Place {
    dir: PathBuf,
    location: Location,
    ends: (mpsc::Sender<String>, mpsc::Receiver<String>),
}

/// One in a folder of its own, for what only a file has.
fn file(name: &str) -> Place {
    let dir = std::env::temp_dir().join(format!("singularity-store-{name}-{}-{}", std::process::id(), uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&dir).unwrap();
    Place { location: Location::File(dir.join("s.db")), dir, ends: mpsc::channel() }
}

/// One of every back end. The server is the one that `scripts/test` has started; without it there is the file alone.
fn places(name: &str) -> Vec<Place> {
    let mut all = vec![file(name)];
    if let Ok(url) = std::env::var("SINGULARITY_TEST_POSTGRES") {
        let database = format!("{name}_{}", uuid::Uuid::new_v4().simple());
        crate::postgres::make_database(&url, &database).unwrap();
        let (server, _) = url.rsplit_once('/').unwrap();
        let mut place = file(name);
        place.location = Location::Server { url: format!("{server}/{database}"), spool: place.dir.join("spool"), ca: None };
        all.push(place);
    }
    all
}

impl Place {
    fn try_open(&self, retention: Retention) -> Result<Arc<TaskStore>, AgentError> {
        let end = self.ends.0.clone();
        TaskStore::open(&self.location, retention, Box::new(move |why| drop(end.send(why))))
    }

    fn open(&self) -> Arc<TaskStore> {
        self.try_open(Retention::default()).unwrap()
    }

    fn on_server(&self) -> bool {
        matches!(self.location, Location::Server { .. })
    }

    /// Waits until a stopped store has given back its database.
    fn stop(&self, store: &TaskStore) {
        store.stop();
        self.ends.1.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn write(store: &TaskStore, op: WriteOp) -> Result<Written, AgentError> {
    let (tx, rx) = mpsc::channel();
    assert_ne!(store.write(op, move |r| tx.send(r).unwrap()), Enqueued::Busy);
    rx.recv().unwrap()
}

fn recover(store: &TaskStore) {
    while matches!(write(store, WriteOp::Recover), Ok(Written::Recovered { more: true })) {}
}

fn submit(store: &TaskStore, ephemeral: bool, request: Option<&str>, text: &str, run: bool) -> (String, Result<Written, AgentError>) {
    let id = uuid::Uuid::now_v7().to_string();
    let durability = if ephemeral { pb::Durability::Ephemeral } else { pb::Durability::Durable };
    let spec = pb::AgentTask {
        description: text.into(),
        execution_hints: Some(pb::ExecutionHints { durability: durability as i32, ..Default::default() }),
        ..Default::default()
    };
    let mut h = header(&spec, &id, request.unwrap_or_default(), "t", now_ms());
    if request.is_some() {
        h.content_hash = agent_core::hash::content_hash(&spec).to_vec();
    }
    let written = write(store, WriteOp::Submit { header: Box::new(h), spec: Box::new(spec), run, route: None });
    (id, written)
}

fn finish(id: &str, fence: i64) -> WriteOp {
    let finish = Finish {
        state: pb::TaskState::Succeeded,
        result: Some(pb::AgentResult { output: "done".into(), ..Default::default() }),
        error: None,
        executor: "native".into(),
        metrics: Metrics::default(),
        outcome: "succeeded".into(),
        cause: String::new(),
        proof: None,
        events: Vec::new(),
        journal: Vec::new(),
    };
    WriteOp::Finish { id: id.into(), fence, finish: Box::new(finish) }
}

fn text(id: &str, fence: i64, text: &str) -> WriteOp {
    let delta = pb::TextDelta { text: text.into(), ..Default::default() };
    WriteOp::Events { id: id.into(), fence, events: vec![pb::task_event::Event::TextDelta(delta).into()] }
}

#[test]
fn both_back_ends_keep_the_rules_of_a_tasks_life() {
    for place in places("rules") {
        let store = place.open();
        for ephemeral in [true, false] {
            let (id, written) = submit(&store, ephemeral, None, "x", false);
            assert!(matches!(written, Ok(Written::Created { fence: 0, .. })));
            assert!(matches!(write(&store, WriteOp::Claim { id: id.clone() }), Ok(Written::Claimed { fence: 1, attempt: 1, .. })));
            // Claimed once.
            assert_eq!(write(&store, WriteOp::Claim { id: id.clone() }).unwrap_err().reason, Reason::WrongState);
            // A lost attempt: the next one has the next fence, and the old one can say nothing any more.
            let requeue = WriteOp::Requeue {
                id: id.clone(),
                fence: 1,
                outcome: "lost".into(),
                cause: "WORKER_CRASHED".into(),
                counts: true,
                not_before_ms: 0,
                ran_ms: None,
                events: vec![],
            };
            assert!(matches!(write(&store, requeue), Ok(Written::Requeued { lost: 1 })));
            assert!(matches!(write(&store, WriteOp::Claim { id: id.clone() }), Ok(Written::Claimed { fence: 2, attempt: 2, .. })));
            for late in [finish(&id, 1), text(&id, 1, "late"), WriteOp::Fence { id: id.clone(), fence: 1 }] {
                assert_eq!(write(&store, late).unwrap_err().reason, Reason::AttemptFenced);
            }
            assert!(write(&store, finish(&id, 2)).is_ok());
            // Terminal once.
            assert_eq!(write(&store, finish(&id, 2)).unwrap_err().reason, Reason::TaskAlreadyTerminal);
            let task = store.get("t", &id).unwrap();
            assert_eq!((task.state(), task.attempts, task.result.unwrap().output.as_str()), (pb::TaskState::Succeeded, 2, "done"));
            assert_eq!(store.get("other", &id).unwrap_err().reason, Reason::TaskNotFound);
            let outcomes: Vec<String> = store.attempts("t", &id[28..]).unwrap().into_iter().map(|a| a.outcome).collect();
            assert_eq!(outcomes, ["lost", "succeeded"]);
        }
        place.stop(&store);
    }
}

#[test]
fn a_request_id_gives_the_same_task_or_names_the_difference() {
    for place in places("request") {
        let store = place.open();
        for ephemeral in [true, false] {
            let name = format!("r{ephemeral}");
            let (first, _) = submit(&store, ephemeral, Some(&name), "x", true);
            let (_, again) = submit(&store, ephemeral, Some(&name), "x", true);
            assert!(matches!(again, Ok(Written::Existing { id }) if id == first));
            let error = submit(&store, ephemeral, Some(&name), "y", true).1.unwrap_err();
            assert_eq!((error.reason, error.metadata["field"].as_str()), (Reason::RequestIdReused, "task.description"));
        }
        place.stop(&store);
    }
}

#[test]
fn after_a_kill_every_answered_write_is_there_and_running_tasks_are_queued_again() {
    use std::io::BufRead as _;
    for place in places("kill") {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::writes_until_it_is_killed", "--ignored", "--nocapture", "--test-threads=1"])
            .env(KILLED, serde_json::to_string(&place.location).unwrap())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut answered: Vec<(String, String)> = Vec::new();
        for line in lines.by_ref() {
            if let Some((word, id)) = line.split_once(' ').filter(|(w, id)| ["finished", "running"].contains(w) && id.len() == 36) {
                answered.push((word.to_owned(), id.to_owned()));
            }
            if answered.len() == 300 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(answered.len() >= 300, "{}", answered.len());
        let again = place.open();
        assert_eq!(again.epoch(), 2);
        recover(&again);
        let queued = again.queued("").unwrap();
        for (word, id) in &answered {
            let task = again.get("t", id).unwrap();
            if word == "finished" {
                assert_eq!((task.state(), task.result.unwrap().output.as_str()), (pb::TaskState::Succeeded, "done"));
                continue;
            }
            // A node's end is nobody's fault: it does not count towards POISON_TASK. A finish that was committed but not answered is a success.
            if task.state() == pb::TaskState::Queued {
                assert!(queued.iter().any(|q| &q.task_id == id));
                assert!(matches!(write(&again, WriteOp::Claim { id: id.clone() }), Ok(Written::Claimed { fence: 2, attempt: 2, .. })));
                assert_eq!(again.attempts("t", id).unwrap()[0].cause, "NODE_LOST");
                assert_eq!(write(&again, finish(id, 1)).unwrap_err().reason, Reason::AttemptFenced);
            }
        }
        assert!(!queued.is_empty());
        place.stop(&again);
    }
}

const KILLED: &str = "SINGULARITY_TEST_KILLED";

#[test]
#[ignore = "the process that the test above starts and kills"]
fn writes_until_it_is_killed() {
    let Ok(location) = std::env::var(KILLED) else { return };
    let store = TaskStore::open(&serde_json::from_str(&location).unwrap(), Retention::default(), Box::new(|_| {})).unwrap();
    loop {
        let (id, written) = submit(&store, false, None, "x", true);
        written.unwrap();
        write(&store, text(&id, 1, "half")).unwrap();
        println!("running {id}");
        let (done, _) = submit(&store, false, None, "x", true);
        write(&store, finish(&done, 1)).unwrap();
        println!("finished {done}");
    }
}

#[test]
fn a_database_of_a_newer_program_is_refused_and_left_alone() {
    let place = file("newer");
    place.stop(&place.open());
    let db = rusqlite::Connection::open(place.dir.join("s.db")).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    let error = place.try_open(Retention::default()).err().unwrap();
    assert!(error.message.contains("schema 99"), "{}", error.message);
    assert_eq!(db.query_row("PRAGMA user_version", [], |r| r.get::<_, i64>(0)).unwrap(), 99);
}

#[test]
fn a_file_that_is_no_database_is_told_as_corrupt() {
    let place = file("corrupt");
    std::fs::write(place.dir.join("s.db"), "this is no database, it is a text ".repeat(64)).unwrap();
    let error = place.try_open(Retention::default()).err().unwrap();
    assert_eq!(error.reason, Reason::StoreCorrupt);
}

#[test]
fn ended_ephemeral_tasks_are_kept_up_to_their_number() {
    let place = file("retention");
    let store = place.open();
    let ids: Vec<String> = (0..20_010)
        .map(|_| {
            let (id, _) = submit(&store, true, None, "x", true);
            write(&store, finish(&id, 1)).unwrap();
            id
        })
        .collect();
    assert_eq!(store.get("t", &ids[9]).unwrap_err().reason, Reason::TaskNotFound);
    assert_eq!(store.get("t", &ids[20_009]).unwrap().state(), pb::TaskState::Succeeded);
    place.stop(&store);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_left_the_ring_reads_on_from_the_store_without_a_gap() {
    for place in places("ring") {
        let store = place.open();
        for ephemeral in [false, true] {
            let (id, _) = submit(&store, ephemeral, None, "x", true);
            for _ in 0..1500 {
                write(&store, text(&id, 1, "a")).unwrap();
            }
            write(&store, finish(&id, 1)).unwrap();
            let mut sequences: Vec<i64> = Vec::new();
            loop {
                let next = store.next_events("t", &id, sequences.last().copied().unwrap_or(0), None);
                let events = tokio::time::timeout(Duration::from_secs(5), next).await.unwrap().unwrap();
                if events.is_empty() {
                    break;
                }
                sequences.extend(events.iter().map(|e| e.sequence));
            }
            // Two of the start, the text, the end. An ephemeral task has only what is in memory.
            let first = if ephemeral { 504 } else { 1 };
            assert_eq!(sequences, (first..=1503).collect::<Vec<_>>());
        }
        place.stop(&store);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_seen_before_its_batch_and_a_cursor_behind_what_is_stored_begins_at_the_newest_attempt() {
    for place in places("ahead") {
        let store = place.open();
        let (id, _) = submit(&store, false, None, "x", true);
        let started = store.next_events("t", &id, 0, None).await.unwrap().last().unwrap().sequence;
        store.say(&id, 1, 0, "nobody listens");
        let listener = store.listen(&id).unwrap();
        store.say(&id, 1, 0, "one ");
        store.say(&id, 1, 4, "two ");
        let next = async |offset| {
            let next = store.next_events("t", &id, started, Some((1, offset)));
            tokio::time::timeout(Duration::from_secs(5), next).await.unwrap().unwrap().remove(0)
        };
        let said = |event: &pb::TaskEvent| match &event.event {
            Some(pb::task_event::Event::TextDelta(d)) => (d.text.clone(), d.offset, d.ahead),
            _ => unreachable!("{event:?}"),
        };
        assert_eq!(said(&next(0).await), ("one two ".into(), 0, true));
        assert_eq!(said(&next(4).await), ("two ".into(), 4, true));
        write(&store, text(&id, 1, "one ")).unwrap();
        let stored = next(8).await;
        assert_eq!((said(&stored), stored.sequence), (("one ".into(), 0, false), started + 1));
        drop(listener);
        let behind = store.cursor("t", &id, started + 7).unwrap();
        let again = store.next_events("t", &id, behind, None).await.unwrap();
        assert!(matches!(again[0].event, Some(pb::task_event::Event::AttemptStarted(_))), "{again:?}");
        assert_eq!(store.cursor("t", &id, started).unwrap(), started);
        place.stop(&store);
    }
}

#[test]
fn two_nodes_never_share_a_data_folder() {
    for place in places("lock") {
        let store = place.open();
        let error = place.try_open(Retention::default()).err().unwrap();
        assert!(error.message.contains("in use"), "{}", error.message);
        place.stop(&store);
    }
}

#[test]
fn a_bad_item_fails_alone_in_its_batch() {
    for place in places("alone") {
        let store = place.open();
        let (tx, rx) = mpsc::channel();
        let mut ids = Vec::new();
        for i in 0..50 {
            let (id, _) = submit(&store, false, None, "x", true);
            let fence = if i % 2 == 0 { 1 } else { 7 };
            let tx = tx.clone();
            store.write(finish(&id, fence), move |r| tx.send((i, r.is_ok())).unwrap());
            ids.push(id);
        }
        // A server does not take this text; what is in the same batch is written all the same.
        let agent = WriteOp::PutAgent { tenant: "t".into(), id: "with\0zero".into(), data: Vec::new() };
        store.write(agent, move |r| tx.send((50, r.is_ok())).unwrap());
        let mut results: Vec<(usize, bool)> = rx.iter().take(51).collect();
        results.sort_unstable();
        let (agent, tasks) = results.split_last().unwrap();
        assert!(tasks.iter().all(|(i, ok)| *ok == (i % 2 == 0)));
        assert_eq!(*agent, (50, !place.on_server()));
        assert_eq!(store.running().unwrap().len(), 25);
        place.stop(&store);
    }
}

#[test]
fn a_panic_of_the_writer_is_told_and_no_answer_is_lost() {
    let place = file("panic");
    let store = place.open();
    store.inject_panic();
    assert_eq!(place.ends.1.recv_timeout(Duration::from_secs(5)).unwrap(), "panic");
    // Ephemeral tasks need no writer.
    assert!(submit(&store, true, None, "x", true).1.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_read_from_any_cursor_while_it_runs_and_afterwards() {
    for place in places("watch") {
        let store = place.open();
        for ephemeral in [true, false] {
            let (id, _) = submit(&store, ephemeral, None, "x", true);
            write(&store, text(&id, 1, "ab")).unwrap();
            write(&store, text(&id, 1, "c")).unwrap();
            let live = store.next_events("t", &id, 3, None).await.unwrap();
            let Some(pb::task_event::Event::TextDelta(delta)) = &live[0].event else { panic!("no text") };
            assert_eq!((live[0].sequence, delta.text.as_str(), delta.offset), (4, "c", 2));
            let waiter = tokio::spawn({
                let (store, id) = (store.clone(), id.clone());
                async move { store.wait_terminal("t", &id, Duration::from_secs(5)).await.unwrap().state() }
            });
            write(&store, finish(&id, 1)).unwrap();
            assert_eq!(waiter.await.unwrap(), pb::TaskState::Succeeded);
            let mut sequences = Vec::new();
            loop {
                let events = store.next_events("t", &id, sequences.last().copied().unwrap_or(0), None).await.unwrap();
                if events.is_empty() {
                    break;
                }
                sequences.extend(events.iter().map(|e| e.sequence));
            }
            assert_eq!(sequences, (1..=5).collect::<Vec<_>>());
        }
        place.stop(&store);
    }
}

#[test]
fn lists_page_and_filter() {
    for place in places("list") {
        let store = place.open();
        for i in 0..5 {
            let (id, _) = submit(&store, i == 0, None, "x", true);
            if i < 2 {
                write(&store, finish(&id, 1)).unwrap();
            }
        }
        let query =
            |filter: &str, token: String| ListQuery { page_size: 2, page_token: token, filter: filter.into(), ..Default::default() };
        let (first, token) = store.list("t", &query("state=RUNNING", String::new())).unwrap();
        let (second, end) = store.list("t", &query("state=RUNNING", token)).unwrap();
        assert_eq!((first.len(), second.len(), end.as_str()), (2, 1, ""));
        assert!(first[0].id > first[1].id && first[1].id > second[0].id);
        let error = store.list("t", &query("state=RUNNING colour=red", String::new())).unwrap_err();
        assert_eq!((error.reason, error.metadata["position"].as_str()), (Reason::FilterInvalid, "15"));
        place.stop(&store);
    }
}

#[test]
fn ended_tasks_are_listed_by_their_end_page_by_page() {
    for place in places("ends") {
        let store = place.open();
        let ids: Vec<String> = (0..6).map(|i| submit(&store, i == 3, None, "x", true).0).collect();
        // They end in another order than they began, some in the same millisecond.
        for i in [4, 0, 3, 2, 1] {
            write(&store, finish(&ids[i], 1)).unwrap();
        }
        let page = |order: &str, token: String| {
            let query = ListQuery { page_size: 2, page_token: token, order_by: order.into(), ..Default::default() };
            store.list("t", &query).unwrap()
        };
        let listed = |order: &str| {
            let (mut tasks, mut token) = page(order, String::new());
            while !token.is_empty() {
                let (more, next) = page(order, token);
                assert!(more.len() <= 2);
                tasks.extend(more);
                token = next;
            }
            tasks
        };
        let ends = |tasks: &[pb::Task]| -> Vec<(i64, String)> {
            tasks.iter().map(|t| (agent_core::header::timestamp_ms(t.end_time.as_ref().unwrap()), t.id.clone())).collect()
        };
        let (first, last) = (ends(&listed("end_time")), ends(&listed("end_time desc")));
        assert_eq!(first.len(), 5, "the one that runs is left out");
        assert!(first.is_sorted());
        assert!(last.iter().eq(first.iter().rev()));
        assert_eq!(store.list("t", &ListQuery { order_by: "cost".into(), ..Default::default() }).unwrap_err().fields[0].field, "order_by");
        place.stop(&store);
    }
}

fn key(n: u8, kind: journal::Kind) -> journal::Key {
    journal::Key { question: (kind, [n; 32]), occurrence: 0 }
}

fn journal(store: &TaskStore, id: &str, fence: i64, key: journal::Key, change: journal::Change) -> Result<Written, AgentError> {
    write(store, WriteOp::Journal { id: id.into(), fence, key, change })
}

fn lose(store: &TaskStore, id: &str, fence: i64) {
    lose_only(store, id, fence, "WORKER_CRASHED");
    write(store, WriteOp::Claim { id: id.into() }).unwrap();
}

fn lose_only(store: &TaskStore, id: &str, fence: i64, cause: &str) {
    let requeue = WriteOp::Requeue {
        id: id.into(),
        fence,
        outcome: "lost".into(),
        cause: cause.into(),
        counts: true,
        not_before_ms: 0,
        ran_ms: None,
        events: Vec::new(),
    };
    write(store, requeue).unwrap();
}

#[test]
fn after_a_worker_that_was_shared_the_next_attempt_is_alone_and_the_one_after_it_is_not() {
    for place in places("shared") {
        let store = place.open();
        let (id, _) = submit(&store, false, None, "x", true);
        for (fence, cause, alone_after) in [(1, "WORKER_SHARED", true), (2, "WORKER_CRASHED", false)] {
            lose_only(&store, &id, fence, cause);
            let claimed = write(&store, WriteOp::Claim { id: id.clone() }).unwrap();
            assert!(matches!(claimed, Written::Claimed { alone, .. } if alone == alone_after), "{cause}");
        }
        place.stop(&store);
    }
}

#[test]
fn a_later_attempt_finds_what_was_answered_also_by_the_end_and_after_a_new_start() {
    use journal::{Change, Kind, Lookup};
    for place in places("journal") {
        let store = place.open();
        let (id, _) = submit(&store, false, None, "x", true);
        let (asked, answered) = (key(1, Kind::Chat), key(2, Kind::Chat));
        journal(&store, &id, 1, asked, Change::Intent).unwrap();
        journal(&store, &id, 1, answered, Change::Intent).unwrap();
        journal(&store, &id, 1, answered, Change::Answer(vec![7])).unwrap();
        // The first answer is the one that the task was given.
        journal(&store, &id, 1, answered, Change::Answer(vec![8])).unwrap();
        place.stop(&store);
        let store = place.open();
        recover(&store);
        write(&store, WriteOp::Claim { id: id.clone() }).unwrap();
        assert!(store.session(&id, 2, 2).is_none());
        let session = store.read_session(&id, 2).unwrap();
        assert_eq!(session.ask(answered.question, true), Lookup::Recorded(vec![7]));
        assert_eq!(session.ask(asked.question, true), Lookup::Live { key: asked, in_doubt: true, diverged: false });
        let late = journal(&store, &id, 1, key(3, Kind::Chat), Change::Answer(vec![1]));
        assert_eq!(late.unwrap_err().reason, Reason::AttemptFenced);

        let WriteOp::Finish { finish: mut end, .. } = finish(&id, 2) else { unreachable!() };
        end.journal = vec![(key(4, Kind::Chat), vec![4])];
        write(&store, WriteOp::Finish { id: id.clone(), fence: 2, finish: end }).unwrap();
        assert_eq!(store.durable.journal(&id).unwrap().len(), 3);
        write(&store, WriteOp::Delete { tenant: "t".into(), id: id.clone() }).unwrap();
        assert!(store.durable.journal(&id).unwrap().is_empty());
    }
}

#[test]
fn a_tool_runs_once_unless_it_allows_more_and_one_in_doubt_is_not_guessed() {
    use journal::{Change, Decision, Kind, Replay};
    for place in places("tools") {
        let store = place.open();
        let (id, _) = submit(&store, false, None, "x", true);
        let begin = |fence, n, replay| match write(
            &store,
            WriteOp::ToolBegin { id: id.clone(), fence, key: key(n, Kind::Tool), replay, again: false },
        ) {
            Ok(Written::Tool(decision)) => decision,
            other => panic!("{other:?}"),
        };
        for n in 1..=3 {
            assert_eq!(begin(1, n, Replay::Once), Decision::Run);
            assert_eq!(begin(1, n, Replay::Once), Decision::Run, "its own intent is no doubt");
        }
        journal(&store, &id, 1, key(1, Kind::Tool), Change::Answer(vec![1])).unwrap();
        journal(&store, &id, 1, key(3, Kind::Tool), Change::Withdrawn).unwrap();
        lose(&store, &id, 1);
        assert_eq!(begin(2, 1, Replay::Once), Decision::Recorded(vec![1]));
        assert_eq!(begin(2, 2, Replay::Once), Decision::InDoubt);
        assert_eq!(begin(2, 2, Replay::Journaled), Decision::Run);
        assert_eq!(begin(2, 3, Replay::Once), Decision::Run);
    }
}

#[test]
fn ended_tasks_are_forgotten_when_their_time_is_over_and_open_ones_are_not() {
    for place in places("retention") {
        let keep = Retention { succeeded_ms: 1, other_ms: 0, ..Retention::default() };
        let store = place.open();
        let ids: Vec<String> = (0..450).map(|_| submit(&store, false, None, "x", true).0).collect();
        let open_id = ids[0].clone();
        for id in &ids[1..] {
            write(&store, finish(id, 1)).unwrap();
        }
        place.stop(&store);
        let store = place.try_open(keep).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while store.list("t", &ListQuery { page_size: 1000, ..Default::default() }).unwrap().0.len() > 1 {
            assert!(std::time::Instant::now() < deadline, "three batches take less than a second");
            std::thread::yield_now();
        }
        assert_eq!(store.get("t", &open_id).unwrap().state(), pb::TaskState::Running);
        assert_eq!(store.get("t", &ids[1]).unwrap_err().reason, Reason::TaskNotFound);
        assert!(store.durable.events(&ids[1], 0, 10).unwrap().is_empty());
        if place.on_server() {
            continue;
        }
        // What was moved into the database is not in the log any more: the next commit begins it again.
        let log = place.dir.join("s.db-wal");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let long = std::fs::metadata(&log).unwrap().len();
        while wal_pages(&place.dir) > 0 {
            assert!(std::time::Instant::now() < deadline, "an idle writer moves its log");
            std::thread::yield_now();
        }
        let (_, _) = submit(&store, false, None, "x", true);
        assert_eq!(std::fs::metadata(&log).unwrap().len(), long);
    }
}

#[test]
fn labels_say_for_how_long_a_task_is_kept() {
    for place in places("labels") {
        let labels = HashMap::from([("tier=audit".to_owned(), 0), ("tier=scratch".to_owned(), 1), ("kind=x".to_owned(), 100_000_000)]);
        let store = place.try_open(Retention { succeeded_ms: 1, other_ms: 1, labels, ..Retention::default() }).unwrap();
        let ended = |labels: &[(&str, &str)]| {
            let spec = pb::AgentTask {
                description: "x".into(),
                labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
                ..Default::default()
            };
            let id = uuid::Uuid::now_v7().to_string();
            let header = Box::new(header(&spec, &id, &id, "t", now_ms()));
            write(&store, WriteOp::Submit { header, spec: Box::new(spec), run: true, route: None }).unwrap();
            write(&store, finish(&id, 1)).unwrap();
            id
        };
        let kept = [ended(&[("tier", "audit")]), ended(&[("tier", "scratch"), ("kind", "x")])];
        let gone = [ended(&[("tier", "scratch")]), ended(&[("tier", "other")])];
        place.stop(&store);
        let store = place.try_open(Retention { succeeded_ms: 1, other_ms: 1, ..Retention::default() }).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while gone.iter().any(|id| store.get("t", id).is_ok()) {
            assert!(std::time::Instant::now() < deadline, "what no label keeps is forgotten");
            std::thread::yield_now();
        }
        for id in &kept {
            assert!(store.get("t", id).is_ok(), "what was said at its end counts");
        }
        place.stop(&store);
    }
}

/// Pages of the log that are not in the database yet, as another connection sees it.
fn wal_pages(dir: &Path) -> i64 {
    let db = rusqlite::Connection::open(dir.join("s.db")).unwrap();
    db.query_row("PRAGMA wal_checkpoint(NOOP)", [], |r| Ok(r.get::<_, i64>(1)? - r.get::<_, i64>(2)?)).unwrap_or(0)
}

#[test]
fn an_ephemeral_task_is_forgotten_without_another_one_ending() {
    let place = file("expiry");
    let store = place.open();
    let (id, _) = submit(&store, true, None, "x", true);
    write(&store, finish(&id, 1)).unwrap();
    store.due(now_ms()).unwrap();
    assert!(store.get("t", &id).is_ok());
    store.due(now_ms() + 61_000).unwrap();
    assert_eq!(store.get("t", &id).unwrap_err().reason, Reason::TaskNotFound);
}

fn put(store: &TaskStore, r: pb::PutMemoryRequest) -> Result<pb::MemoryItem, AgentError> {
    match write(store, WriteOp::Memory { tenant: "t".into(), op: Box::new(MemoryOp::Put(r)), holder: None })? {
        Written::Memory(MemoryAnswer::Item(item)) => Ok(*item),
        other => panic!("{other:?}"),
    }
}

fn number(n: f64) -> Option<prost_types::Value> {
    Some(prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(n)) })
}

fn value(key: &str, n: f64) -> pb::PutMemoryRequest {
    pb::PutMemoryRequest { namespace: "users/42".into(), key: key.into(), value: number(n), ..Default::default() }
}

#[test]
fn a_task_keeps_records_until_it_is_deleted_and_only_its_attempt_writes() {
    for place in places("records") {
        let store = place.open();
        let (id, _) = submit(&store, false, None, "x", true);
        let keep = |fence: i64, records: &[(&str, Option<&[u8]>)]| {
            let records = records.iter().map(|(key, data)| ((*key).to_owned(), data.map(<[u8]>::to_vec))).collect();
            write(&store, WriteOp::Keep { id: id.clone(), fence, records })
        };
        let keys = |after: &str| {
            let (found, more) = store.kept(&id, after).unwrap();
            (found.into_iter().map(|(key, data)| (key, data.len())).collect::<Vec<_>>(), more)
        };
        keep(1, &[("b", Some(b"1")), ("a", Some(b"")), ("b", Some(b"22")), ("gone", Some(b"x")), ("gone", None)]).unwrap();
        assert_eq!(keys(""), (vec![("a".into(), 0), ("b".into(), 2)], false));
        assert_eq!(keys("a"), (vec![("b".into(), 2)], false));
        let large = vec![7; 3 * 1024 * 1024];
        keep(1, &[("c", Some(&large)), ("d", Some(&large))]).unwrap();
        assert_eq!(keys("b"), (vec![("c".into(), large.len())], true), "a page is bounded by its bytes");
        assert_eq!(keys("c"), (vec![("d".into(), large.len())], false));

        assert_eq!(keep(2, &[("a", None)]).unwrap_err().reason, Reason::AttemptFenced);
        let op = Box::new(MemoryOp::Put(value("fenced", 1.0)));
        let late = WriteOp::Memory { tenant: "t".into(), op, holder: Some((id.clone(), 2)) };
        assert_eq!(write(&store, late).unwrap_err().reason, Reason::AttemptFenced);
        assert!(store.memory("t", "users/42", "fenced").is_err());
        let op = Box::new(MemoryOp::Put(value("held", 1.0)));
        write(&store, WriteOp::Memory { tenant: "t".into(), op, holder: Some((id.clone(), 1)) }).unwrap();

        write(&store, finish(&id, 1)).unwrap();
        assert!(keep(1, &[("a", None)]).is_err(), "its attempt is over");
        write(&store, WriteOp::Delete { tenant: "t".into(), id: id.clone() }).unwrap();
        assert_eq!(keys(""), (Vec::new(), false));
        place.stop(&store);
    }
}

#[test]
fn what_lies_below_a_namespace_is_found_and_nothing_beside_it() {
    for place in places("below") {
        let store = place.open();
        for namespace in ["a", "a/b", "a/b/c", "a-b", "a0", "b"] {
            for key in ["1", "2"] {
                put(&store, pb::PutMemoryRequest { namespace: namespace.into(), ..value(key, 1.0) }).unwrap();
            }
        }
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let (page, next) = store.memories_below("t", "a", &token, 2).unwrap();
            found.extend(page.into_iter().map(|i| format!("{} {}", i.namespace, i.key)));
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(found, ["a 1", "a 2", "a/b 1", "a/b 2", "a/b/c 1", "a/b/c 2"]);
        let namespaces = |after: &str, size| store.namespaces_below("t", "a", after, size).unwrap();
        assert_eq!(namespaces("", 2), (vec!["a".into(), "a/b".into()], "a/b".into()));
        assert_eq!(namespaces("a/b", 2), (vec!["a/b/c".into()], String::new()));
        assert!(store.memories_below("other", "a", "", 2).unwrap().0.is_empty());
        place.stop(&store);
    }
}

#[test]
fn of_many_writers_that_saw_the_same_version_one_wins() {
    for place in places("memory") {
        let store = place.open();
        assert_eq!(put(&store, pb::PutMemoryRequest { expected_version: Some(0), ..value("count", 0.0) }).unwrap().version, 1);
        let add = |store: &TaskStore| loop {
            let seen = store.memory("t", "users/42", "count").unwrap();
            let Some(prost_types::value::Kind::NumberValue(n)) = seen.value.unwrap().kind else { panic!("no number") };
            match put(store, pb::PutMemoryRequest { expected_version: Some(seen.version), ..value("count", n + 1.0) }) {
                Ok(_) => return,
                Err(e) => assert_eq!(e.reason, Reason::VersionConflict),
            }
        };
        std::thread::scope(|s| (0..8).for_each(|_| drop(s.spawn(|| (0..10).for_each(|_| add(&store))))));
        let end = store.memory("t", "users/42", "count").unwrap();
        assert_eq!((end.version, end.value), (81, number(80.0)));
        assert_eq!(store.memory("other", "users/42", "count").unwrap_err().reason, Reason::MemoryNotFound);
        place.stop(&store);
    }
}

#[test]
fn a_value_is_listed_versioned_deleted_and_gone_when_its_time_is_over() {
    for place in places("values") {
        let store = place.open();
        let first = pb::PutMemoryRequest { request_id: "r1".into(), ..value("a", 1.0) };
        let item = put(&store, first.clone()).unwrap();
        assert_eq!(put(&store, first.clone()).unwrap(), item, "the first answer again");
        assert_eq!(put(&store, pb::PutMemoryRequest { value: number(9.0), ..first }).unwrap_err().reason, Reason::RequestIdReused);
        put(&store, value("a", 2.0)).unwrap();
        put(&store, value("ab", 3.0)).unwrap();
        put(&store, value("b", 4.0)).unwrap();
        let list = |prefix: &str, token: String| {
            let r =
                pb::ListMemoriesRequest { namespace: "users/42".into(), prefix: prefix.into(), page_token: token, ..Default::default() };
            let (items, token) = store.memories("t", &r, 2).unwrap();
            (items.into_iter().map(|i| i.key).collect::<Vec<_>>(), token)
        };
        let (page, token) = list("", String::new());
        assert_eq!((page, list("", token)), (vec!["a".into(), "ab".into()], (vec!["b".into()], String::new())));
        assert_eq!(list("a", String::new()).0, ["a", "ab"]);

        // All or none.
        let delete = pb::DeleteMemoryRequest { key: "a".into(), expected_version: Some(1), ..Default::default() };
        let operations = vec![
            pb::MemoryOperation { operation: Some(pb::memory_operation::Operation::Put(value("c", 5.0))) },
            pb::MemoryOperation { operation: Some(pb::memory_operation::Operation::Delete(delete)) },
        ];
        let batch = pb::BatchMemoryRequest { namespace: "users/42".into(), operations, ..Default::default() };
        let refused =
            write(&store, WriteOp::Memory { tenant: "t".into(), op: Box::new(MemoryOp::Batch(batch)), holder: None }).unwrap_err();
        assert_eq!((refused.reason, refused.metadata["current_version"].as_str()), (Reason::VersionConflict, "2"));
        assert!(store.memory("t", "users/42", "c").is_err());

        let gone = pb::DeleteMemoryRequest { namespace: "users/42".into(), key: "a".into(), ..Default::default() };
        write(&store, WriteOp::Memory { tenant: "t".into(), op: Box::new(MemoryOp::Delete(gone)), holder: None }).unwrap();
        assert!(store.memory("t", "users/42", "a").is_err());
        let again = put(&store, pb::PutMemoryRequest { expected_version: Some(0), ..value("a", 6.0) }).unwrap();
        assert_eq!(again.version, 4, "a number is never given twice");
        let r = pb::ListMemoryVersionsRequest { namespace: "users/42".into(), key: "a".into(), ..Default::default() };
        let versions = store.memory_versions("t", &r, 10).unwrap().0;
        assert_eq!(
            versions.iter().map(|v| (v.version, v.value.is_some())).collect::<Vec<_>>(),
            [(4, true), (3, false), (2, true), (1, true)]
        );

        let short = pb::PutMemoryRequest { ttl: Some(agent_core::header::duration(1)), ..value("short", 1.0) };
        put(&store, short).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while store.memory("t", "users/42", "short").is_ok() {
            assert!(std::time::Instant::now() < deadline, "it lives for 1 ms");
        }
        place.stop(&store);
        // A store that was just opened looks for what is over at its first pause.
        let store = place.open();
        let r = pb::ListMemoryVersionsRequest { key: "short".into(), ..r };
        while store.memory_versions("t", &r, 10).unwrap().0.iter().any(|v| v.value.is_some()) {
            assert!(std::time::Instant::now() < deadline, "it is gone from the disk as well");
            std::thread::yield_now();
        }
        place.stop(&store);
    }
}

#[test]
fn a_namespace_goes_on_with_its_conversation_and_every_attempt_sees_the_same() {
    for place in places("conversation") {
        let store = place.open();
        let start = |text: &str| {
            let id = uuid::Uuid::now_v7().to_string();
            let context = pb::TaskContext { memory_namespace: "chat/1".into(), ..Default::default() };
            let spec = pb::AgentTask { description: text.into(), context: Some(context), ..Default::default() };
            let header = Box::new(header(&spec, &id, &id, "t", now_ms()));
            // It is claimed, whoever has a slot: what it remembers comes with the claim.
            let written = write(&store, WriteOp::Submit { header, spec: Box::new(spec), run: true, route: None }).unwrap();
            assert!(matches!(written, Written::Created { fence: 0, .. }));
            id
        };
        let claim = |id: &str| match write(&store, WriteOp::Claim { id: id.into() }).unwrap() {
            Written::Claimed { spec, .. } => {
                let history = spec.context.unwrap().conversation_history;
                history.into_iter().map(|m| (m.role(), text_of(&m))).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        let first = start("hello");
        assert!(claim(&first).is_empty());
        let second = start("and now?");
        write(&store, finish(&first, 1)).unwrap();
        let said = vec![(pb::Role::User, "hello".to_owned()), (pb::Role::Assistant, "done".to_owned())];
        assert_eq!(claim(&second), said);
        // Another task ends meanwhile; the next attempt asks what the first one asked.
        let third = start("me too");
        claim(&third);
        write(&store, finish(&third, 1)).unwrap();
        lose_only(&store, &second, 1, "WORKER_CRASHED");
        assert_eq!(claim(&second), said);
        write(&store, finish(&second, 2)).unwrap();
        let r = pb::ListMessagesRequest { namespace: "chat/1".into(), conversation_id: "default".into(), ..Default::default() };
        let (all, token) = store.messages("t", &r, 4).unwrap();
        assert_eq!(all.iter().map(text_of).collect::<Vec<_>>(), ["hello", "done", "me too", "done"]);
        let rest = store.messages("t", &pb::ListMessagesRequest { page_token: token, ..r }, 4).unwrap();
        assert_eq!((rest.0.iter().map(text_of).collect::<Vec<_>>(), rest.1.as_str()), (vec!["and now?".to_owned(), "done".to_owned()], ""));
        place.stop(&store);
    }
}

fn text_of(m: &pb::Message) -> String {
    m.content
        .iter()
        .map(|p| match &p.part {
            Some(pb::content_part::Part::Text(text)) => text.as_str(),
            _ => "",
        })
        .collect()
}

#[test]
fn a_request_id_is_known_after_its_task_was_deleted() {
    for place in places("tombstone") {
        let store = place.open();
        let (id, _) = submit(&store, false, Some("r"), "x", true);
        write(&store, finish(&id, 1)).unwrap();
        write(&store, WriteOp::Delete { tenant: "t".into(), id: id.clone() }).unwrap();
        let gone = store.get("t", &id).unwrap_err();
        assert!(gone.reason == Reason::TaskNotFound && gone.message.contains("was deleted"), "{}", gone.message);
        assert!(matches!(submit(&store, false, Some("r"), "x", true).1, Ok(Written::Existing { id: same }) if same == id));
        assert_eq!(submit(&store, false, Some("r"), "y", true).1.unwrap_err().reason, Reason::RequestIdReused);
        place.stop(&store);
    }
}

#[test]
fn a_fork_begins_with_the_answers_that_stood_at_an_event() {
    use journal::{Change, Kind, Lookup};
    for place in places("fork") {
        let store = place.open();
        let (id, _) = submit(&store, false, None, "x", true);
        journal(&store, &id, 1, key(1, Kind::Chat), Change::Answer(vec![1])).unwrap();
        let Ok(Written::Sequence(middle)) = write(&store, text(&id, 1, "half")) else { panic!("no number") };
        write(&store, text(&id, 1, "whole")).unwrap();
        journal(&store, &id, 1, key(2, Kind::Chat), Change::Answer(vec![2])).unwrap();
        for (after, answered) in [(0, [true, true]), (middle, [true, false])] {
            let fork = uuid::Uuid::now_v7().to_string();
            let spec = pb::AgentTask { description: "x".into(), ..Default::default() };
            let mut h = header(&spec, &fork, &fork, "t", now_ms());
            (h.fork_of, h.fork_after) = (id.clone(), after);
            write(&store, WriteOp::Submit { header: Box::new(h), spec: Box::new(spec), run: true, route: None }).unwrap();
            assert_eq!(store.get("t", &fork).unwrap().fork_of, id);
            assert!(store.session(&fork, 1, 1).is_none(), "the disk must be read");
            let session = store.read_session(&fork, 1).unwrap();
            let known = [1, 2].map(|n| matches!(session.ask(key(n, Kind::Chat).question, true), Lookup::Recorded(_)));
            assert_eq!(known, answered);
            assert!(store.session(&fork, 1, 1).is_some());
        }
        place.stop(&store);
    }
}

#[test]
fn a_schedule_is_due_until_its_time_was_answered() {
    for place in places("schedule") {
        let store = place.open();
        let op = |op| match write(&store, WriteOp::Schedule { tenant: "t".into(), op }) {
            Ok(Written::Schedule(schedule)) => Ok(*schedule),
            Ok(other) => panic!("{other:?}"),
            Err(e) => Err(e),
        };
        let every = |ms| pb::Schedule {
            id: "s".into(),
            when: Some(pb::schedule::When::Interval(agent_core::header::duration(ms))),
            task: Some(pb::AgentTask { description: "x".into(), ..Default::default() }),
            ..Default::default()
        };
        let made = op(ScheduleOp::Create { schedule: Box::new(every(60_000)), request_id: String::new() }).unwrap();
        assert_eq!((made.state.as_str(), made.next_times.len()), ("active", 5));
        assert_eq!(
            op(ScheduleOp::Create { schedule: Box::new(every(60_000)), request_id: String::new() }).unwrap().create_time,
            made.create_time,
            "the same one again"
        );
        assert_eq!(
            op(ScheduleOp::Create { schedule: Box::new(every(61_000)), request_id: String::new() }).unwrap_err().reason,
            Reason::RequestIdReused
        );
        let first = agent_core::header::timestamp_ms(&made.next_times[0]);
        assert!(store.due_schedules(first - 1).unwrap().is_empty());
        let due = store.due_schedules(first).unwrap();
        assert_eq!((due.len(), due[0].tick_ms), (1, first));
        let fired = || ScheduleOp::Fired { id: "s".into(), tick_ms: first, task_id: Some("task".into()) };
        op(fired()).unwrap();
        let after = op(fired()).unwrap();
        assert_eq!((after.fired, after.last_task_id.as_str()), (1, "task"), "said twice, counted once");
        assert!(store.due_schedules(first).unwrap().is_empty());
        op(ScheduleOp::Pause { id: "s".into() }).unwrap();
        assert!(store.due_schedules(first + 120_000).unwrap().is_empty());
        let resumed = op(ScheduleOp::Resume { id: "s".into() }).unwrap();
        assert_eq!(agent_core::header::timestamp_ms(&resumed.next_times[0]), first + 60_000);
        assert_eq!(store.schedules("t", "", 10).unwrap().0.len(), 1);
        op(ScheduleOp::Delete { id: "s".into() }).unwrap();
        assert_eq!(store.schedule("t", "s").unwrap_err().reason, Reason::ScheduleNotFound);
        place.stop(&store);
    }
}

#[test]
fn a_file_of_every_earlier_version_opens_with_what_it_holds() {
    for version in 1..crate::sql::schema::SCHEMA {
        let place = file("migration");
        {
            let db = rusqlite::Connection::open(place.dir.join("s.db")).unwrap();
            db.pragma_update(None, "auto_vacuum", 2).unwrap();
            for migration in &crate::sql::schema::MIGRATIONS[..version as usize] {
                db.execute_batch(migration).unwrap();
            }
            db.pragma_update(None, "user_version", version).unwrap();
            let task = pb::Task { id: uuid::Uuid::now_v7().to_string(), state: pb::TaskState::Queued as i32, ..Default::default() };
            // Version 4 took the turned id away.
            let (turned, r) = if version < 4 { ("rid, ", "'r', ") } else { ("", "") };
            let columns = "tenant, state, fence, epoch, not_before, create_ms, lost, sequence, text_offset, hash_version, data, attempts";
            let sql = format!("INSERT INTO task(id, {turned}{columns}) VALUES(?1, {r}'t', 1, 0, 0, 0, 5, 0, 1, 0, 1, ?2, x'')");
            db.execute(&sql, rusqlite::params![task.id, prost::Message::encode_to_vec(&task)]).unwrap();
        }
        let store = place.open();
        recover(&store);
        assert_eq!((store.queued("").unwrap().len(), store.schema()), (1, crate::sql::schema::SCHEMA), "from version {version}");
        place.stop(&store);
    }
}

#[test]
fn a_long_backlog_is_recovered_in_portions_and_read_in_pages() {
    for place in places("backlog") {
        let store = place.open();
        let (tx, rx) = mpsc::channel();
        let count = QUEUED_PAGE + 500;
        for _ in 0..count {
            let id = uuid::Uuid::now_v7().to_string();
            let spec = pb::AgentTask { description: "x".into(), ..Default::default() };
            let header = Box::new(header(&spec, &id, &id, "t", now_ms()));
            let tx = tx.clone();
            store.write(WriteOp::Submit { header, spec: Box::new(spec), run: true, route: None }, move |r| tx.send(r.is_ok()).unwrap());
        }
        assert!(rx.iter().take(count).all(|ok| ok));
        let (asked, _) = submit(&store, false, None, "x", false);
        write(&store, WriteOp::CancelRequest { tenant: "t".into(), id: asked.clone() }).unwrap();
        place.stop(&store);
        let store = place.open();
        recover(&store);
        assert_eq!(store.get("t", &asked).unwrap().state(), pb::TaskState::Cancelled);
        let first = store.queued("").unwrap();
        let rest = store.queued(&first[QUEUED_PAGE - 1].task_id).unwrap();
        assert_eq!((first.len(), rest.len()), (QUEUED_PAGE, 500));
        assert_eq!(store.attempts("t", &rest[0].task_id).unwrap()[0].cause, "NODE_LOST");
        place.stop(&store);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_waits_unwatched_takes_no_memory_and_is_watched_all_the_same() {
    let place = file("unwatched");
    let store = place.open();
    let (id, _) = submit(&store, false, None, "x", true);
    let requeue = |fence| WriteOp::Requeue {
        id: id.clone(),
        fence,
        outcome: "lost".into(),
        cause: "WORKER_CRASHED".into(),
        counts: true,
        not_before_ms: now_ms() + 3_600_000,
        ran_ms: None,
        events: Vec::new(),
    };
    assert!(store.hub.get(&id).is_some());
    write(&store, requeue(1)).unwrap();
    assert!(store.hub.get(&id).is_none());
    let seen = store.next_events("t", &id, 0, None).await.unwrap().len() as i64;
    let watcher = tokio::spawn({
        let (store, id) = (store.clone(), id.clone());
        async move { store.next_events("t", &id, seen, None).await.unwrap() }
    });
    write(&store, WriteOp::Wake { id: id.clone() }).unwrap();
    let next = tokio::time::timeout(Duration::from_secs(20), watcher).await.unwrap().unwrap();
    assert_eq!(next[0].sequence, seen + 1);
    place.stop(&store);
}

fn lend(account: &str, spent: i64, lent: i64, limit: i64) -> LedgerChange {
    LedgerChange { account: account.into(), window_ms: 0, spent, lent, limit: Some(limit) }
}

fn ledger(store: &TaskStore, op: LedgerOp) -> Result<Vec<LedgerRow>, AgentError> {
    match write(store, WriteOp::Ledger { tenant: "t".into(), op })? {
        Written::Ledger(rows) => Ok(rows),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lease_is_taken_from_all_accounts_or_from_none_and_never_above_a_limit() {
    for place in places("ledger") {
        let store = place.open();
        let both = |spent, lent| LedgerOp::Change(vec![lend("none:agent:a", spent, lent, 100), lend("none:tenant:", spent, lent, 150)]);
        let rows = ledger(&store, both(0, 90)).unwrap();
        assert_eq!((rows[0].lent, rows[1].account.as_str()), (90, "none:tenant:"));
        // The agent has no room for it, so the tenant lends nothing either.
        let e = ledger(&store, both(0, 20)).unwrap_err();
        assert_eq!((e.reason, e.metadata["account"].as_str()), (Reason::BudgetExhausted, "none:agent:a"));
        assert_eq!(store.ledger("t", Some("none:tenant:")).unwrap()[0].lent, 90);
        // 60 were spent and the rest is given back; a debt is booked although the limit is passed.
        ledger(&store, both(60, -90)).unwrap();
        let rows = ledger(&store, LedgerOp::Change(vec![lend("none:agent:a", 50, -10, 100)])).unwrap();
        assert_eq!((rows[0].spent, rows[0].lent), (110, -10));
        ledger(&store, LedgerOp::Change(vec![lend("none:tenant:", 0, 40, 150)])).unwrap();
        assert!(store.ledger("other", None).unwrap().is_empty());
        // Nobody knows what became of the lease: it counts as spent, and a debt is no income.
        place.stop(&store);
        drop(store);
        let store = place.open();
        ledger(&store, LedgerOp::Close).unwrap();
        let rows: Vec<_> = store.ledger("t", None).unwrap().into_iter().map(|r| (r.account, r.spent, r.lent)).collect();
        assert_eq!(rows, [("none:agent:a".to_owned(), 110, 0), ("none:tenant:".to_owned(), 100, 0)]);
    }
}
