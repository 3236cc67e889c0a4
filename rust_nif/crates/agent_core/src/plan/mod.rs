//! Plans: a DAG of steps under one task. [`check`] says what is wrong with one before anything runs, [`machine`] runs it as a pure function
//! of its history; [`template`] and [`condition`] are the two small languages in its texts.

pub mod check;
pub mod condition;
pub mod delegate;
pub mod hybrid;
pub mod machine;
pub mod progress;
pub mod propose;
pub mod template;

use agent_proto::agents::v1 as pb;

pub use check::{MAX_STEP_ID_BYTES, MAX_STEPS, violations};
pub use hybrid::{Part, chain, hybrid};
pub use progress::progress;

/// A step that needs others and says nothing more.
pub(crate) fn step(id: &str, executor: &str, needs: &[&str], input: &str) -> pb::PlanStep {
    pb::PlanStep {
        id: id.into(),
        executor: executor.into(),
        needs: needs.iter().map(|n| (*n).into()).collect(),
        input: input.into(),
        ..Default::default()
    }
}
