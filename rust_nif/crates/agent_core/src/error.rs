//! The closed set of reasons and the one error type that crosses every boundary.

use std::collections::BTreeMap;

use agent_proto::agents::v1 as pb;

macro_rules! reasons {
    ($($variant:ident $snake:literal $upper:literal $code:literal $retry:literal;)*) => {
        /// Why something was refused or failed. Each has a page under `docs/errors/`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Reason { $($variant,)* }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// Name towards Erlang, `lower_snake`.
            pub fn snake(self) -> &'static str { match self { $(Reason::$variant => $snake,)* } }

            /// Name towards clients, `UPPER_SNAKE`.
            pub fn upper(self) -> &'static str { match self { $(Reason::$variant => $upper,)* } }

            /// `google.rpc.Code`.
            pub fn code(self) -> i32 { match self { $(Reason::$variant => $code,)* } }

            /// Safe to repeat as is.
            pub fn retryable(self) -> bool { match self { $(Reason::$variant => $retry,)* } }

            /// The reason of a name in either spelling.
            pub fn parse(name: &str) -> Option<Reason> {
                match name { $($snake | $upper => Some(Reason::$variant),)* _ => None }
            }
        }
    };
}

// Codes: 1 CANCELLED, 2 UNKNOWN, 3 INVALID_ARGUMENT, 4 DEADLINE_EXCEEDED, 5 NOT_FOUND, 6 ALREADY_EXISTS, 7 PERMISSION_DENIED,
// 8 RESOURCE_EXHAUSTED, 9 FAILED_PRECONDITION, 10 ABORTED, 11 OUT_OF_RANGE, 12 UNIMPLEMENTED, 13 INTERNAL, 14 UNAVAILABLE,
// 15 DATA_LOSS, 16 UNAUTHENTICATED.
reasons! {
    InvalidField "invalid_field" "INVALID_FIELD" 3 false;
    UnsupportedField "unsupported_field" "UNSUPPORTED_FIELD" 3 false;
    PayloadTooLarge "payload_too_large" "PAYLOAD_TOO_LARGE" 3 false;
    NestingTooDeep "nesting_too_deep" "NESTING_TOO_DEEP" 3 false;
    PageTokenInvalid "page_token_invalid" "PAGE_TOKEN_INVALID" 3 false;
    FilterInvalid "filter_invalid" "FILTER_INVALID" 3 false;
    TaskNotFound "task_not_found" "TASK_NOT_FOUND" 5 false;
    AgentNotFound "agent_not_found" "AGENT_NOT_FOUND" 5 false;
    RequestIdReused "request_id_reused" "REQUEST_ID_REUSED" 6 false;
    TaskAlreadyTerminal "task_already_terminal" "TASK_ALREADY_TERMINAL" 9 false;
    WrongState "wrong_state" "WRONG_STATE" 9 false;
    FrameworkUnavailable "framework_unavailable" "FRAMEWORK_UNAVAILABLE" 9 false;
    SandboxUnavailable "sandbox_unavailable" "SANDBOX_UNAVAILABLE" 9 false;
    EtagMismatch "etag_mismatch" "ETAG_MISMATCH" 10 false;
    MemoryNotFound "memory_not_found" "MEMORY_NOT_FOUND" 5 false;
    ScheduleNotFound "schedule_not_found" "SCHEDULE_NOT_FOUND" 5 false;
    VersionConflict "version_conflict" "VERSION_CONFLICT" 10 false;
    CursorTooOld "cursor_too_old" "CURSOR_TOO_OLD" 11 false;
    CapabilityPending "capability_pending" "CAPABILITY_PENDING" 12 false;
    CapabilityDisabled "capability_disabled" "CAPABILITY_DISABLED" 9 false;
    RateLimited "rate_limited" "RATE_LIMITED" 8 true;
    QueueFull "queue_full" "QUEUE_FULL" 8 true;
    Overloaded "overloaded" "OVERLOADED" 8 true;
    DiskLow "disk_low" "DISK_LOW" 8 true;
    QuotaExceeded "quota_exceeded" "QUOTA_EXCEEDED" 8 false;
    BudgetExhausted "budget_exhausted" "BUDGET_EXHAUSTED" 8 false;
    StoreUnavailable "store_unavailable" "STORE_UNAVAILABLE" 14 true;
    Draining "draining" "DRAINING" 14 true;
    NativeDown "native_down" "NATIVE_DOWN" 14 true;
    CommitAmbiguous "commit_ambiguous" "COMMIT_AMBIGUOUS" 2 true;
    KeyMissing "key_missing" "KEY_MISSING" 16 false;
    KeyUnknown "key_unknown" "KEY_UNKNOWN" 16 false;
    AttemptFenced "attempt_fenced" "ATTEMPT_FENCED" 10 false;
    WorkerCrashed "worker_crashed" "WORKER_CRASHED" 13 true;
    WorkerProtocolError "worker_protocol_error" "WORKER_PROTOCOL_ERROR" 13 true;
    NodeLost "node_lost" "NODE_LOST" 14 true;
    WorkerHung "worker_hung" "WORKER_HUNG" 4 true;
    TaskTimeout "task_timeout" "TASK_TIMEOUT" 4 false;
    HeartbeatTimeout "heartbeat_timeout" "HEARTBEAT_TIMEOUT" 4 false;
    WorkerOom "worker_oom" "WORKER_OOM" 8 false;
    WorkerShared "worker_shared" "WORKER_SHARED" 14 true;
    WorkerProcessLimit "worker_process_limit" "WORKER_PROCESS_LIMIT" 8 false;
    DelegationTooDeep "delegation_too_deep" "DELEGATION_TOO_DEEP" 9 false;
    WorkerStartFailed "worker_start_failed" "WORKER_START_FAILED" 9 false;
    PoisonTask "poison_task" "POISON_TASK" 10 false;
    FrameworkError "framework_error" "FRAMEWORK_ERROR" 2 false;
    ToolFailed "tool_failed" "TOOL_FAILED" 2 false;
    IterationLimit "iteration_limit" "ITERATION_LIMIT" 10 false;
    OutputSchemaMismatch "output_schema_mismatch" "OUTPUT_SCHEMA_MISMATCH" 10 false;
    ReplayNotAllowed "replay_not_allowed" "REPLAY_NOT_ALLOWED" 9 false;
    ReplayMissing "replay_missing" "REPLAY_MISSING" 9 false;
    BundleInvalid "bundle_invalid" "BUNDLE_INVALID" 3 false;
    ProviderRateLimited "provider_rate_limited" "PROVIDER_RATE_LIMITED" 8 true;
    ProviderOverloaded "provider_overloaded" "PROVIDER_OVERLOADED" 14 true;
    ProviderUnavailable "provider_unavailable" "PROVIDER_UNAVAILABLE" 14 true;
    ProviderTimeout "provider_timeout" "PROVIDER_TIMEOUT" 14 true;
    ProviderStreamCut "provider_stream_cut" "PROVIDER_STREAM_CUT" 14 true;
    ProviderBadResponse "provider_bad_response" "PROVIDER_BAD_RESPONSE" 14 true;
    ProviderQuota "provider_quota" "PROVIDER_QUOTA" 9 false;
    ProviderAuth "provider_auth" "PROVIDER_AUTH" 9 false;
    ProviderRefused "provider_refused" "PROVIDER_REFUSED" 9 false;
    ModelNotFound "model_not_found" "MODEL_NOT_FOUND" 9 false;
    ProviderRejected "provider_rejected" "PROVIDER_REJECTED" 3 false;
    ContextTooLong "context_too_long" "CONTEXT_TOO_LONG" 3 false;
    ProviderResponseTooLarge "provider_response_too_large" "PROVIDER_RESPONSE_TOO_LARGE" 11 false;
    NoProviderMatches "no_provider_matches" "NO_PROVIDER_MATCHES" 9 false;
    StoreCorrupt "store_corrupt" "STORE_CORRUPT" 15 false;
    TaskCancelled "task_cancelled" "TASK_CANCELLED" 1 false;
    NativePanic "native_panic" "NATIVE_PANIC" 13 false;
    Internal "internal" "INTERNAL" 13 false;
}

