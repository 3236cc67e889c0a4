//! A provider's key in what the provider itself says: cut out before anybody sees it.

use agent_core::AgentError;

const MARK: &str = "[redacted]";
/// Shorter beginnings of a key at the end of a text are no secret, and may be words.
const LEAST: usize = 4;

/// A text without the key, and without the beginning of it that a shortened text may end with.
pub(crate) fn text(text: String, key: &str) -> String {
    if key.len() < LEAST || text.is_empty() {
        return text;
    }
    let mut clean = if text.contains(key) { text.replace(key, MARK) } else { text };
    let begins = |n: &usize| key.is_char_boundary(*n) && clean.ends_with(&key[..*n]);
    if let Some(n) = (LEAST..key.len()).rev().find(begins) {
        clean.truncate(clean.len() - n);
        clean.push_str(MARK);
    }
    clean
}

/// An error without the key.
pub(crate) fn error(mut error: AgentError, key: &str) -> AgentError {
    error.message = text(error.message, key);
    for value in error.metadata.values_mut() {
        *value = text(std::mem::take(value), key);
    }
    error
}
