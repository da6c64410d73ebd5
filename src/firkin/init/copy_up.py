"""``tmpcopyup``: a tmpfs begins with what the image has in the folder that it covers.

The image is hostile: nothing in it is followed. Folders and files are opened by name
from the folder above, links are copied as links, and where another file system is
mounted below the folder, only its mount point is made.

Source: runtime-spec config.md, "Linux mount options"; tmpfs(5), xattr(7), lseek(2).
"""

from __future__ import annotations

import errno
import os
import stat

from firkin.linux import libc

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO that takes a file's place must not make us wait.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 30  # bytes that one sendfile(2) is asked for
# Each level keeps two folders open; no real image is that deep.
_MAX_DEPTH = 200


def copy_up(covered: int, tmpfs: int, at: str, options: str) -> None:
    """Copy the contents of a folder into a fresh tmpfs, with owners, modes and attributes.

    Args:
        covered: a descriptor of the folder that the tmpfs covers.
        tmpfs: a descriptor of the tmpfs's root.
        at: the folder's path in the container, for errors.
        options: of the tmpfs: an owner or mode that it was given stays.

    Raises:
        OSError: with the path of what can't be copied; ENOSPC where the tmpfs is too small.
    """
    libc.because("tmpcopyup: the tmpfs begins with what the image has there")
    source = os.open(".", _FOLDER, dir_fd=covered)
    target = os.open(".", _FOLDER, dir_fd=tmpfs)
    fresh = os.fstat(target)
    given = {option.partition("=")[0] for option in options.split(",")}
    try:
        libc.via(_Copy(target).copy_tree, source, target, at)
        if "uid" in given or "gid" in given:
            os.fchown(
                target,
                fresh.st_uid if "uid" in given else -1,
                fresh.st_gid if "gid" in given else -1,
            )
        if "mode" in given:
            os.fchmod(target, stat.S_IMODE(fresh.st_mode))
    finally:
        os.close(source)
        os.close(target)


class _Copy:
    """One copy under way: the files that have several names, by their numbers."""

    __slots__ = ("linked", "top")

    def __init__(self, top: int) -> None:
        self.top = top
        self.linked: dict[tuple[int, int], str] = {}

    def copy_tree(self, source: int, target: int, at: str) -> None:
        """Copy the folder *source*, which is at *at* in the container, to *target*."""
        self._copy_contents(source, target, at, "", 0)

    def _copy_contents(self, source: int, target: int, at: str, below: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise OSError(errno.ELOOP, f"folders lie more than {_MAX_DEPTH} deep", f"{at}{below}")
        status = os.fstat(source)
        for name in os.listdir(source):
            path = f"{below}/{name}"
            try:
                found = os.stat(name, dir_fd=source, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    self._copy_folder(source, target, at, path, depth, status.st_dev)
                else:
                    self._copy_entry(source, target, path, found)
            except OSError as error:
                # What lies deeper has its whole path already.
                whole = error.filename if str(error.filename).startswith("/") else f"{at}{path}"
                raise OSError(error.errno, error.strerror, whole) from None
        _copy_status(source, target, status)

    def _copy_folder(
        self, source: int, target: int, at: str, path: str, depth: int, device: int
    ) -> None:
        name = path.rpartition("/")[2]
        os.mkdir(name, 0o700, dir_fd=target)
        inner = os.open(name, _FOLDER, dir_fd=source)
        made = os.open(name, _FOLDER, dir_fd=target)
        try:
            status = os.fstat(inner)
            if status.st_dev == device:
                self._copy_contents(inner, made, at, path, depth + 1)
            else:
                _copy_status(inner, made, status)
        finally:
            os.close(inner)
            os.close(made)

    def _copy_entry(self, source: int, target: int, path: str, status: os.stat_result) -> None:
        name = path.rpartition("/")[2]
        key = (status.st_dev, status.st_ino)
        if key in self.linked:
            # By its path from the top: all folders on the way there are our own.
            first = self.linked[key].lstrip("/")
            os.link(first, name, src_dir_fd=self.top, dst_dir_fd=target, follow_symlinks=False)
            return
        if stat.S_ISREG(status.st_mode):
            _copy_file(source, target, name)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            _copy_owner(target, name, status)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
            _copy_owner(target, name, status)
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
        if status.st_nlink > 1:
            self.linked[key] = path


def _copy_owner(target: int, name: str, status: os.stat_result) -> None:
    os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: str) -> None:
    reader = os.open(name, _READ, dir_fd=source)
    try:
        status = os.fstat(reader)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EAGAIN, "it was exchanged while it was copied", name)
        writer = os.open(name, _CREATE, 0o600, dir_fd=target)
        try:
            _copy_data(reader, writer, status.st_size)
            _copy_status(reader, writer, status)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_data(reader: int, writer: int, size: int) -> None:
    """Copy the data of a file and leave its holes out: they can be larger than any memory."""
    end = 0
    while end < size:
        try:
            start = os.lseek(reader, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # a hole up to the end
            raise
        end = min(os.lseek(reader, start, os.SEEK_HOLE), size)
        os.lseek(writer, start, os.SEEK_SET)
        while start < end:
            count = os.sendfile(writer, reader, start, min(end - start, _CHUNK))
            if not count:
                break
            start += count
    os.ftruncate(writer, size)


def _copy_status(source: int, target: int, status: os.stat_result) -> None:
    """Give *target* the owner, mode, attributes and times of *source*; all are descriptors."""
    os.fchown(target, status.st_uid, status.st_gid)
    # After the owner, whose change takes away set-user-ID bits and file capabilities.
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            # A kind that a tmpfs does not have (user.* before Linux 6.6), or it is gone.
            if error.errno not in (errno.ENOTSUP, errno.ENODATA):
                raise
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
