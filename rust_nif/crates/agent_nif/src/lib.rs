//! The only crate with rustler: decode, enqueue, reply.
