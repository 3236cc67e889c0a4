//! A plan as a machine without I/O: what happened goes in, what is to be done comes out.
//!
//! Steps start as their needs are met, at most `max_parallel` runs at once. The end of a run is kept ([`Effect::Keep`]) before anything uses
//! it. A later attempt of the task is given what was kept ([`Plan::restore`]) and takes the same way: what has ended does not run again.
//!
//! ```text
//! forward -> ended             every step has ended or was skipped
//! forward -> failing -> undoing -> ended   a step failed for good: the rest is stopped, what ran is undone in reverse order
//! forward -> pausing -> ended  a step asks somebody, or the money is gone: what runs ends, then the task waits
//! ```

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use agent_proto::agents::v1 as pb;
use serde_json::Value;

use super::condition;
use super::propose;
use super::template::{self, Reference};
use crate::header::{defaults, duration_ms, timestamp};
use crate::{AgentError, Reason, around, json};

/// Steps that one event looks at; beyond it the machine asks to be called again, so that none holds a scheduler for long.
const LOOK: usize = 200;
/// Most items of a `for_each`.
pub const MAX_ITEMS: usize = 10_000;
/// Most bytes of outputs that a plan holds.
pub const MAX_OUTPUT_BYTES: usize = 64 * 1024 * 1024;
/// Steps that a result lists.
const MAX_RESULT_STEPS: usize = 1000;
/// Characters of an input or output in that list.
const MAX_CLIP: usize = 400;

/// A run of a step; with `for_each` a step has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId {
    /// Place of the step in the plan.
    pub step: u32,
    /// Item, from 0.
    pub index: u32,
}

/// How a run ended.
#[derive(Debug)]
pub enum RunEnd {
    /// With a result.
    Succeeded(Box<pb::AgentResult>),
    /// For good: its retries are used up.
    Failed(AgentError),
    /// It asks somebody.
    Asked(Vec<pb::InputRequested>),
    /// It was stopped.
    Stopped,
}

/// What a run did beside its result.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Report {
    pub executor: String,
    pub attempts: i32,
    pub usage: pb::Usage,
    pub cost_micros: Option<i64>,
    pub start_ms: i64,
    pub end_ms: i64,
    /// It may have used tools that nobody may run again.
    pub unjournaled: bool,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Begin, or go on after [`Effect::Again`].
    Go,
    /// A run ended.
    Ended {
        /// Of the effect.
        run: RunId,
        /// How.
        end: RunEnd,
        /// What it did.
        report: Report,
    },
    /// The end of a run is on stable storage.
    Kept {
        /// Of the effect.
        run: RunId,
    },
}

/// What kind of end is kept; only the first kind is copied to a task that repeats this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    /// A run that gave a result, or a step that was skipped.
    Done,
    /// A run that failed for good.
    Failed,
    /// A run that undid a step.
    Undone,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Run this task on this executor.
    Run {
        /// Names the run.
        run: RunId,
        /// `native`, `auto`, or a framework.
        executor: String,
        /// What to do.
        task: Box<pb::AgentTask>,
        /// Of the run; 0: none.
        timeout_ms: i64,
        /// Its text is the text of the plan.
        streams: bool,
    },
    /// Keep the end of a run; [`Event::Kept`] must follow.
    Keep {
        /// Names the run.
        run: RunId,
        /// What kind.
        kept: Kept,
        /// The end.
        record: Box<pb::PlanStepRun>,
    },
    /// End a run early; [`Event::Ended`] must follow.
    Stop(RunId),
    /// Tell watchers: a step started.
    Started(pb::StepStarted),
    /// Tell watchers: a step ended.
    Finished(pb::StepFinished),
    /// Tell watchers: another executor takes over, or a model's plan cannot be used.
    Warning {
        /// The step.
        step: String,
        /// What happens, and why.
        message: String,
    },
    /// Call again with [`Event::Go`]; nothing else happens by itself.
    Again,
    /// The end of the plan.
    Finish(Box<Result<pb::AgentResult, AgentError>>),
    /// The plan waits for answers.
    Park(Vec<pb::InputRequested>),
}

#[derive(Debug, PartialEq)]
enum Phase {
    Forward,
    Failing,
    Undoing,
    Pausing,
    Ended,
}

#[derive(Debug, Default)]
struct Step {
    /// Needs that have not ended.
    open_needs: usize,
    /// Runs it has; None before it is opened.
    total: Option<u32>,
    items: Vec<Value>,
    next: u32,
    running: u32,
    open: u32,
    outputs: Vec<Value>,
    any_succeeded: bool,
    skipped: bool,
    output: Option<Value>,
    order: i32,
    /// As the result lists it.
    listed: pb::ResultStep,
    /// Why a run of it failed.
    error: Option<Box<pb::TaskError>>,
}

#[derive(Debug)]
struct Running {
    /// Which of the step's executors.
    turn: usize,
    /// Its end waits to be kept.
    record: Option<Box<pb::PlanStepRun>>,
}

