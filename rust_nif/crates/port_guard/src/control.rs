//! Messages to the node on descriptor 4, and its own on descriptor 3 (`{packet, 4}`).

use std::os::fd::RawFd;
use std::time::Instant;

use crate::sys;

/// The port: in and out.
pub(crate) const IN: RawFd = 3;
const OUT: RawFd = 4;
/// Longest line of log that is passed on.
const MAX_LINE: usize = 8 * 1024;
/// Lines a second that are passed on.
const MAX_LINES_PER_S: u32 = 200;
/// What the worker's faulthandler begins its dumps with.
const STACK_MARKS: [&[u8]; 3] = [b"Thread 0x", b"Current thread 0x", b"  File \""];

pub(crate) const PROOF_NAMESPACE: u8 = 1;
pub(crate) const PROOF_DESCENDANTS: u8 = 2;
pub(crate) const PROOF_UNCONFIRMED: u8 = 3;

fn frame(parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut data = Vec::with_capacity(4 + length);
    data.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    for part in parts {
        data.extend_from_slice(part);
    }
    // A node that no longer reads is gone, and its end of descriptor 3 says so.
    let _ = sys::write(OUT, &data);
}

pub(crate) fn up(host_pid: i32, mode: u8, layers: u16, why: &[u8]) {
    frame(&[&[16], &host_pid.to_be_bytes(), &[mode], &layers.to_be_bytes(), why]);
}

pub(crate) fn exited(signal: Option<u8>, code: u8, peak_rss: u64, cpu_ms: u64) {
    frame(&[&[17, u8::from(signal.is_some()), signal.unwrap_or(code)], &peak_rss.to_be_bytes(), &cpu_ms.to_be_bytes()]);
}

pub(crate) fn gone(proof: u8, reaped: u32, since: Instant, survivors: &[i32]) {
    let ms = u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX);
    let pids: Vec<u8> = survivors.iter().flat_map(|p| p.to_be_bytes()).collect();
    frame(&[&[18, proof], &reaped.to_be_bytes(), &ms.to_be_bytes(), &u16::try_from(survivors.len()).unwrap_or(0).to_be_bytes(), &pids]);
}

pub(crate) fn failed(error: &std::io::Error, step: &str) {
    frame(&[&[19], &error.raw_os_error().unwrap_or(0).to_be_bytes(), step.as_bytes()]);
}

pub(crate) fn limit(which: u8, value: u64, limit: u64) {
    frame(&[&[22, which], &value.to_be_bytes(), &limit.to_be_bytes()]);
}

pub(crate) fn ready(text: &[u8]) {
    frame(&[&[23], text]);
}

/// What the node asks.
pub(crate) enum Command {
    Kill(u32),
    Signal(i32),
}

/// Reads commands; None: the node is gone.
#[derive(Default)]
pub(crate) struct Commands(Vec<u8>);

impl Commands {
    pub(crate) fn read(&mut self) -> Option<Vec<Command>> {
        let data = sys::read(IN).ok().filter(|d| !d.is_empty())?;
        self.0.extend_from_slice(&data);
        let mut commands = Vec::new();
        while self.0.len() >= 4 {
            let length = u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]]) as usize;
            if self.0.len() < 4 + length {
                break;
            }
            match &self.0[4..4 + length] {
                [1, a, b, c, d] => commands.push(Command::Kill(u32::from_be_bytes([*a, *b, *c, *d]))),
                [2, signal] => commands.push(Command::Signal(i32::from(*signal))),
                _ => {}
            }
            self.0.drain(..4 + length);
        }
        Some(commands)
    }
}

/// Lines of a worker's stdout and stderr, capped in length and rate.
pub(crate) struct Log {
    line: Vec<u8>,
    second: Instant,
    lines: u32,
    dropped: u32,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self { line: Vec::new(), second: Instant::now(), lines: 0, dropped: 0 }
    }

    pub(crate) fn feed(&mut self, data: &[u8]) {
        for &byte in data {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.pass(&line);
            } else if self.line.len() < MAX_LINE {
                self.line.push(byte);
            }
        }
    }

    /// What stands without an end of line.
    pub(crate) fn flush(&mut self) {
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.pass(&line);
        }
    }

    fn pass(&mut self, line: &[u8]) {
        if STACK_MARKS.iter().any(|m| line.starts_with(m)) {
            frame(&[&[21], line, b"\n"]);
            return;
        }
        if self.second.elapsed().as_secs() >= 1 {
            if self.dropped > 0 {
                frame(&[&[20, 2], format!("{} lines were dropped: more than {MAX_LINES_PER_S} a second", self.dropped).as_bytes()]);
            }
            self.second = Instant::now();
            self.lines = 0;
            self.dropped = 0;
        }
        self.lines += 1;
        if self.lines > MAX_LINES_PER_S {
            self.dropped += 1;
        } else {
            frame(&[&[20, 1], line]);
        }
    }
}
