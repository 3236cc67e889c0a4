//! Pure core: errors, validation, canonical hashes, engine tools and the native agent's state machine. No I/O, no clock.

pub mod agent;
pub mod around;
pub mod calculate;
pub mod error;
pub mod hash;
pub mod header;
pub mod json;
pub mod memory;
pub mod plan;
pub mod task_key;
pub mod tools;
pub mod validate;

pub use error::{AgentError, Reason};
