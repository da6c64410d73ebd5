"""The store: root file systems unpacked once, shared by every container as a lower layer.

::

    <store>/rootfs/<key>/root   the unpacked tree; <key> is the archive's SHA-256
    <store>/rootfs/<key>/meta   where it came from, for people
    <store>/index/<dev>-<ino>   which key the archive file of that number had, and its times
    <store>/partial/<key>       being unpacked; renamed when complete
    <store>/partial/<key>.lock  held (flock) by whoever unpacks it
    <store>/partial/<key>.index the same, of the index

The content decides what an archive is, but reading 100 MB at each start would
cost more than the container: a file whose device, inode, size, mtime and ctime
are those of the index is the one that was read then. (Nobody but the kernel
sets a ctime.) What a killed process leaves in ``partial`` is swept by the next one
that unpacks, once its lock is free.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

from firkin.errors import FirkinError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# A file changed twice within one tick of the kernel's clock shows one ctime (10 ms
# at the slowest); one that was changed just now is read again the next time.
_SETTLED_NS = 100_000_000
# Levels that _empty descends; it holds a descriptor for each.
_DEPTH = 32


def default_path() -> str:
    """Return where the store is: ``$FIRKIN_STORE``, else the user's own place by convention.

    That is ``/var/lib/firkin`` for root, ``$XDG_DATA_HOME/firkin`` or
    ``~/.local/share/firkin`` for anybody else (XDG Base Directory Specification).
    """
    path = os.environ.get("FIRKIN_STORE")
    if path:
        return os.path.abspath(path)
    if os.geteuid() == 0:
        return "/var/lib/firkin"
    data = os.environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(data):  # the specification has relative ones ignored
        return f"{data}/firkin"
    home = os.environ.get("HOME")
    if not home:
        import pwd

        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            raise UsageError(
                "cannot choose a place for the store",
                f"uid {os.geteuid()} has no home directory",
                "set FIRKIN_STORE to a directory of your own",
            ) from None
    return f"{home}/.local/share/firkin"


def ensure_directory(path: str, mode: int = 0o700) -> None:
    """Make the directory *path* of a store, or check that it is the caller's own.

    What containers write, and what images hold, is closed to all other users: a
    set-user-ID program in there must not be theirs to execute (CVE-2021-41091).

    Args:
        path: absolute.
        mode: permission bits of one that is made.

    Raises:
        UsageError: it cannot be made, is not a directory, or others own it or may write to it.
    """
    what = f"cannot use store '{path}'"
    mend = "set FIRKIN_STORE to a directory of your own"
    try:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            os.makedirs(path, 0o700, exist_ok=True)  # another firkin may be doing the same
            os.chmod(path, mode)
            found = os.stat(path)
    except OSError as error:
        raise UsageError(what, error.strerror or str(error), mend) from None
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(what, "not a directory", mend)
    if found.st_uid != os.geteuid():
        raise UsageError(what, f"it belongs to uid {found.st_uid}", mend)
    if found.st_mode & 0o022:
        raise UsageError(what, "others may write to it", f"chmod go-w {path}, or {mend}")


def ensure_passable(path: str) -> None:
    """As :func:`ensure_directory`, for what the root of a user namespace passes through."""
    ensure_directory(path, 0o711 if os.geteuid() == 0 else 0o700)


def lock(path: str, *, shared: bool = False, wait: bool = True) -> int | None:
    """Lock the file or directory *path*, making a file if there is nothing.

    The lock lives as long as the descriptor and its copies in children, so no
    kill can leave it behind.

    Returns:
        a descriptor; None where *wait* is false and somebody else has the lock.
    """
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            flock(fd, (LOCK_SH if shared else LOCK_EX) | (0 if wait else LOCK_NB))
            # Its last holder may have removed it while we waited.
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                held, fd = fd, -1
                return held
        except FileNotFoundError:
            continue
        except BlockingIOError:
            return None
        finally:
            if fd != -1:
                os.close(fd)


def replace_file(path: str, text: str, temporary: str) -> None:
    """Write *text* to *path* so that a reader sees all of it or what was there before.

    Args:
        path: the file.
        text: all of its contents.
        temporary: a name on the same file system that a lock has for the caller alone.
    """
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", errors="surrogateescape") as file:
        file.write(text)
    os.rename(temporary, path)


def read_file(path: str) -> str:
    """Return the text of a small file of the store, empty if it does not exist."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        data = b""
        while part := os.read(fd, 1 << 16):
            data += part
    finally:
        os.close(fd)
    return os.fsdecode(data)


