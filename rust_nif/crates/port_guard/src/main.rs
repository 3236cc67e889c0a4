//! The guardian program between the node and each worker process tree.
fn main() {}
