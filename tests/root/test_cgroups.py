"""Cgroups with real processes: limits hold, nothing is left, on v1 and v2 alike."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firkin.errors import ConfigError, FirkinError, SetupError, Unsupported
from firkin.linux import libc
from firkin.runtime.cgroups import detect, open_cgroup, remove_paths, tree
from firkin.runtime.cgroups.none import NoCgroup
from support.cgroups import (
    MIB,
    PATIENCE,
    Make,
    Start,
    gone,
    making,
    memberships,
    on_v2,
    starting,
    text,
    until,
)
from support.requires import cgroup_mounts, need, requires


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


# ---------------------------------------------------------------- the machine


def test_the_callers_own_cgroup_is_found() -> None:
    layout = detect()
    assert set(layout.controllers) >= {"memory", "pids"}
    for hierarchy in layout.hierarchies:
        members = Path(f"{hierarchy.mount}{hierarchy.own}", "cgroup.procs").read_text().split()
        assert str(os.getpid()) in members
    assert {c: h.mount for c, h in layout.controllers.items()}.items() <= cgroup_mounts().items()


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("resources", "controller", "old", "new"),
    [
        ({"pids": {"limit": 7}}, "pids", {"pids.max": "7"}, {"pids.max": "7"}),
        ({"pids": {"limit": -1}}, "pids", {"pids.max": "max"}, {"pids.max": "max"}),
        ({"pids": {"limit": 0}}, "pids", {"pids.max": "max"}, {"pids.max": "max"}),
        (
            {"memory": {"limit": 64 * MIB, "reservation": 32 * MIB}},
            "memory",
            {
                "memory.limit_in_bytes": str(64 * MIB),
                "memory.soft_limit_in_bytes": str(32 * MIB),
            },
            {"memory.max": str(64 * MIB), "memory.low": str(32 * MIB)},
        ),
        (
            {"memory": {"limit": 64 * MIB, "swap": 80 * MIB}},
            "memory",
            {"memory.memsw.limit_in_bytes": str(80 * MIB)},
            {"memory.swap.max": str(16 * MIB)},
        ),
        (
            {"cpu": {"shares": 512, "quota": 50_000, "period": 20_000, "burst": 10_000}},
            "cpu",
            {
                "cpu.shares": "512",
                "cpu.cfs_quota_us": "50000",
                "cpu.cfs_period_us": "20000",
                "cpu.cfs_burst_us": "10000",
            },
            {"cpu.weight": "20", "cpu.max": "50000 20000", "cpu.max.burst": "10000"},
        ),
        (
            {"cpu": {"quota": -1, "period": 50_000}},
            "cpu",
            {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "50000"},
            {"cpu.max": "max 50000"},
        ),
        (
            {"cpu": {"idle": 1, "shares": 100}},
            "cpu",
            {"cpu.idle": "1"},
            {"cpu.idle": "1"},
        ),
        (
            {"cpu": {"cpus": "0", "mems": "0"}},
            "cpuset",
            {"cpuset.cpus": "0", "cpuset.mems": "0"},
            {"cpuset.cpus": "0", "cpuset.mems": "0"},
        ),
        (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MIB}]},
            "hugetlb",
            {"hugetlb.2MB.limit_in_bytes": str(4 * MIB)},
            {"hugetlb.2MB.max": str(4 * MIB)},
        ),
    ],
)
def test_values_are_what_the_kernel_reads_back(
    make: Make, resources: Any, controller: str, old: dict[str, str], new: dict[str, str]
) -> None:
    need(f"controller:{controller}")
    if "swap" in resources.get("memory", {}):
        need("swap accounting")
    cgroup = make(resources)
    cgroup.apply_memory()
    version = detect().controllers[controller].version
    for file, value in (old if version == 1 else new).items():
        assert text(cgroup, file) == value


@requires("controller:io")
def test_disk_rates(make: Make) -> None:
    # The first block device that is a whole disk: partitions have no limits of their own.
    device = next(Path(p, "dev").read_text().strip() for p in sorted(Path("/sys/block").iterdir()))
    major, minor = map(int, device.split(":"))
    entry = {"major": major, "minor": minor}
    block = {
        "throttleReadBpsDevice": [entry | {"rate": MIB}],
        "throttleWriteIOPSDevice": [entry | {"rate": 100}],
    }
    cgroup = make({"blockIO": block})
    if on_v2():
        assert text(cgroup, "io.max") == f"{device} rbps={MIB} wbps=max riops=max wiops=100"
    else:
        assert text(cgroup, "blkio.throttle.read_bps_device") == f"{device} {MIB}"
        assert text(cgroup, "blkio.throttle.write_iops_device") == f"{device} 100"


@requires("controller:io")
def test_a_disk_weight_is_set_or_refused_with_the_file(make: Make) -> None:
    try:
        cgroup = make({"blockIO": {"weight": 300}})
    except Unsupported as error:
        refusal = str(error)
        cgroup = None
    if cgroup is None:
        assert "weight does not exist; load the BFQ disk scheduler" in refusal
        return
    files = ("io.bfq.weight", "blkio.bfq.weight", "io.weight", "blkio.weight")
    values = {
        file: Path(path, file).read_text().split()[-1]
        for path in cgroup.paths()
        for file in files
        if Path(path, file).exists()
    }
    assert "300" in values.values() or values == {"io.weight": "2930"}


@requires("cgroup v2")
def test_unified_on_v2(make: Make) -> None:
    unified = {"memory.high": str(48 * MIB), "pids.max": "9", "cgroup.max.depth": "2"}
    cgroup = make({"unified": unified})
    assert text(cgroup, "memory.high") == "max"  # last, with the other limits on memory
    cgroup.apply_memory()
    assert {file: text(cgroup, file) for file in unified} == unified


# ---------------------------------------------------------------- joining


def test_a_process_joins_every_hierarchy(make: Make, start: Start) -> None:
    cgroup = make({"pids": {"limit": 9}})
    process = start(cgroup, "sleep", "1000")
    exist = {path for path in cgroup.paths() if Path(path).exists()}
    assert exist
    assert exist <= memberships(process.pid)
    assert cgroup.pids() == {process.pid}


def test_a_child_moves_itself_in(make: Make) -> None:
    """With the descriptors alone: what the parent's fork does."""
    cgroup = make({"pids": {"limit": 9}})
    directory = cgroup.directory_fd()
    entries = cgroup.entries()
    script = """
import ctypes, os, struct, sys
directory, entries = int(sys.argv[1]), map(int, sys.argv[2:])
if directory >= 0:
    # struct clone_args up to its cgroup: CLONE_INTO_CGROUP, SIGCHLD.
    arguments = struct.pack("=11Q", 1 << 33, 0, 0, 0, 17, 0, 0, 0, 0, 0, directory)
    pid = ctypes.CDLL(None).syscall(435, arguments, ctypes.c_size_t(len(arguments)))
    if pid:
        sys.exit(pid < 0 or os.waitpid(pid, 0)[1] != 0)
for fd in entries:
    os.write(fd, b"0")
os.write(1, open("/proc/self/cgroup", "rb").read())
os._exit(0)
"""
    descriptors = [-1 if directory is None else directory, *entries]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, descriptors)],
        pass_fds=[fd for fd in descriptors if fd >= 0],
        check=True,
        capture_output=True,
        text=True,
    )
    where = Path(cgroup.paths()[0]).name
    exist = [path for path in cgroup.paths() if Path(path).exists()]
    assert done.stdout.count(f":/{where}\n") == len(exist)
    cgroup.close()
    for fd in descriptors:
        if fd >= 0:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)


