//! Page tokens: each belongs to the call that gave it (AIP-158: a token with other arguments is an error).

use agent_core::{AgentError, Reason};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use tonic::Status;

use crate::to_status;

/// Items of a page where the caller does not say.
const DEFAULT_SIZE: usize = 50;
/// Items of a page at most.
const MAX_SIZE: i32 = 1000;
/// Bytes that name the call.
const SCOPE_BYTES: usize = 8;

/// What is asked of a list.
pub(crate) struct Page {
    /// Items at most.
    pub(crate) size: usize,
    /// Where it begins, as the list itself said it; empty: at the start.
    pub(crate) from: String,
    scope: [u8; SCOPE_BYTES],
}

impl Page {
    /// The page that a request asks for. `call` is everything that makes another list: method, tenant, filters, order. Errors:
    /// `INVALID_FIELD` for the size, `PAGE_TOKEN_INVALID` for what is not a token of this call.
    pub(crate) fn of(call: &[&str], size: i32, token: &str) -> Result<Self, Status> {
        let size = match size {
            0 => DEFAULT_SIZE,
            1..=MAX_SIZE => usize::try_from(size).unwrap_or(DEFAULT_SIZE),
            _ => return Err(to_status(&AgentError::field("page_size", format!("{size}, must be 1 to {MAX_SIZE}")))),
        };
        let mut hash = Sha256::new();
        for part in call {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let mut scope = [0; SCOPE_BYTES];
        scope.copy_from_slice(&hash.finalize()[..SCOPE_BYTES]);
        let from = if token.is_empty() { Some(String::new()) } else { opened(&scope, token) };
        let from = from.ok_or_else(|| {
            let why = "the page token is not one that this call gave; begin again without it, or repeat the arguments of the first page";
            to_status(&AgentError::new(Reason::PageTokenInvalid, why).with("field", "page_token"))
        })?;
        Ok(Self { size, from, scope })
    }

    /// The token of the next page, from where it begins; empty: there is none.
    pub(crate) fn next(&self, from: &str) -> String {
        if from.is_empty() { String::new() } else { URL_SAFE_NO_PAD.encode([&self.scope, from.as_bytes()].concat()) }
    }

    /// This page of a list that is in memory anyway, and the token of the next one.
    pub(crate) fn cut<T>(&self, all: Vec<T>) -> (Vec<T>, String) {
        let (from, total) = (self.from.parse().unwrap_or(0), all.len());
        let items: Vec<T> = all.into_iter().skip(from).take(self.size).collect();
        let next = from.saturating_add(items.len());
        (items, if next < total { self.next(&next.to_string()) } else { String::new() })
    }
}

fn opened(scope: &[u8], token: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (theirs, from) = bytes.split_at_checked(SCOPE_BYTES)?;
    (theirs == scope && !from.is_empty()).then(|| String::from_utf8(from.to_vec()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_belongs_to_its_call() {
        let first = Page::of(&["tasks", "default", "state=FAILED"], 2, "").unwrap();
        let (items, token) = first.cut(vec![1, 2, 3]);
        assert_eq!(items, [1, 2]);
        let second = Page::of(&["tasks", "default", "state=FAILED"], 2, &token).unwrap();
        assert_eq!(second.cut(vec![1, 2, 3]), (vec![3], String::new()));
        for (call, token) in [
            (["tasks", "default", "state=QUEUED"], token.as_str()),
            (["tasks", "other", "state=FAILED"], &token),
            (["tasks", "defaultstate", "=FAILED"], &token),
            (["tasks", "default", "state=FAILED"], "junk"),
            (["tasks", "default", "state=FAILED"], "\u{0}"),
        ] {
            assert!(Page::of(&call, 2, token).is_err(), "{call:?} {token}");
        }
        assert!(Page::of(&[], 1001, "").is_err());
    }
}
