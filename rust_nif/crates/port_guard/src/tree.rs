//! Process trees by /proc, and the end of everything below us.

use std::time::{Duration, Instant};

use crate::sys::{self, Reaped, Wait};

/// Between two looks while waiting for children to end.
const PAUSE: Duration = Duration::from_millis(1);

/// Direct children of a process.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let mut all = Vec::new();
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return all };
    for thread in threads.flatten() {
        let list = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        all.extend(list.split_whitespace().filter_map(|p| p.parse::<i32>().ok()));
    }
    all
}

/// Processes at and below these, each before its children. A bomb is seen long before all of it is counted: it grows faster than it could
/// be, so no more than `most` and some are looked for.
pub(crate) fn members(roots: &[i32], most: usize) -> Vec<i32> {
    let mut found: Vec<i32> = roots.iter().copied().filter(|p| *p > 0).collect();
    let mut next = 0;
    while next < found.len() && found.len() <= most {
        found.extend(children(found[next]));
        next += 1;
    }
    found
}

/// Resident bytes of processes; what they share counts once for each of them.
pub(crate) fn resident(pids: &[i32]) -> u64 {
    let pages = |pid: &i32| -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        statm.split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0)
    };
    pids.iter().map(|pid| pages(pid) * 4096).sum()
}

/// Their bytes with what is shared divided among those that share it, which takes a hundred times as long to ask; a process that does not say
/// counts as resident.
pub(crate) fn proportional(pids: &[i32]) -> u64 {
    let bytes = |pid: &i32| -> u64 {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let said = rollup.lines().find_map(|l| l.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<u64>().ok());
        said.map_or_else(|| resident(&[*pid]), |kib| kib * 1024)
    };
    pids.iter().map(bytes).sum()
}

/// Parent of a process, dead or alive; 0 if it is reaped.
pub(crate) fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// Whether a process is a keeper of ours: it ends by itself.
pub(crate) fn is_keeper(pid: i32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|b| *b == 0);
    words.next().is_some_and(|w| w.ends_with(b"port_guard")) && words.next() == Some(b"keep")
}

/// Kills and reaps every descendant until there is none (ECHILD): orphans become our children, since we are their subreaper, so each pass
/// finds what the last one orphaned. Only unreaped children are signalled, so no number can have been reused. Gives how many were
/// reaped, and whether all are gone.
pub(crate) fn end_all(deadline: Instant, spare: impl Fn(i32) -> bool, mut reaped: impl FnMut(&Reaped)) -> (u32, bool) {
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    let mut count = 0;
    loop {
        let (mut left, mut spared) = (0, 0);
        for pid in children(me) {
            if spare(pid) {
                spared += 1;
            } else {
                sys::kill(pid, libc::SIGKILL);
                left += 1;
            }
        }
        loop {
            match sys::reap() {
                Wait::Reaped(r) => {
                    count += 1;
                    reaped(&r);
                }
                // The kernel's list of children may miss some while others end: without spared ones only ECHILD is a proof.
                Wait::None if left == 0 && spared > 0 => return (count, true),
                Wait::None => break,
                Wait::NoChildren => return (count, true),
            }
        }
        if Instant::now() >= deadline {
            return (count, false);
        }
        std::thread::sleep(PAUSE);
    }
}