/// The machine.
#[derive(Debug)]
pub struct Plan {
    task_id: String,
    task: pb::AgentTask,
    plan: pb::ExecutionPlan,
    index: HashMap<String, u32>,
    dependents: Vec<Vec<u32>>,
    /// Steps that only undo others.
    undoes: Vec<bool>,
    /// The step whose output is the plan's.
    last: Option<u32>,
    max_parallel: usize,
    phase: Phase,
    steps: Vec<Step>,
    ready: VecDeque<u32>,
    runs: BTreeMap<RunId, Running>,
    order: i32,
    /// Of all outputs so far.
    bytes: usize,
    history: HashMap<(RunId, Kept), pb::PlanStepRun>,
    failure: Option<AgentError>,
    pause: Option<AgentError>,
    inputs: Vec<pb::InputRequested>,
    undo: Vec<(u32, u32)>,
    undone: Vec<String>,
    not_undone: Vec<String>,
    /// What ran any step.
    executors: BTreeSet<String>,
}

impl Plan {
    /// A machine for a task whose plan was checked; a task without one has none.
    pub fn new(task_id: &str, task: &pb::AgentTask) -> Option<Self> {
        let mut plan = task.plan.clone()?;
        let task = pb::AgentTask { plan: None, ..task.clone() };
        let first = std::mem::take(&mut plan.steps);
        let wanted = task.execution_hints.as_ref().map_or(0, |h| h.max_parallel);
        let mut made = Self {
            task_id: task_id.to_owned(),
            task,
            plan,
            index: HashMap::with_capacity(first.len()),
            dependents: Vec::new(),
            undoes: Vec::new(),
            last: None,
            max_parallel: usize::try_from(if wanted > 0 { wanted } else { defaults::MAX_PARALLEL }).unwrap_or(1),
            phase: Phase::Forward,
            steps: Vec::with_capacity(first.len()),
            ready: VecDeque::new(),
            runs: BTreeMap::new(),
            order: 0,
            bytes: 0,
            history: HashMap::new(),
            failure: None,
            pause: None,
            inputs: Vec::new(),
            undo: Vec::new(),
            undone: Vec::new(),
            not_undone: Vec::new(),
            executors: BTreeSet::new(),
        };
        made.append(first);
        Some(made)
    }

    /// What earlier attempts have kept; before the first event.
    pub fn restore(&mut self, kept: impl IntoIterator<Item = (Kept, pb::PlanStepRun)>) {
        let kept: Vec<_> = kept.into_iter().collect();
        if propose::asked(&self.task) {
            let grown = propose::grown(&self.task, self.plan.clone(), &kept);
            self.append(grown.steps.into_iter().skip(self.steps.len()).collect());
        }
        for (kind, record) in kept {
            if let Some(&step) = self.index.get(&record.step_id) {
                self.order = self.order.max(record.order);
                let index = u32::try_from(record.index).unwrap_or(0);
                self.history.insert((RunId { step, index }, kind), record);
            }
        }
        let failed = self.history.iter().filter(|((_, kind), r)| *kind == Kept::Failed && !r.skipped).min_by_key(|(_, r)| r.order);
        if let Some((run, record)) = failed.map(|((run, _), record)| (*run, record.clone())) {
            self.adopt();
            self.failure = Some(self.failure_of(run, &record));
            self.phase = Phase::Failing;
            self.ready.clear();
        }
    }

    /// Steps behind those that are there; nothing that they need has ended. What needs nothing is ready.
    fn append(&mut self, more: Vec<pb::PlanStep>) {
        let place = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let from = self.steps.len();
        self.index.extend(more.iter().enumerate().map(|(n, step)| (step.id.clone(), place(from + n))));
        self.plan.steps.extend(more);
        self.dependents.resize(self.plan.steps.len(), Vec::new());
        self.undoes.resize(self.plan.steps.len(), false);
        for (i, step) in self.plan.steps.iter().enumerate().skip(from) {
            let needs: BTreeSet<u32> = step.needs.iter().filter_map(|n| self.index.get(n)).copied().collect();
            needs.iter().for_each(|&n| self.dependents[n as usize].push(place(i)));
            self.steps.push(Step { open_needs: needs.len(), ..Step::default() });
            if let Some(&undone_by) = self.index.get(&step.compensation) {
                self.undoes[undone_by as usize] = true;
            }
        }
        let new = || (from..self.steps.len()).filter(|&i| !self.undoes[i]);
        self.ready.extend(new().filter(|&i| self.steps[i].open_needs == 0).map(place));
        self.last = if propose::asked(&self.task) { self.index.get(propose::ANSWER).copied() } else { new().next_back().map(place) };
    }

