"""Paths inside a container's root, resolved against whatever its contents do.

A root's contents are hostile: any component may be a symbolic link to anywhere,
and may be exchanged for one while we look. So a path is never joined as a
string and never handed to a call that would follow its links from the host's
root. The kernel resolves it (``openat2`` with ``RESOLVE_IN_ROOT`` and
``RESOLVE_NO_MAGICLINKS``, openat2(2)); where that call is missing or a seccomp
filter blocks it, :func:`_walk` opens one component at a time without following
links and expands the links itself, as a chroot would: an absolute link starts
again at the root, and ``..`` at the root stays there.

With *beneath* set, what a chroot would clamp is an error instead (``EXDEV``):
an absolute path or link, or ``..`` above the root.
"""

from __future__ import annotations

import errno
import os
import stat
from ctypes import c_char, c_int, create_string_buffer
from struct import pack, unpack_from

from firkin.linux import libc

# The same number on every architecture, as for all calls since Linux 5.1.
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_RESOLVE_IN_ROOT = 0x10

# As the kernel's MAXSYMLINKS, so that both ways refuse the same paths.
_MAX_LINKS = 40
_PATH_MAX = 4096
# openat2 gives EAGAIN when a rename or mount anywhere meets a ".."; runc tries as often.
_ATTEMPTS = 128
_PROC_SUPER_MAGIC = 0x9FA0

_fstatfs = libc.function("fstatfs", c_int, c_char * 256)

# Whether openat2 is missing or blocked here; None until the first call has told.
_blocked: bool | None = None


def open_in_root(
    root_fd: int, path: str, flags: int, mode: int = 0, *, beneath: bool = False
) -> int:
    """Open *path* as a process would whose root directory is *root_fd*.

    Args:
        root_fd: the root, any descriptor of a directory (``O_PATH`` is enough).
        path: absolute or relative, both from the root.
        flags: as for open(2); ``O_CLOEXEC`` is added.
        mode: permission bits of a file that ``O_CREAT`` makes.
        beneath: refuse what would have to be clamped at the root (``EXDEV``).

    Raises:
        OSError: as open(2) and openat2(2): ``ELOOP`` for more than 40 links or a
            magic link of procfs, ``EXDEV`` for a directory that was moved out of
            the root meanwhile, ``EAGAIN`` when the tree never holds still.
    """
    _check(path)
    if not _blocked:
        try:
            return _openat2(root_fd, path, flags, mode, beneath)
        except OSError as error:
            if not _is_blocked(root_fd, error):
                raise
    return _open_by_walk(root_fd, path, flags, mode, beneath, make=None)


def make_in_root(
    root_fd: int, path: str, kind: str = "dir", mode: int = 0o755, *, beneath: bool = False
) -> int:
    """Make *path* inside the root unless it exists, with every directory on the way.

    Links are followed inside the root. A dangling link is not an error: its
    target is made, inside the root, as runc does for mount points (images have
    ``/etc/resolv.conf`` point to a file of a service that never ran).

    Args:
        root_fd: the root directory.
        path: absolute or relative, both from the root.
        kind: ``"dir"``, or ``"file"`` for an empty regular file. What exists must
            be a directory for the first and anything else for the second.
        mode: permission bits of what is made, before the umask; directories on
            the way to a file get 0755.
        beneath: as for :func:`open_in_root`.

    Returns:
        an ``O_PATH`` descriptor of *path*.

    Raises:
        OSError: as :func:`open_in_root`; ``ENOTDIR`` or ``EISDIR`` where something of
            the other kind is in the way.
    """
    wanted = os.O_PATH | (os.O_DIRECTORY if kind == "dir" else 0)
    try:
        fd = open_in_root(root_fd, path, wanted, beneath=beneath)
    except FileNotFoundError:
        made = _make_last(root_fd, path, kind, mode, beneath)
        if made is not None:
            return made
        directories = mode if kind == "dir" else 0o755
        if kind == "file":
            flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
            # Opened for writing once, because only that creates; the caller
            # gets a descriptor that can do nothing to the file.
            os.close(_open_by_walk(root_fd, path, flags, mode, beneath, make=directories))
        fd = _open_by_walk(root_fd, path, wanted, 0, beneath, make=directories)
    if kind == "file" and stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise _error(errno.EISDIR, path) from None
    return fd


