//! Mode `init`: pid 1 of a worker's namespace. Reaps orphans; its end is the end of everything in the namespace.

use crate::sys::{self, Wait};

pub(crate) fn main() -> i32 {
    sys::die_with_parent();
    // SAFETY: closes every descriptor that the zygote left open; we use none.
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
    // SAFETY: the set is plain data, filled by sigemptyset before use, and lives through both calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        loop {
            while let Wait::Reaped(_) = sys::reap() {}
            libc::sigwaitinfo(&raw const set, std::ptr::null_mut());
        }
    }
}
