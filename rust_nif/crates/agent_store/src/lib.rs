//! The Store trait, its SQLite and in-memory back ends, and the hub of live task events.
