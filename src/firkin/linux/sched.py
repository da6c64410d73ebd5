"""How a process is scheduled: CPU, I/O and memory nodes.

Source: sched_setattr(2), ioprio_set(2), set_mempolicy(2), sched_setaffinity(2),
include/uapi/linux/sched/types.h, ioprio.h and mempolicy.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from firkin.linux import libc

POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,  # reserved: no kernel has it
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IOPRIO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
MEMORY_MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS = {
    "MPOL_F_NUMA_BALANCING": 1 << 13,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_STATIC_NODES": 1 << 15,
}

_IOPRIO_CLASS_SHIFT = 13
_IOPRIO_WHO_PGRP = 2

# struct sched_attr of SCHED_ATTR_SIZE_VER1: the two last are for utilization clamping, for
# which the specification has flags and no values.
_ATTR = struct.Struct("=IIQiIQQQII")

_AARCH64 = os.uname().machine == "aarch64"
_SYS_SCHED_SETATTR = 274 if _AARCH64 else 314
_SYS_IOPRIO_SET = 30 if _AARCH64 else 251
_SYS_SET_MEMPOLICY = 237 if _AARCH64 else 238


def attributes(
    policy: int,
    flags: int = 0,
    nice: int = 0,
    priority: int = 0,
    runtime: int = 0,
    deadline: int = 0,
    period: int = 0,
) -> bytes:
    """Return a ``struct sched_attr``; the last three are in nanoseconds."""
    return _ATTR.pack(_ATTR.size, policy, flags, nice, priority, runtime, deadline, period, 0, 0)


def set_attributes(pid: int, packed: bytes) -> None:
    """Set the scheduling policy and parameters of a thread.

    Args:
        pid: of the thread, 0 for the caller.
        packed: what :func:`attributes` returned.

    Raises:
        OSError: EPERM without CAP_SYS_NICE in the first user namespace, EINVAL for
            what the policy does not take, EBUSY for a deadline that can't be kept.
    """
    shown = (pid, *_ATTR.unpack(packed)[1:8])
    libc.syscall("sched_setattr", _SYS_SCHED_SETATTR, pid, packed, 0, shown=shown)


def io_priority(kind: int, level: int) -> int:
    """Return the value that ioprio_set(2) takes for a class and a level in it."""
    return kind << _IOPRIO_CLASS_SHIFT | level


def set_io_priority(group: int, value: int) -> None:
    """Set the I/O priority of all processes of the process group *group*.

    Raises:
        OSError: EPERM for the real-time class without CAP_SYS_ADMIN or CAP_SYS_NICE.
    """
    libc.syscall("ioprio_set", _SYS_IOPRIO_SET, _IOPRIO_WHO_PGRP, group, value)


def set_memory_policy(mode: int, nodes: bytes) -> None:
    """Set the NUMA policy of this thread and of what it will execute.

    Args:
        mode: one of MEMORY_MODES, with MEMORY_FLAGS.
        nodes: the mask of nodes as the kernel takes it, see :func:`mask`; empty for none.

    Raises:
        OSError: EINVAL for nodes that the machine lacks or the mode does not take,
            ENOSYS where the kernel knows one node only.
    """
    # The kernel takes one bit less than it is told of (get_nodes in mm/mempolicy.c).
    arguments = (mode, nodes, len(nodes) * 8 + 1) if nodes else (mode, None, 0)
    shown = (mode, nodes.hex() or "none")
    libc.syscall("set_mempolicy", _SYS_SET_MEMPOLICY, *arguments, shown=shown)


def mask(numbers: tuple[int, ...]) -> bytes:
    """Return *numbers* as a bit mask of whole ``unsigned long`` s, empty for none."""
    if not numbers:
        return b""
    size = ctypes.sizeof(ctypes.c_ulong)
    words = max(numbers) // (size * 8) + 1
    longs = [0] * words
    for number in numbers:
        longs[number // (size * 8)] |= 1 << number % (size * 8)
    return b"".join(word.to_bytes(size, sys.byteorder) for word in longs)


def set_affinity(pid: int, processors: tuple[int, ...]) -> None:
    """Let a thread run on *processors* only, as far as its cpuset has them.

    Raises:
        OSError: EINVAL when the cpuset has none of them.
    """
    libc.via(os.sched_setaffinity, pid, processors)
