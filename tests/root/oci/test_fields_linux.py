"""linux: each field but namespaces, resources and seccomp, from inside and from outside."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command import execute
from support.oci import Bundle, Container, Runtime, ours
from support.requires import requires

MakeBundle = Callable[..., Bundle]


def user_namespace(bundle: Bundle) -> None:
    maps = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    bundle.namespaces.append({"type": "user"})
    bundle.linux.update(uidMappings=maps, gidMappings=maps)


def field(container: Container, name: str) -> str:
    """Return a line of /proc/PID/status."""
    for line in container.proc("status").splitlines():
        key, _, value = line.partition(":\t")
        if key == name:
            return value
    raise AssertionError(name)


# ---------------------------------------------------------------- devices

ALLOW_ALL = [{"allow": True, "access": "rwm"}]


def device(path: str, kind: str = "c", major: int = 1, minor: int = 3, **more: Any) -> Any:
    numbers = {} if kind == "p" else {"major": major, "minor": minor}
    return {"path": path, "type": kind} | numbers | more


def show(runtime: Runtime, bundle: Bundle, path: str) -> str:
    return runtime.shell(bundle, f"stat -c '%F %t:%T %a %u:%g' {path}")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (device("/dev/nowt", fileMode=0o640, uid=5, gid=6), "character special file 1:3 640 5:6"),
        (device("/dev/nowt"), "character special file 1:3 666 0:0"),
        (device("/dev/sub/folder/nowt", fileMode=0o600), "character special file 1:3 600 0:0"),
        (device("/dev/disk", "b", 7, 200, fileMode=0o660), "block special file 7:c8 660 0:0"),
        (device("/dev/raw", "u", 1, 5, fileMode=0o666), "character special file 1:5 666 0:0"),
        (device("/dev/pipe", "p", fileMode=0o622, uid=1), "fifo 0:0 622 1:0"),
        (device("/tmp/nowt", fileMode=0o644), "character special file 1:3 644 0:0"),
    ],
)
def test_a_device(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path, wanted: Any, found: str
) -> None:
    bundle = make_bundle(root=own_root)
    bundle.linux["devices"] = [wanted]
    bundle.linux["resources"]["devices"] = ALLOW_ALL
    assert show(runtime, bundle, wanted["path"]) == found


def test_a_device_that_is_promised_anyway(runtime: Runtime, bundle: Bundle) -> None:
    """It is as the configuration says."""
    bundle.linux["devices"] = [device("/dev/null", fileMode=0o622, uid=3, gid=4)]
    bundle.linux["resources"]["devices"] = ALLOW_ALL
    assert show(runtime, bundle, "/dev/null") == "character special file 1:3 622 3:4"


@ours  # runc takes whatever is there
def test_what_is_in_a_device_s_place(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path
) -> None:
    (own_root / "tmp/nowt").write_text("the image's")
    bundle = make_bundle(root=own_root)
    bundle.linux["devices"] = [device("/tmp/nowt")]
    assert "/tmp/nowt" in runtime.refused(runtime.run(bundle))


KMSG = (1, 11)  # the numbers of /dev/kmsg, which every machine has


@ours  # runc looks the host's node up by the container's name
def test_a_device_under_another_name_in_a_user_namespace(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path
) -> None:
    bundle = make_bundle(root=own_root)
    user_namespace(bundle)
    bundle.linux["devices"] = [device("/dev/other/log", "c", *KMSG)]
    found = show(runtime, bundle, "/dev/other/log")
    assert found.startswith("character special file 1:b ")


def test_a_device_under_its_name_in_a_user_namespace(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path
) -> None:
    bundle = make_bundle(root=own_root)
    user_namespace(bundle)
    bundle.linux["devices"] = [device("/dev/kmsg", "c", *KMSG)]
    assert show(runtime, bundle, "/dev/kmsg").startswith("character special file 1:b ")


@ours  # runc looks for a file of that name
def test_a_fifo_in_a_user_namespace(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path
) -> None:
    bundle = make_bundle(root=own_root)
    user_namespace(bundle)
    bundle.linux["devices"] = [device("/dev/pipe", "p", fileMode=0o620, uid=7, gid=8)]
    assert show(runtime, bundle, "/dev/pipe") == "fifo 0:0 620 7:8"


@ours  # runc looks for a file of that name
def test_a_device_that_the_host_lacks_in_a_user_namespace(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path
) -> None:
    bundle = make_bundle(root=own_root)
    user_namespace(bundle)
    bundle.linux["devices"] = [device("/dev/no", "c", 240, 77)]
    assert "linux.devices[0]: the host has no char device 240:77" in runtime.refused(
        runtime.run(bundle)
    )


# ---------------------------------------------------------------- netDevices


@pytest.fixture
def interface() -> Iterator[str]:
    """A network device of the host with addresses, switched on, and its peer."""
    name, peer = f"fk{os.getpid() % 100000}a", f"fk{os.getpid() % 100000}b"
    execute(["ip", "link", "add", name, "type", "veth", "peer", "name", peer], check=True)
    try:
        for address in ("192.0.2.7/24", "2001:db8::7/64"):
            execute(["ip", "address", "add", address, "dev", name, "nodad"], check=True)
        execute(["ip", "address", "add", "198.51.100.9", "dev", name, "scope", "link"], check=True)
        execute(["ip", "link", "set", name, "up"], check=True)
        yield name
    finally:
        execute(["ip", "link", "delete", peer])


def inside(container: Container, *words: str) -> str:
    """Return what ip(8) says in the container's network namespace."""
    done = execute(["nsenter", "-t", str(container.pid), "-n", "ip", *words], check=True)
    return str(done.stdout)


