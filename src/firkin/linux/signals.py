"""Signals without the :mod:`signal` module, whose import of ``enum`` costs milliseconds.

A *mask* is a plain int, as the kernel prints one in ``/proc/PID/status``: bit
``n - 1`` stands for signal *n*. The numbers are those of x86-64 and aarch64,
which are the same.

Sources: signal(7), sigprocmask(2), signalfd(2), pidfd_send_signal(2).
"""

from __future__ import annotations

import ctypes
import os
import struct

from firkin.errors import UsageError
from firkin.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SIGHUP = 1
SIGINT = 2
SIGQUIT = 3
SIGILL = 4
SIGTRAP = 5
SIGABRT = 6
SIGBUS = 7
SIGFPE = 8
SIGKILL = 9
SIGUSR1 = 10
SIGSEGV = 11
SIGUSR2 = 12
SIGPIPE = 13
SIGALRM = 14
SIGTERM = 15
SIGSTKFLT = 16
SIGCHLD = 17
SIGCONT = 18
SIGSTOP = 19
SIGTSTP = 20
SIGTTIN = 21
SIGTTOU = 22
SIGURG = 23
SIGXCPU = 24
SIGXFSZ = 25
SIGVTALRM = 26
SIGPROF = 27
SIGWINCH = 28
SIGIO = 29
SIGPWR = 30
SIGSYS = 31
# The kernel's 32 and 33 belong to the C library, which starts its own count above them.
SIGRTMIN = 34
SIGRTMAX = 64

#: Every signal there is.
ALL = range(1, SIGRTMAX + 1)

#: The names of the classic signals, without ``SIG``, and their numbers; synonyms come last.
NAMES = {
    name[3:]: number
    for name, number in tuple(globals().items())
    if name.startswith("SIG") and number < 32
}
NAMES.update(IOT=SIGABRT, CLD=SIGCHLD, POLL=SIGIO)

SFD_NONBLOCK = os.O_NONBLOCK
SFD_CLOEXEC = os.O_CLOEXEC

_SIG_SETMASK = 2
_SIG_BLOCK = 0
_NR_PIDFD_SEND_SIGNAL = 424  # one number on all architectures

# glibc and musl agree: a sigset_t is 1024 bits, of which the kernel has 64.
_Sigset = ctypes.c_uint64 * 16
# signalfd_siginfo: signo, errno, code, pid, uid, five fields unused here, status, padding.
_SIGINFO = struct.Struct("=I4xiII20xi84x")

# The C library keeps these to itself (glibc 32 and 33, musl 34 too), so only the kernel
# takes them from us. glibc's posix_spawn(3) can leave its own ignored in what it starts.
_C_LIBRARYS = (32, 33, 34)
_NR_RT_SIGACTION = 134 if os.uname().machine == "aarch64" else 13

_sigprocmask = libc.function(
    "sigprocmask", ctypes.c_int, ctypes.POINTER(_Sigset), ctypes.POINTER(_Sigset)
)
_signalfd = libc.function("signalfd", ctypes.c_int, ctypes.POINTER(_Sigset), ctypes.c_int)
# The result is a handler's address; as a long, SIG_ERR is -1, like other errors.
_signal = libc.function("signal", ctypes.c_int, ctypes.c_void_p, restype=ctypes.c_long)
# By item: an object apart from the one that libc.syscall uses, with types of its own.
_syscall = libc.library["syscall"]
_syscall.argtypes = (ctypes.c_long,) * 2 + (ctypes.c_void_p,) * 2 + (ctypes.c_long,)
_syscall.restype = ctypes.c_long


def mask_of(signals: Iterable[int]) -> int:
    """Return the mask of *signals*."""
    mask = 0
    for number in signals:
        mask |= 1 << (number - 1)
    return mask


def block(signals: Iterable[int]) -> int:
    """Block *signals* in this thread, besides those blocked already.

    Returns:
        The mask before, for :func:`set_mask`.
    """
    return _change_mask(_SIG_BLOCK, "SIG_BLOCK", mask_of(signals))


def set_mask(mask: int) -> int:
    """Let exactly the signals of *mask* be blocked in this thread.

    Returns:
        The mask before.
    """
    return _change_mask(_SIG_SETMASK, "SIG_SETMASK", mask)


def _change_mask(how: int, shown: str, mask: int) -> int:
    old = _Sigset()
    libc.call("sigprocmask", _sigprocmask, how, _Sigset(mask), old, shown=(shown, mask))
    return int(old[0])


