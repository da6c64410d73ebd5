"""Unpacking the archive of a root file system, as hostile as it may be.

What an archive may do is decided here, entry by entry:

- Names stay below the destination: an absolute name or a ``..`` is refused, and
  so is an entry (or a hard link's target) that is reached through a symbolic
  link which is absolute or climbs out. A relative link that stays inside is
  followed, as ``bin -> usr/bin`` before ``bin/sh``. What a symbolic link itself
  says is not our matter: it is read only inside the container.
- A later entry replaces an earlier one of its name, never following it.
- Devices are left out and counted, for root too: a container gets a ``/dev`` of its
  own, and a node in the store would open the host's disk to whoever finds it.
- Owners are kept where the kernel lets us; where it does not, set-user-ID and
  set-group-ID bits go too, because they would now speak of somebody else.
- Of extended attributes ``user.*`` and ``security.capability`` are kept; not
  ``user.overlay.*`` and ``trusted.*``, with which a layer could redirect an overlay.
- The number of entries and of bytes is limited (:data:`MAX_ENTRIES`, *max_bytes*).

A failure leaves the destination empty.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, BinaryIO

from firkin.errors import SetupError, UsageError
from firkin.image.store import remove_tree, remove_tree_at
from firkin.image.tar import Corrupt, Entry, Stream, TarReader
from firkin.linux import paths

if TYPE_CHECKING:
    import lzma
    from collections.abc import Sequence

MAX_ENTRIES = 10_000_000
# xz -9 needs 65 MiB; a header may claim 4 GiB. (zstd stops at 128 MiB by itself.)
_XZ_MEMORY = 256 << 20
_CHUNK = 1 << 20
_PATH_MAX = 4096
_MAX_ID = 2**32 - 2
# The archive's fault, as against the disk's.
_BAD_ENTRY = frozenset(
    {errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV, errno.ENOTDIR, errno.ENOENT, errno.EISDIR}
)


class Unpacked:
    """What was unpacked.

    Attributes:
        entries: how many entries the archive has.
        size: bytes of data written.
        devices: how many device nodes were left out.
        owners: how many files could not be given their owner.
    """

    __slots__ = ("devices", "entries", "owners", "size")

    def __init__(self) -> None:
        self.entries = self.size = self.devices = self.owners = 0


def unpack(
    file: BinaryIO,
    destination: int | str,
    *,
    preserve_owner: bool,
    ids: Sequence[tuple[int, int, int]] | None = None,
    max_bytes: int | None = None,
    name: str = "",
) -> Unpacked:
    """Unpack the tar archive in *file*, plain or compressed with gzip, xz or zstd.

    The compression is told by the content. *file* is read once, from its start.

    Args:
        file: seekable.
        destination: an empty directory, open or by its path; by path it is made if missing.
        preserve_owner: give files the owners that the archive names, where permitted.
        ids: how to shift those owners, as the lines of ``/proc/PID/uid_map``:
            (first id in the archive, first id here, count). An id in none is not kept.
        max_bytes: the most data to write; 95 % of the free space unless told.
        name: what error messages call the archive.

    Raises:
        UsageError: not such an archive, a corrupt one, or one that must not be unpacked.
        SetupError: a call failed for another reason, as when the disk is full.
    """
    what = f"cannot unpack '{name or getattr(file, 'name', 'archive')}'"
    made = False
    if isinstance(destination, str):
        try:
            os.mkdir(destination, 0o755)
            made = True
        except FileExistsError:
            made = False
        root = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if made:
            os.fchmod(root, 0o755)  # whatever the umask
    else:
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=destination)
    try:
        if os.listdir(root):
            raise UsageError(what, "the destination is not empty")
        if max_bytes is None:
            free = os.fstatvfs(root)
            max_bytes = free.f_bavail * free.f_frsize * 95 // 100
        unpacker = _Unpacker(root, preserve_owner, ids, max_bytes)
        try:
            unpacker.run(_Decompressed(file, 2 * max_bytes + (1 << 30)))
        except BaseException as error:
            for leftover in os.listdir(root):
                remove_tree_at(root, leftover)
            if made and isinstance(destination, str):
                remove_tree(destination)
            _explain(what, unpacker.current, error)
            raise
        return unpacker.done
    finally:
        os.close(root)


def _explain(what: str, entry: bytes, error: BaseException) -> None:
    """Raise what a person can read for *error*, if it is about the archive or a call."""
    if isinstance(error, Corrupt):
        raise UsageError(what, str(error)) from None
    if isinstance(error, _Refused):
        raise UsageError(f"{what}: entry '{os.fsdecode(entry)}'", str(error)) from None
    if isinstance(error, OSError):
        text = os.fsdecode(entry)
        if error.errno == errno.EXDEV:
            why = "a symbolic link on the way leads out of the archive's root"
        else:
            why = error.strerror or str(error)
        if error.errno in _BAD_ENTRY:
            raise UsageError(f"{what}: entry '{text}'", why) from None
        raise SetupError(
            f"{what}: entry '{text}'", why, step="unpack", errno=error.errno or 0, path=text
        ) from None


class _Refused(Exception):
    """The current entry must not be unpacked."""


class _Directory:
    """What a directory gets once everything is in it."""

    __slots__ = ("gid", "mode", "mtime", "uid", "xattrs")

    def __init__(self, entry: Entry | None = None) -> None:
        self.mode = 0o755 if entry is None else entry.mode
        self.uid = 0 if entry is None else entry.uid
        self.gid = 0 if entry is None else entry.gid
        self.mtime = None if entry is None else entry.mtime
        self.xattrs: dict[bytes, bytes] = {} if entry is None else entry.xattrs


class _Unpacker:
    """Writes entries below the directory open as *root*."""

    def __init__(
        self,
        root: int,
        preserve_owner: bool,
        ids: Sequence[tuple[int, int, int]] | None,
        max_bytes: int,
    ) -> None:
        self._root = root
        self._preserve_owner = preserve_owner
        self._ids = ids
        self._max_bytes = max_bytes
        self._directories: dict[bytes, _Directory] = {}
        # The directory of the last entry, because the next one is mostly there too.
        self._parent_path: bytes | None = None
        self._parent = -1
        self.current = b""
        self.done = Unpacked()

    def run(self, stream: _Decompressed) -> None:
        reader = TarReader(stream)
        try:
            for entry in reader:
                self.current = entry.name
                self.done.entries += 1
                if self.done.entries > MAX_ENTRIES:
                    raise _Refused(f"more than {MAX_ENTRIES} entries")
                self._entry(entry, reader)
            stream.drain()
        finally:
            self._forget_parent()
        # Last, and the deepest first: a directory may forbid its owner to enter,
        # and each new name in it changes its mtime.
        for path in sorted(self._directories, reverse=True):
            self.current = path
            self._finish_directory(path, self._directories[path])

    def _entry(self, entry: Entry, reader: TarReader) -> None:
        parts = _parts(entry.name)
        if not parts:
            if entry.kind != "directory":
                raise _Refused("the root itself can only be a directory")
            self._directories[b"."] = _Directory(entry)
            return
        if entry.kind == "device":
            self.done.devices += 1
            return
        if entry.kind == "label":
            return
        path = b"/".join(parts)
        parent = self._open_parent(b"/".join(parts[:-1]))
        name = os.fsdecode(parts[-1])
        if entry.kind == "link":
            self._hard_link(entry, path, parent, name)
            return
        if self._clear(path, parent, name, keep_directory=entry.kind == "directory"):
            self._directories[path] = _Directory(entry)
            return
        if entry.kind == "directory":
            os.mkdir(name, 0o700, dir_fd=parent)
            self._directories[path] = _Directory(entry)
        elif entry.kind == "file":
            self._file(entry, parent, name, reader)
        elif entry.kind == "fifo":
            os.mkfifo(name, 0o600, dir_fd=parent)
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                # A FIFO cannot be opened without a writer, and chmod needs a name.
                self._finish(f"/proc/self/fd/{fd}", _Directory(entry))
            finally:
                os.close(fd)
        else:
            self._symlink(entry, parent, name)

    def _open_parent(self, path: bytes) -> int:
        """Open the directory that an entry goes into, making what the archive left out."""
        if path == self._parent_path:
            return self._parent
        self._forget_parent()
        text = os.fsdecode(path) or "."
        flags = os.O_PATH | os.O_DIRECTORY
        try:
            self._parent = paths.open_in_root(self._root, text, flags, beneath=True)
        except FileNotFoundError:
            parts = path.split(b"/")
            for count in range(1, len(parts) + 1):
                prefix = b"/".join(parts[:count])
                text = os.fsdecode(prefix)
                try:
                    fd = paths.open_in_root(self._root, text, flags, beneath=True)
                except FileNotFoundError:
                    fd = paths.make_in_root(self._root, text, mode=0o700, beneath=True)
                    self._directories[prefix] = _Directory()
                self._forget_parent()
                self._parent = fd
        self._parent_path = path
        return self._parent

    def _forget_parent(self) -> None:
        if self._parent != -1:
            os.close(self._parent)
        self._parent = -1
        self._parent_path = None

    def _clear(self, path: bytes, parent: int, name: str, *, keep_directory: bool) -> bool:
        """Remove what an earlier entry put in the place; tell whether a directory was kept."""
        try:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=parent)
            return False
        if keep_directory:
            return True
        remove_tree_at(parent, name)
        below = path + b"/"
        for gone in [p for p in self._directories if p == path or p.startswith(below)]:
            del self._directories[gone]
        return False

    def _file(self, entry: Entry, parent: int, name: str, reader: TarReader) -> None:
        fd = os.open(
            name,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
            dir_fd=parent,
        )
        try:
            for offset, length in [(0, entry.size)] if entry.extents is None else entry.extents:
                self.done.size += length
                if self.done.size > self._max_bytes:
                    raise _Refused(f"the archive has more than {self._max_bytes} bytes of data")
                os.lseek(fd, offset, os.SEEK_SET)
                while length:
                    data = reader.read(min(length, _CHUNK))
                    length -= len(data)
                    view = memoryview(data)
                    while view:
                        view = view[os.write(fd, view) :]
            if entry.extents is not None:
                os.ftruncate(fd, entry.size)
            self._finish(fd, _Directory(entry))
        finally:
            os.close(fd)

    def _symlink(self, entry: Entry, parent: int, name: str) -> None:
        if not entry.link or b"\0" in entry.link:
            raise _Refused("a symbolic link to nothing")
        os.symlink(os.fsdecode(entry.link), name, dir_fd=parent)
        owner = self._owner(entry.uid, entry.gid)
        if owner is not None:
            try:
                os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)
            except OSError as error:
                self._lost_owner(error)
        times = (entry.mtime, entry.mtime)
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _hard_link(self, entry: Entry, path: bytes, parent: int, name: str) -> None:
        try:
            parts = _parts(entry.link)
        except _Refused as error:
            raise _Refused(f"hard link to '{os.fsdecode(entry.link)}': {error}") from None
        if not parts:
            raise _Refused("a hard link to the root")
        directory = os.fsdecode(b"/".join(parts[:-1])) or "."
        target = os.fsdecode(parts[-1])
        fd = paths.open_in_root(self._root, directory, os.O_PATH | os.O_DIRECTORY, beneath=True)
        try:
            wanted = os.stat(target, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(wanted.st_mode):
                raise _Refused("a hard link to a directory")
            try:
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                found = None
            if found is not None and os.path.samestat(found, wanted):
                return  # a link to itself must not end as nothing
            self._clear(path, parent, name, keep_directory=False)
            os.link(target, name, src_dir_fd=fd, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise _Refused(
                f"hard link to '{os.fsdecode(entry.link)}', which the archive does not have"
            ) from None
        finally:
            os.close(fd)

    def _finish_directory(self, path: bytes, directory: _Directory) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            fd = paths.open_in_root(self._root, os.fsdecode(path), flags, beneath=True)
        except (NotADirectoryError, FileNotFoundError):
            return  # it was made through a link, or has been replaced since
        try:
            self._finish(fd, directory)
        finally:
            os.close(fd)

    def _finish(self, file: int | str, wanted: _Directory) -> None:
        """Set owner, attributes, mode and time, in this order: chown(2) clears the next two."""
        mode = wanted.mode
        owner = self._owner(wanted.uid, wanted.gid)
        kept = owner is not None or (wanted.uid == 0 and wanted.gid == 0)
        if owner is not None:
            try:
                os.chown(file, *owner)
            except OSError as error:
                self._lost_owner(error)
                kept = False
        for name, value in wanted.xattrs.items():
            self._set_xattr(file, name, value)
        os.chmod(file, mode if kept else mode & 0o1777)
        if wanted.mtime is not None:
            os.utime(file, ns=(wanted.mtime, wanted.mtime))

    def _set_xattr(self, file: int | str, name: bytes, value: bytes) -> None:
        ours = name == b"security.capability" or (
            name.startswith(b"user.") and not name.startswith(b"user.overlay.")
        )
        if not ours or b"\0" in name:
            return
        try:
            os.setxattr(file, name, value)
        except OSError as error:
            # Not for this user, not on this file system: the file works without.
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL):
                raise

    def _owner(self, uid: int, gid: int) -> tuple[int, int] | None:
        """Return the owner to set, None to leave it the caller."""
        if not self._preserve_owner:
            return None
        if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
            raise _Refused(f"owner {uid}:{gid} is out of range")
        if self._ids is None:
            return uid, gid
        here = _shift(uid, self._ids), _shift(gid, self._ids)
        if here[0] is None or here[1] is None:
            self.done.owners += 1
            return None
        return here[0], here[1]

    def _lost_owner(self, error: OSError) -> None:
        # EINVAL: the id has no place in this user namespace.
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise error
        self.done.owners += 1


def _shift(number: int, ids: Sequence[tuple[int, int, int]]) -> int | None:
    for there, here, count in ids:
        if there <= number < there + count:
            return here + number - there
    return None


def _parts(name: bytes) -> list[bytes]:
    """Split an entry's name into components below the root.

    Raises:
        _Refused: it would lead out, or cannot be a name.
    """
    if name.startswith(b"/"):
        raise _Refused("an absolute name")
    if not name or b"\0" in name:
        raise _Refused("not a name")
    if len(name) >= _PATH_MAX:
        raise _Refused("a name too long")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise _Refused("'..' in a name leads out of the archive's root")
    return parts


class _Decompressed:
    """The uncompressed bytes of *file*, at most *limit* of them."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        file.seek(0)
        magic = file.read(6)
        file.seek(0)
        self._limit = limit
        self._stream: Stream = file
        self._errors: tuple[type[Exception], ...] = ()
        if not magic:
            raise Corrupt("it is empty")
        if magic.startswith(b"\x1f\x8b"):
            import gzip
            import zlib

            self._stream = gzip.GzipFile(fileobj=file)
            self._errors = (EOFError, gzip.BadGzipFile, zlib.error)
        elif magic == b"\xfd7zXZ\0":
            import lzma

            self._stream = _Xz(file)
            self._errors = (EOFError, lzma.LZMAError)
        elif magic.startswith(b"\x28\xb5\x2f\xfd") or (
            magic[1:4] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50  # a skippable frame
        ):
            self._stream, self._errors = _zstd(file)
        elif magic.startswith((b"BZh", b"PK\x03\x04", b"\x04\x22\x4d\x18")):
            raise Corrupt("not a tar archive that is plain or compressed with gzip, xz or zstd")

    def read(self, size: int, /) -> bytes:
        try:
            data = self._stream.read(size)
        except self._errors as error:
            raise Corrupt(f"corrupt or truncated: {error}") from None
        self._limit -= len(data)
        if self._limit < 0:
            raise Corrupt("it unpacks to more than there is room for")
        return data

    def drain(self) -> None:
        """Read what follows the end mark, because a checksum of all may stand there."""
        while self.read(_CHUNK):
            pass


def _zstd(file: BinaryIO) -> tuple[Stream, tuple[type[Exception], ...]]:
    if sys.version_info >= (3, 14):
        import compression.zstd as zstd
    else:
        import backports.zstd as zstd
    return zstd.ZstdFile(file), (EOFError, zstd.ZstdError)


class _Xz:
    """As :class:`lzma.LZMAFile`, but with a limit on the memory that a header can claim."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        import lzma

        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def read(self, size: int, /) -> bytes:
        while size:
            if self._decompressor.eof:
                # Streams may follow each other, with padding of zeros between.
                rest = self._decompressor.unused_data.lstrip(b"\0")
                while not rest:
                    rest = self._file.read(_CHUNK)
                    if not rest:
                        return b""
                    rest = rest.lstrip(b"\0")
                self._decompressor = self._new()
            elif self._decompressor.needs_input:
                rest = self._file.read(_CHUNK)
                if not rest:
                    raise EOFError("the compressed data ends too early")
            else:
                rest = b""
            data = self._decompressor.decompress(rest, size)
            if data:
                return data
        return b""
