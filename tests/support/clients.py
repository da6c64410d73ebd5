"""What the suites of podman, Docker and containerd share: the runtime that they drive."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from support import leftovers
from support.box import fields
from support.requires import cgroup_mounts, need
from support.running import cgroup_of, wait_until

# runc checks the tests themselves, on demand: it would double the time of each run.
ALSO_RUNC = os.environ.get("FIRKIN_CLIENTS_ALSO_RUNC") == "1"
RUNTIMES = ("firkin-runtime", "runc") if ALSO_RUNC else ("firkin-runtime",)
# What cgroups are called after: leftovers of a name with "firkin" in it are every session's.
SHORT = {"firkin-runtime": "own", "runc": "runc"}
# For fixtures: each test then runs once with each runtime.
each_runtime = pytest.mark.parametrize("runtime", RUNTIMES)


def runtime_path(name: str) -> Path:
    """Return the executable of an OCI runtime of :data:`RUNTIMES`, as this user can execute it."""
    if name == "firkin-runtime":
        # Not resolved: the venv's python is a link to the system's.
        return Path(sys.executable).with_name(name)
    need(f"program:{name}")
    return Path(shutil.which(name) or name)


def with_state_in(folder: Path, name: str) -> Path:
    """Make a command that is the runtime *name*, with its ``--root`` below *folder*.

    What it leaves there is this session's, and nobody else's containers are in it.

    Returns:
        the command: a file of the runtime's own name, by which podman tells runtimes apart;
        its state is in ``folder/state``.
    """
    command = folder / "bin" / name
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec {runtime_path(name)} --root {folder}/state "$@"\n')
    command.chmod(0o755)
    return command


class Seen:
    """A container as the kernel shows it to the host, by the number of its first process."""

    @property
    def pid(self) -> int:
        """The host's number of its first process."""
        raise NotImplementedError

    def await_command(self, pid: int) -> None:
        """Wait until its first process, *pid*, is the command: ``start`` returns before."""

        def is_command() -> bool:
            try:
                program = os.readlink(f"/proc/{pid}/exe")
            except OSError:  # it has ended
                return True
            return "runc" not in program and "python" not in program

        wait_until(is_command, "the command to be executed")

    def proc(self, name: str) -> str:
        """Return the text of ``/proc/PID/NAME``."""
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def status(self) -> dict[str, str]:
        """Return the fields of ``/proc/PID/status``."""
        return fields(self.proc("status"))

    def namespace(self, kind: str) -> str:
        """Return the name of a namespace, as ``net:[4026531840]``; *kind* as in /proc/PID/ns."""
        return os.readlink(f"/proc/{self.pid}/ns/{kind}")

    def cgroup(self, controller: str) -> Path:
        """Return the folder on the host of the cgroup that *controller* limits it by."""
        return cgroup_of(self.pid, controller)

    def mount(self, point: str) -> tuple[set[str], str, set[str], list[str]]:
        """Return a mount's options, file system type, file system options, and propagation.

        Of several on one mount point it is the topmost. The form is that of
        proc_pid_mountinfo(5).
        """
        found = None
        for line in self.proc("mountinfo").splitlines():
            head, _, tail = line.partition(" - ")
            words = head.split()
            if leftovers.unescape(words[4]) == point:
                kind, _, options = tail.split(" ", 2)
                found = set(words[5].split(",")), kind, set(options.split(",")), words[6:]
        assert found, f"nothing is mounted on {point}"
        return found

    def mounts(self) -> set[str]:
        """Return its mount points."""
        lines = self.proc("mountinfo").splitlines()
        return {leftovers.unescape(line.split()[4]) for line in lines}

    def limit(self, name: str) -> str:
        """Return what the kernel was told: ``memory`` in bytes, ``pids``, or ``cpuset``."""
        files = {"memory": "memory.limit_in_bytes", "pids": "pids.max", "cpuset": "cpuset.cpus"}
        file = files[name] if on_v1(name) or name != "memory" else "memory.max"
        return (self.cgroup(name) / file).read_text().strip()

    def cpus(self) -> float:
        """Return how many processors' time it may use; -1 without a limit."""
        folder = self.cgroup("cpu")
        if on_v1("cpu"):
            quota = int((folder / "cpu.cfs_quota_us").read_text())
            return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else -1
        quota, period = (folder / "cpu.max").read_text().split()
        return -1 if quota == "max" else int(quota) / int(period)

    def is_frozen(self) -> bool:
        """Tell whether the kernel says that all its processes are frozen."""
        if "freezer" in cgroup_mounts():
            return (self.cgroup("freezer") / "freezer.state").read_text() == "FROZEN\n"
        return "frozen 1" in (self.cgroup("pids") / "cgroup.events").read_text()


def on_v1(controller: str) -> bool:
    """Tell whether a controller is on cgroup v1 here."""
    mounts = cgroup_mounts()
    return mounts[controller] != mounts.get("unified")