def _make_last(root_fd: int, path: str, kind: str, mode: int, beneath: bool) -> int | None:
    """Make *path* where only its last component is missing, in the fewest calls.

    Returns:
        an ``O_PATH`` descriptor; None where it takes more, as for a dangling link.
    """
    above, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        return None
    try:
        parent = open_in_root(root_fd, above or "/", os.O_PATH | os.O_DIRECTORY, beneath=beneath)
    except OSError:
        return None
    try:
        if kind == "dir":
            libc.via(os.mkdir, name, mode, dir_fd=parent)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(libc.via(os.open, name, flags, mode, dir_fd=parent))
        wanted = os.O_PATH | os.O_NOFOLLOW | (os.O_DIRECTORY if kind == "dir" else 0)
        fd: int = libc.via(os.open, name, wanted | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        # Something took the place meanwhile, or a link was there: the walk finds out.
        return None
    finally:
        os.close(parent)
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return fd


def read_in_root(root_fd: int, path: str, limit: int) -> bytes:
    """Read the regular file *path* of a root.

    Args:
        root_fd: the root directory.
        path: absolute or relative, both from the root; links are followed inside it.
        limit: the most bytes that are read.

    Raises:
        OSError: as :func:`open_in_root`; ``EINVAL`` for anything but a regular file,
            ``EFBIG`` for one of more than *limit* bytes.
    """
    handle = open_in_root(root_fd, path, os.O_PATH)
    try:
        # Looked at before it is opened: opening a device already does things
        # (a watchdog starts), and a FIFO would wait for a writer.
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        # Through the descriptor, because the path may mean another file by now.
        fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    finally:
        os.close(handle)
    with open(fd, "rb", buffering=0) as file:
        parts = []
        left = limit + 1
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    if left == 0:
        raise _error(errno.EFBIG, path)
    return b"".join(parts)


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _check(path: str) -> None:
    """Refuse what the kernel would refuse, or cut short, before either way sees it."""
    if not path:
        raise _error(errno.ENOENT, path)
    if "\0" in path:
        raise OSError(errno.EINVAL, "null byte in path", path)
    if len(os.fsencode(path)) >= _PATH_MAX:
        raise _error(errno.ENAMETOOLONG, path)


def _openat2(root_fd: int, path: str, flags: int, mode: int, beneath: bool) -> int:
    resolve = _RESOLVE_NO_MAGICLINKS | (_RESOLVE_BENEATH if beneath else _RESOLVE_IN_ROOT)
    how = pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)  # struct open_how
    name = os.fsencode(path)
    shown = (root_fd, path, flags, mode, resolve)
    for _ in range(_ATTEMPTS):
        try:
            return libc.syscall(
                "openat2", _SYS_OPENAT2, root_fd, name, how, len(how), path=path, shown=shown
            )
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise
    raise _error(errno.EAGAIN, path)


def _is_blocked(root_fd: int, error: OSError) -> bool:
    """Tell whether *error* speaks of openat2 itself rather than of the path.

    Before Docker 20.10 a container's filter answered EPERM to calls it did not
    know, and EPERM is also what an immutable file gives. The root itself can
    always be opened, so it decides.
    """
    global _blocked
    if error.errno == errno.EPERM and _blocked is None:
        try:
            os.close(_openat2(root_fd, ".", os.O_PATH, 0, False))
        except OSError:
            _blocked = True
        else:
            _blocked = False
    elif error.errno == errno.ENOSYS:
        _blocked = True
    return bool(_blocked)


def _open_by_walk(
    root_fd: int, path: str, flags: int, mode: int, beneath: bool, make: int | None
) -> int:
    """Do what openat2 does, a component at a time; make missing directories with mode *make*."""
    follow = not flags & os.O_NOFOLLOW and flags & (os.O_CREAT | os.O_EXCL) != (
        os.O_CREAT | os.O_EXCL
    )
    for _ in range(_ATTEMPTS):
        parent, name = _walk(root_fd, path, follow, beneath, make)
        try:
            if make is not None and flags & os.O_DIRECTORY:
                _make_directory(parent, name, make)
            fd: int = libc.via(
                os.open, name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent
            )
        except OSError as error:
            # A link took the name's place after _walk had looked.
            if follow and error.errno == errno.ELOOP:
                continue
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(parent)
        if follow and flags & os.O_PATH and stat.S_ISLNK(os.fstat(fd).st_mode):
            os.close(fd)
            continue
        return fd
    raise _error(errno.EAGAIN, path)


