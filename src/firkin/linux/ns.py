"""Namespaces: leaving one's own, joining others', and naming them.

Source: namespaces(7), unshare(2), setns(2), time_namespaces(7), sethostname(2).
"""

from __future__ import annotations

import ctypes
import os

from firkin.linux import libc
from firkin.linux.clone import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)

# The specification's name, the file in /proc/PID/ns, and the flag. The order is
# the one in which they are joined: the user namespace first, for it gives the
# rights over the others; the mount namespace last, for the paths to the others
# are gone after it.
NAMESPACES = (
    ("user", "user", CLONE_NEWUSER),
    ("cgroup", "cgroup", CLONE_NEWCGROUP),
    ("ipc", "ipc", CLONE_NEWIPC),
    ("uts", "uts", CLONE_NEWUTS),
    ("network", "net", CLONE_NEWNET),
    ("pid", "pid", CLONE_NEWPID),
    ("time", "time", CLONE_NEWTIME),
    ("mount", "mnt", CLONE_NEWNS),
)
FLAGS = {name: flag for name, _, flag in NAMESPACES}
_FLAG_NAMES = {
    name: "CLONE_NEWNS" if name == "mount" else f"CLONE_NEW{file.upper()}"
    for name, file, _ in NAMESPACES
}

_NS_GET_NSTYPE = 0xB703
_NS_GET_MNTNS_ID = 0x8008B705

_unshare = libc.function("unshare", ctypes.c_int)
_setns = libc.function("setns", ctypes.c_int, ctypes.c_int)
_sethostname = libc.function("sethostname", ctypes.c_char_p, ctypes.c_size_t)
_setdomainname = libc.function("setdomainname", ctypes.c_char_p, ctypes.c_size_t)
_ioctl = libc.function("ioctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)


def flag_names(flags: int) -> str:
    """Return *flags* as the kernel writes them, for people."""
    return "|".join(_FLAG_NAMES[n] for n, f in FLAGS.items() if flags & f) or "0"


def unshare(flags: int) -> None:
    """Move this process into new namespaces."""
    libc.call("unshare", _unshare, flags, shown=(flag_names(flags),))


def setns(fd: int, flag: int, path: str = "") -> None:
    """Join the namespace that *fd* names, which must be of the kind *flag*.

    Raises:
        OSError: EINVAL when it is of another kind, EPERM without rights over it.
    """
    libc.call("setns", _setns, fd, flag, path=path or None, shown=(path or fd, flag_names(flag)))


def open_namespace(path: str, flag: int) -> int:
    """Open the namespace file *path* and check that it is of the kind *flag*.

    Returns:
        A descriptor, closed on exec.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no namespace, or one of another kind.
    """
    # O_NONBLOCK: a FIFO in its place must not make us wait.
    fd: int = libc.via(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        kind = _ioctl(fd, _NS_GET_NSTYPE, 0)
        if kind == -1:
            raise ValueError("it is not a namespace")
        if kind != flag:
            raise ValueError(f"it is a namespace of another kind ({flag_names(kind)})")
    except ValueError:
        os.close(fd)
        raise
    return fd


def is_own(fd: int, kind: str) -> bool:
    """Whether *fd* is the namespace of type *kind*, by the specification's name, that we are in."""
    file = next(file for name, file, _ in NAMESPACES if name == kind)
    return os.path.samestat(os.fstat(fd), os.stat(f"/proc/self/ns/{file}"))


def mount_namespace_id(process: int | str) -> int:
    """Return the id of a process's mount namespace; unlike the inode's, never used again.

    Args:
        process: a pid, or ``self``.

    Returns:
        0 where the kernel has no such ids (before Linux 6.11).

    Raises:
        OSError: there is no such process, or it is not ours to look at.
    """
    found = ctypes.c_uint64(0)
    fd = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _ioctl(fd, _NS_GET_MNTNS_ID, ctypes.addressof(found)) == -1:
            return 0
    finally:
        os.close(fd)
    return found.value


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace."""
    data = name.encode()
    libc.call("sethostname", _sethostname, data, len(data), shown=(name,))


def setdomainname(name: str) -> None:
    """Set the NIS domain name of this UTS namespace."""
    data = name.encode()
    libc.call("setdomainname", _setdomainname, data, len(data), shown=(name,))
