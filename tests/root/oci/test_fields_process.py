"""process: each field, seen from inside the container and from /proc on the host."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from support.oci import Bundle, Container, Runtime, ours
from support.requires import cgroup_mounts, requires

_libc = ctypes.CDLL(None, use_errno=True)
_AARCH64 = os.uname().machine == "aarch64"
_SYS_SCHED_GETATTR = 275 if _AARCH64 else 315
_SYS_IOPRIO_GET = 31 if _AARCH64 else 252
RESET_ON_FORK = 1


def scheduling(pid: int) -> dict[str, int]:
    """Return what sched_getattr(2) says of a process."""
    buffer = ctypes.create_string_buffer(56)
    assert _libc.syscall(_SYS_SCHED_GETATTR, pid, buffer, 56, 0) == 0
    names = ("size", "policy", "flags", "nice", "priority", "runtime", "deadline", "period")
    return dict(zip(names, struct.unpack_from("=IIQiIQQQ", buffer), strict=True))


def io_priority(pid: int) -> tuple[int, int]:
    """Return class and level of a process, of ioprio_get(2)."""
    value = _libc.syscall(_SYS_IOPRIO_GET, 1, pid)
    assert value >= 0
    return value >> 13, value & 7


def user_namespace(bundle: Bundle) -> None:
    maps = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    bundle.namespaces.append({"type": "user"})
    bundle.linux.update(uidMappings=maps, gidMappings=maps)


# ---------------------------------------------------------------- scheduler


@ours  # runc knows no scheduler
@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"policy": "SCHED_BATCH", "nice": 7}, {"policy": 3, "nice": 7}),
        ({"policy": "SCHED_OTHER", "nice": -3}, {"policy": 0, "nice": -3}),
        ({"policy": "SCHED_IDLE"}, {"policy": 5}),
        ({"policy": "SCHED_FIFO", "priority": 10}, {"policy": 1, "priority": 10}),
        (
            {"policy": "SCHED_RR", "priority": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
            {"policy": 2, "priority": 3, "flags": RESET_ON_FORK},
        ),
        (
            {
                "policy": "SCHED_DEADLINE",
                "runtime": 1_000_000,
                "deadline": 10_000_000,
                "period": 20_000_000,
                "flags": ["SCHED_FLAG_RESET_ON_FORK"],
            },
            {"policy": 6, "runtime": 1_000_000, "deadline": 10_000_000, "period": 20_000_000},
        ),
    ],
    ids=lambda value: value.get("policy") if "nice" in value or len(value) > 1 else None,
)
@pytest.mark.parametrize("userns", [False, True], ids=["", "userns"])
def test_the_scheduler(
    runtime: Runtime, bundle: Bundle, wanted: dict[str, Any], found: dict[str, int], userns: bool
) -> None:
    if userns:
        # Its root has no CAP_SYS_NICE over the host: the runtime has.
        user_namespace(bundle)
    bundle.process["scheduler"] = wanted
    if os.path.exists(f"{cgroup_mounts().get('cpu')}/cpu.rt_runtime_us"):
        # Where the kernel shares real time out to groups, a new one has none.
        bundle.linux["resources"]["cpu"] = {"realtimeRuntime": 1000}
    container = runtime.up(bundle)
    assert scheduling(container.pid).items() >= found.items()


@ours  # runc knows no scheduler
def test_a_scheduler_that_the_kernel_refuses(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["scheduler"] = {"policy": "SCHED_ISO"}
    message = runtime.refused(runtime.run(bundle))
    assert message.startswith("cannot set process.scheduler: invalid argument")


@ours  # runc knows no scheduler
def test_the_scheduler_of_exec(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    container = runtime.up(bundle)
    pid = executed(container, tmp_path, scheduler={"policy": "SCHED_BATCH", "nice": 4})
    assert scheduling(pid).items() >= {"policy": 3, "nice": 4}.items()
    assert scheduling(container.pid)["policy"] == 0


def executed(container: Container, folder: Path, **fields: Any) -> int:
    """Run a process with *fields* in a container, and return its number on the host."""
    process = {"args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"]} | fields
    (folder / "process.json").write_text(json.dumps(process))
    return container.exec_detached("--process", folder / "process.json")


# ---------------------------------------------------------------- ioPriority


@ours  # runc knows no ioPriority
@pytest.mark.parametrize(
    ("name", "level", "found"),
    [("RT", 2, (1, 2)), ("BE", 6, (2, 6)), ("IDLE", 4, (3, 4)), ("BE", 0, (2, 0))],
)
@pytest.mark.parametrize("userns", [False, True], ids=["", "userns"])
def test_the_io_priority(
    runtime: Runtime,
    bundle: Bundle,
    name: str,
    level: int,
    found: tuple[int, int],
    userns: bool,
) -> None:
    if userns:
        user_namespace(bundle)
    bundle.process["ioPriority"] = {"class": f"IOPRIO_CLASS_{name}", "priority": level}
    bundle.shell("sleep 1000 & wait")
    container = runtime.up(bundle)
    assert io_priority(container.pid) == found


@ours  # runc knows no ioPriority
def test_the_io_priority_of_exec(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    container = runtime.up(bundle)
    pid = executed(container, tmp_path, ioPriority={"class": "IOPRIO_CLASS_IDLE", "priority": 1})
    assert io_priority(pid) == (3, 1)
    assert io_priority(container.pid)[0] != 3


# ---------------------------------------------------------------- execCPUAffinity


@ours  # runc knows no execCPUAffinity
@requires("cpus:2")
@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"initial": "0", "final": "1"}, {1}),
        ({"final": "0"}, {0}),
        ({"initial": "1"}, {0, 1}),
        ({"initial": "0", "final": "0-1"}, {0, 1}),
    ],
)
def test_processors_of_exec(
    runtime: Runtime, bundle: Bundle, tmp_path: Path, wanted: dict[str, str], found: set[int]
) -> None:
    # Of the container's first process it says nothing.
    bundle.process["execCPUAffinity"] = {"initial": "1", "final": "1"}
    container = runtime.up(bundle)
    before = os.sched_getaffinity(0)
    assert os.sched_getaffinity(container.pid) == before
    pid = executed(container, tmp_path, execCPUAffinity=wanted)
    assert os.sched_getaffinity(pid) == found & before


@ours  # runc knows no execCPUAffinity
@requires("cpus:2", "cgroup v1")
def test_processors_of_exec_within_the_container_s(
    runtime: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    bundle.linux["resources"]["cpu"] = {"cpus": "1"}
    container = runtime.up(bundle)
    pid = executed(container, tmp_path, execCPUAffinity={"initial": "0"})
    assert os.sched_getaffinity(pid) == {1}


@ours  # runc knows no execCPUAffinity
@pytest.mark.parametrize("wanted", ["0-", "x", "3-1", "0,,1", "99999999999", "4000"])
def test_processors_that_are_none(
    runtime: Runtime, bundle: Bundle, tmp_path: Path, wanted: str
) -> None:
    container = runtime.up(bundle)
    process = {"args": ["true"], "cwd": "/", "execCPUAffinity": {"final": wanted}}
    (tmp_path / "process.json").write_text(json.dumps(process))
    done = container.exec("--process", tmp_path / "process.json")
    assert "process.execCPUAffinity" in runtime.refused(done, status=255)


# ---------------------------------------------------------------- labels


@requires("no lsm:apparmor")
def test_an_apparmor_profile_without_apparmor(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["apparmorProfile"] = "docker-default"
    message = runtime.refused(runtime.run(bundle))
    assert "apparmor" in message.lower()


@requires("lsm:apparmor")
def test_an_apparmor_profile(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["apparmorProfile"] = "unconfined"
    assert runtime.shell(bundle, "cat /proc/self/attr/current") == "unconfined"


@requires("no lsm:apparmor")
@pytest.mark.parametrize("profile", ["", "unconfined"])
def test_no_apparmor_profile(runtime: Runtime, bundle: Bundle, profile: str) -> None:
    if profile:
        runtime.only_firkin("has to write it, and can't without AppArmor")
    bundle.process["apparmorProfile"] = profile
    assert runtime.shell(bundle, "echo runs") == "runs"


@requires("no lsm:selinux")
@pytest.mark.parametrize("field", ["selinuxLabel", "mountLabel"])
def test_a_label_without_selinux(runtime: Runtime, bundle: Bundle, field: str) -> None:
    section = bundle.process if field == "selinuxLabel" else bundle.linux
    section[field] = "system_u:system_r:container_t:s0:c1,c2"
    done = runtime.run(bundle)
    assert done.returncode == 1
    if not runtime.is_runc or field == "selinuxLabel":
        assert "selinux" in runtime.refused(done).lower()


# ---------------------------------------------------------------- who and how


def test_user_groups_and_umask(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 50, "umask": 0o27, "additionalGids": [7, 8]}
    container = runtime.up(bundle)
    status = dict(
        line.split(":\t", 1) for line in container.proc("status").splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["50"] * 4
    assert {"7", "8"} <= set(status["Groups"].split())
    assert status["Umask"] == "0027"


def test_the_umask_without_one(runtime: Runtime, bundle: Bundle) -> None:
    assert runtime.shell(bundle, "umask") == "0022"


def test_the_size_of_the_terminal(runtime: Runtime, bundle: Bundle) -> None:
    """Without a terminal it says nothing; test_console.py has those with one."""
    bundle.process["consoleSize"] = {"height": 33, "width": 44}
    assert runtime.shell(bundle, "test -t 1 || echo no terminal") == "no terminal"


def test_the_command_line_of_windows_is_passed_over(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["commandLine"] = "cmd /c dir"
    assert runtime.shell(bundle, "echo runs") == "runs"


@ours  # runc knows no personality
@pytest.mark.parametrize(("domain", "number"), [("LINUX32", 8), ("LINUX", 0)])
def test_personality(runtime: Runtime, bundle: Bundle, domain: str, number: int) -> None:
    bundle.linux["personality"] = {"domain": domain}
    container = runtime.up(bundle)
    assert int(container.proc("personality"), 16) == number
    assert int(container.exec("cat", "/proc/self/personality").stdout, 16) == number


@ours  # runc knows no personality
def test_flags_of_personality(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux["personality"] = {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}
    assert "linux.personality.flags" in runtime.refused(runtime.run(bundle))
