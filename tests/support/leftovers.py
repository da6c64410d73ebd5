"""What a container may leave behind on the host, seen from the kernel's side.

A snapshot is taken before and after each test. Others may work on the machine
meanwhile, so only what this session can have caused counts: its folder's name
is in what firkin mounts, and in the environment of the processes it starts.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

# The kernel takes cgroups, net namespaces and killed processes apart in its own time.
PATIENCE = 2.0  # seconds
PREFIX = "firkin-tests."

# What a container mounts on: a mount that spread to the host appears here.
SYSTEM = ("/", "/proc", "/sys", "/sys/fs/cgroup", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")
FILES = ("/etc", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
TARGETS = frozenset((*SYSTEM, *FILES, "/home", "/root", "/run", "/tmp", "/usr", "/var"))
# Interfaces of the engines that we are compared with.
ENGINES = re.compile(r"docker|br-|podman|cni|virbr|lxc")


KINDS = ("mount", "process", "cgroup", "interface")


class Snapshot(NamedTuple):
    """What is there: lines that a person can read, so that a difference is the message."""

    mounts: frozenset[str]
    processes: frozenset[str]
    cgroups: frozenset[str]
    interfaces: frozenset[str]

    def since(self, before: Snapshot) -> list[str]:
        """Return what is here and was not there *before*."""
        return [
            f"{kind}: {one}"
            for kind, now, then in zip(KINDS, self, before, strict=True)
            for one in sorted(now - then)
        ]


def take(folder: str) -> Snapshot:
    """Look at the machine. *folder* is where this session keeps its files."""
    return Snapshot(mounts(folder), processes(folder), cgroups(), interfaces())


def after(before: Snapshot, folder: str) -> list[str]:
    """Return what stayed behind since *before*, with some patience for the kernel."""
    deadline = time.monotonic() + PATIENCE
    while left := take(folder).since(before):
        if time.monotonic() > deadline:
            return left
        time.sleep(0.02)
    return []


# ---------------------------------------------------------------- mounts


def mountinfo(pid: int | str = "self") -> list[str]:
    """Return the lines of a process's mount table; none where it cannot be read."""
    try:
        return Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def mounts(folder: str) -> frozenset[str]:
    """Return the mounts that can be this session's."""
    found = set()
    for line in mountinfo():
        foreign = PREFIX in line and folder not in line
        if not foreign and ("firkin" in line or line.split()[4] in TARGETS):
            found.add(line)
    return frozenset(found)


def unmount_all(folder: str) -> None:
    """Detach every mount below *folder*, the topmost first.

    Before the folder is removed: what is bound in it may be the host's own.

    Raises:
        RuntimeError: something is still mounted there.
    """
    for line in reversed(mountinfo()):
        point = unescape(line.split()[4])
        if point.startswith(folder + "/"):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
    if any(unescape(line.split()[4]).startswith(folder + "/") for line in mountinfo()):
        raise RuntimeError(f"there are still mounts below {folder}")


def unescape(text: str) -> str:
    """Undo the octal escapes of proc_pid_mountinfo(5)."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)


# ---------------------------------------------------------------- processes


def parents() -> dict[int, int]:
    """Return each process's parent; zombies and those that vanish meanwhile left out."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path("/proc", name, "stat").read_text(errors="replace")
            except OSError:
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state not in "ZX":
                found[int(name)] = int(parent)
    return found


def children() -> list[int]:
    """Return this process's children, much cheaper than :func:`descendants`."""
    return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]


def descendants(pid: int, table: dict[int, int] | None = None) -> list[int]:
    """Return the living processes that descend from *pid*."""
    table = parents() if table is None else table
    found = [pid]
    for ancestor in found:
        found += [child for child, parent in table.items() if parent == ancestor]
    return found[1:]


def mentions(pid: int, folder: str) -> bool:
    """Tell whether a process is this session's, by its environment, arguments or mounts."""
    wanted = os.fsencode(folder)
    for name in ("cmdline", "environ"):
        try:
            if wanted in Path(f"/proc/{pid}/{name}").read_bytes():
                return True
        except OSError:
            continue
    try:
        if os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            return False
    except OSError:
        return False
    return any(folder in line for line in mountinfo(pid))


def ours(folder: str) -> list[int]:
    """Return the living processes of this session, pytest itself left out."""
    table = parents()
    own = os.getpid()
    ancestors = {own}
    above = own
    while above := table.get(above, 0):
        ancestors.add(above)
    mine = set(descendants(own, table))
    for pid in table.keys() - mine - ancestors:
        if mentions(pid, folder):
            mine.update((pid, *descendants(pid, table)))
    return sorted(mine)


def processes(folder: str) -> frozenset[str]:
    """Return the living processes of this session as lines of number and name."""
    return frozenset(line for pid in ours(folder) if (line := name_of(pid)))


def name_of(pid: int) -> str:
    """Return ``PID (name)`` and the time of its start, which tells reused numbers apart."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    head, _, tail = stat.rpartition(")")
    # Not the name: it changes when the process executes something.
    return f"{pid} started at tick {tail.split()[19]}" if head else ""


def describe(pids: list[int]) -> str:
    """Return what a person needs to know of processes that hang: names, states, kernel stacks."""
    lines = []
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        try:
            stat = (folder / "stat").read_text(errors="replace")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        name, _, tail = stat.rpartition(")")
        lines.append(f"{name}) {tail.split()[0]} {command.decode(errors='replace')}")
        for file in ("wchan", "stack", "cgroup"):
            try:
                text = (folder / file).read_text(errors="replace").strip()
            except OSError:
                continue
            lines += [f"    {file}: {line}" for line in text.splitlines()[:12]]
    return "\n".join(lines)


def kill_new(before: Snapshot, folder: str) -> str:
    """Kill this session's processes that were not there *before*, and describe them."""
    pids = [pid for pid in ours(folder) if name_of(pid) not in before.processes]
    described = describe(pids)
    kill(pids)
    return described


def kill(pids: list[int]) -> None:
    """Kill processes, as far as they still live."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# ---------------------------------------------------------------- cgroups and interfaces


def cgroups() -> frozenset[str]:
    """Return firkin's cgroups that no process is in, or that ours are in.

    One with somebody else's process in it belongs to a firkin that runs beside
    this session.
    """
    found = set()
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        for name in names:
            path = os.path.join(folder, name)
            if "firkin" in path and not populated(path):
                found.add(path)
    return frozenset(found)


def populated(path: str) -> bool:
    """Tell whether a process is in a cgroup or below it."""
    for folder, _, _ in os.walk(path):
        try:
            if Path(folder, "cgroup.procs").read_text():
                return True
        except OSError:
            continue
    return False


def interfaces() -> frozenset[str]:
    """Return the host's network interfaces, but for those of other engines."""
    found = set()
    for _, name in socket.if_nameindex():
        try:
            master = os.path.basename(os.readlink(f"/sys/class/net/{name}/master"))
        except OSError:
            master = ""
        if not ENGINES.match(name) and not ENGINES.match(master):
            found.add(name)
    return frozenset(found)
