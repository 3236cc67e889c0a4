//! The gRPC front: decoding, limits, rich errors, health, reflection.
