//! Keys and tenants: SHA-256 of static keys, compared without leaking by time.

use std::collections::BTreeMap;

use agent_core::{AgentError, Reason};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tonic::metadata::MetadataMap;

/// Tenant of everybody where no keys are configured.
pub const DEFAULT_TENANT: &str = "default";

/// Bytes of a key's digest that name it; two letters each. The configuration names the accounts of keys by as many (`KEY_ID` of `agent_config`).
const KEY_ID_BYTES: usize = 8;

/// Keys of a tenant, in the native configuration.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TenantKeys {
    /// Hexadecimal SHA-256 of each key.
    #[serde(default)]
    pub key_sha256: Vec<String>,
}

/// Keys that may attach workers of other machines, in the native configuration.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct WorkerKeys {
    /// Hexadecimal SHA-256 of each key.
    #[serde(default)]
    pub key_sha256: Vec<String>,
}

/// Who asks.
#[derive(Debug, Default)]
pub struct Auth {
    keys: Vec<([u8; 32], String)>,
    /// Keys that may attach workers.
    workers: Vec<[u8; 32]>,
}

impl Auth {
    /// From the configuration; without keys everybody is the tenant "default".
    pub fn new(tenants: &BTreeMap<String, TenantKeys>) -> Result<Self, AgentError> {
        let mut keys = Vec::new();
        for (tenant, t) in tenants {
            for hex in &t.key_sha256 {
                let digest = unhex(hex)
                    .ok_or_else(|| AgentError::new(Reason::InvalidField, format!("a key of tenant {tenant} is not a SHA-256")))?;
                keys.push((digest, tenant.clone()));
            }
        }
        Ok(Self { keys, workers: Vec::new() })
    }

    /// With the keys that may attach workers.
    pub fn with_workers(mut self, keys: &WorkerKeys) -> Result<Self, AgentError> {
        for hex in &keys.key_sha256 {
            self.workers.push(unhex(hex).ok_or_else(|| AgentError::new(Reason::InvalidField, "a key of workers is not a SHA-256"))?);
        }
        Ok(self)
    }

    /// Whether a call may attach a worker: only with a key that was given that right, also where nothing else needs a key.
    pub fn worker(&self, metadata: &MetadataMap) -> Result<(), AgentError> {
        if self.workers.is_empty() {
            return Err(AgentError::new(Reason::KeyUnknown, "no key may attach workers to this node; see [workers] remote_keys"));
        }
        let digest: [u8; 32] = Sha256::digest(bearer(metadata)?.trim().as_bytes()).into();
        let found = self.workers.iter().fold(false, |found, known| found | same(known, &digest));
        if found { Ok(()) } else { Err(AgentError::new(Reason::KeyUnknown, "the key may not attach workers; see [workers] remote_keys")) }
    }

    /// Whether a key is needed.
    pub fn needs_key(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The tenant of a call.
    pub fn tenant(&self, metadata: &MetadataMap) -> Result<String, AgentError> {
        self.identity(metadata).map(|(tenant, _)| tenant)
    }

    /// The tenant of a call, and the name of its key: the first letters of the key's digest; empty where no keys are configured.
    pub fn identity(&self, metadata: &MetadataMap) -> Result<(String, String), AgentError> {
        if self.keys.is_empty() {
            return Ok((DEFAULT_TENANT.to_owned(), String::new()));
        }
        self.key(bearer(metadata)?)
    }

    /// The same of a key itself.
    pub fn key(&self, key: &str) -> Result<(String, String), AgentError> {
        let digest: [u8; 32] = Sha256::digest(key.trim().as_bytes()).into();
        // Every key is looked at, whichever matches.
        let mut found = None;
        for (known, tenant) in &self.keys {
            if same(known, &digest) {
                found = Some(tenant);
            }
        }
        let tenant = found.cloned().ok_or_else(|| AgentError::new(Reason::KeyUnknown, "the key is not known here"))?;
        Ok((tenant, agent_core::hash::hex(&digest[..KEY_ID_BYTES])))
    }
}

fn bearer(metadata: &MetadataMap) -> Result<&str, AgentError> {
    let header = metadata.get("authorization").and_then(|v| v.to_str().ok());
    header
        .and_then(|h| h.strip_prefix("Bearer ").or_else(|| h.strip_prefix("bearer ")))
        .ok_or_else(|| AgentError::new(Reason::KeyMissing, "send the key as metadata: authorization: Bearer KEY"))
}

/// Compared in the same time wherever they differ.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0u8, |d, (a, b)| d | (a ^ b)) == 0
}

fn unhex(hex: &str) -> Option<[u8; 32]> {
    let mut out = [0u8; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_the_name_that_the_configuration_gives_its_account() {
        let digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let tenants = BTreeMap::from([("acme".to_owned(), TenantKeys { key_sha256: vec![digest.to_owned()] })]);
        let (tenant, name) = Auth::new(&tenants).unwrap().key("secret").unwrap();
        assert_eq!((tenant.as_str(), name.as_str()), ("acme", &digest[..16]));
    }
}