def _directly(function: Callable[[], None]) -> None:
    function()


class Store:
    """The store in the directory *path*.

    Args:
        path: absolute; see :func:`default_path`.
        unpack_in: calls a function that writes or removes a tree. An ordinary
            user's runs it in a child in a user namespace with the container's id
            maps, and raises here the :class:`~firkin.errors.FirkinError` that it raised
            there; the function returns nothing.
        owners: letters and digits that name the id maps of *unpack_in*. Trees
            unpacked under other maps have other owners and are kept apart.
    """

    __slots__ = ("_owners", "_unpack_in", "path")

    def __init__(
        self,
        path: str,
        *,
        unpack_in: Callable[[Callable[[], None]], None] = _directly,
        owners: str = "",
    ) -> None:
        if owners and not owners.isalnum():
            raise ValueError(f"not letters and digits: {owners!r}")
        self.path = path
        self._unpack_in = unpack_in
        self._owners = owners

    def unpacked(self, archive: str) -> str:
        """Return the directory that holds *archive*'s tree, unpacking it if nobody has.

        Raises:
            UsageError: *archive* cannot be read or is not an archive that can be unpacked
                (see :mod:`firkin.image.archive`), or the store is not the caller's.
            SetupError: the file system refused something, as when it is full.
        """
        what = f"cannot use image '{archive}'"
        ensure_passable(self.path)
        try:
            # Without O_NONBLOCK a FIFO would wait for a writer.
            fd = os.open(archive, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(what, error.strerror or str(error)) from None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise UsageError(what, "neither a directory nor an archive file")
            index = f"{self.path}/index/{found.st_dev:x}-{found.st_ino:x}-{self._owners}"
            identity, _, key = read_file(index).partition("\n")
            if identity != _identity(found) or not os.path.isdir(self._root(key)):
                key = self._unpack(fd, archive, index)
            return self._root(key)
        finally:
            os.close(fd)

    def sweep(self) -> None:
        """Remove what processes that were killed while unpacking have left."""
        partial = f"{self.path}/partial"
        try:
            keys = {name.partition(".")[0] for name in os.listdir(partial)}
        except FileNotFoundError:
            return
        for key in keys:
            path = f"{partial}/{key}"
            held = lock(f"{path}.lock", wait=False)
            if held is None:
                continue
            try:
                self._remove(path)
                remove_tree(f"{path}.index")
                remove_tree(f"{path}.lock")
            except (OSError, FirkinError):
                continue  # it cannot be removed as things are, and is in nobody's way
            finally:
                os.close(held)

    def _root(self, key: str) -> str:
        return f"{self.path}/rootfs/{key}/root"

    def _unpack(self, fd: int, archive: str, index: str) -> str:
        for name in ("rootfs", "index", "partial"):
            ensure_directory(f"{self.path}/{name}")
        self.sweep()
        before = os.fstat(fd)
        key = _digest(fd) + (f"-{self._owners}" if self._owners else "")
        partial = f"{self.path}/partial/{key}"
        held = lock(f"{partial}.lock")
        try:
            if not os.path.isdir(self._root(key)):
                self._remove(partial)
                self._fill(fd, archive, partial)
            if _identity(os.fstat(fd)) != _identity(before):
                self._remove(partial)
                raise UsageError(f"cannot use image '{archive}'", "it changed while being read")
            if os.path.isdir(partial):
                os.rename(partial, f"{self.path}/rootfs/{key}")
            if time.time_ns() - before.st_ctime_ns > _SETTLED_NS:
                replace_file(index, f"{_identity(before)}\n{key}", f"{partial}.index")
        finally:
            os.unlink(f"{partial}.lock")
            if held is not None:
                os.close(held)
        return key

    def _fill(self, fd: int, name: str, partial: str) -> None:
        # Imported before a child might be forked to do the work.
        from firkin.image import archive

        ensure_directory(partial)

        def work() -> None:
            with open(fd, "rb", closefd=False) as file:
                file.seek(0)
                done = archive.unpack(
                    file, f"{partial}/root", name=name, preserve_owner=os.geteuid() == 0
                )
            replace_file(
                f"{partial}/meta",
                f"source {name!r}\nentries {done.entries}\nbytes {done.size}\n"
                f"devices skipped {done.devices}\nowners not kept {done.owners}\n",
                f"{partial}/meta.new",
            )

        try:
            self._unpack_in(work)
        except BaseException:
            self._remove(partial)
            raise

    def _remove(self, path: str) -> None:
        if os.path.lexists(path):
            self._unpack_in(lambda: remove_tree(path))


def _identity(found: os.stat_result) -> str:
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _digest(fd: int) -> str:
    import hashlib

    os.lseek(fd, 0, os.SEEK_SET)
    digest = hashlib.sha256()
    while part := os.read(fd, 1 << 20):
        digest.update(part)
    return digest.hexdigest()


def remove_tree(path: str) -> None:
    """Remove *path* and what is below it; nothing if it does not exist.

    Links are removed, never followed, and nothing of another mount is touched.
    Trees may be of any depth: containers can make them deeper than any path.

    Raises:
        OSError: ``EBUSY`` for a mount point below *path*, and whatever stopped the removal.
    """
    parent, name = os.path.split(os.path.abspath(path))
    try:
        fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_tree_at(fd, name)
    finally:
        os.close(fd)


def remove_tree_at(parent: int, name: str) -> None:
    """As :func:`remove_tree`, for *name* in the directory open as *parent*."""
    try:
        os.unlink(name, dir_fd=parent)
        return
    except FileNotFoundError:
        return
    except IsADirectoryError:
        top = _open_directory(parent, name)
    try:
        mount = _mount_id(top)
        if mount != _mount_id(parent):
            raise OSError(errno.EBUSY, "is a mount point", name)
        while os.listdir(top):
            _empty(top, top, mount, _DEPTH)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _empty(top: int, directory: int, mount: int, depth: int) -> None:
    """Remove what *directory* holds; directories too deep are moved up into *top* instead."""
    for name in os.listdir(directory):
        try:
            os.unlink(name, dir_fd=directory)
            continue
        except IsADirectoryError:
            if _remove_empty(directory, name):
                continue
            fd = _open_directory(directory, name)
        try:
            if _mount_id(fd) != mount:
                raise OSError(errno.EBUSY, "is a mount point", name)
            if depth == 0:
                moved = f".moved-{os.urandom(8).hex()}"
                os.rename(name, moved, src_dir_fd=directory, dst_dir_fd=top)
                continue
            _empty(top, fd, mount, depth - 1)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=directory)


def _remove_empty(directory: int, name: str) -> bool:
    """Remove the directory *name* if that takes one call, as for most of a container's."""
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES):
            raise
        return False
    return True


def _open_directory(parent: int, name: str) -> int:
    """Open a directory to be emptied, whatever its mode (overlay's work folders have 000)."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        # Through the descriptor: chmod(2) by name would follow a link.
        path = f"/proc/self/fd/{handle}"
        if os.fstat(handle).st_mode & 0o700 != 0o700:
            os.chmod(path, 0o700)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def _mount_id(fd: int) -> int:
    # Not st_dev: a bind mount may be of the same file system (proc(5), fdinfo).
    for line in read_file(f"/proc/self/fdinfo/{fd}").splitlines():
        if line.startswith("mnt_id:"):
            return int(line[7:])
    raise OSError(errno.ENOENT, "no mnt_id in /proc/self/fdinfo")
