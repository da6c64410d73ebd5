"""The rare fields of a process, compiled: scheduling, I/O, memory nodes, labels.

Imported only where a configuration has one of them.

Source: runtime-spec config.md, "Linux Process", and config-linux.md, "Memory policy".
"""

from __future__ import annotations

import errno
import os

from firkin.errors import ConfigError, SetupError, Unsupported
from firkin.linux import libc, lsm, sched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firkin.init.plan import Plan

# Above the most processors (8192) and nodes (1024) that a kernel can be built for.
_MOST = 8192

# What stands for "no profile of its own" where AppArmor is missing, too.
_UNCONFINED = "unconfined"


_MENDS = {
    # cpu.rt_runtime_us of a new cgroup of v1 is 0 (sched-rt-group.rst).
    errno.EPERM: "it takes CAP_SYS_NICE; real time, on cgroup v1, resources.cpu.realtimeRuntime",
    errno.EINVAL: "this kernel, or the container's cpuset, does not have it",
    errno.EBUSY: "there is not enough time left of the processors",
}


def compile_process(plan: Plan, process: dict[str, Any]) -> None:
    """Compile scheduler, ioPriority, apparmorProfile and selinuxLabel of *process*.

    Raises:
        ConfigError: a value that no kernel takes.
        Unsupported: a label, and this kernel lacks its security module.
    """
    if process.get("scheduler"):
        plan.sched_attr = scheduler(process["scheduler"])
    if process.get("ioPriority"):
        priority = process["ioPriority"]
        kind = sched.IOPRIO_CLASSES[priority["class"]]
        plan.io_priority = sched.io_priority(kind, priority.get("priority") or 0)
    plan.labels = _labels(process)


def scheduler(wanted: dict[str, Any]) -> bytes:
    """Return ``process.scheduler`` as a ``struct sched_attr``."""
    flags = 0
    for name in wanted.get("flags") or ():
        flags |= sched.SCHED_FLAGS[name]
    return sched.attributes(
        sched.POLICIES[wanted["policy"]],
        flags,
        *(wanted.get(name) or 0 for name in ("nice", "priority", "runtime", "deadline", "period")),
    )


def _labels(process: dict[str, Any]) -> tuple[tuple[tuple[str, ...], str], ...]:
    labels: list[tuple[tuple[str, ...], str]] = []
    profile = process.get("apparmorProfile") or ""
    if lsm.has_apparmor():
        if profile:
            labels.append((lsm.APPARMOR_EXEC, f"exec {profile}"))
    elif profile not in ("", _UNCONFINED):
        raise Unsupported(
            f"cannot set the AppArmor profile '{profile}'",
            "AppArmor is not enabled on this machine",
            "leave out process.apparmorProfile",
        )
    label = process.get("selinuxLabel") or ""
    if label:
        _need_selinux("process.selinuxLabel", label)
        labels.append((lsm.SELINUX_EXEC, label))
    return tuple(labels)


def mount_label(label: str) -> str:
    """Return ``linux.mountLabel`` as an option of mount(2).

    Raises:
        ConfigError: it would end the option that it is put into.
        Unsupported: this kernel has no SELinux.
    """
    _need_selinux("linux.mountLabel", label)
    if '"' in label:
        raise ConfigError("linux.mountLabel", "it has a quotation mark in it")
    return f'context="{label}"'


def _need_selinux(field: str, label: str) -> None:
    if not lsm.has_selinux():
        raise Unsupported(
            f"cannot set the SELinux label '{label}'",
            "SELinux is not enabled on this machine",
            f"leave out {field}",
        )


def memory_policy(wanted: dict[str, Any]) -> tuple[int, bytes]:
    """Return ``linux.memoryPolicy`` as the mode and the mask that set_mempolicy(2) takes.

    Raises:
        ConfigError: nodes that are no list, or that the mode can't have or lacks.
    """
    name = wanted["mode"]
    mode = sched.MEMORY_MODES[name]
    for flag in wanted.get("flags") or ():
        mode |= sched.MEMORY_FLAGS[flag]
    field = "linux.memoryPolicy.nodes"
    nodes = numbers(wanted.get("nodes") or "", field)
    if name in ("MPOL_DEFAULT", "MPOL_LOCAL"):
        if nodes:
            raise ConfigError(field, f"{name} has none")
    elif not nodes and name != "MPOL_PREFERRED":
        raise ConfigError(field, f"{name} needs at least one")
    return mode, sched.mask(nodes)


def affinity(process: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return ``process.execCPUAffinity`` as processors before and after joining the cgroup.

    Where only the first is given, the second is every processor that the cgroup has:
    Linux, since 6.2, keeps what was asked for when a process moves. Both are empty
    where the field is missing.

    Raises:
        ConfigError: no list of processors, or none that this machine has.
    """
    wanted = process.get("execCPUAffinity") or {}
    field = "process.execCPUAffinity"
    initial = numbers(wanted.get("initial") or "", f"{field}.initial")
    final = numbers(wanted.get("final") or "", f"{field}.final")
    if initial and not final:
        final = tuple(range(os.sysconf("SC_NPROCESSORS_CONF")))
    return initial, final


def numbers(text: str, field: str) -> tuple[int, ...]:
    """Return the numbers of a list such as ``0-3,7``, in the order of the kernel's.

    Raises:
        ConfigError: on *field*, for anything else.
    """
    found: set[int] = set()
    for part in text.split(",") if text.strip() else ():
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and len(end) < 8 for end in ends):
            raise ConfigError(field, f"{text!r} is not a list of numbers, as 0-3,7")
        low, high = int(ends[0]), int(ends[1])
        if low > high:
            raise ConfigError(field, f"{part.strip()!r} ends before it begins")
        if high >= _MOST:
            raise ConfigError(field, f"{high} is beyond what any kernel has")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def apply(plan: Plan, pid: int) -> None:
    """Set what takes rights over the host: processors, scheduling and I/O priority of *pid*.

    The parent does it for the child, who in a user namespace has no such rights.

    Raises:
        SetupError: the kernel refused.
    """
    field = "execCPUAffinity.final"
    try:
        if plan.affinity[1]:
            libc.because("process.execCPUAffinity.final")
            sched.set_affinity(pid, plan.affinity[1])
        field = "ioPriority"
        if plan.io_priority >= 0:
            libc.because("process.ioPriority")
            sched.set_io_priority(pid, plan.io_priority)
        field = "scheduler"
        if plan.sched_attr:
            libc.because("process.scheduler")
            sched.set_attributes(pid, plan.sched_attr)
    except OSError as error:
        raise SetupError(
            f"cannot set process.{field}",
            error.strerror or "",
            _MENDS.get(error.errno or 0, ""),
            step="set_traits",
            errno=error.errno or 0,
        ) from error
