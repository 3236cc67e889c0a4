//! Content that is too large for a row.

use std::fs::File;

use super::*;
use crate::blob::BLOB_BYTES;
use crate::journal::{Change, Kind, Lookup, Replay};

/// As large as this test needs it, and unlike another one.
fn large(name: &str) -> String {
    name.repeat(BLOB_BYTES)
}

fn finish_with(id: &str, fence: i64, output: String) -> WriteOp {
    let WriteOp::Finish { id, fence, mut finish } = finish(id, fence) else { unreachable!() };
    finish.result.as_mut().unwrap().output = output;
    finish.metrics.cost_micros = Some(7);
    WriteOp::Finish { id, fence, finish }
}

fn claim(store: &TaskStore, id: &str) -> i64 {
    match write(store, WriteOp::Claim { id: id.into() }).unwrap() {
        Written::Claimed { fence, .. } => fence,
        other => panic!("{other:?}"),
    }
}

fn files(place: &Place) -> Vec<PathBuf> {
    let all = std::fs::read_dir(place.dir.join("blobs")).unwrap().map(|file| file.unwrap().path());
    all.filter(|path| path.is_file() && !path.ends_with(".pause")).collect()
}

fn blobs(place: &Place) -> usize {
    match &place.location {
        Location::File(_) => files(place).len(),
        Location::Server { url, .. } => usize::try_from(crate::postgres::number(url, "SELECT count(*) FROM blob")).unwrap(),
    }
}

