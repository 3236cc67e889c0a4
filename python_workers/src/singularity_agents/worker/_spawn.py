"""What happens between the fork of a zygote and the first line of a worker.

K, the zygote's child, makes the namespaces, starts their init, forks the worker W, tells the guard, and becomes the keeper by
exec. W takes its own descriptors, environment and limits, gives up every right, and runs. Both end with ``os._exit`` in every
path: an exception that returned into the zygote's loop would make a second zygote.
"""

from __future__ import annotations

import array
import os
import resource
import signal
import socket
import tempfile
from dataclasses import dataclass, field

from . import _linux
from ._door import open_door

#: Read by every worker beside what its guard allows: the system, without its secrets.
_SYSTEM_READ = [
    "/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ssl", "/etc/ca-certificates", "/etc/ld.so.cache", "/etc/localtime",
    "/etc/nsswitch.conf", "/etc/hosts", "/etc/resolv.conf", "/etc/passwd", "/etc/group", "/etc/mime.types",
    "/usr/share/zoneinfo", "/sys/devices/system/cpu", "/dev/random", "/dev/urandom",
]  # fmt: skip
_SYSTEM_WRITE = ["/dev/null", "/dev/zero", "/dev/full"]
#: Worth of being killed first when memory ends.
_OOM_SCORE = "800"
_DEFAULT_FILES = 4096

MODE_NAMESPACE, MODE_PLAIN = 1, 2
_LAYERS = {
    "user_namespace": 0, "pid_namespace": 1, "own_proc": 2, "landlock_fs": 3, "landlock_net": 4, "no_new_privs": 5,
    "capabilities_dropped": 6, "rlimits": 7, "oom_score": 8,
}  # fmt: skip


@dataclass
class Spec:
    """A SPAWN message."""

    guard: str = ""
    worker_id: str = ""
    mode: str = "auto"
    dir: str = "/"
    max_files: int = _DEFAULT_FILES
    max_file_size: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    write: list[str] = field(default_factory=list)
    connect: list[int] = field(default_factory=list)

    @classmethod
    def parse(cls, message: bytes) -> Spec:
        """Key and value in turn, each ended by a zero byte."""
        parts = [p.decode() for p in message.split(b"\0")[:-1]]
        spec = cls()
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            match key:
                case "guard":
                    spec.guard = value
                case "worker-id":
                    spec.worker_id = value
                case "mode":
                    spec.mode = value
                case "dir":
                    spec.dir = value
                case "max-files":
                    spec.max_files = int(value)
                case "max-file-size":
                    spec.max_file_size = int(value)
                case "env":
                    name, _, content = value.partition("=")
                    spec.env[name] = content
                case "allow-read":
                    spec.read.append(value)
                case "allow-write":
                    spec.write.append(value)
                case "allow-connect":
                    spec.connect.append(int(value))
        return spec