    /// What follows from a step that asked a model for a plan.
    fn grow(&mut self, record: &pb::PlanStepRun, out: Option<&mut Vec<Effect>>) {
        // A kept answer whose steps are there already says nothing new.
        if self.plan.steps.last().is_none_or(|last| last.id != record.step_id) {
            return;
        }
        let more = propose::decompose_task(&self.task, &self.plan, &record.output);
        if let (Some(message), Some(out)) = (propose::remark(&self.task, &record.output, &more), out) {
            out.push(Effect::Warning { step: record.step_id.clone(), message });
        }
        if !more.is_empty() {
            self.append(more);
        }
    }

    /// An earlier attempt was failing already: what ran is taken as it is, and nothing new starts before it is undone.
    fn adopt(&mut self) {
        for ((run, kind), record) in &self.history {
            let step = &mut self.steps[run.step as usize];
            if *kind != Kept::Done || record.skipped {
                continue;
            }
            let place = run.index as usize;
            if step.outputs.len() <= place {
                step.outputs.resize(place + 1, Value::Null);
            }
            step.outputs[place] = output_of(record);
            step.any_succeeded = true;
            step.order = step.order.max(record.order);
        }
        for (step, spec) in self.steps.iter_mut().zip(&self.plan.steps) {
            if step.any_succeeded && spec.for_each.is_empty() {
                step.output = step.outputs.pop();
            }
        }
    }

    /// How each step ended, in their order.
    pub fn ends(&self) -> Vec<Result<pb::AgentResult, pb::TaskError>> {
        let end = |step: &Step| match &step.error {
            Some(error) => Err((**error).clone()),
            None => {
                let value = step.output.clone().unwrap_or(Value::Null);
                Ok(pb::AgentResult {
                    task_id: self.task_id.clone(),
                    status: pb::ResultStatus::Completed as i32,
                    output: template::text_of(&value).into_owned(),
                    structured_output: (!matches!(value, Value::String(_) | Value::Null)).then(|| json::to_value(&value)),
                    executor: step.listed.input.clone(),
                    ..Default::default()
                })
            }
        };
        self.steps.iter().map(end).collect()
    }

    /// Name of a step.
    pub fn step_id(&self, run: RunId) -> &str {
        self.plan.steps.get(run.step as usize).map_or("", |s| &s.id)
    }

    /// Before the names of what a run asks: steps side by side name their questions alike.
    pub fn question_prefix(&self, run: RunId) -> String {
        match self.plan.steps.get(run.step as usize) {
            Some(step) if step.for_each.is_empty() => format!("{}:", step.id),
            Some(step) => format!("{}.{}:", step.id, run.index),
            None => String::new(),
        }
    }

    /// What was answered to a run, under its own names.
    pub fn answers_to(&self, run: RunId, answers: &[pb::InputAnswer]) -> Vec<pb::InputAnswer> {
        let prefix = self.question_prefix(run);
        let own = |a: &pb::InputAnswer| Some(pb::InputAnswer { input_id: a.input_id.strip_prefix(&prefix)?.to_owned(), ..a.clone() });
        answers.iter().filter_map(own).collect()
    }

