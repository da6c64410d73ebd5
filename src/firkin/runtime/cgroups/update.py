"""Change the limits of a container that runs: all that was asked for, or nothing.

The kernel checks each value against others that are in force: no memory limit above the
total of memory and swap (v1), no quota below the burst, no period with which the quota
would be more than the parent's. In which order a set of new values can be written depends
on the old ones, so what is refused as contradictory (EINVAL) is tried again after the
rest. If that does not help, what was written before is written back.
"""

from __future__ import annotations

import errno
import os

from firkin.errors import ConfigError, FirkinError, SetupError, Unsupported
from firkin.linux import libc
from firkin.runtime.cgroups import tree, v1, v2
from firkin.runtime.cgroups.directory import require, write
from firkin.runtime.cgroups.layout import Layout
from firkin.runtime.cgroups.limits import Limits
from firkin.runtime.cgroups.prepare import check_lists, translate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firkin.runtime.cgroups.directory import Directory
    from firkin.runtime.cgroups.group import Cgroup

    # A file, what to write to it, and the field that asks for it.
    Write = tuple[str, str, str]

_R = "linux.resources"
_WHY = "a limit is changed while the container runs"
# What a device gets that had no line of its own in the file before.
_UNLIMITED = {
    "io.max": "rbps=max wbps=max riops=max wiops=max",
    "rdma.max": "hca_handle=max hca_object=max",
}


def update(cgroup: Cgroup, resources: dict[str, Any]) -> None:
    """Write those limits of *resources* that are given; see :meth:`Cgroup.update`.

    Zero means "not given" where it does at creation (see :mod:`.limits`), since clients write
    the whole structure.

    Raises:
        ConfigError: a value is malformed, or contradicts another or one in force.
        Unsupported: this machine or cgroup does not have the limit.
        SetupError: the kernel refuses.
    """
    limits = Limits(resources, strict=False, partial=True)
    _complete_cpu(cgroup, limits)
    for directory in cgroup.directories:
        if "cpuset" in directory.wanted:
            check_lists(directory, limits)
    layout = Layout(directory.hierarchy for directory in cgroup.directories)
    writes: list[Write] = []
    for setting in translate(layout, limits):
        path, value = cgroup.resolve(setting)
        if not (setting.optional and not os.path.exists(path)):
            writes.append((path, value, setting.field))
    writes += _memory(cgroup, limits)
    _carry_out(writes)


def _carry_out(writes: list[Write]) -> None:
    done: list[Write] = []
    try:
        while writes:
            again = []
            refusal: SetupError | None = None
            for path, value, field in writes:
                old = _read(path)
                try:
                    write(path, value, field, _WHY)
                except SetupError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    refusal = refusal or error
                    again.append((path, value, field))
                else:
                    done.append((path, value, old))
            if refusal is not None and len(again) == len(writes):
                raise _explained(refusal, again[0])
            writes = again
    except FirkinError:
        for path, value, old in reversed(done):
            _restore(path, value, old)
        raise


def _explained(error: SetupError, refused: Write) -> SetupError:
    """The kernel's EINVAL, with the field's name: it does not tell what is wrong."""
    path, value, field = refused
    return SetupError(
        f"cannot set {_R}.{field} to {value!r}",
        f"{error.why}: out of range, or against another limit in force, see {path}",
        step="cgroup",
        errno=error.errno,
        path=path,
    )


def _restore(path: str, value: str, old: str) -> None:
    """Write back what was in *path* before *value*, as far as its form allows."""
    name = path.rpartition("/")[2]
    lines = old.splitlines()
    key, _, rest = value.partition(" ")
    if name == "memory.oom_control":
        back = "0"  # only ever turned on
    elif ":" in key or (rest and name in ("rdma.max", "net_prio.ifpriomap")):
        # A file with a line for each device.
        known = next((line for line in lines if line.partition(" ")[0] == key), "")
        back = known or f"{key} {_UNLIMITED.get(name, '0')}"
    else:
        back = old.strip()
    try:
        libc.because("another limit was refused: all stay as they were")
        libc.write_file(path, back or "\n")
    except OSError:
        return  # the first error is the one to report


