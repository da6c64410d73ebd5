"""Pseudoterminals: the master, its slave, window sizes, modes, the controlling terminal.

Everything is an ``ioctl`` on the kernel's own structures, so neither
:mod:`termios` nor :mod:`fcntl` is loaded, and ``--explain`` sees each call.
A slave is only ever opened through its master (TIOCGPTPEER), never by a path,
which a hostile root file system could have bent.

The numbers are those of x86-64 and aarch64, which are the same.
Sources: ioctl_tty(2), pty(7), cfmakeraw(3), asm-generic/ioctls.h, asm-generic/termbits.h.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from firkin.errors import SetupError
from firkin.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The device number of ``/dev/ptmx``, whatever the node is called.
PTMX_DEVICE = os.makedev(5, 2)

_TCGETS = 0x5401
_TCSETS = 0x5402
_TIOCSCTTY = 0x540E
_TIOCGWINSZ = 0x5413
_TIOCSWINSZ = 0x5414
_TIOCNOTTY = 0x5422
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441

_WINSIZE = struct.Struct("=4H")  # rows, columns, and the size in pixels that nobody keeps
_TERMIOS = struct.Struct("=4IB19s")  # iflag, oflag, cflag, lflag, line discipline, cc

# Modes, in the kernel's octal.
_IGNBRK, _BRKINT, _PARMRK, _ISTRIP = 0o1, 0o2, 0o10, 0o40
_INLCR, _IGNCR, _ICRNL, _IXON = 0o100, 0o200, 0o400, 0o2000
_OPOST = 0o1
_CSIZE, _CS8, _PARENB = 0o60, 0o60, 0o400
_ISIG, _ICANON, _ECHO, _ECHONL, _IEXTEN = 0o1, 0o2, 0o10, 0o100, 0o100000
_VEOF, _VTIME, _VMIN = 4, 5, 6

_ioctl = libc.function("ioctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def _call(fd: int, request: int, argument: Any, *shown: Any) -> int:
    return libc.call("ioctl", _ioctl, fd, request, argument, shown=(fd, *shown))


def open_ptmx(path: str | bytes, dir_fd: int | None = None) -> int:
    """Make a pseudoterminal in the devpts instance that *path* belongs to.

    Args:
        path: that instance's ``ptmx``: ``/dev/pts/ptmx``.
        dir_fd: the folder a relative *path* starts from.

    Returns:
        The master, close-on-exec, its slave unlocked.

    Raises:
        OSError: *path* cannot be opened.
        SetupError: *path* is something else than the kernel's ptmx.
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    fd: int = libc.via(os.open, path, flags, dir_fd=dir_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != PTMX_DEVICE:
            shown = os.fsdecode(path)
            raise SetupError(
                f"cannot make a terminal with {shown}", "not a ptmx device", path=shown
            )
        _call(fd, _TIOCSPTLCK, ctypes.byref(ctypes.c_int(0)), "TIOCSPTLCK", 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_slave(master: int) -> int:
    """Open the slave of *master*, close-on-exec, without making it a controlling terminal."""
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    return _call(master, _TIOCGPTPEER, flags, "TIOCGPTPEER", flags)


def set_controlling(slave: int) -> None:
    """Make *slave* the controlling terminal of this process, which leads a session without one."""
    _call(slave, _TIOCSCTTY, 0, "TIOCSCTTY", 0)


def release_controlling(fd: int) -> None:
    """Give up the controlling terminal *fd*; its foreground group gets SIGHUP and SIGCONT.

    Raises:
        OSError: ENOTTY, *fd* is not this process's controlling terminal.
    """
    _call(fd, _TIOCNOTTY, 0, "TIOCNOTTY")


def get_winsize(fd: int) -> tuple[int, int]:
    """Return the rows and columns of terminal *fd*; 0 where unknown."""
    size = ctypes.create_string_buffer(_WINSIZE.size)
    _call(fd, _TIOCGWINSZ, size, "TIOCGWINSZ")
    rows, columns, _, _ = _WINSIZE.unpack(size)
    return rows, columns


def set_winsize(fd: int, rows: int, columns: int) -> None:
    """Set the size of terminal *fd*, in characters; a change raises SIGWINCH on its other side."""
    _call(fd, _TIOCSWINSZ, _WINSIZE.pack(rows, columns, 0, 0), "TIOCSWINSZ", (rows, columns))


def get_attributes(fd: int) -> bytes:
    """Return the modes of terminal *fd*, the kernel's ``struct termios``; a master has its slave's.

    Raises:
        OSError: ENOTTY, no terminal; EIO, it was hung up.
    """
    attributes = ctypes.create_string_buffer(_TERMIOS.size)
    _call(fd, _TCGETS, attributes, "TCGETS")
    return attributes.raw


def set_attributes(fd: int, attributes: bytes) -> None:
    """Set the modes of terminal *fd* at once.

    At once because waiting for the output to drain (TCSADRAIN) could wait for
    ever, and on Linux output is processed when it is written, not when it leaves.

    A process in the background is stopped by SIGTTOU here unless it blocks that.
    """
    if len(attributes) != _TERMIOS.size:
        raise ValueError(f"terminal attributes are {_TERMIOS.size} bytes, not {len(attributes)}")
    _call(fd, _TCSETS, attributes, "TCSETS")


def make_raw(attributes: bytes) -> bytes:
    """Return *attributes* changed so that every byte passes as it is, as cfmakeraw(3) does."""
    iflag, oflag, cflag, lflag, line, characters = _TERMIOS.unpack(attributes)
    iflag &= ~(_IGNBRK | _BRKINT | _PARMRK | _ISTRIP | _INLCR | _IGNCR | _ICRNL | _IXON)
    oflag &= ~_OPOST
    cflag = cflag & ~(_CSIZE | _PARENB) | _CS8
    lflag &= ~(_ISIG | _ICANON | _ECHO | _ECHONL | _IEXTEN)
    cc = bytearray(characters)
    cc[_VMIN], cc[_VTIME] = 1, 0
    return _TERMIOS.pack(iflag, oflag, cflag, lflag, line, bytes(cc))


def end_of_file(attributes: bytes) -> tuple[bytes, bool]:
    """Return the character that ends the input, and whether input comes in lines (ICANON)."""
    _, _, _, lflag, _, characters = _TERMIOS.unpack(attributes)
    return characters[_VEOF : _VEOF + 1], bool(lflag & _ICANON)