def reset_dispositions() -> None:
    """Give every signal its default disposition, as a program expects to find them.

    ``execve`` does so for handlers, but a signal that is ignored stays ignored:
    Python ignores SIGPIPE and SIGXFSZ, nohup(1) SIGHUP, and some service
    managers more. Asking which are ignored costs as much as setting them all.
    Block signals first: Python's handler for SIGINT is gone afterwards.
    """
    libc.via(_reset_dispositions, "1..64", "SIG_DFL")


def reset_disposition(number: int) -> None:
    """Give one signal its default disposition."""
    libc.call("signal", _signal, number, None, shown=(number, "SIG_DFL"))


def _reset_dispositions(*_shown: str) -> None:
    default = bytes(32)  # the kernel's struct sigaction: SIG_DFL, no flags, empty mask
    for number in ALL:
        if number in (SIGKILL, SIGSTOP):
            continue
        if number in _C_LIBRARYS:
            failed = _syscall(_NR_RT_SIGACTION, number, default, None, 8) == -1
        else:
            failed = _signal(number, None) == -1
        if failed:
            code = ctypes.get_errno()
            raise OSError(code, f"signal {number}: {os.strerror(code)}")


_reset_dispositions.__name__ = "signal"


def signalfd(signals: Iterable[int], flags: int = SFD_CLOEXEC) -> int:
    """Return a descriptor from which *signals*, once blocked, are read as records.

    Args:
        signals: their numbers; SIGKILL and SIGSTOP cannot be read.
        flags: SFD_CLOEXEC, SFD_NONBLOCK.
    """
    mask = mask_of(signals)
    shown = (-1, mask, flags)
    return libc.call("signalfd", _signalfd, -1, _Sigset(mask), flags, shown=shown)


def read_signalfd(fd: int) -> list[tuple[int, int, int, int, int]]:
    """Return the signals that wait at *fd*, each as (signo, code, pid, uid, status).

    *code* is ``si_code``: 0 for kill(2), above 0 when the kernel sent it. *pid*
    and *uid* name the sender, 0 if it is outside the pid namespace. *status* is
    for SIGCHLD alone, which stands for any number of children: wait for all.
    Without SFD_NONBLOCK, waits for the first; with it, returns an empty list.
    """
    try:
        data = os.read(fd, 16 * _SIGINFO.size)
    except BlockingIOError:
        return []
    records: list[tuple[int, int, int, int, int]] = list(_SIGINFO.iter_unpack(data))
    return records


def pidfd_open(pid: int) -> int:
    """Return a close-on-exec descriptor of process *pid*, safe from reuse of its number."""
    fd: int = libc.via(os.pidfd_open, pid)
    return fd


def pidfd_send_signal(fd: int, number: int) -> None:
    """Send signal *number* to the process of pidfd *fd*.

    Raises:
        ProcessLookupError: it has been waited for.
    """
    libc.syscall("pidfd_send_signal", _NR_PIDFD_SEND_SIGNAL, fd, number, None, 0)


def parse(text: str) -> int:
    """Return the number of a signal as people write it: ``TERM``, ``sigterm``, ``15``, ``RTMIN+3``.

    Raises:
        UsageError: no such signal.
    """
    name = text.upper().removeprefix("SIG")
    number = int(text) if _is_number(text) else NAMES.get(name, 0)
    for base, sign in (("RTMIN", "+"), ("RTMAX", "-")):
        head, found, distance = name.partition(sign)
        if head == base and (_is_number(distance) or not found):
            steps = int(distance or 0)
            number = SIGRTMIN + steps if sign == "+" else SIGRTMAX - steps
            number = number if number >= SIGRTMIN else 0
    if number not in ALL:
        raise UsageError(
            f"cannot use signal {text!r}",
            "no such signal",
            f"give a name such as TERM or RTMIN+3, or a number from 1 to {SIGRTMAX}",
        )
    return number


def _is_number(text: str) -> bool:
    # int() alone would take "+3", "1_0" and other scripts' digits, and at length.
    return len(text) <= 2 and text.isascii() and text.isdigit()


def name_of(number: int) -> str:
    """Return the name of signal *number* as ``SIGTERM``, ``SIGRTMIN+3`` or ``32``."""
    for name, known in NAMES.items():
        if known == number:
            return "SIG" + name
    if number == SIGRTMIN:
        return "SIGRTMIN"
    if SIGRTMIN < number <= SIGRTMAX:
        return f"SIGRTMIN+{number - SIGRTMIN}"
    return str(number)
