//! Mode `keep`: parent and subreaper of one worker. Ends its tree when asked, when the guard or the node is gone, or when the worker ended,
//! and says so with proof.
//!
//! Started by the zygote's child after it has forked the worker; needs no Python and no running zygote.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::control::{PROOF_DESCENDANTS, PROOF_NAMESPACE, PROOF_UNCONFIRMED};
use crate::options::Options;
use crate::sys;
use crate::tree;

/// How long the kernel may need to end a tree.
const END_WITHIN: Duration = Duration::from_secs(1);

/// From the guard to the keeper.
pub(crate) const KILL: u8 = b'K';
/// From the keeper to the guard: the worker's own end.
pub(crate) const EXITED: u8 = b'E';
/// From the keeper to the guard: the whole tree's end.
pub(crate) const GONE: u8 = b'G';

pub(crate) fn main(args: &[String]) -> i32 {
    let Some(o) = Options::parse(args) else { return 2 };
    let number = |name: &str| o.number(name).and_then(|n| i32::try_from(n).ok());
    let (Some(conn), Some(data), Some(worker)) = (number("conn"), number("data"), number("worker")) else { return 2 };
    let init = number("init").unwrap_or(0);
    sys::ignore_signals();
    sys::go_first();
    sys::become_subreaper();
    let (conn, data) = (sys::adopt(conn), sys::adopt(data));
    let Ok(pidfd) = sys::pidfd_open(worker) else { return end(&conn, worker, init) };
    loop {
        let [asked, ended, channel] = sys::poll(
            [Some(conn.as_raw_fd()), Some(pidfd.as_raw_fd()), Some(data.as_raw_fd())],
            [libc::POLLIN, libc::POLLIN, libc::POLLRDHUP],
            Duration::from_secs(3600),
        );
        if ended || channel {
            return end(&conn, worker, init);
        }
        if asked {
            match sys::receive_with(&conn) {
                Ok((message, _)) if message.first() == Some(&KILL) && message.len() == 5 => {
                    let grace = u32::from_be_bytes([message[1], message[2], message[3], message[4]]);
                    if grace > 0 {
                        sys::kill(-worker, libc::SIGTERM);
                        sys::poll([Some(pidfd.as_raw_fd())], [libc::POLLIN], Duration::from_millis(u64::from(grace)));
                    }
                    return end(&conn, worker, init);
                }
                // The guard is gone, and with it the node or its interest.
                _ => return end(&conn, worker, init),
            }
        }
    }
}

/// Kills everything, reaps to ECHILD, tells the guard.
fn end(conn: &std::os::fd::OwnedFd, worker: i32, init: i32) -> i32 {
    // The worker is our unreaped child, so its number and its group's are still its own.
    sys::kill(-worker, libc::SIGKILL);
    if init > 0 {
        // The kernel ends everything in the namespace before its pid 1.
        sys::kill(init, libc::SIGKILL);
    }
    let deadline = Instant::now() + END_WITHIN;
    let mut code = 0;
    let (count, all) = tree::end_all(
        deadline,
        |_| false,
        |r| {
            if r.pid == worker {
                code = r.signal.map_or(i32::from(r.code), |s| 128 + i32::from(s));
                let mut message = vec![EXITED, u8::from(r.signal.is_some()), r.signal.unwrap_or(r.code)];
                message.extend_from_slice(&r.peak_rss.to_be_bytes());
                message.extend_from_slice(&r.cpu_ms.to_be_bytes());
                let _ = sys::send_with(conn, &message, &[]);
            }
        },
    );
    let proof = match (all, init > 0) {
        (true, true) => PROOF_NAMESPACE,
        (true, false) => PROOF_DESCENDANTS,
        (false, _) => PROOF_UNCONFIRMED,
    };
    let mut message = vec![GONE, proof];
    message.extend_from_slice(&count.to_be_bytes());
    let _ = sys::send_with(conn, &message, &[]);
    code
}