def become_keeper(conn: socket.socket, data_fd: int, log_fd: int, spec: Spec, framework: str) -> None:
    """In the zygote's child: never returns."""
    try:
        _keeper(conn, data_fd, log_fd, spec, framework)
    except BaseException as error:
        try:
            conn.send(b"X" + f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(1)


def _keeper(conn: socket.socket, data_fd: int, log_fd: int, spec: Spec, framework: str) -> None:
    os.setpgid(0, 0)
    _linux.prctl(_linux.PR_SET_CHILD_SUBREAPER, 1)
    layers, why = _namespaces(spec.mode)
    init_pid = 0
    if "pid_namespace" in layers:
        # The first process of a namespace is its pid 1, and the worker must not be that.
        init_pid = os.posix_spawn(spec.guard, ["port_guard", "init"], {})
    keeper = os.getpid()
    go_read, go_write = os.pipe()
    worker_pid = os.fork()
    if worker_pid == 0:
        os.close(go_write)
        _worker(go_read, data_fd, log_fd, spec, framework, keeper if not init_pid else 0)
    os.close(go_read)
    os.setpgid(worker_pid, worker_pid)
    pidfds = [os.pidfd_open(worker_pid)]
    mode = MODE_PLAIN
    if init_pid:
        pidfds.append(os.pidfd_open(init_pid))
        mode = MODE_NAMESPACE
    # What the worker will add by itself; it ends if one of these fails.
    layers |= {"no_new_privs", "capabilities_dropped", "rlimits", "oom_score"}
    if init_pid:
        layers.add("own_proc")
    abi = _linux.landlock_abi()
    if abi >= 1:
        layers.add("landlock_fs")
    if abi >= 4:
        layers.add("landlock_net")
    bits = sum(1 << _LAYERS[name] for name in layers)
    message = b"F" + bytes([mode]) + bits.to_bytes(2, "big") + why.encode()
    conn.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", pidfds))])
    os.close(log_fd)
    os.close(go_write)
    for fd in (conn.fileno(), data_fd):
        os.set_inheritable(fd, True)
    argv = [
        "port_guard",
        "keep",
        "--conn",
        str(conn.fileno()),
        "--data",
        str(data_fd),
        "--worker",
        str(worker_pid),
        "--init",
        str(init_pid),
    ]
    os.execve(spec.guard, argv, {})


def _namespaces(mode: str) -> tuple[set[str], str]:
    """Unshares as much as the kernel permits: (layers, why not more)."""
    if mode == "plain":
        return set(), "plain mode was asked for"
    try:
        _linux.unshare(_linux.CLONE_NEWPID | _linux.CLONE_NEWNS)
        _linux.make_mounts_private()
        return {"pid_namespace"}, ""
    except OSError as error:
        first = error
    uid, gid = os.getuid(), os.getgid()
    try:
        _linux.unshare(_linux.CLONE_NEWUSER | _linux.CLONE_NEWPID | _linux.CLONE_NEWNS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        _linux.make_mounts_private()
        return {"user_namespace", "pid_namespace"}, ""
    except OSError as error:
        return set(), f"no namespaces: {first}; {error}"


def _worker(go_fd: int, data_fd: int, log_fd: int, spec: Spec, framework: str, parent: int) -> None:
    try:
        os.setpgid(0, 0)
        _linux.prctl(_linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent and os.getppid() != parent:
            os._exit(1)
        if not parent:
            _linux.mount_proc()
        # The guard must know of us before we run: our end would else not be seen.
        os.read(go_fd, 1)
        _descriptors(data_fd, log_fd)
        _door(spec)
        _rights(spec, own_proc=not parent)
        from . import main

        main.run(3, spec.worker_id, framework)
    except BaseException as error:
        try:
            os.write(2, f"worker: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)
    os._exit(0)


def _descriptors(data_fd: int, log_fd: int) -> None:
    """0 nothing, 1 and 2 the log, 3 and 4 the data channel, and no other."""
    high = [os.dup(fd) for fd in (data_fd, log_fd)]
    high = [_above(fd) for fd in high]
    null = _above(os.open(os.devnull, os.O_RDONLY))
    for source, target in ((null, 0), (high[1], 1), (high[1], 2), (high[0], 3), (high[0], 4)):
        os.dup2(source, target)
    os.closerange(5, 65536)


def _door(spec: Spec) -> None:
    """Its port must be known before the rights are given up."""
    if (door := open_door()) is not None:
        spec.connect.append(door.port)
        spec.env.update(door.environment)


def _above(fd: int) -> int:
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD, 10)
    os.close(fd)
    return moved


def _rights(spec: Spec, *, own_proc: bool) -> None:
    for number in (signal.SIGPIPE, signal.SIGFPE, signal.SIGXFSZ, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.umask(0o077)
    os.chdir(spec.dir)
    os.environ.clear()
    os.environ.update(spec.env, HOME=spec.dir, TMPDIR=spec.dir, SINGULARITY_WORKER_ID=spec.worker_id)
    # Whoever asked for it in the zygote has fixed a folder for temporary files that this process may not write to.
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = spec.max_files if hard == resource.RLIM_INFINITY else min(spec.max_files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if spec.max_file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (spec.max_file_size, spec.max_file_size))
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write(_OOM_SCORE)
    _linux.prctl(_linux.PR_SET_NO_NEW_PRIVS, 1)
    proc = "/proc" if own_proc else f"/proc/{os.getpid()}"
    _linux.landlock(_SYSTEM_READ + spec.read + [proc], _SYSTEM_WRITE + spec.write, spec.connect)
    _linux.drop_capabilities()
