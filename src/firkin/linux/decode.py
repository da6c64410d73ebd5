"""Kernel calls as people read them: names, flags and results, for ``--explain``.

A call arrives as ``linux/libc.py`` made it. Most arguments show themselves; what
is a number with names in the kernel's headers is shown by those, from the table
:data:`_CALLS` (call, and what stands at which place).

Source: the manual page of each call, include/uapi/linux.
"""

from __future__ import annotations

import errno
import os

from firkin.linux import caps, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Show = Callable[[Any], str]


class _Bare(str):
    """A text that is shown without quotes: a constant's name."""

    __slots__ = ()


def decode(name: str, shown: tuple[Any, ...]) -> tuple[str, str]:
    """Return a call's kernel name and its arguments as people write them."""
    places = _CALLS.get(name, {})
    parts = []
    if name == "mount_setattr":
        # What it leaves as it is need not be said.
        shown = tuple(word for word in shown if word not in ("+0", "-0", "0", ""))
    elif name == "prctl" and shown:
        places = _PRCTL.get(shown[0], places)
    for place, word in enumerate(shown):
        if isinstance(word, tuple) and len(word) == 2 and isinstance(word[0], str):
            # An option of a Python function, as dir_fd=5.
            if word[1] is not None and word != ("follow_symlinks", True):
                parts.append(f"{word[0]}={_show(word[1])}")
            continue
        show = places.get(place, _show)
        text = show(word) if type(word) is int or show is _path else _show(word)
        if text:
            parts.append(text)
    return _KERNEL_NAMES.get(name, name), ", ".join(parts)


def _show(word: Any) -> str:
    if word is None:
        return "NULL"
    if isinstance(word, bytes):
        return quote(word.decode("utf-8", "backslashreplace"))
    if isinstance(word, str):
        return word if isinstance(word, _Bare) or _is_constant(word) else quote(word)
    if isinstance(word, (list, tuple)):
        return "[" + ", ".join(map(_show, word)) + "]"
    if isinstance(word, dict):
        return "{" + ", ".join(f"{key}={_show(value)}" for key, value in word.items()) + "}"
    if type(word) is int:
        return str(word)
    number = getattr(word, "fileno", None)  # a socket or file
    return str(number()) if number else type(word).__name__


def quote(text: str) -> str:
    """Return *text* in quotes, each unprintable character escaped."""
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return f'"{printable}"'


def _path(word: Any) -> str:
    return quote(os.fsdecode(word)) if isinstance(word, (str, bytes)) else _show(word)


def _is_constant(word: str) -> bool:
    """Whether *word* is names of kernel constants, as ``MS_NOSUID|MS_NODEV``, or a bare number."""
    if word in ("0", "-0", "+0"):
        return True
    # A structure, as {1261 instructions}; or a field of one, as effective=0xa80425fb.
    if word[:1] == "{" or word.partition("=0x")[0] in ("effective", "permitted", "inheritable"):
        return True
    parts = word.lstrip("+-").split("|")
    return "_" in word and all(
        part and part.replace("_", "").isalnum() and part.isupper() for part in parts
    )


def _names(value: int, names: tuple[tuple[int, str], ...], zero: str = "0") -> str:
    found = []
    for bits, name in names:
        if bits and value & bits == bits:
            found.append(name)
            value &= ~bits
    if value:
        found.append(f"{value:#x}")
    return "|".join(found) or zero


_OPEN_NAMES = tuple(
    (getattr(os, name), name)
    for name in (
        "O_WRONLY",
        "O_RDWR",
        "O_CREAT",
        "O_EXCL",
        "O_TRUNC",
        "O_APPEND",
        "O_NONBLOCK",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_NOCTTY",
        "O_PATH",
        "O_CLOEXEC",
    )
)
_RESOLVE_NAMES = (
    (0x01, "RESOLVE_NO_XDEV"),
    (0x02, "RESOLVE_NO_MAGICLINKS"),
    (0x04, "RESOLVE_NO_SYMLINKS"),
    (0x08, "RESOLVE_BENEATH"),
    (0x10, "RESOLVE_IN_ROOT"),
    (0x20, "RESOLVE_CACHED"),
)
_SIGNALFD_NAMES = ((signals.SFD_NONBLOCK, "SFD_NONBLOCK"), (signals.SFD_CLOEXEC, "SFD_CLOEXEC"))
_ATTRIBUTES = (
    (0x1, "MOUNT_ATTR_RDONLY"),
    (0x2, "MOUNT_ATTR_NOSUID"),
    (0x4, "MOUNT_ATTR_NODEV"),
    (0x8, "MOUNT_ATTR_NOEXEC"),
)
# In the order of their numbers.
_RLIMITS = (
    *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE"),
    *("MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"),
)


