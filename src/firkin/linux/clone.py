"""Making a process: clone, into new namespaces and a cgroup at once.

``os.fork`` can't pass flags, and a fork followed by ``unshare`` costs a second
process for the PID namespace. So the system call is made here, with the rules
that keep the interpreter whole in the child: the GIL is held throughout
(``PyDLL``), and the interpreter's own before- and after-fork work is done, as
``os.fork`` does it. Only a single-threaded process may call it.

Source: clone(2), Modules/posixmodule.c (os_fork_impl).
"""

from __future__ import annotations

import ctypes
import os
from time import perf_counter

from firkin.linux import libc

CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

_SIGCHLD = 17
_SYS_CLONE = 220 if os.uname().machine == "aarch64" else 56
_SYS_CLONE3 = 435

_python = ctypes.pythonapi
# PyDLL: the GIL stays held, so the child's copy of it is in a known state.
_raw_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_raw_syscall.restype = ctypes.c_long


class _CloneArgs(ctypes.Structure):
    """struct clone_args of include/uapi/linux/sched.h, as of Linux 5.7."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


def clone(flags: int, cgroup: int = -1) -> tuple[int, int]:
    """Fork a child into the new namespaces of *flags*.

    Args:
        flags: ``CLONE_NEW…`` flags, and ``CLONE_PARENT`` to make a sibling.
        cgroup: a directory descriptor of a cgroup v2 that the child is born
            in (``CLONE_INTO_CGROUP``), or -1.

    Returns:
        (0, -1) in the child; the child's pid and pidfd in the parent.

    Raises:
        OSError: as clone(2); EPERM and ENOSPC where user namespaces are
            forbidden or used up, ENOSYS where clone3 is needed and missing.
    """
    pidfd = ctypes.c_int(-1)
    shown = tuple(
        name for name, value in globals().items() if name[:6] == "CLONE_" and flags & value
    )
    started = perf_counter()
    arguments: tuple[object, ...]
    if cgroup < 0:
        # clone, not clone3, wherever it can do the job: seccomp profiles of
        # outer containers block clone3, whose flags they can't see.
        name = "clone"
        arguments = (
            ctypes.c_long(_SYS_CLONE),
            ctypes.c_ulong(flags | CLONE_PIDFD | _SIGCHLD),
            ctypes.c_void_p(None),
            ctypes.byref(pidfd),
            ctypes.c_void_p(None),
            ctypes.c_void_p(None),
        )
    else:
        name = "clone3"
        structure = _CloneArgs(
            flags=flags | CLONE_PIDFD | CLONE_INTO_CGROUP,
            pidfd=ctypes.addressof(pidfd),
            # A sibling inherits our own exit signal; clone3 refuses another one.
            exit_signal=0 if flags & CLONE_PARENT else _SIGCHLD,
            cgroup=cgroup,
        )
        size = ctypes.c_size_t(ctypes.sizeof(structure))
        arguments = (ctypes.c_long(_SYS_CLONE3), ctypes.byref(structure), size)

    _python.PyOS_BeforeFork()
    pid: int = _raw_syscall(*arguments)
    number = ctypes.get_errno()
    if pid == 0:
        _python.PyOS_AfterFork_Child()
        # Whoever listened to the parent listens in the parent.
        libc.listen(None)
        return 0, -1
    _python.PyOS_AfterFork_Parent()
    libc.tell(name, shown, pid if pid > 0 else OSError(number, os.strerror(number)), started)
    if pid < 0:
        raise OSError(number, os.strerror(number))
    return pid, pidfd.value


def fork() -> int:
    """Fork a plain child: ``os.fork``, kept here so that all forks are in one file."""
    pid: int = libc.via(os.fork)
    return pid
