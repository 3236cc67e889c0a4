//! A task as the store keeps it, and every legal change of it. Pure: both back ends use it, so they behave alike.
//!
//! ```text
//! submit -> QUEUED | RUNNING(attempt 1, fence 1) | WAITING(timer)
//! claim  : QUEUED -> RUNNING (next attempt, next fence)      wake: WAITING -> QUEUED, never RUNNING
//! requeue: RUNNING -> QUEUED | WAITING(retry)                fence: RUNNING -> RUNNING (next fence, same attempt)
//! park   : RUNNING -> WAITING(approval, input, client tool, budget)  signal: an answer; after the last one WAITING is due
//! finish : QUEUED | RUNNING | WAITING -> SUCCEEDED | FAILED | CANCELLED | TIMED_OUT; a terminal task is never left
//! ```

use agent_core::header::{TaskHeader, duration, header, timestamp};
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use pb::TaskState as S;

use crate::blob::Parts;
use crate::op::{AttemptInfo, Finish, Happened, Metrics, Written};
use crate::questions;

/// Cause of an attempt that ended with a worker which it shared with other tasks.
const SHARED: &str = "WORKER_SHARED";

/// A task with what only the engine knows of it.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// As clients see it.
    pub task: pb::Task,
    /// Its tenant.
    pub tenant: String,
    /// Its attempts, oldest first.
    pub attempts: Vec<pb::Attempt>,
    /// Last sequence given to an event.
    pub sequence: i64,
    /// Bytes of text in this attempt.
    pub text_offset: i64,
    /// Attempts that count towards POISON_TASK.
    pub lost: i64,
    /// Epoch of the node that runs it.
    pub epoch: i64,
    /// Not before, in ms; 0: now.
    pub not_before_ms: i64,
    /// Canonical hash of the content; empty without a request id of the client's.
    pub hash: Vec<u8>,
    /// Where the large parts of the task are.
    pub(crate) parts: Parts,
}

/// Whether a state is an end.
pub fn is_terminal(state: S) -> bool {
    matches!(state, S::Succeeded | S::Failed | S::Cancelled | S::TimedOut)
}

fn fenced(given: i64, current: i64) -> AgentError {
    AgentError::new(Reason::AttemptFenced, "a newer attempt holds the task").with("fence", given).with("current", current)
}

fn wrong_state(state: S, wanted: &str) -> AgentError {
    AgentError::new(
        Reason::WrongState,
        format!("the task is {}, this needs {wanted}", state.as_str_name().trim_start_matches("TASK_STATE_")),
    )
    .with("state", state.as_str_name())
}

impl Record {
    /// Whether its large parts are here: a description is never empty, except in the row of a large task.
    pub(crate) fn is_whole(&self) -> bool {
        self.parts.spec.is_none() || self.task.spec.as_ref().is_some_and(|spec| !spec.description.is_empty())
    }

    /// A submitted task; the route is that of the attempt that begins with it, if it may run.
    pub fn submitted(
        header: &TaskHeader,
        spec: pb::AgentTask,
        run: bool,
        route: Option<Box<pb::Route>>,
        epoch: i64,
        now_ms: i64,
    ) -> (Self, Vec<pb::TaskEvent>, Written) {
        let task = pb::Task {
            id: header.task_id.clone(),
            request_id: header.request_id.clone(),
            spec: Some(spec),
            retry_of: header.retry_of.clone(),
            fork_of: header.fork_of.clone(),
            replay_of: header.record.as_ref().map(|r| r.of.clone()).unwrap_or_default(),
            parent_task_id: header.parent_task_id.clone(),
            key_id: header.key_id.clone(),
            create_time: Some(timestamp(now_ms)),
            durability: if header.ephemeral { pb::Durability::Ephemeral } else { pb::Durability::Durable } as i32,
            node: node_name().to_owned(),
            route: route.filter(|_| run).map(|route| *route),
            ..Default::default()
        };
        let mut r = Self {
            task,
            tenant: header.tenant.clone(),
            not_before_ms: header.not_before_ms,
            hash: header.content_hash.clone(),
            ..Default::default()
        };
        let mut events = Vec::new();
        if header.not_before_ms > now_ms {
            r.task.waiting_for = pb::WaitingFor::Timer as i32;
            r.enter(S::Waiting, now_ms, &mut events);
        } else if run {
            r.begin(epoch, now_ms, &mut events);
            return (r, events, Written::Created { fence: 1, attempt: 1 });
        } else {
            r.enter(S::Queued, now_ms, &mut events);
        }
        (r, events, Written::Created { fence: 0, attempt: 0 })
    }