def _open_flags(value: int) -> str:
    writes = value & (os.O_WRONLY | os.O_RDWR | os.O_PATH)
    # O_LARGEFILE and the like are the C library's business.
    text = _names(value & ~0o100000, _OPEN_NAMES, "")
    return text if writes else f"O_RDONLY|{text}".rstrip("|")


def _resolve(value: int) -> str:
    return _names(value, _RESOLVE_NAMES)


def _octal(value: int) -> str:
    return f"{value:#o}" if value else "0"


def _node(value: int) -> str:
    kinds = {0o020000: "S_IFCHR", 0o060000: "S_IFBLK", 0o010000: "S_IFIFO"}
    return f"{kinds.get(value & 0o170000, '0')}|{value & 0o7777:#o}"


def _device(value: int) -> str:
    return f"makedev({os.major(value)}, {os.minor(value)})"


def _limit(value: int) -> str:
    return "RLIM_INFINITY" if value in (-1, (1 << 64) - 1) else str(value)


def _resource(value: int) -> str:
    return f"RLIMIT_{_RLIMITS[value]}" if 0 <= value < len(_RLIMITS) else str(value)


def _signal_flags(value: int) -> str:
    return _names(value, _SIGNALFD_NAMES)


def mask(bits: int) -> str:
    """Return a mask of signals by their names, as strace(1): ``[HUP INT]``, ``[]`` for none."""
    numbers = [number for number in signals.ALL if bits >> number - 1 & 1]
    text = " ".join(signals.name_of(number).removeprefix("SIG") for number in numbers)
    return f"[{text}]"


def _constant(table: dict[int, str]) -> Show:
    return lambda value: table.get(value, str(value))


def _flags(*names: tuple[int, str]) -> Show:
    return lambda value: _names(value, names)


_WHO = {-100: "AT_FDCWD"}
_KEYCTL = {1: "KEYCTL_JOIN_SESSION_KEYRING"}
_PERSONALITY = {0: "PER_LINUX", 8: "PER_LINUX32"}


def _capability(value: int) -> str:
    return caps.NAMES[value] if 0 <= value < len(caps.NAMES) else str(value)


_PRCTL: dict[str, dict[int, Show]] = {
    "PR_CAPBSET_DROP": {1: _capability},
    "PR_CAP_AMBIENT": {
        1: _constant({2: "PR_CAP_AMBIENT_RAISE", 4: "PR_CAP_AMBIENT_CLEAR_ALL"}),
        2: _capability,
    },
    "PR_SET_PDEATHSIG": {1: signals.name_of},
}

# By the name that linux/libc.py is told: what stands at which place.
_CALLS: dict[str, dict[int, Show]] = {
    "open": {1: _open_flags, 2: _octal},
    "openat2": {0: _constant(_WHO), 2: _open_flags, 3: _octal, 4: _resolve},
    "mkdir": {1: _octal},
    "mknod": {1: _node, 2: _device},
    "chmod": {1: _octal},
    "fsopen": {1: _flags((1, "FSOPEN_CLOEXEC"))},
    "fsmount": {1: _flags((1, "FSMOUNT_CLOEXEC")), 2: _flags(*_ATTRIBUTES)},
    "signalfd": {1: mask, 2: _signal_flags},
    "sigprocmask": {1: mask},
    "pidfd_send_signal": {1: signals.name_of},
    "kill": {1: signals.name_of},
    "setrlimit": {0: _resource, 1: _limit, 2: _limit},
    "prlimit": {1: _resource, 2: _limit, 3: _limit},
    "keyctl": {0: _constant(_KEYCTL)},
    "close_range": {1: _constant({0x7FFFFFFF: "~0"}), 2: _flags((4, "CLOSE_RANGE_CLOEXEC"))},
    "personality": {0: _constant(_PERSONALITY)},
}
# A path may look like a constant's name, and is none: A_B is a folder here.
for _call in ("open", "mkdir", "mknod", "chdir", "symlink", "rmdir", "unlink", "write", "statfs"):
    _CALLS.setdefault(_call, {})[0] = _path
_CALLS["openat2"][1] = _path
_CALLS["sethostname"] = {0: _path}
_CALLS["setdomainname"] = {0: _path}

# os names the system call it makes by another name than the kernel does.
_KERNEL_NAMES = {
    "open": "openat",
    "mknod": "mknodat",
    "mkdir": "mkdirat",
    "symlink": "symlinkat",
    "readlink": "readlinkat",
    "unlink": "unlinkat",
    "dup2": "dup3",
    "signal": "rt_sigaction",
    "sigprocmask": "rt_sigprocmask",
}


def describe_result(result: Any) -> str:
    """Return a result as strace(1) shows it; "0" where a call returns nothing else."""
    if isinstance(result, OSError):
        return f"-1 {errno.errorcode.get(result.errno or 0, result.errno)} ({result.strerror})"
    return str(result) if isinstance(result, int) else "0"
