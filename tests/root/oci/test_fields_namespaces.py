"""linux.namespaces: new, joined and shared ones, in many combinations."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.oci import Bundle, Runtime, ours

MakeBundle = Callable[..., Bundle]

# The specification's names and the files in /proc/PID/ns.
FILES = {
    "pid": "pid",
    "network": "net",
    "mount": "mnt",
    "ipc": "ipc",
    "uts": "uts",
    "user": "user",
    "cgroup": "cgroup",
    "time": "time",
}
IDS = [{"containerID": 0, "hostID": 200000, "size": 65536}]


def own(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{FILES[kind]}")


def give(bundle: Bundle, kind: str, path: str = "") -> None:
    """Have the container create a namespace, or join that at *path*."""
    bundle.without_namespace(kind)
    bundle.namespaces.append({"type": kind} | ({"path": path} if path else {}))
    if kind == "user" and not path:
        bundle.linux.update(uidMappings=IDS, gidMappings=IDS)
    if kind == "uts" and path:
        del bundle.config["hostname"]


def share(bundle: Bundle, kind: str) -> None:
    """Let the container have the host's namespace."""
    bundle.without_namespace(kind)
    if kind == "uts":
        del bundle.config["hostname"]


NEW = ("pid", "network", "ipc", "uts", "cgroup")


@pytest.mark.parametrize(
    "shared", [*itertools.combinations(NEW, 1), ("pid", "ipc"), ("network", "uts"), NEW]
)
def test_new_and_shared(runtime: Runtime, bundle: Bundle, shared: tuple[str, ...]) -> None:
    give(bundle, "cgroup")
    for kind in shared:
        share(bundle, kind)
    container = runtime.up(bundle)
    for kind in NEW:
        assert (container.namespace(FILES[kind]) == own(kind)) == (kind in shared), kind
    assert container.namespace("mnt") != own("mount")


@ours  # runc knows no time
@pytest.mark.parametrize("userns", [False, True], ids=["", "userns"])
def test_a_time_namespace(runtime: Runtime, bundle: Bundle, userns: bool) -> None:
    if userns:
        give(bundle, "user")
    give(bundle, "time")
    bundle.linux["timeOffsets"] = {
        "boottime": {"secs": 8_640_000},
        "monotonic": {"secs": 7200, "nanosecs": 5},
    }
    container = runtime.up(bundle)
    offsets = [line.split() for line in container.proc("timens_offsets").splitlines()]
    assert offsets == [["monotonic", "7200", "5"], ["boottime", "8640000", "0"]]
    assert container.namespace("time") != own("time")
    found = container.exec("cut", "-d.", "-f1", "/proc/uptime")
    assert int(found.stdout) > 8_640_000


@ours  # runc knows no time
def test_offsets_without_a_time_namespace(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux["timeOffsets"] = {"boottime": {"secs": 1}}
    assert "linux.timeOffsets" in runtime.refused(runtime.run(bundle))


def test_a_user_namespace(runtime: Runtime, bundle: Bundle) -> None:
    give(bundle, "user")
    container = runtime.up(bundle)
    assert container.namespace("user") != own("user")
    assert container.proc("uid_map").split() == ["0", "200000", "65536"]
    assert container.proc("gid_map").split() == ["0", "200000", "65536"]
    assert container.proc("status").split("Uid:")[1].split()[:4] == ["200000"] * 4


def test_several_id_maps(runtime: Runtime, bundle: Bundle) -> None:
    give(bundle, "user")
    maps = [
        {"containerID": 0, "hostID": 200000, "size": 10},
        {"containerID": 1000, "hostID": 1000, "size": 1},
        {"containerID": 2000, "hostID": 300000, "size": 5},
    ]
    bundle.linux["uidMappings"] = maps
    container = runtime.up(bundle)
    rows = [line.split() for line in container.proc("uid_map").splitlines()]
    assert rows == [[str(m["containerID"]), str(m["hostID"]), str(m["size"])] for m in maps]


JOINED = ("network", "ipc", "uts", "pid", "cgroup")


@pytest.mark.parametrize("joined", [*itertools.combinations(JOINED, 1), JOINED])
def test_joined(runtime: Runtime, make_bundle: MakeBundle, joined: tuple[str, ...]) -> None:
    first = make_bundle(folder="first")
    give(first, "cgroup")
    other = runtime.up(first)
    bundle = make_bundle()
    give(bundle, "cgroup")
    for kind in joined:
        give(bundle, kind, f"/proc/{other.pid}/ns/{FILES[kind]}")
    container = runtime.up(bundle)
    for kind in JOINED:
        same = container.namespace(FILES[kind]) == other.namespace(FILES[kind])
        assert same == (kind in joined), kind
    assert container.namespace("mnt") != other.namespace("mnt")


def test_joined_pids_are_seen_in_a_new_mount_namespace(
    runtime: Runtime, make_bundle: MakeBundle
) -> None:
    other = runtime.up(make_bundle("sleep", "1234", folder="first"))
    bundle = make_bundle()
    give(bundle, "pid", f"/proc/{other.pid}/ns/pid")
    found = runtime.shell(
        bundle, "cat /proc/1/cmdline | tr '\\0' ' '; test $$ -ne 1 && echo no init"
    )
    assert found == "sleep 1234 no init"


@pytest.mark.parametrize("more", [(), ("network",), ("network", "ipc", "uts", "pid")])
def test_a_joined_user_namespace_and_new_or_joined_others(
    runtime: Runtime, make_bundle: MakeBundle, more: tuple[str, ...]
) -> None:
    first = make_bundle(folder="first")
    give(first, "user")
    other = runtime.up(first)
    bundle = make_bundle()
    # runc wants to be told the maps, which the namespace has already.
    bundle.linux.update(uidMappings=IDS, gidMappings=IDS)
    for kind in ("user", *more):
        give(bundle, kind, f"/proc/{other.pid}/ns/{FILES[kind]}")
    container = runtime.up(bundle)
    assert container.namespace("user") == other.namespace("user")
    for kind in ("network", "ipc", "uts", "pid"):
        same = container.namespace(FILES[kind]) == other.namespace(FILES[kind])
        assert same == (kind in more), kind
    assert container.exec("id", "-u").stdout == "0\n"
    assert container.proc("status").split("Uid:")[1].split()[0] == "200000"


@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "pid", "cgroup"])
def test_the_path_of_one_s_own(runtime: Runtime, bundle: Bundle, kind: str) -> None:
    give(bundle, kind, f"/proc/self/ns/{FILES[kind]}")
    container = runtime.up(bundle)
    assert container.namespace(FILES[kind]) == own(kind)


