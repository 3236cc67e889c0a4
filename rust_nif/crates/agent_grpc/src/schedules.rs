//! `ScheduleService`: schedules are kept by the store; the engine's schedule owner submits their tasks.

use agent_core::AgentError;
use agent_core::header::duration_ms;
use agent_proto::agents::v1 as pb;
use agent_providers::Caller;
use agent_store::schedule::next_after;
use agent_store::{ScheduleOp, WriteOp, Written, now_ms};
use tonic::{Request, Status};

use crate::engine::{EngineBody, EngineReply};
use crate::page::Page;
use crate::tasks::{bad_request_id, prepare};
use crate::{Reply, Shared, check_id, ok, to_status, unexpected};

/// Missed times may be made up for as long as this, in ms: a year.
const MAX_CATCH_UP_MS: i64 = 366 * 24 * 3600 * 1000;

/// The service.
pub(crate) struct Schedules(pub(crate) Shared);

/// What a client may say of a schedule; everything else is the engine's.
fn given(schedule: Option<pb::Schedule>, wanted_id: &str, by: &Caller) -> Result<pb::Schedule, AgentError> {
    let Some(given) = schedule else { return Err(AgentError::field("schedule", "is missing")) };
    let id = [wanted_id, &given.id].into_iter().find(|id| !id.is_empty()).map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned);
    let mut violations: Vec<pb::FieldViolation> = check_id("schedule_id", &id).into_iter().collect();
    if pb::OverlapPolicy::try_from(given.overlap).is_err() {
        violations.push(pb::FieldViolation { field: "schedule.overlap".into(), description: "is unknown".into() });
    }
    if given.catch_up.as_ref().is_some_and(|d| !(0..=MAX_CATCH_UP_MS).contains(&duration_ms(d))) {
        violations.push(pb::FieldViolation { field: "schedule.catch_up".into(), description: "must be 0 s to a year".into() });
    }
    let schedule = pb::Schedule {
        id,
        when: given.when,
        time_zone: given.time_zone,
        overlap: given.overlap,
        catch_up: given.catch_up,
        task: given.task,
        key_id: by.key_id.clone(),
        ..Default::default()
    };
    if schedule.task.as_ref().and_then(|t| t.execution_hints.as_ref()).is_some_and(|h| h.not_before.is_some()) {
        let why = "is said by the schedule; leave it out".to_owned();
        violations.push(pb::FieldViolation { field: "schedule.task.execution_hints.not_before".into(), description: why });
    }
    if let Err(error) = next_after(&schedule, now_ms()) {
        violations.extend(error.fields);
    }
    // The task is checked now, not when it is due.
    match prepare(schedule.task.clone(), "", by) {
        Err(error) if error.fields.is_empty() => return Err(error),
        Err(error) => {
            violations.extend(error.fields.into_iter().map(|v| pb::FieldViolation { field: format!("schedule.{}", v.field), ..v }));
        }
        Ok(_) => {}
    }
    AgentError::invalid(violations).map_or(Ok(schedule), Err)
}

impl Schedules {
    /// Whether the task would be taken now: its agent is known, and something runs it. Errors as of a submit.
    async fn can_run(&self, by: &Caller, task: Option<pb::AgentTask>) -> Result<(), Status> {
        let (header, _) = prepare(task, "", by).map_err(|e| to_status(&e))?;
        self.0.ask(by.tenant.clone(), EngineBody::Check { header }).await.map(|_| ())
    }

    async fn write(&self, tenant: String, op: ScheduleOp) -> Result<pb::Schedule, Status> {
        match self.0.write(WriteOp::Schedule { tenant, op }).await? {
            Written::Schedule(schedule) => Ok(*schedule),
            _ => Err(unexpected()),
        }
    }
}

#[tonic::async_trait]
impl pb::schedule_service_server::ScheduleService for Schedules {
    async fn create_schedule(&self, request: Request<pb::CreateScheduleRequest>) -> Reply<pb::Schedule> {
        let by = self.0.caller(&request)?;
        let r = request.into_inner();
        // A repeated request without an id of its own finds its schedule by the request id.
        let id = if r.schedule_id.is_empty() && !r.request_id.is_empty() { &r.request_id } else { &r.schedule_id };
        let schedule = given(r.schedule, id, &by).map_err(|e| to_status(&e))?;
        if let Some(e) = AgentError::invalid(bad_request_id(&r.request_id).into_iter().collect()) {
            return Err(to_status(&e));
        }
        self.can_run(&by, schedule.task.clone()).await?;
        ok(self.write(by.tenant, ScheduleOp::Create { schedule: Box::new(schedule), request_id: r.request_id }).await?)
    }

    async fn get_schedule(&self, request: Request<pb::GetScheduleRequest>) -> Reply<pb::Schedule> {
        let tenant = self.0.tenant(&request)?;
        let id = request.into_inner().schedule_id;
        ok(self.0.read(move |store| store.schedule(&tenant, &id)).await?)
    }

    async fn list_schedules(&self, request: Request<pb::ListSchedulesRequest>) -> Reply<pb::ListSchedulesResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let page = Page::of(&["schedules", &tenant], r.page_size, &r.page_token)?;
        let (size, from) = (page.size, page.from.clone());
        let (schedules, next) = self.0.read(move |store| store.schedules(&tenant, &from, size)).await?;
        ok(pb::ListSchedulesResponse { schedules, next_page_token: page.next(&next) })
    }

    async fn pause_schedule(&self, request: Request<pb::PauseScheduleRequest>) -> Reply<pb::Schedule> {
        let tenant = self.0.tenant(&request)?;
        ok(self.write(tenant, ScheduleOp::Pause { id: request.into_inner().schedule_id }).await?)
    }

    async fn resume_schedule(&self, request: Request<pb::ResumeScheduleRequest>) -> Reply<pb::Schedule> {
        let tenant = self.0.tenant(&request)?;
        ok(self.write(tenant, ScheduleOp::Resume { id: request.into_inner().schedule_id }).await?)
    }

    async fn trigger_schedule(&self, request: Request<pb::TriggerScheduleRequest>) -> Reply<pb::TriggerScheduleResponse> {
        let by = self.0.caller(&request)?;
        let tenant = by.tenant.clone();
        let r = request.into_inner();
        let (owner, id) = (tenant.clone(), r.schedule_id.clone());
        let mut task = self.0.read(move |store| store.schedule(&owner, &id)).await?.task.unwrap_or_default();
        task.labels.insert("schedule".to_owned(), r.schedule_id);
        let (header, spec) = prepare(Some(task), &r.request_id, &by).map_err(|e| to_status(&e))?;
        match self.0.ask(tenant.clone(), EngineBody::Submit { header, spec }).await? {
            EngineReply::Task(id) => {
                let task = self.0.read(move |store| store.get(&tenant, &id)).await?;
                ok(pb::TriggerScheduleResponse { task: Some(task) })
            }
            _ => Err(unexpected()),
        }
    }

    async fn delete_schedule(&self, request: Request<pb::DeleteScheduleRequest>) -> Reply<pb::DeleteScheduleResponse> {
        let tenant = self.0.tenant(&request)?;
        let deleted = self.write(tenant, ScheduleOp::Delete { id: request.into_inner().schedule_id }).await?;
        ok(pb::DeleteScheduleResponse { schedule_id: deleted.id })
    }
}
