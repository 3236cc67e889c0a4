"""System calls that Python 3.11 does not have: namespaces, Landlock, capabilities. Linux only, ctypes only.

Everything is looked up at import, so that nothing is loaded between fork and exec.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

PR_SET_PDEATHSIG: Final = 1
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
_MS_REC_PRIVATE: Final = 16384 | (1 << 18)
_SYS_CAPSET: Final = 126
_LANDLOCK_CREATE: Final = 444
_LANDLOCK_ADD: Final = 445
_LANDLOCK_RESTRICT: Final = 446

_FS_EXECUTE, _FS_WRITE, _FS_READ, _FS_READ_DIR = 1, 2, 4, 8
_FS_READ_ALL: Final = _FS_EXECUTE | _FS_READ | _FS_READ_DIR
#: Rights of a plain file; directory rights on one are refused by the kernel.
_FS_OF_FILE: Final = _FS_EXECUTE | _FS_WRITE | _FS_READ | (1 << 14) | (1 << 15)
_NET_CONNECT: Final = 2
_SCOPE_ALL: Final = 3


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    """prctl(2); raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(third), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def unshare(flags: int) -> None:
    """unshare(2); raises OSError."""
    if _libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def make_mounts_private() -> None:
    """What is mounted below stays in this namespace; raises OSError."""
    if _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None) != 0:
        raise OSError(ctypes.get_errno(), "mount /")


def mount_proc() -> None:
    """A /proc of this PID namespace; raises OSError."""
    if _libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(2 | 4 | 8), None) != 0:
        raise OSError(ctypes.get_errno(), "mount /proc")


def drop_capabilities() -> None:
    """No capability is left, nor can one be gained; raises OSError."""
    prctl(PR_CAP_AMBIENT, 4)
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            break
    header = struct.pack("Ii", 0x20080522, 0)
    if _syscall(_SYS_CAPSET, header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def landlock_abi() -> int:
    """Version of Landlock that the kernel offers; 0: none."""
    return max(0, int(_syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))


def landlock(read: list[str], write: list[str], connect: list[int]) -> tuple[bool, bool]:
    """Restricts this process for good: what is not listed cannot be opened, no other TCP port be dialled.

    Gives which of (files, network) are restricted. Paths that do not exist are left out. Raises OSError.
    """
    abi = landlock_abi()
    if abi < 1:
        return False, False
    # Every right of the version: execute .. make_sym, refer (2), truncate (3), ioctl_dev (5).
    fs = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    net = _NET_CONNECT if abi >= 4 else 0
    attributes = struct.pack("QQQ", fs, net, _SCOPE_ALL if abi >= 6 else 0)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = int(_syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0))
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    try:
        for paths, rights in ((read, _FS_READ_ALL), (write, fs)):
            for path in paths:
                _allow(ruleset, path, rights & fs)
        for port in connect if net else []:
            if _syscall(_LANDLOCK_ADD, ruleset, 2, struct.pack("QQ", net, port), 0) != 0:
                raise OSError(ctypes.get_errno(), "landlock_add_rule")
        if _syscall(_LANDLOCK_RESTRICT, ruleset, 0) != 0:
            raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return True, bool(net)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _FS_OF_FILE
        if _syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, fd), 0) != 0:
            raise OSError(ctypes.get_errno(), f"landlock_add_rule {path}")
    finally:
        os.close(fd)
