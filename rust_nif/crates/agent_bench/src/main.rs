//! Load generator and the bare tonic baseline for make bench.
fn main() {}
