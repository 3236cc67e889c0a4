//! Numbers that spread load and pauses; nothing depends on their being secret.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};

thread_local! {
    static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish() | 1);
}

/// From 0 to 1 (xorshift, Marsaglia 2003).
pub(crate) fn number() -> f32 {
    let n = STATE.with(|state| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        x
    });
    #[allow(clippy::cast_precision_loss)]
    let number = (n >> 40) as f32 / (1u64 << 24) as f32;
    number
}