@ours  # runc knows no netDevices
@requires("program:ip")
@pytest.mark.parametrize("userns", [False, True], ids=["", "userns"])
def test_a_network_device(runtime: Runtime, bundle: Bundle, interface: str, userns: bool) -> None:
    if userns:
        user_namespace(bundle)
    bundle.linux["netDevices"] = {interface: {"name": "inner0"}}
    bundle.shell("cat /sys/class/net/inner0/flags; sleep 1000")
    container = runtime.up(bundle)
    # Up, from the first moment of the command on.
    assert int(container.output(until="\n"), 16) & 1
    assert interface not in os.listdir("/sys/class/net")
    addresses = inside(container, "-o", "address", "show", "dev", "inner0")
    assert "192.0.2.7/24" in addresses
    assert "2001:db8::7/64" in addresses
    # The kernel's own and those for one link only are not taken along.
    assert "198.51.100.9" not in addresses


@ours  # runc knows no netDevices
@requires("program:ip")
def test_a_network_device_keeps_its_name(runtime: Runtime, bundle: Bundle, interface: str) -> None:
    bundle.linux["netDevices"] = {interface: {}}
    assert {interface, "lo"} <= set(runtime.shell(bundle, "ls /sys/class/net").split())


@ours  # runc knows no netDevices
@requires("program:ip")
def test_a_network_device_s_name_from_a_template(
    runtime: Runtime, bundle: Bundle, interface: str
) -> None:
    bundle.linux["netDevices"] = {interface: {"name": "eth%d"}}
    assert {"eth0", "lo"} <= set(runtime.shell(bundle, "ls /sys/class/net").split())


@ours  # runc knows no netDevices
@requires("program:ip")
@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_failed_start_brings_network_devices_back(
    runtime: Runtime, bundle: Bundle, interface: str, verb: str
) -> None:
    bundle.linux["netDevices"] = {interface: {"name": "inner0"}}
    bundle.args("/nosuch/command")
    before = [
        execute(
            ["ip", "-o", "address", "show", "dev", interface, "scope", "global"], check=True
        ).stdout.partition(":")[2]
    ]
    start = runtime.create if verb == "create" else runtime.up
    assert start(bundle, check=False).done.returncode == 1
    after = [
        execute(
            ["ip", "-o", "address", "show", "dev", interface, "scope", "global"], check=True
        ).stdout.partition(":")[2]
    ]
    assert after == before
    assert "UP" in execute(["ip", "link", "show", interface], check=True).stdout


@ours  # runc knows no netDevices
@requires("program:ip")
def test_one_network_device_of_two_is_missing(
    runtime: Runtime, bundle: Bundle, interface: str
) -> None:
    bundle.linux["netDevices"] = {interface: {}, "nosuch0": {}}
    message = runtime.refused(runtime.run(bundle))
    assert 'linux.netDevices["nosuch0"]: the host has no such device' in message
    assert interface in os.listdir("/sys/class/net")


@ours  # runc knows no netDevices
@requires("program:ip")
def test_a_network_device_whose_name_is_taken(
    runtime: Runtime, bundle: Bundle, interface: str
) -> None:
    bundle.linux["netDevices"] = {interface: {"name": "lo"}}
    assert "a device with name 'lo' already" in runtime.refused(runtime.run(bundle))
    assert interface in os.listdir("/sys/class/net")


