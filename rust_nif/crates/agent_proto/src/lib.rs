//! Generated protobuf types of the public and the worker protocol, and their descriptor set.
//!
//! The `.proto` files under `proto/` are the documentation of the fields.

pub mod codec;

/// Package `singularity.agents`.
pub mod agents {
    /// Package `singularity.agents.v1`.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("singularity.agents.v1");
    }
}

/// Package `singularity.worker`.
pub mod worker {
    /// Package `singularity.worker.v1`.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("singularity.worker.v1");
    }
}

/// Descriptors of all files, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
