//! Load generator, and the bare tonic baseline that `make bench` compares with.
//!
//! ```text
//! agent_bench bare --address HOST:PORT --threads N          serves ExecuteTask with a canned answer until its stdin ends
//! agent_bench load --address HOST:PORT --in-flight N --seconds S [--bytes B] [--agent NAME] [--model NAME] [--framework NAME]
//! agent_bench cancel --address HOST:PORT --agent NAME --runs N
//! agent_bench upstream --address HOST:PORT | http --address HOST:PORT --in-flight N --seconds S [--events N] [--model NAME]
//! agent_bench backlog --file FILE --tasks N | park --address HOST:PORT --tasks N
//! agent_bench provider_select [--models N] [--calls N] [--limit MICROSECONDS]
//! ```
//! `load` prints one line of JSON: requests per second and latencies in microseconds. Both sides of a comparison use this client, these
//! messages and these sizes.

mod durable;
mod http;
mod select;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent_proto::agents::v1 as pb;
use pb::task_service_client::TaskServiceClient;
use pb::task_service_server::{TaskService, TaskServiceServer};
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn option(args: &[String], name: &str, default: &str) -> String {
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned().unwrap_or_else(|| default.to_owned())
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads: usize = option(&args, "--threads", "1").parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    match args.first().map(String::as_str) {
        Some("bare") => runtime.block_on(bare(&option(&args, "--address", "127.0.0.1:50190"))),
        Some("load") => runtime.block_on(load(&args)),
        Some("cancel") => runtime.block_on(cancel(&args)),
        Some("backlog") => durable::backlog(&args),
        Some("provider_select") => select::run(&args),
        Some("upstream") => runtime.block_on(http::upstream(&args)),
        Some("http") => runtime.block_on(http::load(&args)),
        Some("park") => runtime.block_on(durable::park(&args)),
        _ => Err("usage: agent_bench bare|load|cancel|backlog|park|upstream|http|provider_select …".into()),
    }
}

/// Answers at once with a task like the engine's.
struct Bare;

// The whole implementation comes from the macro: an attribute does not see methods that a macro inside would make.
macro_rules! bare_service {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl TaskService for Bare {
            async fn execute_task(&self, request: Request<pb::ExecuteTaskRequest>) -> Result<Response<pb::Task>, Status> {
                Ok(Response::new(answer(request.into_inner().task)))
            }

            type WatchTaskStream = tokio_stream::Empty<Result<pb::TaskEvent, Status>>;

            async fn watch_task(&self, _: Request<pb::WatchTaskRequest>) -> Result<Response<Self::WatchTaskStream>, Status> {
                Err(Status::unimplemented("bare"))
            }

            type GetTaskBundleStream = tokio_stream::Empty<Result<pb::TaskBundlePart, Status>>;

            async fn get_task_bundle(&self, _: Request<pb::GetTaskBundleRequest>) -> Result<Response<Self::GetTaskBundleStream>, Status> {
                Err(Status::unimplemented("bare"))
            }

            async fn replay_task(&self, _: Request<tonic::Streaming<pb::ReplayTaskRequest>>) -> Result<Response<pb::Task>, Status> {
                Err(Status::unimplemented("bare"))
            }

            $(async fn $name(&self, _: Request<pb::$request>) -> Result<Response<pb::$response>, Status> { Err(Status::unimplemented("bare")) })*
        }
    };
}

bare_service! {
    submit_task(SubmitTaskRequest) -> Task;
    get_task(GetTaskRequest) -> Task;
    list_tasks(ListTasksRequest) -> ListTasksResponse;
    list_attempts(ListAttemptsRequest) -> ListAttemptsResponse;
    cancel_task(CancelTaskRequest) -> CancelTaskResponse;
    retry_task(RetryTaskRequest) -> Task;
    cancel_tasks(CancelTasksRequest) -> CancelTasksResponse;
    retry_tasks(RetryTasksRequest) -> RetryTasksResponse;
    fork_task(ForkTaskRequest) -> Task;
    signal_task(SignalTaskRequest) -> Task;
    batch_submit_tasks(BatchSubmitTasksRequest) -> BatchSubmitTasksResponse;
    delete_task(DeleteTaskRequest) -> DeleteTaskResponse;
    check_task(CheckTaskRequest) -> CheckTaskResponse;
}

fn answer(spec: Option<pb::AgentTask>) -> pb::Task {
    let output = spec.as_ref().map(|t| t.description.clone()).unwrap_or_default();
    let result = pb::AgentResult { output, executor: "bare".into(), metrics: Some(pb::ExecutionMetrics::default()), ..Default::default() };
    pb::Task {
        id: uuid::Uuid::now_v7().to_string(),
        spec,
        state: pb::TaskState::Succeeded as i32,
        attempts: 1,
        result: Some(result),
        ..Default::default()
    }
}

async fn bare(address: &str) -> Result<(), Failure> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("{}", listener.local_addr()?);
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    // Options of the builder do not reach connections of one's own listener: without this a token waits 40 ms.
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener).map(|s| s.inspect(|s| drop(s.set_nodelay(true))));
    tonic::transport::Server::builder()
        .add_service(TaskServiceServer::new(Bare))
        .serve_with_incoming_shutdown(incoming, async move {
            let _ = end.await;
        })
        .await?;
    Ok(())
}

async fn connect(address: &str) -> Result<TaskServiceClient<Channel>, Failure> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?;
    Ok(TaskServiceClient::new(channel))
}

