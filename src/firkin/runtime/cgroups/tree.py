"""Work on cgroup directories as files: list, kill and remove whole trees of them.

A container may have made cgroups of its own below ours, as many and as deep as it liked.
So nothing here recurses, joins long paths or follows a link.
"""

from __future__ import annotations

import ctypes
import errno
import os
from time import monotonic, sleep

from firkin.errors import SetupError
from firkin.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# include/uapi/linux/magic.h
_CGROUP_MAGIC, _CGROUP2_MAGIC = 0x27E0EB, 0x63677270

# What a cgroup's file gives when the cgroup is removed before the open, or after it.
_GONE = (errno.ENOENT, errno.ENODEV)

_SIGKILL = 9
_PIDFD_SEND_SIGNAL = 424  # the same on every architecture
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# How long to wait for processes that were killed to be gone, in seconds. One in
# uninterruptible sleep (a dead network disk) can take any time.
PATIENCE = 10.0

_fstatfs = libc.function("fstatfs", ctypes.c_int, ctypes.c_void_p)


def is_cgroup(fd: int) -> bool:
    """Whether the descriptor *fd* lies on a cgroup or cgroup2 file system (statfs(2))."""
    buffer = ctypes.create_string_buffer(256)
    libc.call("fstatfs", _fstatfs, fd, buffer, shown=(fd,))
    return ctypes.c_long.from_buffer(buffer).value in (_CGROUP_MAGIC, _CGROUP2_MAGIC)


def walk(path: str) -> Iterator[tuple[int, str]]:
    """Each cgroup of the tree at *path*, children before parents; none where it is gone.

    Yields:
        A descriptor of the directory that it is in, and its name there. The
        descriptor is closed when the next is asked for.
    """
    parent, _, name = path.rpartition("/")
    try:
        current = os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    levels = [[name]]
    try:
        while levels:
            if levels[-1]:
                try:
                    below = os.open(levels[-1][-1], _DIRECTORY, dir_fd=current)
                except FileNotFoundError:
                    levels[-1].pop()
                    continue
                os.close(current)
                current = below
                levels.append(_subdirectories(current))
                continue
            levels.pop()
            if levels:
                # ".." is safe: cgroups cannot be moved to another parent.
                above = os.open("..", _DIRECTORY, dir_fd=current)
                os.close(current)
                current = above
                yield current, levels[-1].pop()
    finally:
        os.close(current)


