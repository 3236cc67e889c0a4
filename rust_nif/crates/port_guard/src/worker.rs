//! Mode `worker`: the guard of one worker.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use crate::control::{self, Command, Commands, IN, Log, PROOF_NAMESPACE, PROOF_UNCONFIRMED};
use crate::keeper::{EXITED, GONE, KILL};
use crate::options::Options;
use crate::sys;
use crate::tree;

/// Between two looks at memory and processes.
const WATCHDOG: Duration = Duration::from_millis(100);
/// A keeper that has not answered by then may be stopped.
const KEEPER_ANSWERS: Duration = Duration::from_millis(200);
/// Without a proof by then the end is unconfirmed.
const PROOF_WITHIN: Duration = Duration::from_secs(1);

const EXIT_UNCONFIRMED: i32 = 121;
const EXIT_FAILED: i32 = 124;
const EXIT_NO_ZYGOTE: i32 = 125;

pub(crate) fn main(args: &[String]) -> i32 {
    sys::die_with_parent();
    sys::ignore_signals();
    sys::go_first();
    let Some(o) = Options::parse(args) else { return 2 };
    match start(&o) {
        Ok(guard) => guard.watch(),
        Err((step, e)) => {
            control::failed(&e, step);
            if step == "zygote" { EXIT_NO_ZYGOTE } else { EXIT_FAILED }
        }
    }
}