def test_parents_are_made_and_controllers_passed_down(make: Make, name: str) -> None:
    cgroup = make({"cpu": {"cpus": "0"}, "memory": {"limit": 64 * MIB}}, suffix="/a/b")
    try:
        cgroup.apply_memory()
        assert text(cgroup, "cpuset.cpus") == "0"
        assert all(Path(path).parent.name == "a" for path in cgroup.paths())
        if not on_v2():
            # Neither was given: a process could not join without.
            parent = next(p for p in cgroup.paths() if "cpuset" in p)
            assert Path(parent, "cpuset.mems").read_text().strip()
            assert Path(parent, "../cpuset.cpus").read_text().strip()
    finally:
        cgroup.remove()
        remove_paths([hierarchy.mount + name for hierarchy in detect().hierarchies])


def test_a_relative_path_starts_at_the_callers_own_cgroup(name: str) -> None:
    layout = detect()
    cgroup = open_cgroup(layout, name[1:], {}, device_control=False)
    cgroup.create()
    try:
        for path in cgroup.paths():
            (own,) = [h.own for h in layout.hierarchies if path.startswith(h.mount + "/")]
            above = own or ""
            if on_v2():  # beside it: a v2 cgroup has processes or children with controllers
                above = str(Path(above).parent)
            assert path.endswith(f"{above.rstrip('/')}{name}")
    finally:
        cgroup.remove()


