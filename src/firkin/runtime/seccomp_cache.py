"""Compiled seccomp filters on disk, so that a start only reads one.

Compiling takes 20 ms, reading 0.02. A file is named for everything that its
program depends on, and carries a checksum: what is torn, or could have been
written by somebody else, is compiled again and never loaded.
"""

from __future__ import annotations

import os
import stat
import struct
from time import time
from zlib import crc32

from firkin import __version__
from firkin.linux import seccomp as linux_seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Any

# Raised whenever seccomp.compile_oci makes another program from the same input.
CACHE_FORMAT = 1

PROFILE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "data", "seccomp.json")

_MAGIC = b"firkinB1"
_HEADER = struct.Struct("=8sII")  # magic, length of the program, crc32 of name and program
_MAX_FILE = _HEADER.size + linux_seccomp.BPF_MAXINSNS * linux_seccomp.INSTRUCTION_SIZE
_TEMPORARY = ".tmp-"
_TEMPORARY_AGE = 3600  # seconds after which a temporary file's writer is dead
_UNUSED_AGE = 90 * 86400  # seconds after which an entry may be of a version long gone


def machine_and_kernel() -> tuple[str, tuple[int, int]]:
    """Return the machine and the kernel's major and minor version."""
    uname = os.uname()
    major, minor = uname.release.split(".")[:2]
    # "6.1" of "6.1-rc2": the minor version can carry a suffix.
    digits = len(minor) - len(minor.lstrip("0123456789"))
    return uname.machine, (int(major), int(minor[:digits]))


def cached_default(capabilities: Collection[str] | int, cache_dirs: Sequence[str]) -> bytes:
    """Return the default profile's program, from the first cache that has it.

    The name of the cache's file holds everything the program depends on but
    the version of libseccomp, which only decides how many names are known.

    Args:
        capabilities: the bounding set, as names or as a mask.
        cache_dirs: folders in the order of preference; one that others can
            write to is not used. On a miss the first that can be written gets
            the program.

    Raises:
        Unsupported: a miss, and libseccomp is not installed.
    """
    if isinstance(capabilities, int):
        mask = capabilities
    else:
        from firkin.linux import caps

        mask = caps.mask(capabilities)

    def compile_default() -> bytes:
        from firkin.linux import caps
        from firkin.runtime import seccomp

        return seccomp.compile_oci(seccomp.default_profile(caps.names(mask)))

    profile = os.stat(PROFILE)
    name = f"default-{profile.st_size:x}-{profile.st_mtime_ns:x}-{mask:x}-{_suffix()}"
    return _cached(name, cache_dirs, compile_default)


def cached(profile: dict[str, Any], cache_dirs: Sequence[str]) -> bytes:
    """Return the program of an OCI ``linux.seccomp``, from the first cache that has it.

    Raises:
        ConfigError, Unsupported: as :func:`firkin.runtime.seccomp.compile_oci`.
    """
    # Built in, as hashlib is not: that would bring OpenSSL with it.
    from _blake2 import blake2b

    def compile_it() -> bytes:
        from firkin.runtime import seccomp

        return seccomp.compile_oci(profile)

    # Of plain values, which are written in one way only.
    digest = blake2b(repr(profile).encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
    return _cached(f"oci-{digest}-{_suffix()}", cache_dirs, compile_it)


def directories() -> list[str]:
    """Return the caches of this user in the order of preference; they may not exist."""
    folders = [os.environ.get("FIRKIN_STORE", "")]
    if os.geteuid() == 0:
        folders.append("/var/lib/firkin")
    home = os.environ.get("HOME", "")
    for base, below in ((home, ".local/share"), (os.environ.get("XDG_RUNTIME_DIR", ""), "")):
        if os.path.isabs(base):
            folders.append(os.path.join(base, below, "firkin"))
    return [f"{path}/seccomp" for path in folders if path]


def _suffix() -> str:
    machine, (major, minor) = machine_and_kernel()
    return f"{machine}-{major}.{minor}-{__version__}-{CACHE_FORMAT}.bpf"


def _cached(name: str, cache_dirs: Sequence[str], compile_it: Callable[[], bytes]) -> bytes:
    for path in cache_dirs:
        found = _lookup(path, name)
        if found is not None:
            return found
    program = compile_it()
    for path in cache_dirs:
        if _store(path, name, program):
            break
    return program


def _ours(status: os.stat_result) -> bool:
    """Whether nobody but us can have written this file or folder."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _open_folder(path: str) -> int | None:
    """Open a cache's folder; None where it isn't there or is not ours alone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    if _ours(os.fstat(fd)):
        return fd
    os.close(fd)
    return None


def _checksum(name: str, program: bytes) -> int:
    # With the name, so that a file under another's name is not taken for it.
    return crc32(program, crc32(os.fsencode(name)))


def _lookup(path: str, name: str) -> bytes | None:
    """Return the program in a cache's folder, None for anything but a sound one."""
    folder = _open_folder(path)
    if folder is None:
        return None
    try:
        # O_NONBLOCK: opening a FIFO must not hang before fstat has refused it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=folder)
    except OSError:
        return None
    finally:
        os.close(folder)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _ours(status):
            return None
        data = os.read(fd, _MAX_FILE + 1)
    except OSError:
        return None
    finally:
        os.close(fd)
    if len(data) < _HEADER.size:
        return None
    magic, length, checksum = _HEADER.unpack_from(data)
    program = data[_HEADER.size :]
    sound = magic == _MAGIC and length == len(program) and checksum == _checksum(name, program)
    return program if sound and length else None


def _store(path: str, name: str, program: bytes) -> bool:
    """Put *program* into a cache's folder; False where that cannot be.

    A cache that is full, read-only or not ours costs time, not the start.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError:
        return False
    folder = _open_folder(path)
    if folder is None:
        return False
    temporary = f"{_TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}"
    try:
        _sweep(folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            header = _HEADER.pack(_MAGIC, len(program), _checksum(name, program))
            # Not synced: a file torn by a crash is found by its next reader.
            whole = os.write(fd, header + program) == len(header) + len(program)
        except OSError:
            whole = False
        finally:
            os.close(fd)
        if whole:
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            os.unlink(temporary, dir_fd=folder)
        return whole
    except OSError:
        return False
    finally:
        os.close(folder)


def _sweep(folder: int) -> None:
    """Remove what writers that died and versions long gone left in a cache's folder."""
    now = time()
    with os.scandir(folder) as entries:
        for entry in entries:
            temporary = entry.name.startswith(_TEMPORARY)
            if not temporary and not entry.name.endswith(".bpf"):
                continue
            limit = _TEMPORARY_AGE if temporary else _UNUSED_AGE
            try:
                if now - entry.stat(follow_symlinks=False).st_mtime > limit:
                    os.unlink(entry.name, dir_fd=folder)
            except FileNotFoundError:
                pass  # another writer sweeps too