    /// The header, built again from the spec.
    pub fn header(&self) -> TaskHeader {
        let spec = self.task.spec.clone().unwrap_or_default();
        let created = self.task.create_time.as_ref().map_or(0, agent_core::header::timestamp_ms);
        let mut h = header(&spec, &self.task.id, &self.task.request_id, &self.tenant, created);
        h.retry_of.clone_from(&self.task.retry_of);
        h.fork_of.clone_from(&self.task.fork_of);
        h.replayed = !self.task.replay_of.is_empty();
        h.key_id.clone_from(&self.task.key_id);
        // Each approval adds what the task was given at first.
        let (approved, denied) = questions::money(&self.task.answers);
        h.budget_approved = approved;
        h.budget_denied = denied;
        h
    }

    fn stamp(&mut self, happened: impl Into<Happened>, now_ms: i64) -> pb::TaskEvent {
        self.sequence += 1;
        let Happened { event, step } = happened.into();
        let event = match event {
            pb::task_event::Event::TextDelta(mut delta) => {
                delta.offset = self.text_offset;
                self.text_offset += i64::try_from(delta.text.len()).unwrap_or(0);
                pb::task_event::Event::TextDelta(delta)
            }
            other => other,
        };
        let step_id = match step {
            step if !step.is_empty() => step,
            _ if self.task.attempts > 0 => "main".to_owned(),
            none => none,
        };
        pb::TaskEvent { sequence: self.sequence, time: Some(timestamp(now_ms)), attempt: self.task.attempts, step_id, event: Some(event) }
    }

    fn enter(&mut self, state: S, now_ms: i64, events: &mut Vec<pb::TaskEvent>) {
        self.task.state = state as i32;
        if state != S::Waiting {
            self.task.waiting_for = 0;
        }
        let changed = pb::StateChanged { state: state as i32, error: self.task.error.clone() };
        let event = self.stamp(pb::task_event::Event::StateChanged(changed), now_ms);
        events.push(event);
        self.touch();
    }

    fn touch(&mut self) {
        self.task.etag = format!("{}-{}", self.task.fencing_token, self.sequence);
    }

    fn begin(&mut self, epoch: i64, now_ms: i64, events: &mut Vec<pb::TaskEvent>) {
        self.task.attempts += 1;
        self.task.fencing_token += 1;
        self.epoch = epoch;
        self.text_offset = 0;
        self.not_before_ms = 0;
        self.task.worker_pid = 0;
        if self.task.start_time.is_none() {
            self.task.start_time = Some(timestamp(now_ms));
        }
        self.attempts.push(pb::Attempt {
            number: self.task.attempts,
            fence: self.task.fencing_token,
            node: node_name().to_owned(),
            node_epoch: epoch,
            start_time: Some(timestamp(now_ms)),
            ..Default::default()
        });
        self.enter(S::Running, now_ms, events);
        let started = pb::AttemptStarted { attempt: self.task.attempts, discard_text: self.task.attempts > 1 };
        let event = self.stamp(pb::task_event::Event::AttemptStarted(started), now_ms);
        events.push(event);
    }

    /// Whether this fence holds the running attempt.
    pub fn running(&self, fence: i64) -> Result<(), AgentError> {
        match self.task.state() {
            S::Running if self.task.fencing_token == fence => Ok(()),
            _ => Err(fenced(fence, self.task.fencing_token)),
        }
    }

    /// QUEUED to RUNNING.
    pub fn claim(&mut self, epoch: i64, now_ms: i64) -> Result<(Vec<pb::TaskEvent>, Written), AgentError> {
        if self.task.state() != S::Queued {
            return Err(wrong_state(self.task.state(), "QUEUED"));
        }
        let mut events = Vec::new();
        let ran_ms = self.ran_ms();
        let alone = self.attempts.last().is_some_and(|attempt| attempt.cause == SHARED);
        self.begin(epoch, now_ms, &mut events);
        let mut spec = Box::new(self.task.spec.clone().unwrap_or_default());
        if !self.task.remembered.is_empty() {
            let context = spec.context.get_or_insert_default();
            context.conversation_history.splice(0..0, self.task.remembered.iter().cloned());
        }
        Ok((
            events,
            Written::Claimed {
                fence: self.task.fencing_token,
                attempt: self.task.attempts,
                header: Box::new(self.header()),
                spec,
                lost: self.lost,
                ran_ms,
                unjournaled: self.task.unjournaled_tools.clone(),
                executor: self.task.route.as_ref().map_or_else(String::new, |route| route.executor.clone()),
                answers: self.task.answers.iter().filter(|a| !questions::is_money(&a.input_id)).cloned().collect(),
                environments: self.task.environment_lock_hashes.clone(),
                alone,
            },
        ))
    }