def _read(path: str) -> str:
    try:
        return tree.read(path)
    except OSError:
        return ""  # missing, or write-only: the write says what is wrong


# ---------------------------------------------------------------- what depends on the old


def _complete_cpu(cgroup: Cgroup, limits: Limits) -> None:
    """v2 has quota and period in one file: a new period alone keeps the old quota."""
    home = cgroup.home("cpu")
    if home is None or home.hierarchy.version == 1 or limits.period is None:
        return
    if limits.quota is None:
        quota = _read(f"{home.path}/cpu.max").partition(" ")[0]
        limits.quota = int(quota) if quota.isdigit() else -1


def _memory(cgroup: Cgroup, limits: Limits) -> list[Write]:
    """The limits on memory and swap; the kernel's order is found by trying."""
    if limits.memory is None and limits.swap is None:
        return []
    home = cgroup.home("memory")
    if home is None:
        why = "the container has no cgroup of the memory controller"
        raise Unsupported(f"cannot set {_R}.memory.limit", why)
    old = home.hierarchy.version == 1
    writes = _memory_v1(home, limits) if old else _memory_v2(home, limits)
    for path, _, field in writes:
        require(path, field)
    if limits.check_before_update:
        _check_usage(home, limits)
    return writes


def _memory_v1(home: Directory, limits: Limits) -> list[Write]:
    memory, total = limits.memory, limits.swap
    path, both = f"{home.path}/{v1.MEMORY}", f"{home.path}/{v1.MEMORY_AND_SWAP}"
    in_force = _number(both)
    if memory is not None and total is None and in_force is not None and memory > in_force:
        # The kernel says no more than "invalid".
        why = f"{memory} is more than the total of memory and swap in force, {in_force}"
        raise ConfigError(f"{_R}.memory.limit", why, "give memory.swap, too")
    if memory is None and total is not None:
        _not_below(total, _number(path))
    writes = []
    if memory is not None:
        writes.append((path, str(memory), "memory.limit"))
    if total is not None and _has_swap(both):
        writes.append((both, str(total), "memory.swap"))
    return writes


def _memory_v2(home: Directory, limits: Limits) -> list[Write]:
    """memory.swap.max counts swap alone, where OCI has the total: it takes the limit to tell.

    A new memory limit alone leaves the swap as it is, as runc 1.1 and crun do.
    """
    memory, total = limits.memory, limits.swap
    path, swap = f"{home.path}/{v2.MEMORY}", f"{home.path}/{v2.SWAP}"
    writes = []
    if total is not None and _has_swap(swap):
        part = "max"
        if total > 0:
            in_force = _number(path) if memory is None else memory
            if in_force is None:
                why = f"{total} without memory.limit: it is the total of memory and swap"
                raise ConfigError(f"{_R}.memory.swap", why)
            _not_below(total, in_force)
            part = str(total - in_force)
        writes.append((swap, part, "memory.swap"))
    if memory is not None:
        writes.append((path, str(v2.or_max(memory)), "memory.limit"))
    return writes


def _number(path: str) -> int | None:
    """The limit in the file *path*; None for none, or where there is no such file."""
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _has_swap(path: str) -> bool:
    """Whether swap is to be limited in the file *path*: a kernel without any has none."""
    return os.path.exists(path) or os.path.exists("/proc/swaps")


def _not_below(total: int, memory: int | None) -> None:
    """Refuse a total of memory and swap that is less than the limit on memory."""
    if memory is not None and 0 < total < memory:
        why = f"{total} is less than the memory limit in force, {memory}"
        raise ConfigError(f"{_R}.memory.swap", why)


def _check_usage(home: Directory, limits: Limits) -> None:
    """memory.checkBeforeUpdate: "MUST reject the new limit" (config-linux.md, "Memory")."""
    old = home.hierarchy.version == 1
    used = int(tree.read(f"{home.path}/{v1.MEMORY_USAGE if old else v2.MEMORY_USAGE}"))
    for field, value in (("memory.limit", limits.memory), ("memory.swap", limits.swap)):
        if value is not None and 0 < value <= used:
            raise SetupError(
                f"cannot set {_R}.{field} to {value}",
                f"{used} bytes are in use already",
                "give more memory",
                step="cgroup",
                errno=errno.EBUSY,
            )
