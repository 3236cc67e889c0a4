//! Mode `run`: guards one program (a zygote, the local model's server) and its tree.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::control::{self, Command as Asked, Commands, IN, Log, PROOF_DESCENDANTS, PROOF_UNCONFIRMED};
use crate::options::Options;
use crate::sys::{self, Wait};
use crate::tree;

/// Strays of workers whose keeper was killed are looked for so often.
const SWEEP: Duration = Duration::from_millis(50);
const END_WITHIN: Duration = Duration::from_secs(1);
/// How the mode is named in UP.
const MODE_RUN: u8 = 3;
/// Descriptor on which the program says that it is ready.
const READY_FD: i32 = 5;

pub(crate) fn main(args: &[String]) -> i32 {
    sys::die_with_parent();
    sys::ignore_signals();
    sys::become_subreaper();
    let Some(o) = Options::parse(args).filter(|o| !o.rest.is_empty()) else { return 2 };
    let started = start(&o);
    match started {
        Ok(run) => run.watch(),
        Err(e) => {
            control::failed(&e, "exec");
            124
        }
    }
}

struct Run {
    pid: i32,
    log: OwnedFd,
    ready: Option<OwnedFd>,
    lines: Log,
    commands: Commands,
}

fn start(o: &Options) -> std::io::Result<Run> {
    let (log, log_end) = sys::pipe()?;
    let (ready, ready_end) = sys::pipe()?;
    let mut command = Command::new(&o.rest[0]);
    command.args(&o.rest[1..]).env_clear().stdin(Stdio::null()).stdout(log_end.try_clone()?).stderr(log_end);
    for pair in o.all("env") {
        if let Some((name, value)) = pair.split_once('=') {
            command.env(name, value);
        }
    }
    // Secrets stand in our environment, never among the arguments that everybody may read.
    for name in o.all("env-of") {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("SINGULARITY_READY_FD", READY_FD.to_string());
    if let Some(dir) = o.get("dir") {
        command.current_dir(dir);
    }
    let end = ready_end.as_raw_fd();
    // SAFETY: between fork and exec only system calls with integers are made; nothing allocates.
    unsafe {
        command.pre_exec(move || {
            libc::setpgid(0, 0);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2, libc::SIGFPE] {
                libc::signal(signal, libc::SIG_DFL);
            }
            // The port's descriptors stay with us.
            libc::close(3);
            libc::close(4);
            if libc::dup2(end, READY_FD) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            libc::syscall(libc::SYS_close_range, 6u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            Ok(())
        });
    }
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    control::up(pid, MODE_RUN, 0, b"");
    Ok(Run { pid, log, ready: Some(ready), lines: Log::new(), commands: Commands::default() })
}

impl Run {
    fn watch(mut self) -> i32 {
        let (mut log_open, mut said) = (true, Vec::new());
        loop {
            let [node, log, ready] = sys::poll(
                [Some(IN), log_open.then(|| self.log.as_raw_fd()), self.ready.as_ref().map(AsRawFd::as_raw_fd)],
                [libc::POLLIN; 3],
                SWEEP,
            );
            if log {
                match sys::read(self.log.as_raw_fd()) {
                    Ok(data) if !data.is_empty() => self.lines.feed(&data),
                    _ => log_open = false,
                }
            }
            if ready {
                match self.ready.as_ref().map(|fd| sys::read(fd.as_raw_fd())) {
                    Some(Ok(data)) if !data.is_empty() => {
                        said.extend_from_slice(&data);
                        if let Some(end) = said.iter().position(|b| *b == b'\n') {
                            control::ready(&said[..end]);
                            self.ready = None;
                        }
                    }
                    _ => self.ready = None,
                }
            }
            if node {
                match self.commands.read() {
                    None => return self.end(Duration::ZERO),
                    Some(commands) => {
                        for command in commands {
                            match command {
                                Asked::Kill(grace) => return self.end(Duration::from_millis(u64::from(grace))),
                                Asked::Signal(signal) => sys::kill(self.pid, signal),
                            }
                        }
                    }
                }
            }
            if let Some(code) = self.sweep() {
                return code;
            }
        }
    }

    /// Reaps; kills children that are neither the program nor a keeper: what a keeper that was killed left behind.
    fn sweep(&mut self) -> Option<i32> {
        while let Wait::Reaped(r) = sys::reap() {
            if r.pid == self.pid {
                self.lines.flush();
                control::exited(r.signal, r.code, r.peak_rss, r.cpu_ms);
                self.pid = 0;
                let code = self.end(Duration::ZERO);
                return Some(if code == 0 { r.signal.map_or(i32::from(r.code), |s| 128 + i32::from(s)) } else { code });
            }
        }
        let me = i32::try_from(std::process::id()).unwrap_or(0);
        for pid in tree::children(me) {
            if pid != self.pid && !tree::is_keeper(pid) {
                sys::kill(pid, libc::SIGKILL);
            }
        }
        None
    }

    /// TERM, grace, KILL, proof. Keepers are spared: they belong to workers that may live on, and end by themselves.
    fn end(&mut self, grace: Duration) -> i32 {
        let since = Instant::now();
        if self.pid > 0 {
            if !grace.is_zero() {
                sys::kill(-self.pid, libc::SIGTERM);
                let until = since + grace;
                while Instant::now() < until && std::path::Path::new(&format!("/proc/{}/task", self.pid)).exists() && !is_zombie(self.pid) {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            sys::kill(-self.pid, libc::SIGKILL);
        }
        let (count, all) = tree::end_all(Instant::now() + END_WITHIN, tree::is_keeper, |_| {});
        control::gone(if all { PROOF_DESCENDANTS } else { PROOF_UNCONFIRMED }, count, since, &[]);
        if all { 0 } else { 121 }
    }
}

fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z"))
}
