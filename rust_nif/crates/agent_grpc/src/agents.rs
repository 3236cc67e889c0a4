//! `AgentService`: decided by the engine's registry.

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use tonic::{Request, Status};

use crate::engine::{AgentCall, EngineBody, EngineReply};
use crate::page::Page;
use crate::tasks::agent_violations;
use crate::{Reply, Shared, check_id, ok, to_status, unexpected};

/// The service.
pub(crate) struct Agents(pub(crate) Shared);

impl Agents {
    async fn call(&self, tenant: String, call: AgentCall, agent: pb::Agent) -> Result<Vec<pb::Agent>, Status> {
        match self.0.ask(tenant, EngineBody::Agent { call, agent: Box::new(agent) }).await? {
            EngineReply::Agents(agents) => Ok(agents),
            EngineReply::Ok => Ok(Vec::new()),
            _ => Err(unexpected()),
        }
    }

    async fn one(&self, tenant: String, call: AgentCall, agent: pb::Agent) -> Reply<pb::Agent> {
        ok(self.call(tenant, call, agent).await?.into_iter().next().ok_or_else(unexpected)?)
    }
}

fn checked(agent: Option<pb::Agent>, id: &str) -> Result<pb::Agent, Status> {
    let Some(mut agent) = agent else { return Err(to_status(&AgentError::field("agent", "is missing"))) };
    if !id.is_empty() {
        id.clone_into(&mut agent.id);
    }
    let mut violations = agent_violations(&agent);
    violations.extend(check_id("agent_id", id));
    match AgentError::invalid(violations) {
        Some(e) => Err(to_status(&e)),
        None => Ok(agent),
    }
}

fn named(id: String, etag: String) -> pb::Agent {
    pb::Agent { id, etag, ..Default::default() }
}

#[tonic::async_trait]
impl pb::agent_service_server::AgentService for Agents {
    async fn create_agent(&self, request: Request<pb::CreateAgentRequest>) -> Reply<pb::Agent> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let agent = checked(r.agent, &r.agent_id)?;
        if agent.agent_type.is_empty() {
            return Err(to_status(&AgentError::field("agent.agent_type", "is missing; see ListAgentTypes")));
        }
        self.one(tenant, AgentCall::Create, agent).await
    }

    async fn get_agent(&self, request: Request<pb::GetAgentRequest>) -> Reply<pb::Agent> {
        let tenant = self.0.tenant(&request)?;
        self.one(tenant, AgentCall::Get, named(request.into_inner().agent_id, String::new())).await
    }

    async fn list_agents(&self, request: Request<pb::ListAgentsRequest>) -> Reply<pb::ListAgentsResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let page = Page::of(&["agents", &tenant], r.page_size, &r.page_token)?;
        let (agents, next_page_token) = page.cut(self.call(tenant, AgentCall::List, pb::Agent::default()).await?);
        ok(pb::ListAgentsResponse { agents, next_page_token })
    }

    async fn update_agent(&self, request: Request<pb::UpdateAgentRequest>) -> Reply<pb::Agent> {
        let tenant = self.0.tenant(&request)?;
        let agent = checked(request.into_inner().agent, "")?;
        self.one(tenant, AgentCall::Update, agent).await
    }

    async fn delete_agent(&self, request: Request<pb::DeleteAgentRequest>) -> Reply<pb::DeleteAgentResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        self.call(tenant, AgentCall::Delete, named(r.agent_id.clone(), r.etag)).await?;
        ok(pb::DeleteAgentResponse { agent_id: r.agent_id })
    }

    async fn list_agent_types(&self, request: Request<pb::ListAgentTypesRequest>) -> Reply<pb::ListAgentTypesResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let page = Page::of(&["agent_types", &tenant], r.page_size, &r.page_token)?;
        match self.0.ask(tenant, EngineBody::Agent { call: AgentCall::Types, agent: Box::default() }).await? {
            EngineReply::AgentTypes(all) => {
                let (agent_types, next_page_token) = page.cut(all);
                ok(pb::ListAgentTypesResponse { agent_types, next_page_token })
            }
            _ => Err(unexpected()),
        }
    }
}
