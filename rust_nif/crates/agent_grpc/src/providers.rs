//! `ProviderService`: answered by the providers; there is nothing to decide outside of a task.

use std::pin::Pin;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use agent_store::{TaskStore, now_ms};
use tonic::{Request, Status};

use crate::budgets;
use crate::conn::Connection;
use crate::page::Page;
use crate::{Reply, Shared, ok, to_status};

/// Pieces that may wait for a slow reader.
const PIECES: usize = 64;

/// The service.
pub(crate) struct ProviderCalls(pub(crate) Shared);

fn checked(request: &pb::ChatRequest) -> Result<(), Status> {
    if request.messages.is_empty() {
        return Err(to_status(&AgentError::field("messages", "is empty; send at least one message")));
    }
    if request.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
        return Err(to_status(&AgentError::field("temperature", "must be 0 to 2")));
    }
    if request.policy.as_ref().is_some_and(|p| !(0.0..=1.0).contains(&p.min_quality)) {
        return Err(to_status(&AgentError::field("policy.min_quality", "must be 0 to 1")));
    }
    if request.max_tokens.is_some_and(|n| n < 1) {
        return Err(to_status(&AgentError::field("max_tokens", "must be 1 or more")));
    }
    Ok(())
}

#[tonic::async_trait]
impl pb::provider_service_server::ProviderService for ProviderCalls {
    async fn list_providers(&self, request: Request<pb::ListProvidersRequest>) -> Reply<pb::ListProvidersResponse> {
        self.0.tenant(&request)?;
        let r = request.into_inner();
        let (providers, next_page_token) = Page::of(&["providers"], r.page_size, &r.page_token)?.cut(self.0.providers.list());
        ok(pb::ListProvidersResponse { providers, next_page_token })
    }

    async fn get_provider(&self, request: Request<pb::GetProviderRequest>) -> Reply<pb::Provider> {
        self.0.tenant(&request)?;
        let name = &request.get_ref().provider;
        let all = self.0.providers.list();
        let known = all.iter().map(|p| p.name.clone()).collect::<Vec<_>>().join(", ");
        let found = all.into_iter().find(|p| &p.name == name);
        ok(found.ok_or_else(|| {
            to_status(&AgentError::new(Reason::NoProviderMatches, format!("there is no such provider; known are {known}")))
        })?)
    }

    async fn list_models(&self, request: Request<pb::ListModelsRequest>) -> Reply<pb::ListModelsResponse> {
        self.0.tenant(&request)?;
        let r = request.into_inner();
        let (models, next_page_token) = Page::of(&["models"], r.page_size, &r.page_token)?.cut(self.0.providers.list_models());
        ok(pb::ListModelsResponse { models, next_page_token })
    }

    async fn select_provider(&self, request: Request<pb::SelectProviderRequest>) -> Reply<pb::SelectProviderResponse> {
        self.0.tenant(&request)?;
        let req = request.into_inner().requirements.unwrap_or_default();
        ok(self.0.providers.select(&req, pb::CallPolicy::default()).map_err(|e| to_status(&e))?)
    }

    async fn chat(&self, request: Request<pb::ChatRequest>) -> Reply<pb::ChatResponse> {
        let _open = Connection::open(&request);
        let caller = self.0.caller(&request)?;
        checked(request.get_ref())?;
        ok(self.0.providers.chat(request.get_ref(), &caller, None, None).await.map_err(|e| to_status(&e))?)
    }

    async fn list_budgets(&self, request: Request<pb::ListBudgetsRequest>) -> Reply<pb::ListBudgetsResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let page = Page::of(&["budgets", &tenant, if r.include_tasks { "tasks" } else { "" }], r.page_size, &r.page_token)?;
        let owner = tenant.clone();
        let limits = self.0.providers.meter().limits(&tenant);
        // Each by its name: the rows of tasks are many, and the listing of all is bounded.
        let named: Vec<String> = limits.iter().map(|(account, _)| account.to_string()).collect();
        let read = move |store: &TaskStore| {
            let mut rows = if r.include_tasks { store.ledger(&owner, None)? } else { Vec::new() };
            for account in &named {
                rows.extend(store.ledger(&owner, Some(account))?);
            }
            Ok(rows)
        };
        let all = budgets::list(limits, self.0.read(read).await?, r.include_tasks, now_ms());
        let (budgets, next_page_token) = page.cut(all);
        ok(pb::ListBudgetsResponse { budgets, next_page_token, spending: Some(self.0.providers.spending(&tenant)) })
    }

    type StreamChatStream = Pin<Box<dyn futures::Stream<Item = Result<pb::StreamChatResponse, Status>> + Send>>;

    async fn stream_chat(&self, request: Request<pb::StreamChatRequest>) -> Reply<Self::StreamChatStream> {
        let caller = self.0.caller(&request)?;
        let open = Connection::open(&request);
        let Some(chat) = request.into_inner().request else { return Err(to_status(&AgentError::field("request", "is missing"))) };
        checked(&chat)?;
        let (pieces, mut arrived) = tokio::sync::mpsc::channel(PIECES);
        let providers = self.0.providers.clone();
        // Ended with the stream: the call's future is dropped when the reader goes, and with it the HTTP request.
        let call = Box::pin(async move {
            let _open = open;
            providers.chat(&chat, &caller, None, Some(&pieces)).await.err()
        });
        let stream = async_stream(call, move |cx| arrived.poll_recv(cx));
        ok(Box::pin(stream) as Self::StreamChatStream)
    }

    async fn embed(&self, request: Request<pb::EmbedRequest>) -> Reply<pb::EmbedResponse> {
        let _open = Connection::open(&request);
        let caller = self.0.caller(&request)?;
        let n = request.get_ref().input.len();
        if n == 0 || n > 2048 {
            return Err(to_status(&AgentError::field("input", format!("{n} texts, must be 1 to 2048"))));
        }
        ok(self.0.providers.embed(request.get_ref(), &caller, None).await.map_err(|e| to_status(&e))?)
    }
}

/// Pieces as they come, then the call's error if it had one; the call runs inside the stream.
fn async_stream<F>(
    mut call: Pin<Box<F>>,
    mut next: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<pb::StreamChatResponse>> + Send + 'static,
) -> impl futures::Stream<Item = Result<pb::StreamChatResponse, Status>> + Send
where
    F: Future<Output = Option<AgentError>> + Send + 'static,
{
    use std::task::Poll;
    let mut end: Option<Option<AgentError>> = None;
    futures::stream::poll_fn(move |cx| {
        if end.is_none()
            && let Poll::Ready(result) = call.as_mut().poll(cx)
        {
            end = Some(result);
        }
        match next(cx) {
            Poll::Ready(Some(piece)) => Poll::Ready(Some(Ok(piece))),
            Poll::Ready(None) => Poll::Ready(end.as_mut().and_then(Option::take).map(|e| Err(to_status(&e)))),
            Poll::Pending => match &mut end {
                // The sender lives in the call's future: it ended, so nothing more comes.
                Some(result) => Poll::Ready(result.take().map(|e| Err(to_status(&e)))),
                None => Poll::Pending,
            },
        }
    })
}