type Failure = (&'static str, std::io::Error);

/// Hands the data channel and a log pipe to the zygote, which forks.
fn start(o: &Options) -> Result<Guard, Failure> {
    let missing = || std::io::Error::from_raw_os_error(libc::EINVAL);
    let data = UnixStream::connect(o.get("data").ok_or_else(|| ("arguments", missing()))?).map_err(|e| ("data", e))?;
    let conn = sys::connect_seqpacket(o.get("zygote").ok_or_else(|| ("arguments", missing()))?).map_err(|e| ("zygote", e))?;
    let (log, log_end) = sys::pipe().map_err(|e| ("log", e))?;
    let program = std::env::current_exe().map_err(|e| ("program", e))?;
    let mut spawn = Vec::new();
    let mut put = |key: &str, value: &str| {
        for part in [key, value] {
            spawn.extend_from_slice(part.as_bytes());
            spawn.push(0);
        }
    };
    put("guard", &program.to_string_lossy());
    for key in ["worker-id", "mode", "dir", "max-files", "max-file-size"] {
        if let Some(value) = o.get(key) {
            put(key, value);
        }
    }
    for key in ["env", "allow-read", "allow-write", "allow-connect"] {
        for value in o.all(key) {
            put(key, value);
        }
    }
    sys::send_with(&conn, &spawn, &[data.as_raw_fd(), log_end.as_raw_fd()]).map_err(|e| ("spawn", e))?;
    Ok(Guard {
        conn,
        log,
        lines: Log::new(),
        commands: Commands::default(),
        worker: None,
        init: None,
        pids: [0, 0],
        max_memory: o.number("max-memory").and_then(|n| u64::try_from(n).ok()).unwrap_or(u64::MAX),
        max_processes: o.number("max-processes").and_then(|n| u64::try_from(n).ok()).unwrap_or(u64::MAX),
        measured: None,
        killing: None,
        code: 0,
    })
}

struct Guard {
    conn: OwnedFd,
    log: OwnedFd,
    lines: Log,
    commands: Commands,
    worker: Option<OwnedFd>,
    init: Option<OwnedFd>,
    pids: [i32; 2],
    max_memory: u64,
    max_processes: u64,
    /// The tree's memory, while it is being asked for.
    measured: Option<Receiver<u64>>,
    /// Since when, with which grace, and whether we had to do it ourselves.
    killing: Option<(Instant, Duration, bool)>,
    code: i32,
}

impl Guard {
    fn watch(mut self) -> i32 {
        let mut looked = Instant::now();
        let mut log_open = true;
        loop {
            let [node, keeper, log, init] = sys::poll(
                [
                    Some(IN),
                    Some(self.conn.as_raw_fd()),
                    log_open.then(|| self.log.as_raw_fd()),
                    self.killing.and(self.init.as_ref().map(AsRawFd::as_raw_fd)),
                ],
                [libc::POLLIN; 4],
                self.pause(),
            );
            if log {
                match sys::read(self.log.as_raw_fd()) {
                    Ok(data) if !data.is_empty() => self.lines.feed(&data),
                    _ => log_open = false,
                }
            }
            if keeper && let Some(code) = self.keeper_says() {
                return code;
            }
            if node {
                match self.commands.read() {
                    // The keeper sees our end and cleans up.
                    None => return 0,
                    Some(commands) => commands.into_iter().for_each(|c| self.command(&c)),
                }
            }
            if let Some((since, grace, own)) = self.killing {
                if init && own {
                    return self.gone(PROOF_NAMESPACE, 0, since);
                }
                if let Some(code) = self.overdue(since, grace, own) {
                    return code;
                }
            } else if self.worker.is_some() && looked.elapsed() >= WATCHDOG {
                looked = Instant::now();
                self.limits();
            }
        }
    }

    fn pause(&self) -> Duration {
        match self.killing {
            Some(_) => Duration::from_millis(20),
            None => WATCHDOG,
        }
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::Kill(grace) => self.kill(*grace),
            Command::Signal(signal) => {
                if let Some(worker) = &self.worker {
                    sys::pidfd_signal(worker, *signal);
                }
            }
        }
    }

    fn kill(&mut self, grace: u32) {
        if self.killing.is_none() {
            self.killing = Some((Instant::now(), Duration::from_millis(u64::from(grace)), false));
            let mut message = vec![KILL];
            message.extend_from_slice(&grace.to_be_bytes());
            let _ = sys::send_with(&self.conn, &message, &[]);
        }
    }

    /// A message of the zygote's child or of the keeper; Some: the end.
    fn keeper_says(&mut self) -> Option<i32> {
        let (message, mut fds) = sys::receive_with(&self.conn).unwrap_or_default();
        match message.split_first() {
            Some((b'F', rest)) => {
                // FORKED: mode, layers, why not more; pidfds of the worker and, with a namespace, of its init.
                let (mode, layers) = (rest.first().copied().unwrap_or(2), rest.get(1..3).map_or(0, |l| u16::from_be_bytes([l[0], l[1]])));
                if fds.len() > 1 {
                    self.init = fds.pop();
                }
                self.worker = fds.pop();
                self.pids = [self.worker.as_ref().map_or(0, sys::pidfd_pid), self.init.as_ref().map_or(0, sys::pidfd_pid)];
                control::up(self.pids[0], mode, layers, rest.get(3..).unwrap_or_default());
                None
            }
            Some((b'X', why)) => {
                control::failed(&std::io::Error::from_raw_os_error(libc::ECANCELED), &String::from_utf8_lossy(why));
                Some(EXIT_FAILED)
            }
            Some((&EXITED, rest)) if rest.len() == 18 => {
                let n = |r: &[u8]| u64::from_be_bytes([r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]]);
                let signal = (rest[0] == 1).then_some(rest[1]);
                self.code = signal.map_or(i32::from(rest[1]), |s| 128 + i32::from(s));
                self.drain_log();
                control::exited(signal, rest[1], n(&rest[2..10]), n(&rest[10..18]));
                self.killing.get_or_insert((Instant::now(), Duration::ZERO, false));
                None
            }
            Some((&GONE, [proof, a, b, c, d])) => {
                let since = self.killing.map_or_else(Instant::now, |k| k.0);
                Some(self.gone(*proof, u32::from_be_bytes([*a, *b, *c, *d]), since))
            }
            _ => self.keeper_ended(),
        }
    }

    /// The keeper is gone without a word: with a namespace we end it ourselves; else nobody can prove anything.
    fn keeper_ended(&mut self) -> Option<i32> {
        let Some(worker) = &self.worker else {
            control::failed(&std::io::Error::from_raw_os_error(libc::ECHILD), "the zygote did not fork");
            return Some(EXIT_NO_ZYGOTE);
        };
        let since = Instant::now();
        sys::pidfd_signal(worker, libc::SIGKILL);
        let Some(init) = &self.init else { return Some(self.gone(PROOF_UNCONFIRMED, 0, since)) };
        sys::pidfd_signal(init, libc::SIGKILL);
        let [ended] = sys::poll([Some(init.as_raw_fd())], [libc::POLLIN], PROOF_WITHIN);
        Some(self.gone(if ended { PROOF_NAMESPACE } else { PROOF_UNCONFIRMED }, 0, since))
    }

    /// A keeper that does not answer may be stopped: with a namespace its init is ended from here.
    fn overdue(&mut self, since: Instant, grace: Duration, own: bool) -> Option<i32> {
        let late = since.elapsed().saturating_sub(grace);
        if late >= PROOF_WITHIN {
            return Some(self.gone(PROOF_UNCONFIRMED, 0, since));
        }
        if late >= KEEPER_ANSWERS && !own {
            self.killing = Some((since, grace, true));
            for pidfd in [&self.worker, &self.init].into_iter().flatten() {
                sys::pidfd_signal(pidfd, libc::SIGKILL);
            }
            // A namespace does not end while a stopped keeper has not reaped the worker: without the keeper, the zygote's guard does.
            let keeper = tree::parent(self.pids[0]);
            if let Ok(pidfd) = sys::pidfd_open(keeper)
                && tree::is_keeper(keeper)
            {
                sys::pidfd_signal(&pidfd, libc::SIGKILL);
            }
        }
        None
    }

    fn gone(&mut self, proof: u8, reaped: u32, since: Instant) -> i32 {
        self.drain_log();
        let alive =
            |p: &i32| *p > 0 && std::fs::read_to_string(format!("/proc/{p}/stat")).is_ok_and(|s| !s.contains(") Z") && !s.contains(") X"));
        let survivors: Vec<i32> = if proof == PROOF_UNCONFIRMED { self.pids.iter().copied().filter(alive).collect() } else { Vec::new() };
        control::gone(proof, reaped, since, &survivors);
        if proof == PROOF_UNCONFIRMED { EXIT_UNCONFIRMED } else { self.code }
    }

    /// The last words of a worker that ended.
    fn drain_log(&mut self) {
        while sys::poll([Some(self.log.as_raw_fd())], [libc::POLLIN], Duration::ZERO)[0] {
            match sys::read(self.log.as_raw_fd()) {
                Ok(data) if !data.is_empty() => self.lines.feed(&data),
                _ => break,
            }
        }
        self.lines.flush();
    }

    fn limits(&mut self) {
        // The namespace's init is ours, not the worker's.
        let ours = u64::from(self.init.is_some());
        let most = self.max_processes.saturating_add(ours);
        let pids = tree::members(&self.pids, usize::try_from(most).unwrap_or(usize::MAX));
        let count = (pids.len() as u64).saturating_sub(ours);
        // Processes first: each of a bomb's counts the memory that it shares with all others.
        if count > self.max_processes {
            control::limit(2, count, self.max_processes);
            self.kill(0);
            return;
        }
        match self.measured.as_ref().map(Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => {}
            Some(Ok(bytes)) if bytes > self.max_memory => {
                control::limit(1, bytes, self.max_memory);
                self.kill(0);
            }
            _ if tree::resident(&pids) > self.max_memory / 5 * 4 => {
                // Aside: the question waits for a lock that a process which forks all the time hardly ever gives back, and a bomb must be seen.
                let (say, measured) = channel();
                let asked = std::thread::Builder::new().spawn(move || say.send(tree::proportional(&pids)));
                self.measured = asked.is_ok().then_some(measured);
            }
            _ => self.measured = None,
        }
    }
}