    /// Records who has the attempt.
    pub fn attempt(&mut self, fence: i64, info: AttemptInfo) -> Result<(Vec<pb::TaskEvent>, Written), AgentError> {
        self.running(fence)?;
        // What was used once was used: subtasks and later words on the attempt add to it.
        for tool in info.unjournaled_tools {
            if !self.task.unjournaled_tools.contains(&tool) {
                self.task.unjournaled_tools.push(tool);
            }
        }
        if !info.env_lock_hash.is_empty() && !self.task.environment_lock_hashes.contains(&info.env_lock_hash) {
            self.task.environment_lock_hashes.push(info.env_lock_hash.clone());
        }
        // Without an executor it is a word on what runs below the task's own worker.
        let own = !info.executor.is_empty();
        if own {
            self.task.worker_pid = info.host_pid;
        }
        if let Some(a) = self.attempts.last_mut() {
            if own {
                a.worker = info.worker;
                a.host_pid = info.host_pid;
                a.executor = info.executor;
            }
            // A later word on the attempt that does not name the environment takes nothing back.
            if !info.env_lock_hash.is_empty() {
                a.environment_lock_hash = info.env_lock_hash;
            }
        }
        self.touch();
        Ok((Vec::new(), Written::Ok))
    }

    /// Records why it runs where it runs.
    pub fn route(&mut self, fence: i64, route: pb::Route) -> Result<(Vec<pb::TaskEvent>, Written), AgentError> {
        self.running(fence)?;
        self.task.route = Some(route);
        Ok((Vec::new(), Written::Ok))
    }

    /// Numbers events of the running attempt.
    pub fn events(&mut self, fence: i64, new: Vec<Happened>, now_ms: i64) -> Result<(Vec<pb::TaskEvent>, Written), AgentError> {
        self.running(fence)?;
        let events: Vec<pb::TaskEvent> = new.into_iter().map(|e| self.stamp(e, now_ms)).collect();
        self.touch();
        Ok((events, Written::Sequence(self.sequence)))
    }

    /// The end. A task that does not run may be ended by a cancel or a clock; its fence is checked all the same.
    pub fn finish(&mut self, fence: i64, f: Finish, now_ms: i64) -> Result<(Vec<pb::TaskEvent>, Written), AgentError> {
        if is_terminal(self.task.state()) {
            return Err(AgentError::new(Reason::TaskAlreadyTerminal, "the task has ended").with("state", self.task.state().as_str_name()));
        }
        if self.task.fencing_token != fence {
            return Err(fenced(fence, self.task.fencing_token));
        }
        let mut events: Vec<pb::TaskEvent> = f.events.into_iter().map(|e| self.stamp(e, now_ms)).collect();
        self.close_attempt(&f.outcome, &f.cause, (Some(f.metrics.execution_ms), Some(&f.metrics)), now_ms);
        self.task.end_time = Some(timestamp(now_ms));
        self.task.cancel_requested |= f.state == S::Cancelled;
        self.task.cancellation_proof = f.proof;
        self.task.error = f.error;
        self.task.result = f.result.map(|mut result| {
            result.task_id.clone_from(&self.task.id);
            // A plan names its own: what ran its steps.
            if !f.executor.is_empty() {
                result.executor.clone_from(&f.executor);
            }
            result.metrics = Some(metrics(&f.metrics));
            result
        });
        self.enter(f.state, now_ms, &mut events);
        Ok((events, Written::Ok))
    }

    /// The attempt is over, the task is not. `ran_ms`: how long it ran, if whoever says that knows it.
    pub fn requeue(
        &mut self,
        fence: i64,
        (outcome, cause, counts): (&str, &str, bool),
        not_before_ms: i64,
        ran_ms: Option<i64>,
        new: Vec<Happened>,
        now_ms: i64,
    ) -> Result<(Vec<pb::TaskEvent>, Written), AgentError> {
        self.running(fence)?;
        let mut events: Vec<pb::TaskEvent> = new.into_iter().map(|e| self.stamp(e, now_ms)).collect();
        self.close_attempt(outcome, cause, (ran_ms, None), now_ms);
        self.lost += i64::from(counts);
        self.not_before_ms = not_before_ms;
        if not_before_ms > now_ms {
            self.task.waiting_for = pb::WaitingFor::Retry as i32;
            self.enter(S::Waiting, now_ms, &mut events);
        } else {
            self.enter(S::Queued, now_ms, &mut events);
        }
        Ok((events, Written::Requeued { lost: self.lost }))
    }