@ours  # runc knows no netDevices
@requires("program:ip")
def test_a_network_device_without_a_namespace(
    runtime: Runtime, bundle: Bundle, interface: str
) -> None:
    bundle.without_namespace("network")
    bundle.linux["netDevices"] = {interface: {}}
    assert "linux.netDevices" in runtime.refused(runtime.run(bundle))
    assert interface in os.listdir("/sys/class/net")


# ---------------------------------------------------------------- sysctl


def test_sysctls(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux["sysctl"] = {
        "net.ipv4.ip_forward": "1",
        "kernel.shmmax": "123456",
        "kernel.domainname": "cellar",
        "net/ipv4/conf/lo/forwarding": "0",
    }
    host = Path("/proc/sys/kernel/shmmax").read_text()
    script = "cd /proc/sys; cat net/ipv4/ip_forward kernel/shmmax kernel/domainname"
    assert runtime.shell(bundle, script) == "1\n123456\ncellar"
    assert Path("/proc/sys/kernel/shmmax").read_text() == host


@pytest.mark.parametrize(
    ("sysctl", "without"),
    [
        ("kernel.panic", ""),
        ("vm.swappiness", ""),
        ("kernel.hostname", ""),
        ("net.ipv4.ip_forward", "network"),
        ("kernel.shmmax", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
    ],
)
def test_sysctls_of_the_host(runtime: Runtime, bundle: Bundle, sysctl: str, without: str) -> None:
    path = Path("/proc/sys", sysctl.replace(".", "/"))
    before = path.read_text()
    bundle.args("true").linux["sysctl"] = {sysctl: before.strip()}
    if without:
        bundle.without_namespace(without)
    assert sysctl in runtime.refused(runtime.run(bundle))


def test_sysctls_of_the_host_s_network_by_path(runtime: Runtime, bundle: Bundle) -> None:
    bundle.without_namespace("network")
    bundle.namespaces.append({"type": "network", "path": "/proc/self/ns/net"})
    now = Path("/proc/sys/net/ipv4/conf/lo/forwarding").read_text().strip()
    bundle.linux["sysctl"] = {"net.ipv4.conf.lo.forwarding": now}
    assert "host" in runtime.refused(runtime.run(bundle.args("true")))


# ---------------------------------------------------------------- memoryPolicy


def policy(pid: int) -> str:
    """Return the policy of a process's memory, as numa_maps writes it."""
    lines = Path(f"/proc/{pid}/numa_maps").read_text().splitlines()
    return lines[0].partition(" ")[2]


@ours  # runc knows no memoryPolicy
@requires("numa")
@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"mode": "MPOL_BIND", "nodes": "0"}, "bind:0"),
        ({"mode": "MPOL_INTERLEAVE", "nodes": "0-0"}, "interleave:0"),
        ({"mode": "MPOL_PREFERRED", "nodes": "0"}, "prefer:0"),
        ({"mode": "MPOL_PREFERRED"}, "local"),
        pytest.param(
            {"mode": "MPOL_PREFERRED_MANY", "nodes": "0"},
            "prefer (many):0",
            marks=requires("kernel:5.15"),
        ),
        ({"mode": "MPOL_LOCAL"}, "local"),
        ({"mode": "MPOL_DEFAULT"}, "default"),
        pytest.param(
            {"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0"},
            "weighted",
            marks=requires("kernel:6.9"),
        ),
        (
            {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
            "bind=static:0",
        ),
        (
            {"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]},
            "interleave=relative:0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_memory_policy(
    runtime: Runtime, bundle: Bundle, wanted: dict[str, Any], found: str
) -> None:
    bundle.linux["memoryPolicy"] = wanted
    container = runtime.up(bundle)
    assert found in policy(container.pid)
    executed = container.exec_detached()
    assert found in policy(executed)


@ours  # runc knows no memoryPolicy
@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"mode": "MPOL_BIND"}, "linux.memoryPolicy.nodes: mpol_bind needs at least one"),
        ({"mode": "MPOL_LOCAL", "nodes": "0"}, "linux.memoryPolicy.nodes: mpol_local has none"),
        ({"mode": "MPOL_BIND", "nodes": "x"}, "is not a list of numbers"),
        ({"mode": "MPOL_BIND", "nodes": "0-99999"}, "is beyond what any kernel has"),
        ({"mode": "MPOL_BIND", "nodes": "900"}, "memory policy"),
        ({"mode": "MPOL_NEW"}, "linux.memoryPolicy.mode"),
    ],
)
def test_a_memory_policy_that_cannot_be(
    runtime: Runtime, bundle: Bundle, wanted: dict[str, Any], says: str
) -> None:
    bundle.linux["memoryPolicy"] = wanted
    assert says.lower() in runtime.refused(runtime.run(bundle)).lower()


