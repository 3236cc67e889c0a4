//! `FrameworkService`: views of the engine's framework pool.

use agent_proto::agents::v1 as pb;
use tonic::{Request, Status};

use crate::engine::{EngineBody, EngineReply};
use crate::page::Page;
use crate::{Reply, Shared, ok, unexpected};

/// The service.
pub(crate) struct Frameworks(pub(crate) Shared);

impl Frameworks {
    async fn get(&self, tenant: String, body: EngineBody) -> Result<Vec<pb::Framework>, Status> {
        match self.0.ask(tenant, body).await? {
            EngineReply::Frameworks(frameworks) => Ok(frameworks),
            _ => Err(unexpected()),
        }
    }

    async fn one(&self, tenant: String, name: String) -> Result<pb::Framework, Status> {
        self.get(tenant, EngineBody::Framework { name }).await?.into_iter().next().ok_or_else(unexpected)
    }
}

#[tonic::async_trait]
impl pb::framework_service_server::FrameworkService for Frameworks {
    async fn list_frameworks(&self, request: Request<pb::ListFrameworksRequest>) -> Reply<pb::ListFrameworksResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let page = Page::of(&["frameworks", &tenant], r.page_size, &r.page_token)?;
        let (frameworks, next_page_token) = page.cut(self.get(tenant, EngineBody::Frameworks).await?);
        ok(pb::ListFrameworksResponse { frameworks, next_page_token })
    }

    async fn get_framework(&self, request: Request<pb::GetFrameworkRequest>) -> Reply<pb::Framework> {
        let tenant = self.0.tenant(&request)?;
        ok(self.one(tenant, request.into_inner().framework).await?)
    }

    async fn restart_workers(&self, request: Request<pb::RestartWorkersRequest>) -> Reply<pb::RestartWorkersResponse> {
        let tenant = self.0.tenant(&request)?;
        let name = request.into_inner().framework;
        match self.0.ask(tenant.clone(), EngineBody::RestartWorkers { name: name.clone() }).await? {
            EngineReply::Restarted(restarted) => {
                ok(pb::RestartWorkersResponse { restarted, framework: Some(self.one(tenant, name).await?) })
            }
            _ => Err(unexpected()),
        }
    }
}