/// A plan of native steps: `--chain N`, each needing the one before, or `--wide N` side by side.
fn plan(args: &[String]) -> Result<Option<pb::ExecutionPlan>, Failure> {
    let (chain, wide): (usize, usize) = (option(args, "--chain", "0").parse()?, option(args, "--wide", "0").parse()?);
    let step = |i: usize| pb::PlanStep {
        id: format!("s{i}"),
        executor: "native".into(),
        needs: if chain > 0 && i > 0 { vec![format!("s{}", i - 1)] } else { Vec::new() },
        input: if chain > 0 && i > 0 { format!("${{steps.s{}.output}}", i - 1) } else { String::new() },
        ..Default::default()
    };
    Ok((chain + wide > 0).then(|| pb::ExecutionPlan { steps: (0..chain.max(wide)).map(step).collect(), ..Default::default() }))
}

fn request(args: &[String]) -> Result<pb::ExecuteTaskRequest, Failure> {
    let bytes: usize = option(args, "--bytes", "256").parse()?;
    let hints = pb::ExecutionHints {
        durability: if args.iter().any(|a| a == "--durable") { pb::Durability::Durable } else { pb::Durability::Ephemeral } as i32,
        stream_text: Some(false),
        cache: if args.iter().any(|a| a == "--cached") { pb::CacheMode::Use } else { pb::CacheMode::Unspecified } as i32,
        max_parallel: option(args, "--parallel", "0").parse()?,
        ..Default::default()
    };
    let task = pb::AgentTask {
        description: "x".repeat(bytes),
        agent_id: option(args, "--agent", ""),
        preferred_framework: option(args, "--framework", ""),
        requirements: Some(pb::TaskRequirements { model: option(args, "--model", ""), ..Default::default() }),
        execution_hints: Some(hints),
        plan: plan(args)?,
        ..Default::default()
    };
    Ok(pb::ExecuteTaskRequest { task: Some(task), ..Default::default() })
}

async fn load(args: &[String]) -> Result<(), Failure> {
    let in_flight: usize = option(args, "--in-flight", "64").parse()?;
    let seconds: f64 = option(args, "--seconds", "5").parse()?;
    let warm_up: f64 = option(args, "--warm-up", "1").parse()?;
    let template = Arc::new(request(args)?);
    let address = option(args, "--address", "127.0.0.1:50151");
    let stop = Arc::new(AtomicBool::new(false));
    let counting = Arc::new(AtomicBool::new(false));
    let failed = Arc::new(AtomicU64::new(0));
    let mut workers = Vec::new();
    // 80 streams of a connection at most, as the SDK does.
    let mut clients = Vec::new();
    for _ in 0..in_flight.div_ceil(80).max(1) {
        clients.push(connect(&address).await?);
    }
    for i in 0..in_flight {
        let mut client = clients[i % clients.len()].clone();
        let (template, stop, counting, failed) = (template.clone(), stop.clone(), counting.clone(), failed.clone());
        workers.push(tokio::spawn(async move {
            let mut latencies = Vec::with_capacity(100_000);
            while !stop.load(Ordering::Relaxed) {
                let started = Instant::now();
                let ok = client.execute_task((*template).clone()).await.is_ok_and(|t| t.get_ref().state() == pb::TaskState::Succeeded);
                if !ok {
                    failed.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                } else if counting.load(Ordering::Relaxed) {
                    latencies.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
                }
            }
            latencies
        }));
    }
    tokio::time::sleep(Duration::from_secs_f64(warm_up)).await;
    counting.store(true, Ordering::Relaxed);
    let started = Instant::now();
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let elapsed = started.elapsed().as_secs_f64();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await?);
    }
    all.sort_unstable();
    let at = |q: f64| {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let i = (all.len() as f64 * q) as usize;
        all.get(i.min(all.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    #[allow(clippy::cast_precision_loss)]
    let rate = all.len() as f64 / elapsed;
    println!(
        "{}",
        serde_json::json!({"per_second": rate.round(), "ok": all.len(), "failed": failed.load(Ordering::Relaxed), "p50_us": at(0.5), "p99_us": at(0.99), "in_flight": in_flight})
    );
    Ok(())
}

/// Submits a task that never ends, cancels it with grace 0 once it runs, and takes the time to the proof.
async fn cancel(args: &[String]) -> Result<(), Failure> {
    let runs: usize = option(args, "--runs", "50").parse()?;
    let mut client = connect(&option(args, "--address", "127.0.0.1:50151")).await?;
    let mut times = Vec::with_capacity(runs);
    let mut unproved = 0;
    for _ in 0..runs {
        let task = request(args)?.task;
        let id = client.submit_task(pb::SubmitTaskRequest { task, request_id: String::new() }).await?.into_inner().id;
        let deadline = Instant::now() + Duration::from_secs(20);
        // It says something once it has started its children.
        let mut events = client
            .watch_task(pb::WatchTaskRequest { task_id: id.clone(), after: 0, include_text: true, live_text: false })
            .await?
            .into_inner();
        loop {
            let event = tokio::time::timeout_at(deadline.into(), events.message()).await??;
            match event.and_then(|e| e.event) {
                Some(pb::task_event::Event::TextDelta(_) | pb::task_event::Event::Log(_)) => break,
                Some(_) => {}
                None => return Err("the task ended by itself".into()),
            }
        }
        let started = Instant::now();
        let grace = Some(prost_types::Duration { seconds: 0, nanos: 0 });
        let answer = client.cancel_task(pb::CancelTaskRequest { task_id: id, grace, reason: "bench".into() }).await?.into_inner();
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        if !answer.proof.is_some_and(|p| p.confirmed_dead) {
            unproved += 1;
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or(0.0);
    println!("{}", serde_json::json!({"runs": runs, "p50_ms": at(50), "p99_ms": at(99), "unproved": unproved}));
    Ok(())
}
