//! Reads and checks the TOML configuration; renders Erlang terms.