def test_another_cgroup_of_this_name_is_never_adopted(make: Make) -> None:
    layout = detect()
    theirs = make({"pids": {"limit": 5}})
    (path,) = [p for p in theirs.paths() if Path(p, "pids.max").exists()]
    mine = open_cgroup(layout, "/" + Path(path).name, {"pids": {"limit": 6}}, device_control=False)
    for attempt in (mine.check, mine.create):
        with pytest.raises(SetupError, match="it exists already; choose another name"):
            attempt()
    assert text(theirs, "pids.max") == "5"


@requires("cgroup v1")
def test_all_directories_are_made_or_none(name: str) -> None:
    layout = detect()
    cgroup = open_cgroup(layout, name, {}, device_control=False)
    pids, memory = (layout.controllers[c].mount + name for c in ("pids", "memory"))
    os.mkdir(memory)
    try:
        with pytest.raises(SetupError, match="exists already"):
            cgroup.create()
        assert not Path(pids).exists()
    finally:
        os.rmdir(memory)


# ---------------------------------------------------------------- limits hold


def test_forks_end_at_the_limit(make: Make, start: Start) -> None:
    cgroup = make({"pids": {"limit": 4}})
    process = start(cgroup, "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait")
    assert process.stderr
    assert "fork" in process.stderr.readline()
    assert len(cgroup.pids()) <= 4
    assert (cgroup.stats().pids_denied or 0) > 0
    cgroup.kill()
    assert cgroup.pids() == set()


def test_events_in_cgroups_below_count(make: Make, start: Start) -> None:
    cgroup = make({"pids": {"limit": 4}})
    (path,) = [p for p in cgroup.paths() if Path(p, "pids.max").exists()]
    below = Path(path, "below")
    below.mkdir()
    process = start(
        cgroup,
        "sh",
        "-c",
        f"echo $$ > {below}/cgroup.procs; for i in 1 2 3 4 5 6; do sleep 1000 & done; wait",
    )
    assert process.stderr
    assert "fork" in process.stderr.readline()
    assert (cgroup.stats().pids_denied or 0) > 0
    process.wait(PATIENCE)
    assert len(cgroup.pids()) == 3  # all of them below


HOG = "x = bytearray(1 << 20) * int(__import__('sys').argv[1]); print(len(x))"


def test_too_much_memory_is_killed(make: Make, start: Start) -> None:
    # Without swap accounting the total cannot be limited; nor is it needed without swap.
    cgroup = make({"memory": {"limit": 32 * MIB}})
    process = start(cgroup, sys.executable, "-c", HOG, "200")
    assert process.wait(PATIENCE) == -signal.SIGKILL
    stats = cgroup.stats()
    assert stats.oom_kills == 1
    assert 16 * MIB < (stats.peak_memory or 0) <= 32 * MIB


def test_memory_below_the_limit_is_not(make: Make, start: Start) -> None:
    cgroup = make({"memory": {"limit": 128 * MIB}})
    process = start(cgroup, sys.executable, "-c", HOG, "40")
    assert process.wait(PATIENCE) == 0
    stats = cgroup.stats()
    assert stats.oom_kills == 0
    assert 40 * MIB < (stats.peak_memory or 0) <= 128 * MIB