def _subdirectories(fd: int) -> list[str]:
    if os.fstat(fd).st_nlink == 2:  # kernfs counts subdirectories as links
        return []
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def read(name: str, directory: int | None = None) -> str:
    """The text of a cgroup's file; raises :class:`OSError`."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode()


def pids(path: str) -> set[int]:
    """The processes in the cgroup at *path* and below; none where it is gone.

    Those outside of the caller's pid namespace, which read as 0, are left out.
    """
    found: set[int] = set()
    for directory, name in walk(path):
        try:
            found.update(map(int, read(f"{name}/cgroup.procs", directory).split()))
        except OSError as error:
            # Gone meanwhile; or threaded, and its processes are listed further up.
            if error.errno not in (*_GONE, errno.EOPNOTSUPP):
                raise
    found.discard(0)
    return found


def members(path: str) -> int:
    """How many processes there are in the cgroup at *path* and below, whoever sees them."""
    count = 0
    for directory, name in walk(path):
        try:
            count += len(read(f"{name}/cgroup.procs", directory).split())
        except OSError as error:
            if error.errno not in (*_GONE, errno.EOPNOTSUPP):
                raise
    return count


def find(path: str, pid: int) -> int | None:
    """An ``O_PATH`` descriptor of the cgroup at *path* or below that process *pid* is in."""
    for directory, name in walk(path):
        try:
            if str(pid) in read(f"{name}/cgroup.procs", directory).split():
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                return os.open(name, flags, dir_fd=directory)
        except OSError as error:
            if error.errno not in (*_GONE, errno.EOPNOTSUPP):
                raise
    return None


def pauses(patience: float) -> Iterator[None]:
    """Wait between attempts, short at first, until *patience* seconds have passed."""
    pause, end = 0.0002, monotonic() + patience
    while True:
        yield
        if monotonic() > end:
            return
        sleep(pause)
        pause = min(pause * 2, 0.02)


def count(path: str, file: str, word: str, *, below: bool) -> int:
    """The number after *word* in a cgroup's *file*.

    Args:
        path: the cgroup's directory.
        file: a file of lines ``word number``.
        word: which line.
        below: whether to add those of the cgroups below: v1 counts an event only
            where the process was.

    Raises:
        OSError: it cannot be read.
    """
    if not below:
        return _count(read(f"{path}/{file}"), word)
    total = 0
    for directory, name in walk(path):
        try:
            total += _count(read(f"{name}/{file}", directory), word)
        except OSError as error:
            if error.errno not in _GONE:
                raise
    return total


def _count(text: str, word: str) -> int:
    for line in text.splitlines():
        name, _, number = line.partition(" ")
        if name == word:
            return int(number)
    return 0


def thaw(path: str) -> None:
    """Let the frozen processes of a v1 freezer cgroup and those below it go on.

    Raises:
        OSError: it may not be written.
    """
    if not os.path.exists(f"{path}/freezer.state"):
        return
    for directory, name in walk(path):
        try:
            libc.write_file(f"/proc/self/fd/{directory}/{name}/freezer.state", "THAWED")
        except FileNotFoundError:
            continue  # removed meanwhile


def kill_all(paths: Iterable[str], patience: float = PATIENCE) -> None:
    """Kill every process in the cgroups at *paths*, which are one container's.

    Raises as :func:`kill`.
    """
    paths = list(paths)
    for path in paths:
        # A signal reaches a process frozen by v1 only when it goes on.
        thaw(path)
    for path in paths:
        kill(path, patience)


def kill(path: str, patience: float = PATIENCE) -> None:
    """Kill every process in the cgroup at *path* and below, and wait until they are gone.

    Nothing can be started in it any more: on v1 ``pids.max`` becomes 0, so that
    processes that fork cannot run ahead of the signals.

    Args:
        path: the cgroup's directory; nothing is done where it is gone.
        patience: how long to wait, in seconds.

    Raises:
        SetupError: the caller is in it itself, or a process is still there.
        OSError: it may not be written.
    """
    left = pids(path)
    if os.getpid() in left:
        raise SetupError(f"cannot kill cgroup {path}", "the calling process is in it")
    if not left:
        return
    libc.because("kill all that runs in the cgroup, with no way to fork ahead of it")
    at_once = False
    for file, value in (("cgroup.kill", "1"), ("pids.max", "0"), ("cgroup.freeze", "1")):
        # Each kernel has its own; the next is the fallback for the one before.
        try:
            libc.write_file(f"{path}/{file}", value)
        except FileNotFoundError:
            continue
        at_once = file == "cgroup.kill"
        break
    for _ in pauses(patience):
        left = pids(path)
        if not left:
            return
        if not at_once:
            _signal(path, left)
    raise SetupError(
        f"cannot kill cgroup {path}", f"process {min(left)} is still there after {patience:g} s"
    )


def _signal(path: str, found: set[int]) -> None:
    """Send SIGKILL to *found*, never to a process that took the number of a dead one."""
    numbers = list(found)
    for start in range(0, len(numbers), 128):  # well below the limit on open files
        handles: dict[int, int] = {}
        try:
            for pid in numbers[start : start + 128]:
                try:
                    handles[pid] = libc.via(os.pidfd_open, pid)
                except OSError as error:
                    if error.errno != errno.ESRCH:
                        raise
            # What is in the cgroup now is what the handle stands for.
            for pid in pids(path) & handles.keys():
                try:
                    libc.syscall(
                        "pidfd_send_signal", _PIDFD_SEND_SIGNAL, handles[pid], _SIGKILL, 0, 0
                    )
                except ProcessLookupError:
                    continue
        finally:
            for handle in handles.values():
                os.close(handle)


def remove(path: str, patience: float = PATIENCE) -> None:
    """Remove the cgroup at *path* and all below it; nothing is done where it is gone.

    A process leaves its cgroup a moment after its parent has waited for it, so
    EBUSY is tried again.

    Args:
        path: the cgroup's directory.
        patience: how long to wait for it to become empty, in seconds.

    Raises:
        SetupError: it still has processes.
        OSError: it may not be removed.
    """
    libc.because("the container is gone, and so is its cgroup")
    try:
        libc.via(os.rmdir, path)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    for _ in pauses(patience):
        try:
            for directory, name in walk(path):
                libc.via(os.rmdir, name, dir_fd=directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            continue
        if not os.path.lexists(path):
            return
    left = pids(path)
    why = f"process {min(left)} is in it" if left else os.strerror(errno.EBUSY)
    raise SetupError(f"cannot remove cgroup {path}", why, step="cgroup", errno=errno.EBUSY)


def remove_paths(paths: Iterable[str], patience: float = PATIENCE) -> None:
    """Kill what runs in the cgroups at *paths* and remove them: what a sweep does.

    Args:
        paths: absolute directories, as ``Cgroup.paths`` returned them; those
            that are gone are passed over.
        patience: how long to wait for processes to end, in seconds.

    Raises:
        SetupError: a path does not lie within a cgroup file system (then nothing
            was touched), or processes are still there.
    """
    found = [path for path in paths if _verify(path)]
    kill_all(found, patience)
    for path in found:
        remove(path, patience)


def _verify(path: str) -> bool:
    """Whether the cgroup at *path* exists; refuse all that is not one."""
    what = f"cannot remove cgroup {path}"
    if not path.startswith("/") or os.path.normpath(path) != path or path.startswith("//"):
        raise SetupError(what, "not an absolute, normal path")
    parent, _, name = path.rpartition("/")
    try:
        above = os.open(parent or "/", _DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        # The directory above too: never the root of a hierarchy.
        inside = bool(name) and is_cgroup(above)
        if inside:
            fd = os.open(name, _DIRECTORY, dir_fd=above)
            try:
                inside = is_cgroup(fd) and os.fstat(fd).st_dev == os.fstat(above).st_dev
            finally:
                os.close(fd)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        inside = False
    finally:
        os.close(above)
    if not inside:
        raise SetupError(what, "not within a cgroup file system")
    return True
