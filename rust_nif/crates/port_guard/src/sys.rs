//! Thin wrappers of system calls. Descriptors given to them belong to this program for its whole life.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Longest message on the zygote's socket.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The kernel kills us when our parent ends: SIGKILL, since a stopped process handles nothing else.
pub(crate) fn die_with_parent() {
    // SAFETY: prctl with integers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
}

/// Whoever ends a tree must get the processor before hundreds of processes of it. Without the right to it things stay as they are.
pub(crate) fn go_first() {
    // SAFETY: setpriority with integers only.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) };
}

/// Orphans below us become our children.
pub(crate) fn become_subreaper() {
    // SAFETY: prctl with integers only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Ignores what a terminal or an operator may send: the node ends us by closing our port.
pub(crate) fn ignore_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: SIG_IGN is a valid disposition for each of them.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: kill takes integers; a pid that is gone gives ESRCH.
    unsafe { libc::kill(pid, signal) };
}

pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes integers and gives a new descriptor, which is ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    #[allow(clippy::cast_possible_truncation)]
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

pub(crate) fn pidfd_signal(pidfd: &OwnedFd, signal: i32) {
    // SAFETY: a null siginfo is allowed; the descriptor is a pidfd of ours.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0) };
}

/// Host pid behind a pidfd, from `/proc/self/fdinfo`; 0 when it has ended.
pub(crate) fn pidfd_pid(pidfd: &OwnedFd) -> i32 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap_or_default();
    info.lines().find_map(|l| l.strip_prefix("Pid:")).and_then(|v| v.trim().parse().ok()).filter(|p| *p > 0).unwrap_or(0)
}

/// What `wait4` said of a child.
pub(crate) struct Reaped {
    pub(crate) pid: i32,
    pub(crate) signal: Option<u8>,
    pub(crate) code: u8,
    pub(crate) peak_rss: u64,
    pub(crate) cpu_ms: u64,
}

pub(crate) enum Wait {
    Reaped(Reaped),
    None,
    NoChildren,
}

/// Reaps one child that has ended, without waiting.
pub(crate) fn reap() -> Wait {
    let mut status = 0;
    // SAFETY: rusage is plain data, valid when zeroed, and both pointers are ours for the call.
    let (pid, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage), usage)
    };
    match pid {
        0 => Wait::None,
        p if p < 0 => Wait::NoChildren,
        pid => {
            let ms = |t: libc::timeval| u64::try_from(t.tv_sec * 1000 + t.tv_usec / 1000).unwrap_or(0);
            let signal = libc::WIFSIGNALED(status).then(|| u8::try_from(libc::WTERMSIG(status)).unwrap_or(0));
            Wait::Reaped(Reaped {
                pid,
                signal,
                code: u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(255),
                peak_rss: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
                cpu_ms: ms(usage.ru_utime) + ms(usage.ru_stime),
            })
        }
    }
}

/// Waits until one of the descriptors has something, at most so long; true for each that has.
pub(crate) fn poll<const N: usize>(fds: [Option<RawFd>; N], events: [i16; N], at_most: Duration) -> [bool; N] {
    let mut polled = [libc::pollfd { fd: -1, events: 0, revents: 0 }; N];
    for i in 0..N {
        polled[i] = libc::pollfd { fd: fds[i].unwrap_or(-1), events: events[i], revents: 0 };
    }
    let ms = i32::try_from(at_most.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the array holds N entries and lives through the call.
    let n = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, ms) };
    let mut ready = [false; N];
    if n > 0 {
        for i in 0..N {
            ready[i] = polled[i].revents != 0;
        }
    }
    ready
}

/// A connected `SOCK_SEQPACKET` socket.
pub(crate) fn connect_seqpacket(path: &str) -> io::Result<OwnedFd> {
    // SAFETY: socket takes integers; the descriptor it gives is ours.
    let fd = unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0))?) };
    // SAFETY: sockaddr_un is plain data, valid when zeroed.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if path.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(path.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the address is initialised and its length given.
    check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_un>() as libc::socklen_t) })?;
    Ok(fd)
}

/// Sends one message with descriptors.
pub(crate) fn send_with(fd: &OwnedFd, data: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut control = [0u64; 16];
    // SAFETY: msghdr is plain data; every pointer in it lives through the call, and the control buffer is aligned and large
    // enough for up to four descriptors.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        if !fds.is_empty() {
            let bytes = std::mem::size_of_val(fds) as u32;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes) as usize;
            std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), bytes as usize);
        }
        if libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// One message and its descriptors; empty: the other side is gone.
pub(crate) fn receive_with(fd: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut data = vec![0u8; MAX_MESSAGE];
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let mut control = [0u64; 16];
    let mut fds = Vec::new();
    // SAFETY: as in `send_with`; descriptors that arrive are ours from then on.
    let n = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let n = libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*header).cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                let first = libc::CMSG_DATA(header).cast::<RawFd>();
                for i in 0..count {
                    fds.push(OwnedFd::from_raw_fd(first.add(i).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        n
    };
    data.truncate(usize::try_from(n).unwrap_or(0));
    Ok((data, fds))
}

/// A pipe; neither end survives an exec.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for two descriptors, which are ours.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// What is there to read, at most 64 KiB; empty: end of file.
pub(crate) fn read(fd: RawFd) -> io::Result<Vec<u8>> {
    let mut data = vec![0u8; MAX_MESSAGE];
    // SAFETY: the buffer has the length that is given.
    let n = unsafe { libc::read(fd, data.as_mut_ptr().cast(), data.len()) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    data.truncate(usize::try_from(n).unwrap_or(0));
    Ok(data)
}

/// Writes all of it.
pub(crate) fn write(fd: RawFd, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        // SAFETY: the buffer has the length that is given.
        let n = unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) };
        match usize::try_from(n) {
            Ok(n) => data = &data[n..],
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    }
    Ok(())
}

/// Owns a descriptor that was inherited by number.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: our parent gave us this descriptor on the command line, and nobody else in this process knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