    /// The attempt ends with questions. Answers may be there already: they came first.
    pub fn park(
        &mut self,
        fence: i64,
        inputs: Vec<pb::InputRequested>,
        ran_ms: Option<i64>,
        new: Vec<Happened>,
        now_ms: i64,
    ) -> Result<(Vec<pb::TaskEvent>, Written), AgentError> {
        self.running(fence)?;
        let mut events: Vec<pb::TaskEvent> = new.into_iter().map(|e| self.stamp(e, now_ms)).collect();
        let cause = if inputs.iter().all(|i| i.kind == questions::MONEY) { "BUDGET_EXHAUSTED" } else { "INPUT_REQUESTED" };
        self.close_attempt("waiting", cause, (ran_ms, None), now_ms);
        self.task.pending_inputs = questions::unanswered(inputs, &self.task.answers);
        for input in self.task.pending_inputs.clone() {
            events.push(self.stamp(pb::task_event::Event::InputRequested(input), now_ms));
        }
        self.task.waiting_for = questions::waiting_for(&self.task.pending_inputs) as i32;
        self.not_before_ms = questions::first_expiry(&self.task.pending_inputs);
        self.task.worker_pid = 0;
        self.enter(S::Waiting, now_ms, &mut events);
        Ok((events, self.parked(now_ms)))
    }

    /// A task without open questions is due: whoever looks for due tasks wakes it, should the one who answered not live to do so.
    fn parked(&mut self, now_ms: i64) -> Written {
        use pb::WaitingFor::{Approval, Budget, ClientTool, Input};
        let asked = self.task.state() == S::Waiting && matches!(self.task.waiting_for(), Approval | Budget | Input | ClientTool);
        let ready = asked && self.task.pending_inputs.is_empty();
        if ready {
            self.not_before_ms = now_ms;
        }
        Written::Parked { ready, header: Box::new(self.header()) }
    }

    /// An answer. It may come before its question, and the same one again.
    pub fn signal(&mut self, signal: pb::SignalTaskRequest, now_ms: i64) -> Result<(Vec<pb::TaskEvent>, Written), AgentError> {
        if is_terminal(self.task.state()) {
            return Err(AgentError::new(Reason::TaskAlreadyTerminal, "the task has ended").with("state", self.task.state().as_str_name()));
        }
        let answer = questions::answer(signal, now_ms);
        if questions::known(&answer, &self.task.answers)? {
            return Ok((Vec::new(), self.parked(now_ms)));
        }
        let answer = questions::fitting(answer, &self.task)?;
        let said = pb::LogEvent { level: "info".into(), source: "signal".into(), message: format!("{} was answered", answer.input_id) };
        self.task.pending_inputs.retain(|i| i.input_id != answer.input_id);
        self.task.answers.push(answer);
        let event = self.stamp(pb::task_event::Event::Log(said), now_ms);
        self.touch();
        Ok((vec![event], self.parked(now_ms)))
    }

    /// WAITING to QUEUED. Questions whose time is over are answered by nobody.
    pub fn wake(&mut self, now_ms: i64) -> Result<(Vec<pb::TaskEvent>, Written), AgentError> {
        if self.task.state() != S::Waiting {
            return Err(wrong_state(self.task.state(), "WAITING"));
        }
        let mut events = Vec::new();
        for nobody in questions::expire(&mut self.task.pending_inputs, now_ms) {
            let message = format!("{} was not answered in time", nobody.input_id);
            let said = pb::LogEvent { level: "warning".into(), source: "engine".into(), message };
            events.push(self.stamp(pb::task_event::Event::Log(said), now_ms));
            self.task.answers.push(nobody);
        }
        self.not_before_ms = 0;
        self.enter(S::Queued, now_ms, &mut events);
        Ok((events, Written::Ok))
    }

    /// Sets the flag; ends nothing.
    pub fn cancel_request(&mut self) -> (Vec<pb::TaskEvent>, Written) {
        if !is_terminal(self.task.state()) {
            self.task.cancel_requested = true;
            self.touch();
        }
        (Vec::new(), Written::State { state: self.task.state(), fence: self.task.fencing_token })
    }

