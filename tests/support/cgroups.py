"""Cgroups of a test's own, and processes in them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from firkin.runtime.cgroups import detect, open_cgroup
from firkin.runtime.cgroups.group import Cgroup
from firkin.runtime.cgroups.none import NoCgroup
from support.requires import cgroup_mounts

MIB = 1 << 20
PATIENCE = 30.0  # seconds; a guest without hardware help is slow

Make = Callable[..., Cgroup]
Start = Callable[..., subprocess.Popen[str]]


@contextmanager
def starting() -> Iterator[Start]:
    """Start a command as the child of a container's start: it joins, then executes."""
    started: list[subprocess.Popen[str]] = []

    def start(cgroup: Cgroup | NoCgroup, *command: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["sh", "-c", 'read go; exec "$@"', "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        cgroup.join(process.pid)
        cgroup.apply_memory()
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()
            # No communicate(): what left the cgroup may hold the other ends.
            for pipe in (process.stdin, process.stdout, process.stderr):
                assert pipe
                pipe.close()


@contextmanager
def making(name: str) -> Iterator[Make]:
    """Create a cgroup with resources and apply them; it is killed and removed afterwards.

    Before *starting* waits for its processes: a frozen one ends with its cgroup only.
    """
    made: list[Cgroup] = []

    def make(resources: dict[str, Any] | None = None, suffix: str = "", **options: Any) -> Cgroup:
        options.setdefault("device_control", False)
        cgroup = open_cgroup(detect(), name + suffix, resources or {}, **options)
        assert isinstance(cgroup, Cgroup)
        cgroup.check()
        cgroup.create()
        made.append(cgroup)
        cgroup.apply()
        return cgroup

    try:
        yield make
    finally:
        for cgroup in made:
            cgroup.kill()
            cgroup.remove()


def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "still not so"
        time.sleep(0.005)


def path_of(cgroup: Cgroup, file: str) -> Path:
    """Where a file of the cgroup is, in whatever hierarchy."""
    (found,) = [path for p in cgroup.paths() if (path := Path(p, file)).exists()]
    return found


def text(cgroup: Cgroup, file: str) -> str:
    """The contents of a file of the cgroup, in whatever hierarchy it is."""
    return path_of(cgroup, file).read_text().strip()


def memberships(pid: int) -> set[str]:
    """The cgroups of a process, as directories."""
    mounts = cgroup_mounts()
    found = set()
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        point = mounts.get(controllers.split(",")[0] or "unified")
        if point:
            found.add(point + path)
    return found


def on_v2() -> bool:
    """Whether all controllers are on cgroup v2 here."""
    return detect().version == "v2"


def gone(paths: list[str]) -> bool:
    """Whether none of the directories is there."""
    return not any(Path(path).exists() for path in paths)