    /// One event in, the effects that follow. Events that nobody waits for give none.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        if self.phase == Phase::Ended {
            return out;
        }
        match event {
            Event::Go => {}
            Event::Ended { run, end, report } => self.run_ended(run, end, report, &mut out),
            Event::Kept { run } => {
                if let Some(record) = self.runs.get_mut(&run).and_then(|r| r.record.take()) {
                    self.runs.remove(&run);
                    self.settled(run, &record, Some(&mut out));
                }
            }
        }
        self.go_on(&mut out);
        out
    }

    fn go_on(&mut self, out: &mut Vec<Effect>) {
        for _ in 0..LOOK {
            match self.phase {
                Phase::Forward if self.runs.len() < self.max_parallel && !self.ready.is_empty() => self.start_next(out),
                Phase::Forward if self.runs.is_empty() && self.ready.is_empty() => return self.finish(out),
                Phase::Pausing if self.runs.is_empty() => return self.paused(out),
                Phase::Failing if self.runs.is_empty() => self.begin_undo(),
                Phase::Undoing if self.runs.is_empty() => match self.undo.pop() {
                    Some((step, of)) => self.undo_step(step, of, out),
                    None => return self.failed(out),
                },
                _ => return,
            }
        }
        out.push(Effect::Again);
    }

    // ---- forward

    /// Takes one run of the next step that has any.
    fn start_next(&mut self, out: &mut Vec<Effect>) {
        let Some(i) = self.ready.pop_front() else { return };
        if self.steps[i as usize].total.is_none() && !self.open(i, out) {
            return;
        }
        let limit = self.plan.steps[i as usize].max_parallel;
        let step = &mut self.steps[i as usize];
        let run = RunId { step: i, index: step.next };
        step.next += 1;
        step.running += 1;
        if step.next < step.total.unwrap_or(0) && (limit == 0 || i32::try_from(step.running).unwrap_or(i32::MAX) < limit) {
            self.ready.push_back(i);
        }
        for kind in [Kept::Done, Kept::Failed] {
            if let Some(record) = self.history.remove(&(run, kind)) {
                return self.settled(run, &record, None);
            }
        }
        if run.index == 0 {
            let spec = &self.plan.steps[i as usize];
            out.push(Effect::Started(pb::StepStarted { executor: spec.executor.clone(), name: spec.id.clone() }));
        }
        self.run(run, 0, out);
    }

    /// Decides whether a step runs, and how often. False: it does not.
    fn open(&mut self, i: u32, out: &mut Vec<Effect>) -> bool {
        let step = &self.plan.steps[i as usize];
        let holds = if step.condition.is_empty() {
            Ok(true)
        } else {
            condition::parse(&step.condition).and_then(|c| condition::holds(&c, &|r| self.look(r, None)))
        };
        let items = match holds {
            Ok(true) => self.items(step),
            Ok(false) => {
                self.skip(i, out);
                return false;
            }
            Err(why) => Err(wrong(i, "condition", &why)),
        };
        match items {
            Ok(Some(items)) if items.is_empty() => {
                self.nothing_to_run_over(i, out);
                false
            }
            Ok(items) => {
                let total = items.as_ref().map_or(1, Vec::len);
                let state = &mut self.steps[i as usize];
                state.outputs = vec![Value::Null; total];
                state.total = u32::try_from(total).ok();
                state.open = state.total.unwrap_or(0);
                state.items = items.unwrap_or_default();
                true
            }
            Err(error) => {
                let run = self.only_run(i, vec![Value::Null]);
                self.keep_failure(run, &error, Report::default(), out);
                false
            }
        }
    }

    fn items(&self, step: &pb::PlanStep) -> Result<Option<Vec<Value>>, AgentError> {
        if step.for_each.is_empty() {
            return Ok(None);
        }
        let i = self.index.get(&step.id).copied().unwrap_or(0);
        let value = template::value(&step.for_each, &|r| self.look(r, None)).map_err(|why| wrong(i, "for_each", &why))?;
        // A model's list comes as text unless a schema was asked for.
        let value = match value {
            Value::String(text) => serde_json::from_str(text.trim()).unwrap_or(Value::Null),
            other => other,
        };
        match value {
            Value::Array(items) if items.len() <= MAX_ITEMS => Ok(Some(items)),
            Value::Array(items) => Err(wrong(i, "for_each", &format!("gives {} items, must be at most {MAX_ITEMS}", items.len()))),
            _ => Err(wrong(i, "for_each", "gives no list; the step before must answer with a JSON list")),
        }
    }

    fn run(&mut self, run: RunId, turn: usize, out: &mut Vec<Effect>) {
        let step = &self.plan.steps[run.step as usize];
        let executor = if turn == 0 { step.executor.clone() } else { step.fallback_executors[turn - 1].clone() };
        let item = self.steps[run.step as usize].items.get(run.index as usize).map(|v| (v, run.index));
        match self.task_of(run.step, item) {
            Ok(task) => {
                let streams = self.streams(run.step);
                let timeout_ms = step.timeout.as_ref().map_or(0, duration_ms);
                self.runs.insert(run, Running { turn, record: None });
                out.push(Effect::Run { run, executor, task: Box::new(task), timeout_ms, streams });
            }
            Err(error) => self.keep_failure(run, &error, Report::default(), out),
        }
    }

    /// Whether a step's text is the plan's.
    fn streams(&self, i: u32) -> bool {
        self.plan.output.is_empty() && self.last == Some(i) && self.plan.steps[i as usize].for_each.is_empty()
    }

    /// The task of a step.
    fn task_of(&self, i: u32, item: Option<(&Value, u32)>) -> Result<pb::AgentTask, AgentError> {
        let step = &self.plan.steps[i as usize];
        let description = if step.input.is_empty() {
            self.task.description.clone()
        } else {
            template::render(&step.input, &|r| self.look(r, item)).map_err(|why| wrong(i, "input", &why))?
        };
        if description.trim().is_empty() {
            return Err(wrong(i, "input", "is empty once its references are filled in"));
        }
        let mut task = pb::AgentTask { description, preferred_framework: String::new(), ..self.task.clone() };
        if !step.agent_id.is_empty() {
            task.agent_id.clone_from(&step.agent_id);
            task.agent_type.clear();
        }
        match &step.requirements {
            Some(own) => task.requirements = Some(own.clone()),
            // How the answer shall look is said of the last one.
            None if !self.streams(i) => {
                if let Some(requirements) = &mut task.requirements {
                    requirements.output_schema = None;
                    requirements.expected_output.clear();
                }
            }
            None => {}
        }
        let asks_for_plan = propose::asked(&task) && matches!(step.id.as_str(), propose::PLAN | propose::REPAIR);
        if let Some(context) = task.context.as_mut().filter(|_| asks_for_plan) {
            // Planning does nothing of the task.
            context.available_tools.clear();
        }
        let hints = task.execution_hints.get_or_insert_default();
        if step.id == propose::PLAN && asks_for_plan && hints.cache() == pb::CacheMode::Unspecified {
            // An equal task of the tenant has been planned before.
            hints.cache = pb::CacheMode::Use as i32;
        }
        hints.planning = pb::PlanningMode::Unspecified as i32;
        (hints.max_plan_steps, hints.max_plan_depth) = (0, 0);
        hints.method = pb::ExecutionMethod::Unspecified as i32;
        hints.fallback_frameworks.clear();
        if let Some(retry) = &step.retry {
            hints.retry = Some(retry.clone());
        }
        Ok(task)
    }

    fn look<'s>(&'s self, reference: Reference<'_>, item: Option<(&'s Value, u32)>) -> Option<Cow<'s, Value>> {
        match reference {
            Reference::Task => Some(Cow::Owned(Value::String(self.task.description.clone()))),
            Reference::Item(path) => item.and_then(|(v, _)| template::at(v, path)).map(Cow::Borrowed),
            Reference::Index => item.map(|(_, i)| Cow::Owned(i.into())),
            Reference::Step(id, path) => {
                let step = &self.steps[*self.index.get(id)? as usize];
                let value = step.output.as_ref()?;
                if step.skipped || path.is_empty() {
                    return Some(Cow::Borrowed(value));
                }
                match value {
                    // A model's object comes as text unless a schema was asked for.
                    Value::String(text) => {
                        let parsed: Value = serde_json::from_str(text.trim()).ok()?;
                        template::at(&parsed, path).cloned().map(Cow::Owned)
                    }
                    other => template::at(other, path).map(Cow::Borrowed),
                }
            }
            Reference::Bad(_) => None,
        }
    }

    // ---- ends of runs

    fn run_ended(&mut self, run: RunId, end: RunEnd, report: Report, out: &mut Vec<Effect>) {
        let Some(turn) = self.runs.get(&run).filter(|r| r.record.is_none()).map(|r| r.turn) else { return };
        let undoing = self.phase == Phase::Undoing;
        match end {
            RunEnd::Succeeded(result) if self.bytes + size(&result) > MAX_OUTPUT_BYTES && self.phase != Phase::Failing && !undoing => {
                let why = format!("the outputs of the plan's steps grow beyond {MAX_OUTPUT_BYTES} bytes");
                self.keep_failure(run, &AgentError::new(Reason::PayloadTooLarge, why), report, out);
            }
            RunEnd::Succeeded(result) => {
                self.bytes += size(&result);
                let record = Box::new(pb::PlanStepRun {
                    state: pb::TaskState::Succeeded as i32,
                    output: result.output,
                    structured_output: result.structured_output,
                    ..self.record(run, report)
                });
                self.keep(run, if undoing { Kept::Undone } else { Kept::Done }, record, out);
            }
            RunEnd::Failed(error) if undoing => self.keep_not_undone(run, &error, report, out),
            RunEnd::Asked(_) | RunEnd::Stopped if undoing => {
                let error = AgentError::new(Reason::UnsupportedField, "a step that undoes another can ask nobody");
                self.keep_not_undone(run, &error, report, out);
            }
            RunEnd::Failed(error) if self.phase != Phase::Failing => {
                let step = &self.plan.steps[run.step as usize];
                let waits = self.task.requirements.as_ref().is_some_and(|r| r.on_budget_end() == pb::OnBudgetEnd::Wait);
                if error.reason == Reason::BudgetExhausted && waits {
                    self.runs.remove(&run);
                    self.pause(Some(error));
                } else if let Some(next) =
                    step.fallback_executors.get(turn).filter(|_| !report.unjournaled && error.reason != Reason::BudgetExhausted)
                {
                    let message =
                        format!("step {}: {next} takes over, since {} failed: {}", step.id, report.executor, error.reason.upper());
                    out.push(Effect::Warning { step: step.id.clone(), message });
                    self.runs.remove(&run);
                    self.run(run, turn + 1, out);
                } else {
                    self.keep_failure(run, &error, report, out);
                }
            }
            RunEnd::Asked(inputs) if self.phase != Phase::Failing => {
                self.runs.remove(&run);
                let prefix = self.question_prefix(run);
                let named = inputs.into_iter().map(|i| pb::InputRequested { input_id: format!("{prefix}{}", i.input_id), ..i });
                self.inputs.extend(named);
                self.pause(None);
            }
            // It was stopped, or the plan fails already: the first failure is the one that counts.
            _ => {
                self.runs.remove(&run);
            }
        }
    }

    fn pause(&mut self, error: Option<AgentError>) {
        if self.phase == Phase::Forward {
            self.phase = Phase::Pausing;
        }
        if self.pause.is_none() {
            self.pause = error;
        }
    }

    fn record(&mut self, run: RunId, report: Report) -> pb::PlanStepRun {
        self.order += 1;
        pb::PlanStepRun {
            step_id: self.step_id(run).to_owned(),
            index: i32::try_from(run.index).unwrap_or(i32::MAX),
            executor: report.executor,
            attempts: report.attempts,
            order: self.order,
            usage: Some(report.usage),
            cost_micros: report.cost_micros,
            start_time: Some(timestamp(report.start_ms)),
            end_time: Some(timestamp(report.end_ms)),
            ..Default::default()
        }
    }

    fn keep(&mut self, run: RunId, kept: Kept, record: Box<pb::PlanStepRun>, out: &mut Vec<Effect>) {
        let turn = self.runs.get(&run).map_or(0, |r| r.turn);
        self.runs.insert(run, Running { turn, record: Some(record.clone()) });
        out.push(Effect::Keep { run, kept, record });
    }

    fn keep_failure(&mut self, run: RunId, error: &AgentError, report: Report, out: &mut Vec<Effect>) {
        let skips = self.plan.steps[run.step as usize].on_failure() == pb::OnStepFailure::Skip;
        let timed_out = error.reason == Reason::TaskTimeout;
        let state = if timed_out { pb::TaskState::TimedOut } else { pb::TaskState::Failed } as i32;
        let record = pb::PlanStepRun { state, skipped: skips, error: Some(error.to_task_error()), ..self.record(run, report) };
        self.keep(run, Kept::Failed, Box::new(record), out);
    }

    fn keep_not_undone(&mut self, run: RunId, error: &AgentError, report: Report, out: &mut Vec<Effect>) {
        let state = pb::TaskState::Failed as i32;
        let record = pb::PlanStepRun { state, error: Some(error.to_task_error()), ..self.record(run, report) };
        self.keep(run, Kept::Undone, Box::new(record), out);
    }

    fn skip(&mut self, i: u32, out: &mut Vec<Effect>) {
        self.end_without_run(i, vec![Value::Null], None, out);
    }

    /// An empty list is an end as well.
    fn nothing_to_run_over(&mut self, i: u32, out: &mut Vec<Effect>) {
        self.end_without_run(i, Vec::new(), Some(json::to_value(&Value::Array(Vec::new()))), out);
    }

    /// Where nothing runs the end is kept all the same; without an output the step was skipped.
    fn end_without_run(&mut self, i: u32, outputs: Vec<Value>, structured_output: Option<prost_types::Value>, out: &mut Vec<Effect>) {
        let run = self.only_run(i, outputs);
        if let Some(record) = self.history.remove(&(run, Kept::Done)) {
            return self.settled(run, &record, None);
        }
        let skipped = structured_output.is_none();
        let state = pb::TaskState::Succeeded as i32;
        let record = pb::PlanStepRun { state, skipped, structured_output, ..self.record(run, Report::default()) };
        self.keep(run, Kept::Done, Box::new(record), out);
    }

    /// The one run of a step that has no other, as if it were under way.
    fn only_run(&mut self, i: u32, outputs: Vec<Value>) -> RunId {
        let step = &mut self.steps[i as usize];
        (step.total, step.open, step.next, step.running, step.outputs) = (Some(1), 1, 1, 1, outputs);
        RunId { step: i, index: 0 }
    }

    /// The end of a run stands: it may be used. Without `out` nobody is told: an earlier attempt has said it.
    fn settled(&mut self, run: RunId, record: &pb::PlanStepRun, out: Option<&mut Vec<Effect>>) {
        if !record.executor.is_empty() {
            self.executors.insert(record.executor.clone());
        }
        if self.phase == Phase::Undoing {
            let undone = self.plan.steps[run.index as usize].id.clone();
            let list = if record.state() == pb::TaskState::Succeeded { &mut self.undone } else { &mut self.not_undone };
            return list.push(undone);
        }
        let i = run.step as usize;
        let step = &mut self.steps[i];
        step.running = step.running.saturating_sub(1);
        step.open = step.open.saturating_sub(1);
        step.order = step.order.max(record.order);
        let succeeded = record.state() == pb::TaskState::Succeeded && !record.skipped;
        step.any_succeeded |= succeeded;
        // Its condition was false, or its only run may fail.
        step.skipped |= record.skipped && (record.error.is_none() || self.plan.steps[i].for_each.is_empty());
        if succeeded && let Some(slot) = step.outputs.get_mut(run.index as usize) {
            *slot = output_of(record);
        }
        note(&mut step.listed, &self.plan.steps[i], record);
        if let Some(error) = &record.error {
            step.error = Some(Box::new(error.clone()));
        }
        if record.state() != pb::TaskState::Succeeded && !record.skipped {
            return self.fail(run, record, out);
        }
        if step.open > 0 {
            // It may have waited for one of its own to end.
            if step.next < step.total.unwrap_or(0) && !self.ready.contains(&run.step) && self.phase == Phase::Forward {
                self.ready.push_back(run.step);
            }
            return;
        }
        let output = if self.plan.steps[i].for_each.is_empty() || step.skipped {
            step.outputs.pop().unwrap_or(Value::Null)
        } else {
            Value::Array(std::mem::take(&mut step.outputs))
        };
        let mut out = out;
        if propose::asked(&self.task) && succeeded {
            self.grow(record, out.as_deref_mut());
        }
        self.step_done(run.step, output, out);
    }

    fn step_done(&mut self, i: u32, output: Value, out: Option<&mut Vec<Effect>>) {
        let step = &mut self.steps[i as usize];
        step.output = Some(output);
        step.items = Vec::new();
        let status = if step.skipped { "skipped" } else { "succeeded" };
        let spec = &self.plan.steps[i as usize];
        if let Some(out) = out {
            out.push(Effect::Finished(pb::StepFinished { executor: spec.executor.clone(), status: status.into(), name: spec.id.clone() }));
        }
        for d in self.dependents[i as usize].clone() {
            let next = &mut self.steps[d as usize];
            next.open_needs -= 1;
            if next.open_needs == 0 && self.phase == Phase::Forward && !self.undoes[d as usize] {
                self.ready.push_back(d);
            }
        }
    }

    // ---- failing and undoing

    fn fail(&mut self, run: RunId, record: &pb::PlanStepRun, out: Option<&mut Vec<Effect>>) {
        let name = self.step_id(run).to_owned();
        let stopped: Vec<RunId> = self.runs.iter().filter(|(_, r)| r.record.is_none()).map(|(run, _)| *run).collect();
        let first = matches!(self.phase, Phase::Forward | Phase::Pausing);
        if first {
            self.failure = Some(self.failure_of(run, record));
            self.phase = Phase::Failing;
            self.ready.clear();
        }
        if let Some(out) = out {
            out.push(Effect::Finished(pb::StepFinished { executor: record.executor.clone(), status: "failed".into(), name }));
            out.extend(stopped.into_iter().filter(|_| first).map(Effect::Stop));
        }
    }

    /// The task's error: the step's own, with its name.
    fn failure_of(&self, run: RunId, record: &pb::PlanStepRun) -> AgentError {
        let spec = &self.plan.steps[run.step as usize];
        let why = record.error.clone().unwrap_or_default();
        let mut error =
            AgentError::new(Reason::parse(&why.reason).unwrap_or(Reason::Internal), format!("step {}: {}", spec.id, why.message));
        error.metadata.extend(why.metadata);
        error.metadata.insert("step".into(), spec.id.clone());
        error
    }

    fn begin_undo(&mut self) {
        self.phase = Phase::Undoing;
        let mut undo: Vec<(i32, u32, u32)> = (0..)
            .zip(&self.plan.steps)
            .filter_map(|(i, spec)| {
                let step = &self.steps[i as usize];
                let by = *self.index.get(&spec.compensation)?;
                step.any_succeeded.then_some((step.order, by, i))
            })
            .collect();
        undo.sort_unstable();
        self.undo = undo.into_iter().map(|(_, by, of)| (by, of)).collect();
        // What undoes a step may use what is there of its output.
        for i in 0..self.steps.len() {
            let step = &mut self.steps[i];
            if step.output.is_none() && step.any_succeeded {
                step.output = Some(Value::Array(std::mem::take(&mut step.outputs)));
            }
        }
    }

    /// One step may undo several: its runs are named by the step that each undoes.
    fn undo_step(&mut self, by: u32, of: u32, out: &mut Vec<Effect>) {
        let run = RunId { step: by, index: of };
        if let Some(record) = self.history.remove(&(run, Kept::Undone)) {
            return self.settled(run, &record, None);
        }
        let spec = &self.plan.steps[by as usize];
        match self.task_of(by, None) {
            Ok(task) => {
                out.push(Effect::Started(pb::StepStarted { executor: spec.executor.clone(), name: spec.id.clone() }));
                let (executor, timeout_ms) = (spec.executor.clone(), spec.timeout.as_ref().map_or(0, duration_ms));
                self.runs.insert(run, Running { turn: 0, record: None });
                out.push(Effect::Run { run, executor, task: Box::new(task), timeout_ms, streams: false });
            }
            Err(_) => self.not_undone.push(self.plan.steps[of as usize].id.clone()),
        }
    }

    // ---- ends of the plan

    fn failed(&mut self, out: &mut Vec<Effect>) {
        self.phase = Phase::Ended;
        let mut error = self.failure.take().unwrap_or_else(|| AgentError::new(Reason::Internal, "the plan failed"));
        for (name, list) in [("undone", &self.undone), ("not_undone", &self.not_undone)] {
            if !list.is_empty() {
                error = error.with(name, list.join(", "));
            }
        }
        out.push(Effect::Finish(Box::new(Err(error))));
    }

    fn paused(&mut self, out: &mut Vec<Effect>) {
        self.phase = Phase::Ended;
        out.push(match self.pause.take() {
            Some(error) => Effect::Finish(Box::new(Err(error))),
            None => Effect::Park(std::mem::take(&mut self.inputs)),
        });
    }

    fn finish(&mut self, out: &mut Vec<Effect>) {
        self.phase = Phase::Ended;
        out.push(Effect::Finish(Box::new(self.result())));
    }

    fn result(&self) -> Result<pb::AgentResult, AgentError> {
        let value = if self.plan.output.is_empty() {
            self.last.and_then(|i| self.steps[i as usize].output.clone()).unwrap_or(Value::Null)
        } else {
            template::value(&self.plan.output, &|r| self.look(r, None)).map_err(|why| AgentError::field("task.plan.output", why))?
        };
        let schema = self.task.requirements.as_ref().and_then(|r| r.output_schema.as_ref());
        let structured = match (&value, schema) {
            (Value::String(text), Some(schema)) => {
                let parsed = serde_json::from_str(text.trim()).map_err(|e| mismatch(&format!("it is not JSON: {e}")))?;
                Some(checked(parsed, schema)?)
            }
            (other, Some(schema)) => Some(checked(other.clone(), schema)?),
            (Value::String(_) | Value::Null, None) => None,
            (other, None) => Some(other.clone()),
        };
        let ran = self.steps.iter().zip(&self.undoes).filter(|(s, undoes)| !**undoes && s.output.is_some());
        Ok(pb::AgentResult {
            task_id: self.task_id.clone(),
            status: pb::ResultStatus::Completed as i32,
            output: template::text_of(&value).into_owned(),
            structured_output: structured.as_ref().map(json::to_value),
            steps: ran.map(|(s, _)| s.listed.clone()).take(MAX_RESULT_STEPS).collect(),
            artifacts: if propose::asked(&self.task) { self.store_execution_artifacts() } else { Vec::new() },
            executor: match self.executors.first() {
                Some(one) if self.executors.len() == 1 => one.clone(),
                _ => "hybrid".to_owned(),
            },
            ..Default::default()
        })
    }
}