def _make_directory(parent: int, name: bytes, mode: int) -> None:
    try:
        libc.via(os.mkdir, name, mode, dir_fd=parent)
    except FileExistsError:
        return  # whoever opens it finds out what it is


def _walk(
    root_fd: int, path: str, follow: bool, beneath: bool, make: int | None
) -> tuple[int, bytes]:
    """Resolve all of *path* but its last component.

    The directories between the root and here are kept open, and ``..`` goes back
    to the one before: the kernel is never asked for a parent, which a directory
    moved meanwhile could have outside the root.

    Returns:
        an ``O_PATH`` descriptor of the directory, and the name in it; the name is
        ``.`` for a path that ends in ``.``, ``..``, ``/``.
    """
    pending = os.fsencode(path).split(b"/")[::-1]
    if beneath and not pending[-1]:
        raise _error(errno.EXDEV, path)
    stack = [os.dup(root_fd)]
    links = 0
    try:
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(stack) > 1:
                    os.close(stack.pop())
                elif beneath:
                    raise _error(errno.EXDEV, path)
                continue
            if pending:
                text = _enter(stack, name, make)
            else:
                text = _link_text(stack[-1], name) if follow else None
                if text is None:
                    _check_inside(root_fd, stack[-1], path)
                    return stack.pop(), name
            if text is not None:
                links += 1
                if links > _MAX_LINKS:
                    raise _error(errno.ELOOP, path)
                if text.startswith(b"/"):
                    if beneath:
                        raise _error(errno.EXDEV, path)
                    while len(stack) > 1:
                        os.close(stack.pop())
                pending.extend(text.split(b"/")[::-1])
        _check_inside(root_fd, stack[-1], path)
        return stack.pop(), b"."
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        for fd in stack:
            os.close(fd)


def _enter(stack: list[int], name: bytes, make: int | None) -> bytes | None:
    """Push the directory *name* on the stack, or return the text of the link it is."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd: int = libc.via(os.open, name, flags, dir_fd=stack[-1])
    except FileNotFoundError:
        if make is None:
            raise
        _make_directory(stack[-1], name, make)
        fd = libc.via(os.open, name, flags, dir_fd=stack[-1])
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        stack.append(fd)
        return None
    try:
        if not stat.S_ISLNK(mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return _read_link(fd)
    finally:
        os.close(fd)


def _link_text(directory: int, name: bytes) -> bytes | None:
    """Return the text of the link *name*; None if it is anything else or missing."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        return _read_link(fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def _read_link(fd: int) -> bytes:
    # The empty name means the link that is open itself, which nobody can exchange.
    text: bytes = libc.via(os.readlink, b"", dir_fd=fd)
    buffer = create_string_buffer(256)
    libc.call("fstatfs", _fstatfs, fd, buffer, shown=(fd,))
    # The magic links of procfs read like "/usr/bin/x" or "pipe:[4]"; "self" and
    # "self/mounts" are ordinary ones. struct statfs begins with its f_type, a long.
    magic = text.startswith(b"/") or b":[" in text
    if magic and unpack_from("l", buffer)[0] == _PROC_SUPER_MAGIC:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return text


def _check_inside(root_fd: int, directory: int, path: str) -> None:
    """Check that *directory* is still below the root, for the case that it was moved out.

    Somebody who can move directories across the root's edge may do so after
    this check too; openat2 has the same limit once it has returned.
    """
    root = os.fstat(root_fd)
    fd = os.dup(directory)
    try:
        # The path is shorter than this, and ".." of the outermost root is itself.
        for _ in range(_PATH_MAX):
            if os.path.samestat(root, os.fstat(fd)):
                return
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = above
    finally:
        os.close(fd)
    raise _error(errno.EXDEV, path)
