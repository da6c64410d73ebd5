"""What is told of a container's use: statistics as runc prints them, and the OOM killer's work."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firkin.errors import FirkinError
from firkin.runtime.cgroups import detect, oom, reopen, stats
from support.cgroups import (
    MIB,
    PATIENCE,
    Make,
    Start,
    making,
    memberships,
    on_v2,
    starting,
    text,
    until,
)
from support.oci import PATHS, Bundle, Runtime
from support.requires import Kind, Unmet, need, requires


@pytest.fixture
def name() -> str:
    return f"/firkin-{uuid.uuid4().hex}"


@pytest.fixture
def start() -> Iterator[Start]:
    with starting() as start:
        yield start


@pytest.fixture
def make(name: str, start: Start) -> Iterator[Make]:
    with making(name) as make:
        yield make


@pytest.fixture
def runc(tmp_path: Path) -> Iterator[Runtime]:
    need("program:runc")
    runtime = Runtime(PATHS["runc"], tmp_path / "state")
    yield runtime
    runtime.close()


# ---------------------------------------------------------------- statistics

# Uses some of everything: disk, page cache, memory, processor; then stands still.
WORK = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(fd, bytes(4 << 20))
os.fsync(fd)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
os.lseek(fd, 0, 0)
os.read(fd, 4 << 20)
kept = b"x" * (20 << 20)
end = time.process_time() + 0.3
while time.process_time() < end:
    os.stat("/")
print("done", flush=True)
sys.stdin.readline()
"""


def disk_of(path: Path) -> dict[str, int]:
    """The number of the disk that a file is on; a partition's blocks count for its disk."""
    device = path.stat().st_dev
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if not (folder / "dev").exists():
        raise Unmet(f"{path} lies on no disk", Kind.MACHINE)
    if (folder / "partition").exists():
        folder = folder.parent
    major, minor = (folder / "dev").read_text().split(":")
    return {"major": int(major), "minor": int(minor)}


RESOURCES = {
    "memory": {"limit": 128 * MIB, "swap": 160 * MIB},
    "pids": {"limit": 40},
    "cpu": {"quota": 5_000, "period": 50_000, "cpus": "0"},
}


def form(value: Any) -> Any:
    """The names and types, for comparison where the numbers may move."""
    if isinstance(value, dict):
        return {key: form(inner) for key, inner in value.items()}
    return type(value)


def test_they_are_those_of_runc(
    runc: Runtime, start: Start, busybox_root: Path, tmp_path: Path
) -> None:
    need("swap accounting", "controller:cpuset")
    bundle = Bundle(tmp_path / "bundle", busybox_root)
    block = {"throttleReadBpsDevice": [disk_of(tmp_path) | {"rate": 1 << 40}]}
    bundle.linux["resources"] |= RESOURCES | {"blockIO": block}
    bundle.namespaces.append({"type": "cgroup"})
    container = runc.up(bundle)
    cgroup = reopen(detect(), memberships(runc.state(container.id)["pid"]))
    process = start(cgroup, sys.executable, "-c", WORK, str(tmp_path / "file"))
    assert process.stdout
    assert process.stdout.readline() == "done\n"

    def both() -> tuple[Any, Any]:
        shown = runc("events", "--stats", container.id, check=True).stdout
        theirs, ours = json.loads(shown)["data"], json.loads(json.dumps(stats.read(cgroup)))
        if detect().version == "hybrid":  # where runc knows nothing of controllers on v2
            theirs["hugetlb"] = ours["hugetlb"]
        return theirs, ours

    # The kernel adds up what each processor has counted in its own time.
    until(lambda: both()[0] == both()[1])
    theirs, ours = both()
    assert form(ours) == form(theirs)
    assert list(ours) == list(theirs)
    assert ours["pids"] == {"current": 2, "limit": 40}
    assert ours["memory"]["usage"]["limit"] == 128 * MIB
    assert ours["memory"]["usage"]["usage"] > 20 * MIB
    assert ours["memory"]["swap"]["limit"] == 160 * MIB
    assert ours["cpu"]["usage"]["total"] > 200_000_000
    assert ours["cpu"]["throttling"]["throttledPeriods"] > 0
    assert ours["blkio"]["ioServiceBytesRecursive"]
    if not on_v2():
        assert ours["cpuset"]["cpus"] == [0]


