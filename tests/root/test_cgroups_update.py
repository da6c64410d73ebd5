"""Limits changed while processes run: all of a request or nothing, as runc has them."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firkin.errors import ConfigError, FirkinError, SetupError, Unsupported
from firkin.runtime.cgroups import detect, reopen
from support.cgroups import (
    MIB,
    Make,
    Start,
    making,
    memberships,
    on_v2,
    path_of,
    starting,
    text,
)
from support.oci import PATHS, Bundle, Runtime
from support.requires import need, requires


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


# Everything that a limit of linux.resources is written to, but lists of devices.
FILES = (
    *("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes"),
    *("memory.swappiness", "cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    *("memory.max", "memory.swap.max", "memory.low", "memory.high", "cpu.weight", "cpu.max"),
    *("cpu.idle", "pids.max", "cpuset.cpus", "cpuset.mems"),
    *("cpu.cfs_burst_us", "cpu.max.burst"),
)


def values(paths: Any) -> dict[str, str]:
    """What the kernel reads back from every file with a limit."""
    return {
        name: Path(path, name).read_text().strip()
        for path in paths
        for name in FILES
        if Path(path, name).exists()
    }


# ---------------------------------------------------------------- as runc

FIRST = {
    "memory": {"limit": 256 * MIB, "swap": 256 * MIB},
    "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
    "pids": {"limit": 40},
}
# One after the other, each on what the one before has left.
STEPS: list[dict[str, Any]] = [
    {"memory": {"limit": 64 * MIB, "swap": 96 * MIB}},
    {"memory": {"limit": 128 * MIB, "swap": 160 * MIB}},  # above the total of before
    {"memory": {"limit": 32 * MIB, "swap": 48 * MIB}},  # the total is below the limit of before
    {"memory": {"limit": 40 * MIB}},
    {"memory": {"reservation": 16 * MIB}},
    {"memory": {"limit": -1}},
    {"memory": {"limit": 64 * MIB, "swap": -1}},
    {"cpu": {"quota": 20_000, "period": 20_000}},
    {"cpu": {"period": 50_000}},
    {"cpu": {"quota": 10_000}},
    {"cpu": {"quota": -1}},
    {"cpu": {"shares": 2048}},
    {"cpu": {"cpus": "0", "mems": "0"}},
    {"pids": {"limit": 30}},
    {"pids": {"limit": -1}},
    # What dockerd 20.10 writes for `docker update --cpu-shares 300`.
    {
        "memory": {"limit": 0, "reservation": 0, "kernel": 0},
        "cpu": {"shares": 300, "quota": 0, "period": 0},
        "blockIO": {"weight": 0},
    },
    # ... and for `docker update --memory 100m --memory-swap 200m --cpus 0.7 --pids-limit 33`.
    {
        "memory": {"limit": 104857600, "reservation": 0, "swap": 209715200, "kernel": 0},
        "cpu": {"shares": 0, "quota": 70000, "period": 100000},
        "pids": {"limit": 33},
        "blockIO": {"weight": 0},
    },
]


def test_each_change_has_the_effect_that_it_has_with_runc(
    make: Make, runc: Runtime, busybox_root: Path, tmp_path: Path
) -> None:
    need("swap accounting", "controller:cpuset")
    bundle = Bundle(tmp_path / "bundle", busybox_root)
    bundle.linux["resources"] |= FIRST
    # Else runc would mount v2's hierarchy anew, which changes the mount of the host's.
    bundle.namespaces.append({"type": "cgroup"})
    theirs = runc.up(bundle)
    their_paths = memberships(runc.state(theirs.id)["pid"])
    ours = make(FIRST, every_controller=True)
    ours.apply_memory()
    assert values(ours.paths()) == values(their_paths)
    assert {"pids.max", "memory.max" if on_v2() else "memory.limit_in_bytes"} <= set(
        values(ours.paths())
    )
    for step in STEPS:
        runc("update", "--resources", "-", theirs.id, input=json.dumps(step), check=True)
        reopen(detect(), ours.paths()).update(step)
        assert values(ours.paths()) == values(their_paths), step


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("before", "resources", "old", "new"),
    [
        (
            {"cpu": {"quota": 50_000, "burst": 40_000}},
            {"cpu": {"quota": 20_000, "burst": 10_000}},
            {"cpu.cfs_quota_us": "20000", "cpu.cfs_burst_us": "10000"},
            {"cpu.max": "20000 100000", "cpu.max.burst": "10000"},
        ),
        (
            {"cpu": {"quota": 20_000, "burst": 10_000}},
            {"cpu": {"quota": 50_000, "burst": 40_000}},
            {"cpu.cfs_quota_us": "50000", "cpu.cfs_burst_us": "40000"},
            {"cpu.max": "50000 100000", "cpu.max.burst": "40000"},
        ),
        (
            {"cpu": {"idle": 1}},
            {"cpu": {"idle": 0, "shares": 300}},
            {"cpu.idle": "0", "cpu.shares": "300"},
            {"cpu.idle": "0", "cpu.weight": "12"},
        ),
        (
            {"memory": {"limit": 32 * MIB, "swap": 48 * MIB}},
            {"memory": {"swap": 64 * MIB}},
            {"memory.memsw.limit_in_bytes": str(64 * MIB)},
            {"memory.swap.max": str(32 * MIB)},
        ),
        ({}, {"pids": {"limit": 9}}, {"pids.max": "9"}, {"pids.max": "9"}),
    ],
)
def test_values(
    make: Make, before: Any, resources: Any, old: dict[str, str], new: dict[str, str]
) -> None:
    if "memory" in resources:
        need("swap accounting")
    cgroup = make(before, every_controller=True)
    cgroup.apply_memory()
    reopen(detect(), cgroup.paths()).update(resources)
    for file, value in (new if on_v2() else old).items():
        assert text(cgroup, file) == value


@requires("cgroup v2")
def test_unified(make: Make) -> None:
    cgroup = make({}, every_controller=True)
    cgroup.update({"unified": {"memory.high": str(48 * MIB), "pids.max": "9"}})
    assert (text(cgroup, "memory.high"), text(cgroup, "pids.max")) == (str(48 * MIB), "9")


def test_nothing_given_is_nothing_done(make: Make) -> None:
    cgroup = make(FIRST, every_controller=True)
    before = values(cgroup.paths())
    cgroup.update({})
    cgroup.update({"memory": {}, "cpu": {}, "pids": {"limit": 0}, "blockIO": {"weight": 0}})
    assert values(cgroup.paths()) == before


@requires("cgroup v1", "controller:devices")
def test_devices_stay_as_they_are(make: Make) -> None:
    cgroup = make({"devices": [{"allow": False}]}, every_controller=True, device_control=True)
    before = text(cgroup, "devices.list")
    cgroup.update({"devices": [{"allow": True}], "pids": {"limit": 8}})
    assert text(cgroup, "devices.list") == before
    assert text(cgroup, "pids.max") == "8"


@requires("controller:io")
def test_disk_rates(make: Make) -> None:
    device = next(Path(p, "dev").read_text().strip() for p in sorted(Path("/sys/block").iterdir()))
    major, minor = map(int, device.split(":"))
    cgroup = make({}, every_controller=True)
    entry = {"major": major, "minor": minor, "rate": MIB}
    for rate, old, new in ((MIB, f"{device} {MIB}", f"rbps={MIB}"), (0, "", "")):
        cgroup.update({"blockIO": {"throttleReadBpsDevice": [entry | {"rate": rate}]}})
        if on_v2():
            assert new in text(cgroup, "io.max")
            assert bool(text(cgroup, "io.max")) == bool(rate)
        else:
            assert text(cgroup, "blkio.throttle.read_bps_device") == old


# ---------------------------------------------------------------- refusals change nothing


def test_a_refused_value_takes_the_others_back(make: Make, name: str) -> None:
    cgroup = make(FIRST, suffix="/below", every_controller=True)
    cgroup.apply_memory()
    change: dict[str, Any] = {
        "pids": {"limit": 8},
        "memory": {"limit": 512 * MIB, "swap": 512 * MIB, "reservation": 32 * MIB},
        "cpu": {"shares": 300, "period": 50_000, "quota": 50_000},
    }
    if on_v2():
        change["unified"] = {"memory.high": "much"}
    else:
        # The parent's quota of a tenth of a CPU is less than a whole one.
        parent = path_of(cgroup, "cpu.cfs_quota_us").parent.parent
        Path(path_of(cgroup, "cpu.cfs_quota_us")).write_text("5000")
        (parent / "cpu.cfs_quota_us").write_text("10000")
    before = values(cgroup.paths())
    with pytest.raises(SetupError, match=r"cpu\.|memory\.high") as caught:
        cgroup.update(change)
    assert caught.value.errno
    assert values(cgroup.paths()) == before
    cgroup.remove()
    for path in cgroup.paths():
        os.rmdir(Path(path).parent)


@requires("controller:io")
def test_a_rate_is_taken_back(make: Make) -> None:
    device = next(Path(p, "dev").read_text().strip() for p in sorted(Path("/sys/block").iterdir()))
    major, minor = map(int, device.split(":"))
    cgroup = make({}, every_controller=True)
    file = "io.max" if on_v2() else "blkio.throttle.read_bps_device"
    for earlier in (0, MIB):
        entry = {"major": major, "minor": minor, "rate": earlier}
        cgroup.update({"blockIO": {"throttleReadBpsDevice": [entry]}})
        before = text(cgroup, file)
        missing = {"major": 4095, "minor": 1, "rate": 1}
        entries = [entry | {"rate": 2 * MIB}, missing]
        with pytest.raises(ConfigError, match="names no device"):
            cgroup.update({"blockIO": {"throttleReadBpsDevice": entries}})
        assert text(cgroup, file) == before


@pytest.mark.parametrize(
    ("resources", "error", "pattern"),
    [
        ({"pids": {"limit": "9"}}, ConfigError, r"pids\.limit: expected an integer, not '9'"),
        (
            {"memory": {"limit": 512 * MIB, "swap": 300 * MIB}},
            ConfigError,
            r"memory\.swap: 314572800 is less than memory\.limit 536870912",
        ),
        (
            {"memory": {"swap": 64 * MIB}},
            ConfigError,
            r"memory\.swap: 67108864 is less than the memory limit in force, 268435456",
        ),
        ({"memory": {"limit": 2 * MIB, "swap": MIB}}, ConfigError, "less than memory.limit"),
        ({"cpu": {"cpus": "700"}}, ConfigError, r"cpu\.cpus: '700': 700 is not among"),
        ({"cpu": {"shares": 1}}, ConfigError, r"cpu\.shares: 1 is not between"),
        ({"cpu": {"burst": 60_000}}, SetupError, r"set linux.resources.cpu.burst to '60000'"),
        (
            {"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]},
            Unsupported,
            "has no cgroup of the hugetlb|hugetlb.3MB.* does not exist",
        ),
        ({"network": {"classID": 1}}, Unsupported, "cannot set linux.resources.network.classID"),
    ],
)
def test_refusals(make: Make, resources: Any, error: type[FirkinError], pattern: str) -> None:
    if "swap" in pattern:
        need("swap accounting")
    if "network" in resources and Path("/sys/fs/cgroup/net_cls").exists():
        resources, pattern = {"unified": {"net.x": "1"}}, "unified"
    cgroup = make(FIRST, every_controller=True)
    cgroup.apply_memory()
    before = values(cgroup.paths())
    with pytest.raises(error, match=pattern):
        reopen(detect(), cgroup.paths()).update({"pids": {"limit": 7}} | resources)
    assert values(cgroup.paths()) == before


@requires("cgroup v1", "swap accounting")
def test_memory_above_the_total_in_force(make: Make) -> None:
    cgroup = make(FIRST, every_controller=True)
    cgroup.apply_memory()
    with pytest.raises(ConfigError, match=r"total of memory and swap in force, 268435456; give"):
        cgroup.update({"memory": {"limit": 512 * MIB}})


FULL = "x = bytearray(1 << 20) * 40; print('full', flush=True); input()"


def test_a_limit_below_what_is_in_use_is_refused_on_request(make: Make, start: Start) -> None:
    cgroup = make({"memory": {"limit": 128 * MIB}}, every_controller=True)
    process = start(cgroup, sys.executable, "-c", FULL)
    assert process.stdout
    assert process.stdout.readline() == "full\n"
    before = values(cgroup.paths())
    change = {"memory": {"limit": 8 * MIB, "checkBeforeUpdate": True}, "pids": {"limit": 50}}
    with pytest.raises(SetupError, match=r"memory\.limit to 8388608: \d+ bytes are in use"):
        cgroup.update(change)
    assert process.poll() is None
    assert values(cgroup.paths()) == before
    if not on_v2():
        # v1's kernel refuses by itself; v2's kills, which is what was asked for.
        del change["memory"]["checkBeforeUpdate"]
        with pytest.raises(SetupError, match="more than that is in use already"):
            cgroup.update(change)
        assert process.poll() is None
        assert values(cgroup.paths()) == before


def test_a_container_whose_cgroup_is_gone_has_no_limits(make: Make) -> None:
    cgroup = make({}, every_controller=True)
    again = reopen(detect(), cgroup.paths())
    cgroup.remove()
    with pytest.raises(FirkinError, match=r"pids\.max"):
        again.update({"pids": {"limit": 5}})
    with pytest.raises(Unsupported, match="the container has no cgroup of the pids controller"):
        reopen(detect(), cgroup.paths()).update({"pids": {"limit": 5}})
