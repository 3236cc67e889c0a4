//! Pure core: native agent state machine, engine tools, canonical hashes, validation. No I/O.
