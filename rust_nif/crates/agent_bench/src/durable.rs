//! What the benchmarks of durability prepare: a backlog as a killed node leaves it, and tasks that wait for their time.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use agent_core::header::header;
use agent_proto::agents::v1 as pb;
use agent_store::{Enqueued, Location, Retention, TaskStore, WriteOp};

use crate::{Failure, connect, option};

/// Tasks of one batch over gRPC.
const BATCH: usize = 1000;

/// Writes running attempts of a node into a database and ends without closing one: `--file F --tasks N`. Prints the first and the last id.
pub(crate) fn backlog(args: &[String]) -> Result<(), Failure> {
    let tasks: usize = option(args, "--tasks", "100000").parse()?;
    let location = Location::File(PathBuf::from(option(args, "--file", "singularity.db")));
    let store = TaskStore::open(&location, Retention::default(), Box::new(|_| {}))?;
    let (tx, rx) = mpsc::channel();
    let written = Arc::new(AtomicUsize::new(0));
    let mut ids = Vec::with_capacity(tasks);
    for _ in 0..tasks {
        let id = uuid::Uuid::now_v7().to_string();
        let spec = pb::AgentTask { description: "x".into(), agent_id: option(args, "--agent", "echo"), ..Default::default() };
        let header = header(&spec, &id, &id, "default", agent_store::now_ms());
        loop {
            let op = WriteOp::Submit { header: Box::new(header.clone()), spec: Box::new(spec.clone()), run: true, route: None };
            let (tx, written) = (tx.clone(), written.clone());
            let done = move |result: Result<_, _>| {
                if result.is_ok() && written.fetch_add(1, Ordering::Relaxed) + 1 == tasks {
                    let _ = tx.send(());
                }
            };
            if store.write(op, done) != Enqueued::Busy {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        ids.push(id);
    }
    rx.recv_timeout(Duration::from_secs(300))?;
    println!("{}", serde_json::json!({"tasks": tasks, "first": ids.first(), "last": ids.last()}));
    // As a kill would.
    std::process::exit(0);
}

/// Submits tasks that start later, through the public API: `--address A --tasks N --in-seconds S`. Prints the rate.
pub(crate) async fn park(args: &[String]) -> Result<(), Failure> {
    let tasks: usize = option(args, "--tasks", "100000").parse()?;
    let mut client = connect(&option(args, "--address", "127.0.0.1:50151")).await?;
    let later = Duration::from_secs(option(args, "--in-seconds", "3600").parse()?);
    let not_before = prost_types::Timestamp::from(SystemTime::now() + later);
    let hints = pb::ExecutionHints { not_before: Some(not_before), ..Default::default() };
    let task = pb::AgentTask {
        description: "x".into(),
        agent_id: option(args, "--agent", "echo"),
        execution_hints: Some(hints),
        ..Default::default()
    };
    let request = pb::SubmitTaskRequest { task: Some(task), request_id: String::new() };
    let started = Instant::now();
    let mut parked = 0;
    while parked < tasks {
        let requests = vec![request.clone(); BATCH.min(tasks - parked)];
        let outcomes = client.batch_submit_tasks(pb::BatchSubmitTasksRequest { requests }).await?.into_inner().outcomes;
        let refused = outcomes.iter().filter(|o| !matches!(o.outcome, Some(pb::batch_outcome::Outcome::Task(_)))).count();
        if refused > 0 {
            return Err(format!("{refused} of {} were refused: {:?}", outcomes.len(), outcomes.first()).into());
        }
        parked += outcomes.len();
    }
    #[allow(clippy::cast_precision_loss)]
    let rate = tasks as f64 / started.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({"tasks": tasks, "per_second": rate.round()}));
    Ok(())
}
