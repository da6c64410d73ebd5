"""Mounting: mount(2) for file systems, the mount API's descriptors for trees.

A bind mount is made detached (``open_tree``), given its attributes while nobody
can see it (``mount_setattr``), and only then moved to its place
(``move_mount``), so that there is no moment at which a read-only bind is
writable and no second look-up of its path.

Source: mount(2), open_tree(2), move_mount(2), mount_setattr(2), pivot_root(2),
include/uapi/linux/mount.h.
"""

from __future__ import annotations

import ctypes
import errno
import os

from firkin.linux import libc

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_I_VERSION = 0x800000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

_MNT_DETACH = 2
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_AT_SYMLINK_NOFOLLOW = 0x100
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40

# The same numbers on every architecture: they came after the tables were unified.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_MOUNT_SETATTR = 442
_SYS_PIVOT_ROOT = 41 if os.uname().machine == "aarch64" else 155

_MS_NAMES = {value: name for name, value in globals().items() if name[:3] == "MS_"}
_ATTR_NAMES = {
    value: name
    for name, value in globals().items()
    if name[:11] == "MOUNT_ATTR_" and value and name != "MOUNT_ATTR__ATIME"
}

_mount = libc.function("mount", *[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = libc.function("umount2", ctypes.c_char_p, ctypes.c_int)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _names(bits: int, table: dict[int, str]) -> str:
    return "|".join(name for value, name in table.items() if bits & value) or "0"


def mount(
    source: str, target: str, fstype: str, flags: int, data: str = "", *, at: str = ""
) -> None:
    """Mount a file system, or change the propagation of a mount.

    Args:
        source: a device, folder or any word that the file system takes.
        target: where; often ``/proc/self/fd/N``, so that it is looked up once.
        fstype: the file system's type, or "" for binds and propagation.
        flags: ``MS_…`` flags.
        data: the file system's own options, separated by commas.
        at: what to call the target in messages, when *target* is a descriptor.

    Raises:
        OSError: as mount(2), with the target's name.
    """
    libc.call(
        "mount",
        _mount,
        source.encode(),
        os.fsencode(target),
        fstype.encode() or None,
        flags,
        os.fsencode(data) if data else None,
        path=at or target,
        shown=(source, at or target, fstype, _names(flags, _MS_NAMES), data)
        if libc.listener is not None
        else (),
    )


def umount_detach(target: str) -> None:
    """Take *target* and all below it out of the tree at once (``MNT_DETACH``)."""
    libc.call(
        "umount2",
        _umount2,
        os.fsencode(target),
        _MNT_DETACH,
        path=target,
        shown=(target, "MNT_DETACH"),
    )


def open_tree(source: str, *, recursive: bool, dirfd: int = _AT_FDCWD, follow: bool = True) -> int:
    """Make a detached copy of the mount tree at *source*, for moving into place.

    Args:
        source: a path, or "" for *dirfd* itself.
        recursive: take the mounts below it too.

    Returns:
        A descriptor of the detached tree, closed on exec.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    if recursive:
        flags |= _AT_RECURSIVE
    if not source:
        flags |= _AT_EMPTY_PATH
    if not follow:
        flags |= _AT_SYMLINK_NOFOLLOW
    return libc.syscall(
        "open_tree",
        _SYS_OPEN_TREE,
        dirfd,
        os.fsencode(source),
        flags,
        path=source,
        shown=(source or dirfd, "OPEN_TREE_CLONE" + ("|AT_RECURSIVE" if recursive else "")),
    )


def move_mount(tree: int, target: int, *, at: str) -> None:
    """Move a detached tree onto the file or folder that *target* is open on."""
    libc.syscall(
        "move_mount",
        _SYS_MOVE_MOUNT,
        tree,
        b"",
        target,
        b"",
        _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH,
        path=at,
        shown=(tree, at),
    )


def mount_setattr(
    tree: int,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
    at: str = "",
) -> None:
    """Change the attributes of the mount that *tree* is open on.

    Args:
        tree: a descriptor of the root of a mount.
        attr_set: ``MOUNT_ATTR_…`` to set.
        attr_clr: ``MOUNT_ATTR_…`` to clear; all of ``MOUNT_ATTR__ATIME`` when
            an access-time mode is set.
        propagation: one of MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE, or 0.
        userns_fd: the user namespace whose maps an ``MOUNT_ATTR_IDMAP`` takes.
        recursive: all mounts below it too.

    Raises:
        OSError: as mount_setattr(2); EPERM where an attribute is locked.
    """
    attributes = _MountAttr(attr_set, attr_clr, propagation, userns_fd)
    try:
        libc.syscall(
            "mount_setattr",
            _SYS_MOUNT_SETATTR,
            tree,
            b"",
            _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0),
            ctypes.byref(attributes),
            ctypes.sizeof(attributes),
            path=at,
            shown=(
                at or tree,
                "+" + _names(attr_set, _ATTR_NAMES),
                "-" + _names(attr_clr, _ATTR_NAMES),
                _names(propagation, _MS_NAMES),
                "AT_RECURSIVE" if recursive else "",
            )
            if libc.listener is not None
            else (),
        )
    except OSError as error:
        if error.errno == errno.ENOSYS:
            why = "this kernel lacks mount_setattr: Linux 5.12 is needed"
            raise OSError(error.errno, why, at) from None
        raise


def pivot_root(new_root: str, put_old: str) -> None:
    """Make *new_root* the root mount of this mount namespace."""
    libc.syscall(
        "pivot_root",
        _SYS_PIVOT_ROOT,
        os.fsencode(new_root),
        os.fsencode(put_old),
        path=new_root,
        shown=(new_root, put_old),
    )


def detached_tmpfs(options: str, attributes: int) -> int:
    """Make a tmpfs that is mounted nowhere yet, for :func:`move_mount`.

    Args:
        options: ``key=value`` pairs separated by commas, as tmpfs(5) has them.
        attributes: ``MOUNT_ATTR_…``.

    Returns:
        A descriptor of the detached mount, closed on exec.
    """
    context = libc.syscall("fsopen", _SYS_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC, path="tmpfs")
    try:
        for option in options.split(","):
            key, _, value = option.partition("=")
            libc.syscall(
                "fsconfig",
                _SYS_FSCONFIG,
                context,
                _FSCONFIG_SET_STRING,
                key.encode(),
                value.encode(),
                0,
                path="tmpfs",
                shown=(context, key, value),
            )
        libc.syscall(
            "fsconfig",
            _SYS_FSCONFIG,
            context,
            _FSCONFIG_CMD_CREATE,
            None,
            None,
            0,
            path="tmpfs",
            shown=(context, "FSCONFIG_CMD_CREATE"),
        )
        return libc.syscall(
            "fsmount", _SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes, path="tmpfs"
        )
    finally:
        os.close(context)
