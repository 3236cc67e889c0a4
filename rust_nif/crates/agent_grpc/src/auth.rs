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

/// Who asks.
#[derive(Debug, Default)]
pub struct Auth {
    keys: Vec<([u8; 32], String)>,
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
        Ok(Self { keys })
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
        let header = metadata.get("authorization").and_then(|v| v.to_str().ok());
        let Some(key) = header.and_then(|h| h.strip_prefix("Bearer ").or_else(|| h.strip_prefix("bearer "))) else {
            return Err(AgentError::new(Reason::KeyMissing, "send the key as metadata: authorization: Bearer KEY"));
        };
        self.key(key)
    }

    /// The same of a key itself.
    pub fn key(&self, key: &str) -> Result<(String, String), AgentError> {
        let digest: [u8; 32] = Sha256::digest(key.trim().as_bytes()).into();
        // Every key is looked at, whichever matches.
        let mut found = None;
        for (known, tenant) in &self.keys {
            let difference = known.iter().zip(&digest).fold(0u8, |d, (a, b)| d | (a ^ b));
            if difference == 0 {
                found = Some(tenant);
            }
        }
        let tenant = found.cloned().ok_or_else(|| AgentError::new(Reason::KeyUnknown, "the key is not known here"))?;
        Ok((tenant, digest.iter().take(KEY_ID_BYTES).map(|byte| format!("{byte:02x}")).collect()))
    }
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
