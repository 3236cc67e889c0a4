//! Program: checks the configuration file and writes the node's Erlang terms.
fn main() {}