impl Plan {
    /// What the subtasks of a model's plan gave, for the result: what was not asked for by name would be seen by nobody.
    fn store_execution_artifacts(&self) -> Vec<pb::Artifact> {
        let own = |id: &str| [propose::PLAN, propose::REPAIR, propose::ANSWER].contains(&id);
        let made = self.plan.steps.iter().zip(&self.steps).filter(|(spec, _)| !own(&spec.id));
        made.filter_map(|(spec, step)| Some(artifact(&spec.id, step.output.as_ref().filter(|o| !o.is_null())?))).collect()
    }
}

/// Content over the limit of a result stands in the plan itself: `steps/ID`.
fn artifact(id: &str, output: &Value) -> pb::Artifact {
    let (name, media_type) =
        if output.is_string() { (format!("{id}.md"), "text/markdown") } else { (format!("{id}.json"), "application/json") };
    let content = template::text_of(output).into_owned().into_bytes();
    around::artifact(&name, media_type, content, || format!("steps/{id}"))
}

fn checked(value: Value, schema: &prost_types::Struct) -> Result<Value, AgentError> {
    match around::misfit(&json::from_struct(schema), &value) {
        Some(problem) => Err(mismatch(&problem)),
        None => Ok(value),
    }
}

fn mismatch(problem: &str) -> AgentError {
    AgentError::new(Reason::OutputSchemaMismatch, format!("the plan's output does not match the required schema: {problem}"))
}