@requires("controller:io")
def test_disks(make: Make, start: Start, tmp_path: Path) -> None:
    number = disk_of(tmp_path)
    # v1 counts on a disk that is limited: no limit that would be felt.
    block = {"throttleReadBpsDevice": [number | {"rate": 1 << 40}]}
    cgroup = make({"blockIO": block}, every_controller=True)
    process = start(cgroup, sys.executable, "-c", WORK, str(tmp_path / "file"))
    assert process.stdout
    assert process.stdout.readline() == "done\n"
    found = stats.read(cgroup)["blkio"]
    for name, least in (("ioServiceBytesRecursive", 4 * MIB), ("ioServicedRecursive", 1)):
        (read,) = [
            entry["value"]
            for entry in found[name]
            if entry.get("op") == "Read"
            and {"major": entry.get("major", 0), "minor": entry.get("minor", 0)} == number
        ]
        assert read >= least


@pytest.mark.parametrize("resources", [{}, {"pids": {"limit": -1}}])
def test_what_is_not_limited_has_no_limit(make: Make, resources: Any) -> None:
    found = stats.read(make(resources, every_controller=True))
    assert found["pids"] == {}
    limit = (1 << 64) - 1 if on_v2() else 0x7FFFFFFFFFFFF000
    assert found["memory"]["usage"]["limit"] == limit


def test_a_cgroup_that_is_gone_uses_nothing(make: Make) -> None:
    cgroup = make({}, every_controller=True)
    again = reopen(detect(), cgroup.paths())
    whole = stats.read(again)
    cgroup.remove()
    for empty in (stats.read(again), stats.read(reopen(detect(), cgroup.paths()))):
        assert empty.keys() == whole.keys()
        assert empty["memory"]["usage"] == {"limit": 0, "failcnt": 0}
        assert empty["pids"] == empty["blkio"] == {}


def test_those_of_few_controllers(make: Make) -> None:
    """As for a container that `firkin run` made: no file that is missing fails."""
    cgroup = make({"pids": {"limit": 7}})
    assert stats.read(cgroup)["pids"] == {"limit": 7}


# ---------------------------------------------------------------- out of memory

HOG = "x = bytearray(1 << 20) * 200"


def ready(watcher: oom.Watcher, seconds: float) -> bool:
    return bool(select.select([watcher], [], [], seconds)[0])


def test_an_oom_kill_is_told(make: Make, start: Start) -> None:
    cgroup = make({"memory": {"limit": 32 * MIB}}, every_controller=True)
    stays = start(cgroup, "sleep", "1000")
    watcher = oom.watch(reopen(detect(), cgroup.paths()))
    assert watcher
    try:
        assert watcher.read() == ""
        for _ in range(2):
            process = start(cgroup, sys.executable, "-c", HOG)
            assert process.wait(PATIENCE) == -signal.SIGKILL
            assert ready(watcher, PATIENCE)
            until(lambda: watcher.read() == "oom")
        until(lambda: not ready(watcher, 0.2) or watcher.read())
        stays.kill()
        stays.wait()
        cgroup.remove()
        assert ready(watcher, PATIENCE)
        until(lambda: watcher.read() == "gone")
    finally:
        watcher.close()


def test_the_end_is_no_oom(make: Make, start: Start) -> None:
    cgroup = make({"memory": {"limit": 64 * MIB}}, every_controller=True)
    process = start(cgroup, "sleep", "1000")
    watcher = oom.watch(cgroup)
    assert watcher
    try:
        assert not ready(watcher, 0.1)
        process.kill()
        process.wait()
        cgroup.remove()
        assert ready(watcher, PATIENCE)
        assert watcher.read() == "gone"
    finally:
        watcher.close()
    assert watcher.fileno() == -1


@requires("cgroup v2")
def test_the_end_is_told_before_the_cgroup_is_removed(make: Make, start: Start) -> None:
    cgroup = make({"memory": {"limit": 64 * MIB}}, every_controller=True)
    process = start(cgroup, sys.executable, "-c", HOG)
    watcher = oom.watch(cgroup)
    assert watcher
    try:
        process.wait()
        told = []
        until(lambda: (ready(watcher, PATIENCE) and told.append(watcher.read())) or "gone" in told)
        assert [word for word in told if word] == ["oom", "gone"]
    finally:
        watcher.close()


def test_nothing_to_watch(make: Make) -> None:
    cgroup = make({}, every_controller=True)
    again = reopen(detect(), cgroup.paths())
    assert text(cgroup, "pids.max") == "max"
    cgroup.remove()
    assert oom.watch(reopen(detect(), cgroup.paths())) is None
    with pytest.raises(FirkinError, match="cannot watch the memory of cgroup"):
        oom.watch(again)
