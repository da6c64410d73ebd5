"""Loading a BPF program as this process's seccomp filter.

Source: seccomp(2), prctl(2), include/uapi/linux/seccomp.h, include/uapi/linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import os

from firkin.errors import UsageError
from firkin.linux import libc

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_MODE_FILTER = 2
PR_SET_SECCOMP = 22

SECCOMP_FILTER_FLAG_TSYNC = 1 << 0
SECCOMP_FILTER_FLAG_LOG = 1 << 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_TSYNC_ESRCH = 1 << 4
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5

# In the order of their bits.
_FLAG_NAMES = ("TSYNC", "LOG", "SPEC_ALLOW", "NEW_LISTENER", "TSYNC_ESRCH", "WAIT_KILLABLE_RECV")

BPF_MAXINSNS = 4096
INSTRUCTION_SIZE = 8  # struct sock_filter

# The C library has no wrapper. Architectures that are not here use prctl.
_NR_SECCOMP = {
    "x86_64": 317,
    "aarch64": 277,
    "riscv64": 277,
    "loongarch64": 277,
    "ppc64le": 358,
    "s390x": 348,
}.get(os.uname().machine if ctypes.sizeof(ctypes.c_void_p) == 8 else "")

# The same types as every other user of prctl: ctypes keeps one object per function.
_prctl = libc.function("prctl", ctypes.c_int, *[ctypes.c_ulong] * 4)


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class Filter:
    """A filter that is ready to load: built before fork, loaded in the child.

    Args:
        program: the instructions, as ``struct sock_filter[]`` in the machine's byte order.
        flags: an OR of ``SECCOMP_FILTER_FLAG_*``.

    Raises:
        UsageError: *program* is empty, not whole, or longer than the kernel takes.
    """

    __slots__ = ("_address", "_fprog", "_program", "_shown", "flags")

    def __init__(self, program: bytes, flags: int = 0) -> None:
        count, rest = divmod(len(program), INSTRUCTION_SIZE)
        if rest or not 0 < count <= BPF_MAXINSNS:
            raise UsageError(
                f"cannot use a seccomp filter of {len(program)} bytes",
                f"expected 1 to {BPF_MAXINSNS} instructions of {INSTRUCTION_SIZE} bytes",
            )
        self.flags = flags
        # Kept, because the kernel reads it through the pointers below.
        self._program = ctypes.create_string_buffer(program, len(program))
        self._fprog = _SockFprog(count, ctypes.addressof(self._program))
        self._address = ctypes.addressof(self._fprog)
        self._shown = f"{{{count} instructions}}"

    def load(self) -> int:
        """Put the filter on this thread (with TSYNC, on the whole process).

        The process needs ``no_new_privs`` or CAP_SYS_ADMIN in its user namespace.

        Returns:
            The listener's descriptor with ``SECCOMP_FILTER_FLAG_NEW_LISTENER``, else 0.

        Raises:
            OSError: the kernel refused; ESRCH where another thread cannot take
                the filter.
        """
        if _NR_SECCOMP is None:
            if self.flags:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            return self._load_by_prctl()
        try:
            result = libc.syscall(
                "seccomp",
                _NR_SECCOMP,
                SECCOMP_SET_MODE_FILTER,
                self.flags,
                ctypes.c_void_p(self._address),
                shown=("SECCOMP_SET_MODE_FILTER", flag_names(self.flags), self._shown),
            )
        except OSError as error:
            # A filter of an outer container may hide the call; prctl knows no flags.
            if error.errno != errno.ENOSYS or self.flags:
                raise
            return self._load_by_prctl()
        if result > 0 and not self.flags & SECCOMP_FILTER_FLAG_NEW_LISTENER:
            # TSYNC reports the thread that could not follow as a result, not an errno,
            # and then no thread has the filter.
            raise OSError(errno.ESRCH, f"thread {result} cannot take the seccomp filter")
        return result

    def _load_by_prctl(self) -> int:
        return libc.call(
            "prctl",
            _prctl,
            PR_SET_SECCOMP,
            SECCOMP_MODE_FILTER,
            self._address,
            0,
            0,
            shown=("PR_SET_SECCOMP", "SECCOMP_MODE_FILTER", self._shown),
        )


def load(program: bytes, flags: int = 0) -> int:
    """Load *program* at once; the arguments, result and errors are those of :class:`Filter`."""
    return Filter(program, flags).load()


def flag_names(flags: int) -> str:
    """Return *flags* as ``TSYNC|LOG``, ``0`` for none; unknown bits as a number."""
    names = [name for bit, name in enumerate(_FLAG_NAMES) if flags & 1 << bit]
    unknown = flags >> len(_FLAG_NAMES) << len(_FLAG_NAMES)
    if unknown or not names:
        names.append(hex(unknown) if unknown else "0")
    return "|".join(names)