fn until(what: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(std::time::Instant::now() < end, "it did not happen in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn collecting() -> Retention {
    Retention { unnamed_ms: 0, ..Retention::default() }
}

#[test]
fn a_large_task_is_read_as_it_was_written_also_after_a_new_start() {
    for place in places("large") {
        let store = place.open();
        let (id, written) = submit(&store, false, Some("r"), &large("ask"), false);
        written.unwrap();
        let fence = claim(&store, &id);
        journal(&store, &id, fence, key(1, Kind::Chat), Change::Answer(large("paid").into())).unwrap();
        journal(&store, &id, fence, key(2, Kind::Tool), Change::Answer(large("tool").into())).unwrap();
        lose_only(&store, &id, fence, "WORKER_CRASHED");
        place.stop(&store);
        drop(store);

        let store = place.open();
        recover(&store);
        // Headers and filters need no blob.
        assert_eq!(store.queued("").unwrap()[0].task_type, "general");
        // The same request again gives the same task, and another one names what differs.
        let (_, again) = submit(&store, false, Some("r"), &large("ask"), false);
        assert!(matches!(again, Ok(Written::Existing { id: old }) if old == id));
        let (_, other) = submit(&store, false, Some("r"), &large("other"), false);
        assert_eq!(other.unwrap_err().metadata["field"], "task.description");
        let Written::Claimed { fence, spec, .. } = write(&store, WriteOp::Claim { id: id.clone() }).unwrap() else { panic!() };
        assert_eq!(spec.description, large("ask"));
        let session = store.read_session(&id, fence).unwrap();
        assert_eq!(session.ask(key(1, Kind::Chat).question, true), Lookup::Recorded(large("paid").into()));
        let begin = WriteOp::ToolBegin { id: id.clone(), fence, key: key(2, Kind::Tool), replay: Replay::Once, again: false };
        let Written::Tool(Decision::Recorded(result)) = write(&store, begin).unwrap() else { panic!() };
        assert_eq!(result, large("tool").into_bytes());
        write(&store, finish_with(&id, fence, large("said"))).unwrap();

        let whole = |task: &pb::Task| {
            let (spec, result) = (task.spec.as_ref().unwrap(), task.result.as_ref().unwrap());
            assert_eq!((&spec.description, &result.output), (&large("ask"), &large("said")));
            assert_eq!(result.metrics.unwrap().cost_micros, Some(7));
        };
        whole(&store.get("t", &id).unwrap());
        let query = ListQuery { page_size: 10, filter: "cost_micros=7".into(), ..ListQuery::default() };
        whole(&store.list("t", &query).unwrap().0[0]);
        assert_eq!(blobs(&place), 4);
        if !place.on_server() {
            assert!(std::fs::metadata(place.dir.join("s.db-wal")).unwrap().len() < BLOB_BYTES as u64 * 4, "rows stay small");
        }
        place.stop(&store);
    }
}

#[test]
fn blobs_go_with_the_last_task_that_names_them() {
    for place in places("collect") {
        let store = place.try_open(collecting()).unwrap();
        let tasks: Vec<String> = (0..2).map(|_| submit(&store, false, None, &large("same"), false).0).collect();
        for id in &tasks {
            let fence = claim(&store, id);
            write(&store, finish_with(id, fence, large("said"))).unwrap();
        }
        let delete = |id: &str| write(&store, WriteOp::Delete { tenant: "t".into(), id: id.into() }).unwrap();
        delete(&tasks[0]);
        // Another one goes through the whole of it: the search has looked at what was there before.
        let (gone, _) = submit(&store, false, None, &large("gone"), false);
        let fence = claim(&store, &gone);
        write(&store, finish(&gone, fence)).unwrap();
        delete(&gone);
        until(|| blobs(&place) == 2);
        assert_eq!(store.get("t", &tasks[1]).unwrap().spec.unwrap().description, large("same"));
        delete(&tasks[1]);
        until(|| blobs(&place) == 0);
        if !place.on_server() {
            until(|| std::fs::read_dir(place.dir.join("blobs/trash")).unwrap().count() == 0);
        }
        // What was collected is put again.
        let (again, _) = submit(&store, false, None, &large("same"), false);
        assert_eq!(store.get("t", &again).unwrap().spec.unwrap().description, large("same"));
        place.stop(&store);
    }
}

#[test]
fn tasks_that_come_and_go_while_blobs_are_collected_lose_nothing() {
    let place = file("racing");
    let store = place.try_open(collecting()).unwrap();
    let workers: Vec<_> = (0..4)
        .map(|n| {
            let store = store.clone();
            std::thread::spawn(move || {
                for round in 0..12 {
                    // Of few contents, so that one is put while another task that names it is deleted.
                    let text = large(["a", "b", "c"][(n + round) % 3]);
                    let (id, written) = submit(&store, false, None, &text, true);
                    written.unwrap();
                    assert_eq!(store.get("t", &id).unwrap().spec.unwrap().description, text);
                    write(&store, finish_with(&id, 1, text.clone())).unwrap();
                    // The writer looks for blobs while nobody writes.
                    std::thread::sleep(Duration::from_millis(if round % 4 == 0 { 450 } else { 1 }));
                    assert_eq!(store.get("t", &id).unwrap().result.unwrap().output, text);
                    write(&store, WriteOp::Delete { tenant: "t".into(), id }).unwrap();
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    until(|| files(&place).is_empty());
    place.stop(&store);
}

#[test]
fn a_missing_or_damaged_blob_is_named_and_harms_its_own_task_alone() {
    let place = file("damaged");
    let store = place.open();
    let ids: Vec<String> = ["gone", "torn", "well"].iter().map(|name| submit(&store, false, None, &large(name), false).0).collect();
    place.stop(&store);
    drop(store);
    for path in files(&place) {
        let content = std::fs::read(&path).unwrap();
        let has = |name: &str| content.windows(4).any(|part| part == name.as_bytes());
        match () {
            () if has("gone") => std::fs::remove_file(&path).unwrap(),
            () if has("torn") => File::options().write(true).open(&path).unwrap().set_len(1000).unwrap(),
            () => {}
        }
    }

    let store = place.open();
    for (id, how) in [(&ids[0], "missing"), (&ids[1], "damaged")] {
        let claim = write(&store, WriteOp::Claim { id: id.clone() }).unwrap_err();
        for error in [store.get("t", id).unwrap_err(), claim] {
            assert_eq!(error.reason, Reason::StoreCorrupt);
            assert!(error.message.contains(&error.metadata["blob"]) && error.message.contains(how), "{error}");
        }
    }
    let all = store.list("t", &ListQuery { page_size: 10, ..ListQuery::default() });
    assert_eq!(all.unwrap_err().reason, Reason::StoreCorrupt, "never without its content");
    assert_eq!(claim(&store, &ids[2]), 1);
    write(&store, finish(&ids[2], 1)).unwrap();
    // A task that cannot be read can be ended and deleted.
    let failed = WriteOp::Finish {
        id: ids[0].clone(),
        fence: 0,
        finish: match finish("", 0) {
            WriteOp::Finish { finish, .. } => Box::new(Finish { state: pb::TaskState::Failed, result: None, ..*finish }),
            _ => unreachable!(),
        },
    };
    write(&store, failed).unwrap();
    write(&store, WriteOp::Delete { tenant: "t".into(), id: ids[0].clone() }).unwrap();
    place.stop(&store);
}

#[test]
fn a_fork_has_the_large_answers_of_its_origin_when_that_is_gone() {
    for place in places("fork_large") {
        let store = place.open();
        let (id, _) = submit(&store, false, None, "x", true);
        journal(&store, &id, 1, key(1, Kind::Chat), Change::Answer(large("paid").into())).unwrap();
        write(&store, finish(&id, 1)).unwrap();
        let spec = pb::AgentTask { description: "x".into(), ..Default::default() };
        let mut head = header(&spec, &uuid::Uuid::now_v7().to_string(), "", "t", now_ms());
        head.fork_of = id.clone();
        let fork = head.task_id.clone();
        write(&store, WriteOp::Submit { header: Box::new(head), spec: Box::new(spec), run: true, route: None }).unwrap();
        write(&store, WriteOp::Delete { tenant: "t".into(), id }).unwrap();
        let session = store.read_session(&fork, 1).unwrap();
        assert_eq!(session.ask(key(1, Kind::Chat).question, true), Lookup::Recorded(large("paid").into()));
        place.stop(&store);
    }
}