# ---------------------------------------------------------------- intelRdt


def test_shares_of_the_cache_without_resctrl(runtime: Runtime, bundle: Bundle) -> None:
    # A machine that has it wants a test of its own.
    assert " resctrl " not in Path("/proc/self/mountinfo").read_text()
    bundle.linux["intelRdt"] = {"closID": "x", "l3CacheSchema": "L3:0=f"}
    message = runtime.refused(runtime.run(bundle))
    assert "resctrl" in message or "Intel RDT/CAT is not enabled" in message


# ---------------------------------------------------------------- root, paths, names


def test_names(runtime: Runtime, bundle: Bundle) -> None:
    bundle.config["hostname"] = "kegs"
    if not runtime.is_runc:
        bundle.config["domainname"] = "cellar"
    found = runtime.shell(bundle, "hostname; cat /proc/sys/kernel/domainname").split()
    assert found == ["kegs", "(none)" if runtime.is_runc else "cellar"]


def test_masked_and_read_only_paths(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path
) -> None:
    for folder in ("secret", "fixed"):
        (own_root / folder).mkdir()
        (own_root / folder / "file").write_text("here\n")
    bundle = make_bundle(root=own_root)
    bundle.config["root"]["readonly"] = False
    # What is not there is no error.
    bundle.linux["maskedPaths"] = ["/secret", "/etc/passwd", "/nosuch"]
    if not runtime.is_runc:
        bundle.linux["maskedPaths"].append("/etc/passwd/below")
    bundle.linux["readonlyPaths"] = ["/fixed", "/nosuch/file"]
    script = """
        ls /secret; wc -c < /etc/passwd; cat /fixed/file
        touch /fixed/file 2>&1 | grep -o 'Read-only file system'
        touch /secret/new 2>&1 | grep -o 'Read-only file system'
        touch /new && echo writable
    """
    assert runtime.shell(bundle, script).split("\n") == [
        "0",
        "here",
        "Read-only file system",
        "Read-only file system",
        "writable",
    ]


@pytest.mark.parametrize("readonly", [True, False])
def test_a_read_only_root(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path, readonly: bool
) -> None:
    bundle = make_bundle(root=own_root)
    bundle.config["root"]["readonly"] = readonly
    found = runtime.shell(bundle, "touch /x 2>/dev/null; test -e /x; echo $?")
    assert found == ("1" if readonly else "0")
    assert (own_root / "x").exists() != readonly


@ours  # runc makes the root private, whatever was asked for
@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("private", ""),
        ("rprivate", ""),
        ("slave", "master"),
        ("rslave", "master"),
        ("shared", "shared"),
        ("rshared", "shared"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ],
)
def test_the_root_s_propagation(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path, kind: str, own: str
) -> None:
    # A root on a mount that the host shares.
    execute(["mount", "--bind", str(own_root), str(own_root)], check=True)
    try:
        execute(["mount", "--make-shared", str(own_root)], check=True)
        bundle = make_bundle(root=own_root)
        bundle.linux["rootfsPropagation"] = kind
        mountinfo = runtime.up(bundle).proc("mountinfo").splitlines()
    finally:
        execute(["umount", "-R", str(own_root)], check=True)
    fields = next(line.split() for line in mountinfo if line.split()[4] == "/")
    optional = [word.partition(":")[0] for word in fields[6 : fields.index("-")]]
    assert optional == ([own] if own else [])


def test_annotations_are_in_the_state(runtime: Runtime, bundle: Bundle) -> None:
    bundle.config["annotations"] = {"com.example.key": "value", "empty": ""}
    assert runtime.up(bundle).state()["annotations"] == bundle.config["annotations"]


def test_no_capability_is_there_that_was_not_asked_for(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["capabilities"] = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_KILL"],
        "inheritable": ["CAP_CHOWN"],
        "ambient": ["CAP_CHOWN"],
    }
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    container = runtime.up(bundle)
    masks = {name: int(field(container, name), 16) for name in ("CapBnd", "CapInh", "CapAmb")}
    assert masks == {"CapBnd": 1 << 0 | 1 << 5 | 1 << 7, "CapInh": 1, "CapAmb": 1}
    assert stat.S_ISDIR(os.stat(f"/proc/{container.pid}").st_mode)