def test_a_namespace_that_is_mounted_somewhere(
    runtime: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    from support.command import execute

    path = tmp_path / "net"
    path.touch()
    execute(["unshare", f"--net={path}", "true"], check=True)
    try:
        give(bundle, "network", str(path))
        container = runtime.up(bundle)
        status = path.stat()
        assert container.namespace("net") == f"net:[{status.st_ino}]"
        container.stop()
    finally:
        execute(["umount", str(path)], check=True)


@pytest.mark.parametrize("path", ["/proc/self/ns/uts", "/dev/null", "/nosuch", "/proc"])
def test_what_is_no_network_namespace(runtime: Runtime, bundle: Bundle, path: str) -> None:
    give(bundle, "network", path)
    done = runtime.run(bundle)
    assert done.returncode == 1
    if not runtime.is_runc:
        assert f"cannot join the network namespace '{path}'" in runtime.refused(done)


def test_a_namespace_twice(runtime: Runtime, bundle: Bundle) -> None:
    bundle.namespaces.append({"type": "ipc"})
    assert "ipc" in runtime.refused(runtime.run(bundle)).lower()


@ours  # runc makes the host's mounts slaves then
def test_no_mount_namespace(runtime: Runtime, bundle: Bundle) -> None:
    bundle.without_namespace("mount")
    for name in ("maskedPaths", "readonlyPaths"):
        del bundle.linux[name]
    message = runtime.refused(runtime.run(bundle))
    assert "without a mount namespace the container would mount on the host" in message


def test_paths_are_not_hidden_without_a_mount_namespace(runtime: Runtime, bundle: Bundle) -> None:
    bundle.without_namespace("mount")
    assert "mount" in runtime.refused(runtime.run(bundle)).lower().replace("mnt", "mount")


@pytest.mark.parametrize("field", ["hostname", "domainname"])
def test_names_without_a_namespace_for_them(runtime: Runtime, bundle: Bundle, field: str) -> None:
    if field == "domainname":
        runtime.only_firkin("knows no domainname")
    bundle.without_namespace("uts")
    bundle.config.pop("hostname")
    bundle.config[field] = "kegs"
    before = os.uname().nodename
    assert runtime.run(bundle).returncode == 1
    assert os.uname().nodename == before


@ours  # runc 1.1.5 takes them for nothing
def test_maps_without_a_user_namespace(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux.update(uidMappings=IDS, gidMappings=IDS)
    assert runtime.run(bundle).returncode == 1


def test_loopback_is_up_in_a_new_network_namespace(runtime: Runtime, bundle: Bundle) -> None:
    assert runtime.shell(bundle, "ls /sys/class/net; cat /sys/class/net/lo/flags") == "lo\n0x9"
