//! Mode `probe`: which isolation layers work here, a line each, for `singularity doctor`.

/// Tries a thing in a child of its own, so that nothing sticks.
fn in_child(f: impl FnOnce() -> i32) -> Result<(), i32> {
    // SAFETY: this program has one thread; the child makes system calls and ends by _exit.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(f()),
            pid if pid > 0 => {
                let mut status = 0;
                libc::waitpid(pid, &raw mut status, 0);
                let code = libc::WEXITSTATUS(status);
                if libc::WIFEXITED(status) && code == 0 { Ok(()) } else { Err(code) }
            }
            _ => Err(libc::EAGAIN),
        }
    }
}

fn unshare(flags: i32) -> i32 {
    // SAFETY: unshare takes flags only.
    if unsafe { libc::unshare(flags) } == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(1) }
}

fn landlock_abi() -> i64 {
    // SAFETY: with the VERSION flag the attribute must be null and its size 0.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, 1u32) }
}

fn line(name: &str, result: Result<(), i32>) {
    match result {
        Ok(()) => println!("{name}=yes"),
        Err(errno) => println!("{name}=no {}", std::io::Error::from_raw_os_error(errno)),
    }
}

pub(crate) fn main() -> i32 {
    let spaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    let privileged = in_child(|| unshare(spaces));
    line("user_namespace", in_child(|| unshare(libc::CLONE_NEWUSER | spaces)));
    line("pid_namespace", privileged.or_else(|_| in_child(|| unshare(libc::CLONE_NEWUSER | spaces))));
    let abi = landlock_abi();
    line("landlock_fs", if abi >= 1 { Ok(()) } else { Err(libc::ENOSYS) });
    line("landlock_net", if abi >= 4 { Ok(()) } else { Err(libc::ENOSYS) });
    line("no_new_privs", Ok(()));
    println!("landlock_abi={}", abi.max(0));
    0
}