/// A refusal or failure with its reason. `message` is for people and never holds a prompt, a key or a secret.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}: {message}", reason.upper())]
pub struct AgentError {
    /// Why.
    pub reason: Reason,
    /// A sentence for people.
    pub message: String,
    /// Details by name.
    pub metadata: BTreeMap<String, String>,
    /// Wrong fields, all of them.
    pub fields: Vec<pb::FieldViolation>,
    /// When to come back, in ms; 0: not said.
    pub retry_after_ms: u64,
}

impl AgentError {
    /// An error without details.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: BTreeMap::new(), fields: Vec::new(), retry_after_ms: 0 }
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Says when to come back.
    #[must_use]
    pub fn retry_after(mut self, ms: u64) -> Self {
        self.retry_after_ms = ms;
        self
    }

    /// `INVALID_FIELD` with every wrong field; None where there is none.
    pub fn invalid(fields: Vec<pb::FieldViolation>) -> Option<Self> {
        let first = fields.first()?;
        let message = match fields.len() {
            1 => format!("{}: {}", first.field, first.description),
            n => format!("{n} fields are wrong, the first is {}: {}", first.field, first.description),
        };
        Some(Self { fields, ..Self::new(Reason::InvalidField, message) })
    }

    /// One wrong field.
    pub fn field(field: &str, description: impl Into<String>) -> Self {
        let description = description.into();
        Self {
            message: format!("{field}: {description}"),
            fields: vec![pb::FieldViolation { field: field.to_owned(), description }],
            ..Self::new(Reason::InvalidField, "")
        }
    }

    /// A method or feature of a later part.
    pub fn pending(capability: &str) -> Self {
        Self::new(Reason::CapabilityPending, format!("{capability} has not come yet")).with("capability", capability)
    }

    /// What the configuration has switched off, and the section that says so.
    pub fn disabled(capability: &str, section: &str) -> Self {
        Self::new(Reason::CapabilityDisabled, format!("{capability} is switched off; set {capability} = true in [{section}]"))
            .with("capability", capability)
    }

    /// The structure that stands in `Task.error`.
    pub fn to_task_error(&self) -> pb::TaskError {
        pb::TaskError {
            reason: self.reason.upper().to_owned(),
            message: self.message.clone(),
            metadata: self.metadata.clone(),
            code: self.reason.code(),
            field_violations: self.fields.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_page_and_a_name_that_reads_back() {
        let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/errors");
        for reason in Reason::ALL {
            let page = pages.join(format!("{}.md", reason.upper()));
            assert!(page.is_file(), "no page {}", page.display());
            assert_eq!(Reason::parse(reason.snake()), Some(*reason));
            assert_eq!(reason.snake().to_uppercase(), reason.upper());
        }
    }
}
