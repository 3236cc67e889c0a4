//! Who may come in: checked by the head of a request, before its body is read.

use agent_core::{AgentError, Reason};
use agent_providers::Caller;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use crate::Door;
use crate::problem::Problem;

/// Bytes of a request's body, as of a message over gRPC.
const BODY_BYTES: usize = 4 * 1024 * 1024;
/// A body that is not there by then is not waited for.
const BODY_TIME: std::time::Duration = std::time::Duration::from_secs(30);

fn refused(status: StatusCode, what: impl Into<String>) -> Problem {
    Problem::new(status, AgentError::new(Reason::InvalidField, what))
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// No web page: a browser names the page's origin, and a page whose own name was made to mean this machine names that as the host.
pub(crate) fn no_page(headers: &HeaderMap, origins: &[String]) -> Result<(), Problem> {
    let host = text(headers, header::HOST);
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(name, _)| name);
    let ours = name == "localhost" || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    if !ours {
        return Err(refused(StatusCode::FORBIDDEN, "the Host is neither localhost nor an address: use the address of the node"));
    }
    match headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or("?")) {
        Some(origin) if !origins.iter().any(|known| known == origin) => {
            Err(refused(StatusCode::FORBIDDEN, "web pages of this origin may not ask; [server] http_origins lists those that may"))
        }
        _ => Ok(()),
    }
}

/// Who asks, by `Authorization: Bearer` or `x-api-key`. Where no keys are configured any is good.
pub(crate) fn caller(door: &Door, headers: &HeaderMap) -> Result<Caller, Problem> {
    let bearer = text(headers, header::AUTHORIZATION);
    let bearer = bearer.strip_prefix("Bearer ").or_else(|| bearer.strip_prefix("bearer "));
    let key = bearer.or_else(|| headers.get("x-api-key").and_then(|v| v.to_str().ok()));
    let (tenant, key_id) = match key {
        _ if !door.auth.needs_key() => (agent_grpc::DEFAULT_TENANT.to_owned(), String::new()),
        Some(key) => door.auth.key(key)?,
        None => {
            return Err(
                AgentError::new(Reason::KeyMissing, "send the key of the node as Authorization: Bearer KEY, or as x-api-key").into()
            );
        }
    };
    Ok(Caller { tenant, key_id, ..Caller::default() })
}

/// Whether a request has the method of its path.
pub(crate) fn method(request: &Request<Incoming>, wanted: &Method) -> Result<(), Problem> {
    if request.method() == wanted {
        return Ok(());
    }
    Err(refused(StatusCode::METHOD_NOT_ALLOWED, format!("{} is not for this path; use {wanted}", request.method())))
}

/// The JSON of a request. A form, which any page may send without asking first, is not read.
pub(crate) async fn body(request: Request<Incoming>) -> Result<serde_json::Value, Problem> {
    let kind = text(request.headers(), header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind != "application/json" {
        return Err(refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the body with Content-Type: application/json"));
    }
    let read = tokio::time::timeout(BODY_TIME, Limited::new(request.into_body(), BODY_BYTES).collect()).await;
    let bytes: Bytes = match read {
        Ok(Ok(all)) => all.to_bytes(),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            return Err(AgentError::new(Reason::PayloadTooLarge, format!("the body is larger than {BODY_BYTES} bytes")).into());
        }
        Ok(Err(_)) => return Err(refused(StatusCode::BAD_REQUEST, "the body did not come whole")),
        Err(_) => return Err(refused(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    };
    // What serde_json says of it names places, not content.
    serde_json::from_slice(&bytes).map_err(|e| Problem::field("body", format!("is not JSON: line {}, column {}", e.line(), e.column())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, origin: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        headers
    }

    #[test]
    fn pages_are_turned_away_and_programs_are_not() {
        let listed = ["https://console.example.com".to_owned()];
        for host in ["127.0.0.1:50152", "localhost", "localhost:1", "[::1]:50152", "192.168.0.7:80"] {
            assert!(no_page(&headers(host, None), &listed).is_ok(), "{host}");
        }
        for host in ["evil.example:50152", "", "localhost.evil.example", "127.0.0.1.evil.example:80"] {
            assert!(no_page(&headers(host, None), &listed).is_err(), "{host}");
        }
        assert!(no_page(&headers("localhost", Some("https://console.example.com")), &listed).is_ok());
        for origin in ["https://evil.example", "null", "https://console.example.com.evil.example"] {
            assert!(no_page(&headers("localhost", Some(origin)), &listed).is_err(), "{origin}");
        }
    }
}