    /// The next fence without a new attempt: nothing that the attempt says counts any more.
    pub fn fence(&mut self, fence: i64) -> Result<(Vec<pb::TaskEvent>, Written), AgentError> {
        self.running(fence)?;
        self.task.fencing_token += 1;
        self.touch();
        Ok((Vec::new(), Written::Fenced(self.task.fencing_token)))
    }

    /// At the start of a node: an attempt of an older epoch is lost, and does not count. A task whose cancel was asked for ends
    /// here, running or queued: nobody could confirm the end of its processes, which die with their node.
    pub fn recover(&mut self, now_ms: i64) -> Vec<pb::TaskEvent> {
        let mut events = Vec::new();
        if self.task.state() == S::Running {
            let lost = pb::WorkerLost { cause: "NODE_LOST".into(), detail: "the node ended while the attempt ran".into() };
            events.push(self.stamp(pb::task_event::Event::WorkerLost(lost), now_ms));
            self.close_attempt("lost", "NODE_LOST", (None, None), now_ms);
        }
        if !self.task.cancel_requested {
            self.enter(S::Queued, now_ms, &mut events);
            return events;
        }
        let witness = if self.task.worker_pid == 0 { pb::ProofWitness::NoneNeeded } else { pb::ProofWitness::Unconfirmed };
        self.task.cancellation_proof = Some(pb::CancellationProof {
            witness: witness as i32,
            host_pid: self.task.worker_pid,
            confirmed_dead: witness == pb::ProofWitness::NoneNeeded,
            fenced_at: Some(timestamp(now_ms)),
            ..Default::default()
        });
        let error = AgentError::new(Reason::TaskCancelled, "the cancel was asked for before the node ended");
        self.task.error = Some(error.to_task_error());
        self.task.end_time = Some(timestamp(now_ms));
        self.enter(S::Cancelled, now_ms, &mut events);
        events
    }

    /// Time that attempts have run, in ms: what counts towards `max_duration`. Of one whose node ended under it the times of day are known,
    /// no more.
    fn ran_ms(&self) -> i64 {
        use agent_core::header::timestamp_ms;
        let span = |a: &pb::Attempt| match &a.run_time {
            Some(run) => Some(run.seconds * 1000 + i64::from(run.nanos) / 1_000_000),
            None => Some(timestamp_ms(a.end_time.as_ref()?) - timestamp_ms(a.start_time.as_ref()?)),
        };
        self.attempts.iter().filter_map(span).map(|ms| ms.max(0)).sum()
    }

    fn close_attempt(&mut self, outcome: &str, cause: &str, (ran_ms, m): (Option<i64>, Option<&Metrics>), now_ms: i64) {
        if let Some(a) = self.attempts.last_mut().filter(|a| a.end_time.is_none()) {
            a.end_time = Some(timestamp(now_ms));
            a.run_time = ran_ms.map(duration);
            outcome.clone_into(&mut a.outcome);
            cause.clone_into(&mut a.cause);
            a.peak_rss = m.and_then(|m| m.memory_bytes);
            a.cpu_time = m.and_then(|m| m.cpu_ms).map(duration);
        }
    }
}

/// The meter as clients see it.
pub(crate) fn metrics(m: &Metrics) -> pb::ExecutionMetrics {
    pb::ExecutionMetrics {
        queue_time: Some(duration(m.queue_ms)),
        execution_time: Some(duration(m.execution_ms)),
        tokens_used: Some(m.usage),
        provider_calls: m.provider_calls,
        provider_calls_replayed: m.provider_calls_replayed,
        tool_calls: m.tool_calls,
        memory_used: m.memory_bytes,
        cost_micros: m.cost_micros,
        cache_hit: m.cache_hit,
    }
}