/// A text of the plan that only turned out wrong when it was used.
fn wrong(step: u32, field: &str, why: &str) -> AgentError {
    AgentError::field(&format!("task.plan.steps[{step}].{field}"), why.to_owned())
}

fn size(result: &pb::AgentResult) -> usize {
    result.output.len() + result.structured_output.as_ref().map_or(0, prost::Message::encoded_len)
}

/// What a run gave: data where there is any, else its text.
fn output_of(record: &pb::PlanStepRun) -> Value {
    record.structured_output.as_ref().map_or_else(|| Value::String(record.output.clone()), json::from_value)
}

/// Adds a run to what the result says of its step.
fn note(listed: &mut pb::ResultStep, spec: &pb::PlanStep, record: &pb::PlanStepRun) {
    let clip = |text: &str| text.chars().take(MAX_CLIP).collect::<String>();
    listed.kind = "step".into();
    listed.name.clone_from(&spec.id);
    listed.input = if record.executor.is_empty() { spec.executor.clone() } else { record.executor.clone() };
    listed.output = if record.skipped { "skipped".into() } else { clip(&record.output) };
    listed.is_error |= record.error.is_some();
    listed.start_time = listed.start_time.or(record.start_time);
    listed.end_time = record.end_time;
}

#[cfg(test)]
mod tests;
