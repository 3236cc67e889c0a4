//! What is too large for a row: content that is stored once for each tenant, under an address made of both.
//!
//! An address is HMAC(HMAC(secret, tenant), content): the same content of two tenants has two addresses, so that none tells a tenant what
//! another one has. A row keeps what the engine decides by, and the address of the whole ([`Parts`]).

pub(crate) mod folder;

use std::fmt;

use agent_core::header::infer_task_type;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Larger content stands in a blob, in bytes.
pub(crate) const BLOB_BYTES: usize = 64 * 1024;
/// Of an address and of a secret.
const LENGTH: usize = 32;

/// Names content of a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Address(pub(crate) [u8; LENGTH]);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Address {
    /// From a column; none if there is nothing, or nothing that could be one.
    pub(crate) fn of_column(bytes: Option<Vec<u8>>) -> Option<Self> {
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self)
    }

    /// From the name of a file.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok()).filter(|_| !c.is_ascii_uppercase());
        let (pairs, rest) = name.as_bytes().as_chunks::<2>();
        let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
        Self::of_column(bytes.filter(|_| rest.is_empty()))
    }

    /// It is not there, or is not what it was.
    pub(crate) fn corrupt(&self, how: &str) -> AgentError {
        AgentError::new(Reason::StoreCorrupt, format!("blob {self} is {how}; see singularity store check"))
            .with("table", "blob")
            .with("blob", self)
    }
}

/// What makes addresses; the secret is the store's own.
#[derive(Clone)]
pub(crate) struct Addresses([u8; LENGTH]);

impl Addresses {
    /// With the secret of a store.
    pub(crate) fn new(secret: [u8; LENGTH]) -> Self {
        Self(secret)
    }

    /// A secret for a new store.
    pub(crate) fn new_secret() -> [u8; LENGTH] {
        let halves = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
        // 244 bits of chance.
        keyed(halves[0].as_bytes(), halves[1].as_bytes())
    }

    /// The address of a tenant's content.
    pub(crate) fn of(&self, tenant: &str, content: &[u8]) -> Address {
        Address(keyed(&keyed(&self.0, tenant.as_bytes()), content))
    }
}

fn keyed(key: &[u8], content: &[u8]) -> [u8; LENGTH] {
    // A key of any length is one; the error of the type cannot come.
    Hmac::<Sha256>::new_from_slice(key).map(|mac| mac.chain_update(content).finalize().into_bytes().into()).unwrap_or_default()
}

/// Where the large parts of a task are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Of its spec.
    pub(crate) spec: Option<Address>,
    /// Of its result.
    pub(crate) result: Option<Address>,
}

impl Parts {
    /// What the row keeps of the task.
    pub(crate) fn row(&self, task: &mut pb::Task) -> Kept {
        let mut kept = Kept::default();
        if self.spec.is_some() {
            let slim = task.spec.as_ref().map(slim_spec);
            kept.spec = std::mem::replace(&mut task.spec, slim);
        }
        if self.result.is_some() {
            let slim = task.result.as_ref().map(slim_result);
            kept.result = std::mem::replace(&mut task.result, slim);
        }
        kept
    }
}

/// What [`Parts::row`] has taken out of a task.
#[derive(Default)]
pub(crate) struct Kept {
    spec: Option<pb::AgentTask>,
    result: Option<pb::AgentResult>,
}

impl Kept {
    /// Gives it back.
    pub(crate) fn back(self, task: &mut pb::Task) {
        if self.spec.is_some() {
            task.spec = self.spec;
        }
        if self.result.is_some() {
            task.result = self.result;
        }
    }
}

/// What headers and filters are made from.
fn slim_spec(spec: &pb::AgentTask) -> pb::AgentTask {
    let named = |tool: &pb::ToolDefinition| pb::ToolDefinition { name: tool.name.clone(), ..Default::default() };
    let context = spec.context.as_ref().map(|context| pb::TaskContext {
        memory_namespace: context.memory_namespace.clone(),
        available_tools: context.available_tools.iter().map(named).collect(),
        ..Default::default()
    });
    let task_type = if spec.task_type.is_empty() { infer_task_type(&spec.description) } else { &spec.task_type }.to_owned();
    pb::AgentTask { description: String::new(), context, task_type, ..spec.clone() }
}

fn slim_result(result: &pb::AgentResult) -> pb::AgentResult {
    pb::AgentResult {
        task_id: result.task_id.clone(),
        metrics: result.metrics,
        executor: result.executor.clone(),
        limit_reached: result.limit_reached.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use agent_core::header::header;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_depends_on_store_tenant_and_content() {
        let (a, b) = (Addresses::new([1; 32]), Addresses::new([2; 32]));
        let all = [a.of("t", b"x"), a.of("t", b"y"), a.of("u", b"x"), b.of("t", b"x")];
        for (n, one) in all.iter().enumerate() {
            assert!(all[n + 1..].iter().all(|other| other != one));
        }
        assert_eq!(a.of("t", b"x"), all[0]);
        assert_ne!(Addresses::new_secret(), Addresses::new_secret());
    }

    #[test]
    fn the_rest_of_a_spec_gives_the_same_header() {
        let tool = pb::ToolDefinition { name: "now".into(), description: "long ".repeat(100), ..Default::default() };
        let context = pb::TaskContext { memory_namespace: "n".into(), available_tools: vec![tool], ..Default::default() };
        let spec = pb::AgentTask {
            description: "fix the bug ".repeat(9000),
            context: Some(context),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        };
        let mut task = pb::Task { spec: Some(spec.clone()), ..Default::default() };
        let parts = Parts { spec: Some(Address([0; 32])), result: None };
        let kept = parts.row(&mut task);
        let slim = task.spec.clone().unwrap();
        assert!(prost::Message::encoded_len(&slim) < 200);
        assert_eq!(header(&slim, "i", "r", "t", 1), header(&spec, "i", "r", "t", 1));
        kept.back(&mut task);
        assert_eq!(task.spec, Some(spec));
    }

    proptest! {
        #[test]
        fn a_name_is_an_address_again(bytes: [u8; 32], junk in "[0-9a-fA-F.g]{0,66}") {
            let address = Address(bytes);
            prop_assert_eq!(Address::of_name(&address.to_string()), Some(address));
            if let Some(read) = Address::of_name(&junk) {
                prop_assert_eq!(read.to_string(), junk);
            }
        }
    }
}
