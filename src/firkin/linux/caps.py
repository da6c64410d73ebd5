"""Capabilities: their names, and the calls that set a process's five sets.

Source: capabilities(7), capget(2), prctl(2), include/uapi/linux/capability.h.
"""

from __future__ import annotations

import ctypes

from firkin.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# Ordered by number: the index of a name is the kernel's CAP_ constant.
NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_KEEPCAPS = 8


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_capget = libc.function("capget", ctypes.c_void_p, ctypes.c_void_p)
_capset = libc.function("capset", ctypes.c_void_p, ctypes.c_void_p)
_prctl = libc.function("prctl", ctypes.c_int, *[ctypes.c_ulong] * 4)


def mask(names: Iterable[str]) -> int:
    """Return the bit mask of *names*; names that the table lacks are ignored.

    The runtime specification asks for unknown names to be ignored with a
    warning: they are a newer kernel's.
    """
    bits = 0
    for name in names:
        if name in NAMES:
            bits |= 1 << NAMES.index(name)
    return bits


def names(bits: int) -> list[str]:
    """Return the names of the capabilities set in *bits*, ordered by number."""
    return [name for number, name in enumerate(NAMES) if bits >> number & 1]


def last() -> int:
    """Return the highest capability number that the running kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def prctl(name: str, option: int, *arguments: int) -> int:
    """Call prctl(2); *name* is the option's kernel name, for listeners."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return libc.call("prctl", _prctl, option, *padded, shown=(name, *arguments))


def drop_bounding(keep: int, last_cap: int) -> None:
    """Drop every capability that is not in *keep* from the bounding set.

    Raises:
        OSError: EPERM without CAP_SETPCAP.
    """
    for number in range(last_cap + 1):
        if not keep >> number & 1:
            prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, number)


def get_caps() -> tuple[int, int, int]:
    """Return this thread's effective, permitted and inheritable sets; capget(2)."""
    header = _Header(_VERSION_3, 0)
    data = (_Data * 2)()
    libc.call("capget", _capget, ctypes.byref(header), ctypes.byref(data), shown=())
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def set_caps(effective: int, permitted: int, inheritable: int) -> None:
    """Set this thread's effective, permitted and inheritable sets with capset(2).

    Raises:
        OSError: EPERM when a set holds what the permitted set lacks.
    """
    header = _Header(_VERSION_3, 0)
    data = (_Data * 2)()
    for word in range(2):
        shift = 32 * word
        data[word].effective = effective >> shift & 0xFFFFFFFF
        data[word].permitted = permitted >> shift & 0xFFFFFFFF
        data[word].inheritable = inheritable >> shift & 0xFFFFFFFF
    libc.call(
        "capset",
        _capset,
        ctypes.byref(header),
        ctypes.byref(data),
        shown=(
            f"effective={effective:#x}",
            f"permitted={permitted:#x}",
            f"inheritable={inheritable:#x}",
        ),
    )


def set_ambient(bits: int) -> None:
    """Make *bits* the ambient set; each must be permitted and inheritable."""
    prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(len(NAMES)):
        if bits >> number & 1:
            prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
