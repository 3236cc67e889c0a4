//! Generated protobuf types of the public and the worker protocol, and their descriptor set.