/// Name of this node; one node until clusters come.
pub fn node_name() -> &'static str {
    "node1"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Claim,
        Events(i64),
        Fence(i64),
        Requeue(i64, bool),
        Finish(i64),
        Wake,
        Cancel,
        Park(i64, u8),
        Signal(u8),
        Recover,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Fences as an offset to the newest: 0 is right, the others are late or made up.
        let off = -1i64..=1;
        let step = prop_oneof![
            Just(Step::Claim),
            off.clone().prop_map(Step::Events),
            off.clone().prop_map(Step::Fence),
            (off.clone(), any::<bool>()).prop_map(|(o, wait)| Step::Requeue(o, wait)),
            off.clone().prop_map(Step::Finish),
            (off, 1u8..3).prop_map(|(o, n)| Step::Park(o, n)),
            (0u8..3).prop_map(Step::Signal),
            Just(Step::Wake),
            Just(Step::Cancel),
            Just(Step::Recover),
        ];
        proptest::collection::vec(step, 0..40)
    }

    fn end() -> Finish {
        Finish {
            state: S::Succeeded,
            result: None,
            error: None,
            executor: "native".into(),
            metrics: Metrics::default(),
            outcome: "succeeded".into(),
            cause: String::new(),
            proof: None,
            events: Vec::new(),
            journal: Vec::new(),
        }
    }

    fn legal(from: S, to: S) -> bool {
        from == to
            || matches!(
                (from, to),
                (S::Queued, S::Running)
                    | (S::Running, S::Queued | S::Waiting)
                    | (S::Waiting, S::Queued)
                    | (S::Queued | S::Running | S::Waiting, S::Succeeded)
                    | (S::Running, S::Cancelled)
            )
    }

    proptest! {
        #[test]
        fn whatever_is_asked_a_task_ends_once_and_only_its_newest_fence_counts(run in any::<bool>(), steps in steps()) {
            let header = TaskHeader { task_id: "t".into(), ..Default::default() };
            let (mut r, first, _) = Record::submitted(&header, pb::AgentTask::default(), run, None, 1, 1);
            let mut sequence = first.len() as i64;
            for (i, step) in steps.into_iter().enumerate() {
                let (state, fence, lost) = (r.task.state(), r.task.fencing_token, r.lost);
                let now = 2 + i as i64;
                let not_before = |wait: bool| if wait { now + 1000 } else { 0 };
                let (given, result) = match step {
                    Step::Claim => (None, r.claim(1, now)),
                    Step::Events(o) => (Some(o), r.events(fence + o, vec![pb::task_event::Event::TextDelta(pb::TextDelta::default()).into()], now)),
                    Step::Fence(o) => (Some(o), r.fence(fence + o)),
                    Step::Requeue(o, wait) => (Some(o), r.requeue(fence + o, ("lost", "WORKER_CRASHED", true), not_before(wait), None, vec![], now)),
                    Step::Finish(o) => (Some(o), r.finish(fence + o, end(), now)),
                    Step::Wake => (None, r.wake(now)),
                    Step::Cancel => (None, Ok(r.cancel_request())),
                    Step::Park(o, n) => {
                        let asked = (0..n).map(|i| pb::InputRequested { input_id: format!("input-{i}"), ..Default::default() }).collect();
                        (Some(o), r.park(fence + o, asked, None, vec![], now))
                    }
                    Step::Signal(n) => {
                        let answer = pb::signal_task_request::Signal::Approve(true);
                        let input_id = format!("input-{n}");
                        (None, r.signal(pb::SignalTaskRequest { input_id, signal: Some(answer), ..Default::default() }, now))
                    }
                    Step::Recover if state == S::Running => {
                        let asked = r.task.cancel_requested;
                        let events = r.recover(now);
                        prop_assert_eq!(r.task.state(), if asked { S::Cancelled } else { S::Queued });
                        (None, Ok((events, Written::Ok)))
                    }
                    Step::Recover => continue,
                };
                prop_assert!(legal(state, r.task.state()), "{state:?} to {:?}", r.task.state());
                prop_assert!(r.task.fencing_token >= fence && r.task.fencing_token <= fence + 1);
                match result {
                    Ok((events, _)) => {
                        prop_assert!(given.is_none_or(|o| o == 0), "another fence was accepted");
                        for e in events {
                            sequence += 1;
                            prop_assert_eq!(e.sequence, sequence);
                        }
                    }
                    Err(_) => prop_assert_eq!((r.task.state(), r.task.fencing_token, r.lost), (state, fence, lost)),
                }
                prop_assert_eq!(r.attempts.len(), usize::try_from(r.task.attempts).unwrap());
                // What waits for an answer has a question; without one it is due.
                let asks = matches!(r.task.waiting_for(), pb::WaitingFor::Input | pb::WaitingFor::Approval | pb::WaitingFor::ClientTool);
                prop_assert!(!asks || !r.task.pending_inputs.is_empty() || r.not_before_ms > 0);
                // An attempt is open exactly while the task runs.
                let open = r.attempts.iter().filter(|a| a.end_time.is_none()).count();
                prop_assert_eq!(open, usize::from(r.task.state() == S::Running));
                prop_assert_eq!(r.task.end_time.is_some(), is_terminal(r.task.state()));
            }
        }
    }
}