def test_a_limit_below_what_is_in_use_is_a_clear_error(make: Make) -> None:
    cgroup = make({"memory": {"limit": 8 * MIB}})
    script = "x = bytearray(1 << 20) * 40; print('full', flush=True); input()"
    with subprocess.Popen(
        ["sh", "-c", 'read go; exec "$@"', "sh", sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        cgroup.join(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "full\n"
        with pytest.raises(SetupError, match=r"in use.*; give more memory"):
            cgroup.apply_memory()
        assert process.poll() is None  # refused, not killed
        process.kill()


@requires("swap accounting")
def test_limits_are_written_again_in_the_right_order(make: Make) -> None:
    """The kernel refuses a total below the limit at any moment, whichever way both move."""
    first = make({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}})
    first.apply_memory()
    path = "/" + Path(first.paths()[0]).name
    for limit, total in ((64, 80), (32, 32), (100, -1), (16, 24)):
        memory = {"limit": limit * MIB, "swap": total * MIB if total > 0 else -1}
        again = open_cgroup(detect(), path, {"memory": memory}, device_control=False)
        again.apply_memory()
        file = "memory.max" if on_v2() else "memory.limit_in_bytes"
        assert text(first, file) == str(limit * MIB)


def test_the_cpu_quota_throttles(make: Make, start: Start) -> None:
    cgroup = make({"cpu": {"quota": 5_000, "period": 50_000}})
    start(cgroup, "sh", "-c", "while :; do :; done")

    def throttled() -> int:
        return int(
            dict(line.split() for line in text(cgroup, "cpu.stat").splitlines())["nr_throttled"]
        )

    until(lambda: throttled() >= 3)


def test_processors_are_limited(make: Make, start: Start) -> None:
    cgroup = make({"cpu": {"cpus": "0"}})
    process = start(cgroup, "sleep", "1000")
    assert os.sched_getaffinity(process.pid) == {0}


DENY_ALL = {"allow": False, "access": "rwm"}


@requires("capability:CAP_MKNOD")
@pytest.mark.parametrize(
    ("rules", "number", "mode", "allowed"),
    [
        ([DENY_ALL], "1 3", "<>", True),  # /dev/null is of the defaults
        ([], "1 11", "<", False),  # all are denied at first, as in runc
        ([DENY_ALL], "1 11", "<", False),
        ([DENY_ALL, {"allow": True, "type": "c", "major": 1, "minor": 11}], "1 11", "<", True),
        (
            [DENY_ALL, {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "w"}],
            "1 11",
            "<",
            False,
        ),
        ([DENY_ALL, {"allow": True, "type": "c", "major": 1}], "1 11", "<", True),
        ([DENY_ALL, {"allow": True, "type": "b", "major": 1, "minor": 11}], "1 11", "<", False),
        # The last rule that matches decides.
        (
            [
                {"allow": True, "type": "c", "major": 1, "minor": 11},
                {"allow": False, "type": "c", "major": 1, "minor": 11, "access": "r"},
            ],
            "1 11",
            "<",
            False,
        ),
        ([{"allow": True, "type": "c", "major": 1, "minor": 11}, DENY_ALL], "1 11", "<", False),
        ([DENY_ALL, {"allow": True, "access": "rwm"}], "1 11", "<", True),
        (
            [{"allow": True}, {"allow": False, "type": "c", "major": 1, "minor": 11}],
            "1 11",
            "<",
            False,
        ),
    ],
)
def test_devices(
    make: Make, start: Start, tmp_path: Path, rules: Any, number: str, mode: str, allowed: bool
) -> None:
    node = tmp_path / "node"
    os.mknod(node, 0o600 | 0o020000, os.makedev(*map(int, number.split())))
    cgroup = make({"devices": rules}, device_control=True)
    process = start(cgroup, "sh", "-c", f": {mode}{node}")
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode == 0) == allowed, errors
    assert allowed or "Operation not permitted" in errors


def test_every_write_is_shown_with_its_reason(make: Make, name: str) -> None:
    seen: list[tuple[str, str, str]] = []
    libc.listen(lambda call, given, _result, _s, why: seen.append((call, str(given[0]), why)))
    try:
        cgroup = make({"pids": {"limit": 5}, "memory": {"limit": 64 * MIB}})
        cgroup.apply_memory()
        cgroup.remove()
    finally:
        libc.listen(None)
    calls = [(call, path.rpartition("/")[2]) for call, path, _ in seen if name in path]
    assert ("mkdir", name[1:]) in calls
    assert ("write", "pids.max") in calls
    assert calls[-1] == ("rmdir", name[1:])
    memory = "memory.max" if on_v2() else "memory.limit_in_bytes"
    assert calls.index(("write", "pids.max")) < calls.index(("write", memory))
    assert all(why for _, _, why in seen)


# ---------------------------------------------------------------- what the container sees


@requires("namespace:cgroup", "program:unshare")
def test_the_container_sees_its_own_cgroup_only(make: Make, start: Start, tmp_path: Path) -> None:
    cgroup = make({"pids": {"limit": 33}})
    lines = [f"cd {tmp_path}"]
    for kind, source, where, data in cgroup.mounts():
        if kind == "symlink":
            lines.append(f"ln -s {source} {where}")
            continue
        if where:
            lines.append(f"mkdir {where}")
        lines.append(f"mount -t {kind} {f'-o {data}' if data else ''} {source} {tmp_path}/{where}")
        lines.append(f"cd {tmp_path}")
    lines += ["cat pids.max pids/pids.max 2>/dev/null", "find . -name 'firkin-*'; echo end"]
    process = start(
        cgroup,
        *("unshare", "--cgroup", "--mount", "--propagation", "private"),
        *("sh", "-e", "-c", "\n".join(lines).replace("2>/dev/null", "2>/dev/null || :")),
    )
    out, errors = process.communicate(timeout=PATIENCE)
    assert out == "33\nend\n", errors


# ---------------------------------------------------------------- the end


FORKING = "while :; do sleep 1000 & setsid sh -c 'sleep 1000' & sleep 0.01; done"


def test_kill_ends_processes_that_fork(make: Make, start: Start) -> None:
    cgroup = make({"pids": {"limit": 100}})
    process = start(cgroup, "sh", "-c", FORKING)
    until(lambda: len(cgroup.pids()) > 20)
    cgroup.kill()
    assert cgroup.pids() == set()
    # 2: its fork was refused before the signal came.
    assert process.wait(PATIENCE) in (-signal.SIGKILL, 2)


def test_kill_without_help_of_the_kernel(
    make: Make, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a v2 kernel before 5.14, or on v1 without the pids controller: signals alone."""
    cgroup = make()
    start(cgroup, "sh", "-c", "for i in 1 2 3 4 5; do sh -c 'sleep 1000 & wait' & done; wait")
    until(lambda: len(cgroup.pids()) == 11)
    real = libc.write_file

    def missing(path: str, value: str | bytes) -> None:
        if path.endswith(("cgroup.kill", "pids.max", "cgroup.freeze")):
            raise FileNotFoundError(2, "", path)
        real(path, value)

    monkeypatch.setattr(libc, "write_file", missing)
    cgroup.kill()
    assert cgroup.pids() == set()


def test_kill_never_kills_the_caller(make: Make, start: Start) -> None:
    cgroup = make()
    script = (
        "import sys; from firkin.runtime.cgroups import remove_paths\n"
        "try: remove_paths(sys.argv[1:])\n"
        "except Exception as error: print(error)"
    )
    paths = [path for path in cgroup.paths() if Path(path).exists()]
    process = start(cgroup, sys.executable, "-c", script, *paths)
    out, _ = process.communicate(timeout=PATIENCE)
    assert "the calling process is in it" in out
    assert not gone(paths)


def test_frozen_processes_stand_still_and_go_on(make: Make, start: Start) -> None:
    cgroup = make()
    process = start(cgroup, "sh", "-c", "while :; do echo x; sleep 0.01; done")
    assert process.stdout
    out = process.stdout.fileno()
    for _ in range(2):
        assert os.read(out, 100)
        cgroup.freeze()
        os.set_blocking(out, False)
        while select.select([out], [], [], 0)[0]:
            os.read(out, 1 << 16)
        # Twenty times its pace.
        assert select.select([out], [], [], 0.2)[0] == []
        os.set_blocking(out, True)
        cgroup.thaw()
        assert select.select([out], [], [], PATIENCE)[0] == [out]


def test_frozen_processes_can_be_killed(make: Make, start: Start) -> None:
    cgroup = make()
    process = start(cgroup, "sleep", "1000")
    cgroup.freeze()
    remove_paths(cgroup.paths())
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert gone(cgroup.paths())


def nest(path: str, depth: int, width: int) -> None:
    """Make cgroups below *path*, so deep that no path reaches the last."""
    fd = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        for i in range(width):
            os.mkdir(f"sibling-{i}", dir_fd=fd)
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_remove_takes_what_the_container_made_below(make: Make) -> None:
    cgroup = make()
    paths = [path for path in cgroup.paths() if Path(path).exists()]
    nest(paths[0], depth=30, width=3)  # 6000 characters; PATH_MAX is 4096
    cgroup.remove()
    assert gone(paths)


def test_remove_waits_for_a_process_that_is_ending(make: Make, start: Start) -> None:
    cgroup = make()
    for _ in range(20):
        process = start(cgroup, "true")
        process.wait(PATIENCE)
        cgroup.remove()
        assert gone(cgroup.paths())
        cgroup.create()


def test_remove_says_who_is_still_there(make: Make, start: Start) -> None:
    cgroup = make()
    process = start(cgroup, "sleep", "1000")
    with pytest.raises(SetupError, match=f"process {process.pid} is in it"):
        cgroup.remove(patience=0.05)


def test_a_sweep_needs_the_paths_alone(make: Make, start: Start) -> None:
    cgroup = make({"pids": {"limit": 50}})
    process = start(cgroup, "sh", "-c", FORKING)
    until(lambda: len(cgroup.pids()) > 10)
    nest(cgroup.paths()[0], depth=2, width=1)
    remove_paths([*cgroup.paths(), cgroup.paths()[0] + "-gone", "/sys/fs/cgroup/no/such"])
    assert gone(cgroup.paths())
    # 2: its fork was refused before the signal came.
    assert process.wait(PATIENCE) in (-signal.SIGKILL, 2)


def test_a_sweep_stays_within_cgroup_file_systems(make: Make, start: Start, tmp_path: Path) -> None:
    cgroup = make()
    process = start(cgroup, "sleep", "1000")
    mount = detect().controllers["pids"].mount
    ours = cgroup.paths()[0]
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(ours)
    for wrong in (
        str(tmp_path / "folder"),
        str(tmp_path / "link"),
        mount,
        f"{mount}/../{Path(mount).name}/{Path(ours).name}",
        ours[1:],
        ours + "/",
        f"{ours}/cgroup.procs",
        "/",
        "",
    ):
        with pytest.raises(SetupError, match="cannot remove cgroup"):
            remove_paths([ours, wrong])
    assert (tmp_path / "folder").exists()
    assert cgroup.pids() == {process.pid}


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("resources", "error", "pattern"),
    [
        ({"memory": {"limit": 4096}}, ConfigError, r"memory\.limit: 4096 bytes are too few"),
        ({"cpu": {"cpus": "0,700"}}, ConfigError, r"cpu\.cpus: '0,700': 700 is not among"),
        ({"cpu": {"mems": "63"}}, ConfigError, r"cpu\.mems: '63': 63 is not among"),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 4095, "minor": 1, "rate": 1}]}},
            ConfigError,
            "'4095:1 .*1' names no device of this machine",
        ),
        (
            {"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]},
            Unsupported,
            "no cgroup hierarchy mounted here has the hugetlb|hugetlb.3MB.* does not exist",
        ),
    ],
)
def test_refusals(make: Make, resources: Any, error: type[FirkinError], pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        make(resources)


@requires("cgroup v1")
@pytest.mark.parametrize(
    ("resources", "pattern"),
    [
        ({"unified": {"memory.high": "1"}}, "unified: this machine's controllers are on cgroup v1"),
        (
            {
                "devices": [
                    {"allow": True, "type": "c", "major": 1},
                    {"allow": False, "type": "c", "major": 1, "minor": 11},
                ]
            },
            "cannot deny device c 1:11 rwm: cgroup v1 cannot take it out of c 1:",
        ),
        ({"network": {"classID": 1}}, "has the net_cls controller"),
    ],
)
def test_what_v1_cannot_have_is_refused(name: str, resources: Any, pattern: str) -> None:
    if "network" in resources and "net_cls" in cgroup_mounts():
        resources = {"unified": {"pids.max": "1"}}
        pattern = "unified"
    with pytest.raises(Unsupported, match=pattern):
        open_cgroup(detect(), name, resources)


@pytest.mark.parametrize("path", ["", "/", "/a/../b", "a\nb", "/" + "x" * 256])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="cgroupsPath"):
        open_cgroup(detect(), path, {})


# ---------------------------------------------------------------- no cgroup, and no end


def test_nothing_stands_in_for_a_missing_cgroup() -> None:
    cgroup = NoCgroup("nobody delegated one")
    assert (cgroup.paths(), cgroup.mounts(), cgroup.entries()) == ([], [], [])
    assert cgroup.stats().oom_kills is None
    for method in (cgroup.pids, cgroup.freeze, cgroup.thaw):
        with pytest.raises(Unsupported, match="nobody delegated one"):
            method()
    cgroup.kill()  # nothing joined
    cgroup.remove()


def test_patience_has_an_end(make: Make, start: Start) -> None:
    """A process that cannot be killed in time is named, not waited for without end."""
    cgroup = make()
    process = start(cgroup, "sleep", "1000")
    path = next(p for p in cgroup.paths() if Path(p).exists())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "_signal", lambda *_: None)
        patch.setattr(libc, "write_file", lambda *_: None)
        with pytest.raises(SetupError, match=f"process {process.pid} is still there after 0.05 s"):
            tree.kill(path, patience=0.05)
