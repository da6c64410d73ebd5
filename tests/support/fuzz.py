"""Configurations that are wrong, odd or hostile, for ``tests/root/oci/test_fuzz.py``.

A good configuration is changed in one to four places: by an entry of :data:`ODD`, which
knows what a field means, or blindly (a value of another type, a member left out, an
entry twice). :func:`harmless` takes out what would reach the machine itself if it worked.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from support.oci import configuration, mount

Config = dict[str, Any]

MISSING = object()  # as a value: the member is taken out
LONG = "x" * 5000
HUGE = (2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -1, -(2**63), 0)
STRINGS = (
    "", " ", ".", "..", "/", "//", "/..", "../../..", "relative", "/proc/self/root",
    "/proc/self/fd/3", "/proc/self/exe", "/a\nb", "a\0b", "\ud800", "\u202e", "\x1b[2J", LONG,
    "/" + LONG, "ä" * 100, "-1", "0", "true", "null", "%s%n", "a,b=c", "$(id)",
)  # fmt: skip
ANYTHING = (None, True, False, *HUGE, 0.5, 1e300, *STRINGS, [], {}, [None], [[]], {"": 0}, [{}])

# Namespaces that are joined in ODD: of this process, and of the holder's.
OURS, THEIRS = "/proc/self/ns/", "/proc/{holder}/ns/"

ODD: dict[str, tuple[Any, ...]] = {
    "ociVersion": ("", "1", "2.0.0", "1.0.2-", "1.2.3.4", "0.1.0", "v1.0.0", MISSING),
    "root.path": ("", "..", "nowhere", "/dev/null", "{bundle}/link", "{bundle}/file", MISSING),
    "root.readonly": (True, False, 0, "false"),
    "root": (None, [], "/", MISSING),
    "hostname": ("", "x" * 64, "x" * 65, "a b", "a\nb", "ä" * 40, MISSING),
    "domainname": ("example.test", "x" * 65, 5),
    "process": (None, {}, MISSING),
    "process.cwd": (
        "", "tmp", "/tmp", "/none/yet", "/proc", "/proc/self/fd/3", "/proc/self/fd/9/../..",
        "/..", "/tmp/../..", "/etc/passwd", "/a\nb", "/\0", "/bin/sh/x", "/proc/1/cwd", MISSING,
    ),
    "process.args": (
        [], [""], ["/"], ["/etc"], ["/etc/passwd"], ["nowhere"], ["/proc/self/exe"], ["sleep\0"],
        ["sh", "-c", "sleep 1000; :", "\n", "\x1b", ""],
        ["sh", "-c", "sleep 1000; :", *["a" * 1000] * 3000], ["sleep", "1000", "a" * 200_000],
        ["../bin/sleep", "1000"], ["/proc/self/fd/3"], MISSING,
    ),
    "process.env": (
        [], ["PATH="], ["PATH=/nowhere"], ["X"], ["=x"], ["A=\n"], ["A=\0"], ["A=1", "A=2"],
        ["PATH=:/bin"], ["LD_PRELOAD=/nowhere.so", "PATH=/bin"], [*["A=1"] * 5000], "PATH=/bin",
        ["PYTHONHOME=/nowhere", "PYTHONPATH=/proc/self/root", "PATH=/bin"],
        ["HOME=", "PATH=/bin"], ["PATH=/bin", "A=" + "x" * 200_000],
    ),
    "process.user": (
        {}, {"uid": 1000}, {"uid": 65534, "gid": 65534}, {"uid": 2**32 - 2, "gid": 2**32 - 2},
        {"uid": 2**32 - 1, "gid": 0}, {"uid": 0, "gid": 2**32 - 1}, {"uid": -1, "gid": -1},
        {"uid": 1000, "gid": 1000, "additionalGids": [0, 0, 5, 4294967294]},
        {"uid": 0, "gid": 0, "additionalGids": [2**32 - 1]}, {"uid": "root"},
        {"uid": 0, "gid": 0, "additionalGids": list(range(70_000))},
        {"uid": 1000, "gid": 1000, "umask": 0o77}, {"uid": 0, "gid": 0, "umask": 0o7777},
        {"username": "root"}, MISSING,
    ),
    "process.terminal": (True, "yes", 1),
    "process.capabilities": (
        {}, None, {"bounding": ["CAP_NOSUCH"]}, {"effective": ["CAP_SYS_ADMIN"]},
        {"ambient": ["CAP_KILL"]}, {"bounding": ["CAP_KILL"] * 3, "permitted": ["CAP_KILL"]},
        {"bounding": ["cap_kill"]}, {"bounding": [0]}, {"bounding": ["CAP_SYS_RESOURCE"]},
        {"inheritable": ["CAP_KILL"], "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
        {kind: ["CAP_KILL", "CAP_CHOWN"] for kind in
         ("bounding", "effective", "permitted", "inheritable", "ambient")}, MISSING,
    ),
    "process.rlimits": (
        [], [{"type": "RLIMIT_NOFILE", "soft": 0, "hard": 0}],
        [{"type": "RLIMIT_NOFILE", "soft": 3, "hard": 3}],
        [{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 8}],
        [{"type": "RLIMIT_NOFILE", "soft": 2**63, "hard": 2**64 - 1}],
        [{"type": "RLIMIT_NOFILE", "soft": -1, "hard": -1}],
        [{"type": "RLIMIT_AS", "soft": 1, "hard": 1}],
        [{"type": "RLIMIT_AS", "soft": 0, "hard": 0}],
        [{"type": "RLIMIT_STACK", "soft": 0, "hard": 2**64 - 1}],
        [{"type": "RLIMIT_FSIZE", "soft": 0, "hard": 0}],
        [{"type": "RLIMIT_NPROC", "soft": 0, "hard": 0}],
        [{"type": "RLIMIT_CPU", "soft": 0, "hard": 0}],
        [{"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1}] * 2,
        [{"type": "RLIMIT_NOSUCH", "soft": 1, "hard": 1}], [{"type": "nofile"}],
    ),
    "process.noNewPrivileges": (True, False, None),
    "process.oomScoreAdj": (-1000, -1001, 0, 500, 1000, 1001, 1.0),
    "process.scheduler": (
        {"policy": "SCHED_BATCH", "nice": 5}, {"policy": "SCHED_IDLE"}, {"policy": "SCHED_NOSUCH"},
        {"policy": "SCHED_OTHER", "priority": 5}, {"policy": "SCHED_FIFO", "priority": 0},
        {"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3}, {},
    ),
    "process.ioPriority": (
        {"class": "IOPRIO_CLASS_BE", "priority": 7}, {"class": "IOPRIO_CLASS_IDLE"},
        {"class": "IOPRIO_CLASS_BE", "priority": 8}, {},
    ),
    "process.execCPUAffinity": ({"initial": "0"}, {"initial": "99999"}, {"final": "0-"}, {}),
    "process.apparmorProfile": ("nosuch", "a\nb", "unconfined"),
    "process.selinuxLabel": ("nosuch", "a\0b"),
    "process.consoleSize": ({"height": 65536, "width": 0}, {"height": 5}),
    "mounts": ([], MISSING, None, {}, [{}], [None]),
    "mounts+": (
        mount("/", "tmpfs", "tmpfs"), mount("/", "bind", "{bundle}", "bind"),
        mount("/..", "tmpfs", "tmpfs"), mount(".", "tmpfs", "tmpfs"), mount("", "tmpfs", "tmpfs"),
        mount("relative", "tmpfs", "tmpfs"), mount("/tmp/../etc", "tmpfs", "tmpfs"),
        mount("/proc", "proc", "proc"), mount("/proc", "tmpfs", "tmpfs"),
        mount("/proc/self", "tmpfs", "tmpfs"), mount("/proc/self/attr", "tmpfs", "tmpfs"),
        mount("/proc/sys/kernel", "bind", "{bundle}", "bind"),
        mount("/proc/1/status", "bind", "{bundle}/file", "bind"),
        mount("/etc/passwd", "bind", "{bundle}/file", "bind", "ro"),
        mount("/etc/passwd", "tmpfs", "tmpfs"), mount("/etc", "bind", "{bundle}/file", "bind"),
        mount("/etc/passwd/x", "tmpfs", "tmpfs"), mount("/new/deep/er", "tmpfs", "tmpfs"),
        mount("/new", "bind", "{bundle}/nowhere", "bind"), mount("/new", "bind", "", "bind"),
        mount("/new", "bind", "{bundle}/link", "bind"), mount("/new", "bind", "/dev/null", "bind"),
        mount("/new", "bind", "{bundle}/fifo", "bind"), mount("/new", "bind", ".", "rbind"),
        mount("/new", "bind", "/proc/self/fd/3", "bind"), mount("/new", "bind", "/proc", "rbind"),
        mount("/new", "bind", "/sys/fs/cgroup", "rbind", "rro"),
        mount("/new", "bind", "{bundle}", "bind", "ro", "rw", "ro"),
        mount("/new", "bind", "{bundle}", "bind", "rro", "rnosuid", "rshared", "rslave"),
        mount("/new", "bind", "{bundle}", "remount", "ro"), mount("/new", "none", "none"),
        mount("/new", "nosuchfs", "none"), mount("/new", "ext4", "/dev/null"),
        mount("/new", "overlay", "overlay", "lowerdir=/nowhere"),
        mount("/new", "tmpfs", "tmpfs", "size=0"), mount("/new", "tmpfs", "tmpfs", "size=-1"),
        mount("/new", "tmpfs", "tmpfs", "nosuchoption"), mount("/new", "tmpfs", "tmpfs", "mode=9"),
        mount("/new", "tmpfs", "tmpfs", "a" * 5000), mount("/new", "tmpfs", "tmpfs", "a=\0"),
        mount("/new", "tmpfs", "tmpfs", *["ro"] * 3000), mount("/tmp", "tmpfs", "t", "tmpcopyup"),
        mount("/etc", "tmpfs", "t", "tmpcopyup", "ro"), mount("/new", "proc", "p", "tmpcopyup"),
        mount("/new", "bind", "{bundle}", "bind", "idmap"),
        mount("/new", "tmpfs", "tmpfs", "atime", "noatime", "relatime", "strictatime"),
        mount("/new", "mqueue", "m"), mount("/new", "sysfs", "s"), mount("/new", "cgroup", "c"),
        mount("/new", "cgroup2", "c", "ro"), mount("/new", "devpts", "d", "newinstance"),
        mount("/dev", "tmpfs", "t"), mount("/dev", "bind", "{bundle}", "bind"),
        mount("/dev", "tmpfs", "t", "ro"), mount("/dev/pts", "tmpfs", "t"),
        mount("/a\nb", "tmpfs", "t"), mount("/a b\\040", "tmpfs", "t"),
        mount("/" + LONG, "tmpfs", "t"),
        mount("/bin", "tmpfs", "hides the command"), mount("/loop", "bind", "{root}", "rbind"),
        mount("/new\ud800", "tmpfs", "t"), mount("/lnk/x", "tmpfs", "t"),
        mount("/self", "tmpfs", "t"),
    ),
    "hooks": (
        {"createRuntime": [{"path": "/nowhere"}]}, {"createRuntime": [{"path": "true"}]},
        {"createRuntime": [{"path": "/bin/false"}]}, {"createContainer": [{"path": "/bin/false"}]},
        {"createContainer": [{"path": "/nowhere"}]}, {"prestart": [{"path": "/bin"}]},
        {"startContainer": [{"path": "/bin/false"}]}, {"startContainer": [{"path": "/nowhere"}]},
        {"poststart": [{"path": "/bin/false"}]}, {"poststop": [{"path": "/bin/false"}]},
        {"prestart": [{"path": "/bin/true", "timeout": 0}]},
        {"createRuntime": [{"path": "/bin/true", "timeout": 10**18}]},
        {"createRuntime": [{"path": "/bin/true", "env": ["x"]}]},
        {"createRuntime": [{"path": "/bin/true", "args": [], "env": ["A=\n"]}]},
        {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $$"]}]},
        {"createContainer": [
            {"path": "/bin/sh", "args": ["sh", "-c", "printf 'a\\nb\\r\\033[1m'; exit 3"]}]},
        {"createRuntime": [
            {"path": "/bin/sh", "args": ["sh", "-c", "yes | head -c 99999; exit 1"]}]},
        {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "99"], "timeout": 1}]},
        {"nosuch": [{"path": "/bin/false"}]}, {"prestart": {}}, {"poststop": None},
    ),
    "annotations": ({"": "x"}, {"a": 1}, {"a\n": "\n\x1b"}, {"a": "\ud800"}, {"a": LONG}, []),
    "linux": (None, {}, MISSING),
    "linux.namespaces": (
        [], None, MISSING, [{"type": "mount"}], [{"type": "nosuch"}], [{"type": "mount"}] * 2,
        [{"type": "mount"}, {"type": "pid"}], [{"type": "mount"}, {"type": "user"}], [{}],
        [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network", "cgroup", "time")],
    ),
    "linux.namespaces+": (
        {"type": "user"}, {"type": "cgroup"}, {"type": "time"}, {"type": "pid"},
        *({"type": kind, "path": path} for kind in ("cgroup", "time", "user")
          for path in (OURS + kind, THEIRS + kind)),
    ),
    "linux.namespaces=": (
        *({"type": kind, "path": path + file}
          for kind, file in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid"))
          for path in (OURS, THEIRS)),
        {"type": "network", "path": THEIRS + "uts"}, {"type": "uts", "path": "/nowhere"},
        {"type": "ipc", "path": "{bundle}/file"}, {"type": "ipc", "path": "{bundle}/fifo"},
        {"type": "pid", "path": "/proc/self/fd/0"}, {"type": "network", "path": "relative"},
        {"type": "mount", "path": THEIRS + "mnt"}, {"type": "uts", "path": "/dev/null"},
    ),
    "linux.uidMappings,gidMappings": (
        [{"containerID": 0, "hostID": 100000, "size": 65536}],
        [{"containerID": 0, "hostID": 0, "size": 1}],
        [{"containerID": 1000, "hostID": 100000, "size": 5}],
        [{"containerID": 0, "hostID": 100000, "size": 0}],
        [{"containerID": 0, "hostID": 2**32 - 2, "size": 5}],
        [{"containerID": n, "hostID": 100000 + n, "size": 1} for n in range(341)],
        [{"containerID": n, "hostID": 100000 + n, "size": 1} for n in range(340)],
        [{"containerID": 0, "hostID": 100000, "size": 9}] * 2, [{}], [],
    ),
    "linux.cgroupsPath": (
        "", "/", "..", "../..", "/../..", "{tag}/a", "/{tag}/a", "/{tag}/../../x", "/{tag}/a/../b",
        "/{tag}//a/", "/{tag}/./a", "/{tag}/a\nb", "/{tag}/" + "x" * 256, "/{tag}/" + "y/" * 600,
        "/{tag}/used", "/{tag}/empty", "/{tag}/cgroup.procs", "system.slice:{tag}:x", "/{tag}/a b",
        "/{tag}/ä", "/{tag}/used/below", 5, MISSING,
    ),
    "linux.resources": (
        {}, None, {"memory": {"limit": 1}}, {"memory": {"limit": 0}}, {"memory": {"limit": -1}},
        {"memory": {"limit": -2}}, {"memory": {"limit": 2**63 - 1}}, {"memory": {"limit": 1 << 26}},
        {"memory": {"limit": 1 << 26, "swap": 1}}, {"memory": {"swap": 1 << 26}},
        {"memory": {"swappiness": 101}}, {"memory": {"limit": 1 << 26, "swappiness": 50}},
        {"memory": {"reservation": 2**62}}, {"memory": {"kernel": 1 << 22}},
        {"pids": {"limit": 0}}, {"pids": {"limit": 1}}, {"pids": {"limit": -1}}, {"pids": {}},
        {"pids": {"limit": 2**62}}, {"cpu": {"shares": 1}}, {"cpu": {"shares": 2**64 - 1}},
        {"cpu": {"quota": 1}}, {"cpu": {"quota": 50000, "period": 100000}}, {"cpu": {"period": 5}},
        {"cpu": {"quota": 1000, "period": 1000000, "burst": 5000}}, {"cpu": {"idle": 1}},
        {"cpu": {"cpus": "0"}}, {"cpu": {"cpus": "99999"}}, {"cpu": {"cpus": "0-"}},
        {"cpu": {"cpus": "4294967296"}}, {"cpu": {"cpus": "0-99999999999"}},
        {"cpu": {"cpus": ""}}, {"cpu": {"mems": "a"}}, {"cpu": {"mems": "0"}},
        {"cpu": {"realtimeRuntime": 1, "realtimePeriod": 1}},
        {"blockIO": {"weight": 9}}, {"blockIO": {"weight": 500}}, {"blockIO": {"weight": 65535}},
        {"blockIO": {"weightDevice": [{"major": 4095, "minor": 1, "weight": 100}]}},
        {"blockIO": {"throttleReadBpsDevice": [{"major": 4095, "minor": 1, "rate": 1}]}},
        {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]},
        {"hugepageLimits": [{"pageSize": "3MB", "limit": 0}]},
        {"hugepageLimits": [{"pageSize": "../x", "limit": 0}]},
        {"network": {"classID": 1048577}},
        {"network": {"priorities": [{"name": "nosuch", "priority": 1}]}},
        {"rdma": {"nosuch": {"hcaHandles": 1}}}, {"unified": {"memory.max": "1"}},
        {"unified": {"../x": "1"}}, {"unified": {"cgroup.procs": "1"}},
        {"devices": []}, {"devices": [{"allow": True}]},
        {"devices": [{"allow": True, "access": "rwm"}]},
        {"devices": [{"allow": False, "type": "c", "major": 1, "minor": 3, "access": "r"}]},
        {"devices": [{"allow": True, "type": "b", "major": -1, "minor": -1, "access": ""}]},
        {"devices": [{"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "access": "m"}]},
        {"devices": [{"allow": True, "type": "p", "access": "x"}]},
        {"devices": [{"allow": True, "type": "c", "major": 5000, "access": "r"}]},
    ),
    "linux.devices": (
        [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}],
        [{"path": "/dev/x", "type": "c", "major": 4095, "minor": 1048575, "fileMode": 0o666}],
        [{"path": "/dev/x", "type": "b", "major": 7, "minor": 0, "uid": 5, "gid": 2**32 - 1}],
        [{"path": "/dev/x", "type": "p"}], [{"path": "/dev/x", "type": "c"}],
        [{"path": "/dev/x", "type": "s"}], [{"path": "dev/x", "type": "p"}],
        [{"path": "/", "type": "p"}], [{"path": "/dev", "type": "p"}],
        [{"path": "/dev/", "type": "p"}],
        [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}] * 2,
        [{"path": "/dev/null", "type": "p"}], [{"path": "/dev/a/b/c", "type": "p"}],
        [{"path": "/dev/../etc/passwd", "type": "p"}], [{"path": "/proc/x", "type": "p"}],
        [{"path": "/dev/pts/0", "type": "p"}], [{"path": "/dev/ptmx", "type": "p"}],
        [{"path": "/lnk/x", "type": "p"}], [{"path": "/dev/x", "type": "p", "fileMode": 0o177777}],
        [{"path": "/dev/x", "type": "p", "uid": 2**32 - 1}],
    ),
    "linux.sysctl": (
        {"kernel.pid_max": "{pid_max}"}, {"vm.swappiness": "60"}, {"kernel.hostname": "x"},
        {"net.ipv4.ip_forward": "1"}, {"net.ipv4.ip_forward": "\n"}, {"net.ipv4.nosuch": "1"},
        {"net.ipv4.../../kernel.pid_max": "1"}, {"net/../kernel/pid_max": "1"}, {"": "1"},
        {"net..ipv4": "1"}, {"net.ipv4.ip_forward": ""}, {"net.ipv4.ip_forward": LONG},
        {"kernel.msgmax": "8192"}, {"kernel.domainname": "x"}, {"fs.mqueue.msg_max": "10"},
        {"net.ipv4": "1"}, {"net.ipv4.ip_forward": 1}, {"kernel.shm_rmid_forced": "7"},
        {"fs.mqueue.": "1"}, {"net.ipv4.ping_group_range": "0 2147483647"},
    ),
    "linux.seccomp": (
        None, {}, {"defaultAction": "SCMP_ACT_ALLOW"}, {"defaultAction": "SCMP_ACT_NOSUCH"},
        {"defaultAction": "SCMP_ACT_ERRNO"}, {"defaultAction": "SCMP_ACT_KILL_PROCESS"},
        {"defaultAction": "SCMP_ACT_KILL"}, {"defaultAction": "SCMP_ACT_TRAP"},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 0},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 65535},
        {"defaultAction": "SCMP_ACT_TRACE"}, {"defaultAction": "SCMP_ACT_NOTIFY"},
        *({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [name], "action": action}]}
          for name in ("execve", "nosuchcall", "exit_group", "write", "read", "sendmsg", "prctl",
                       "close_range", "capset", "poll", "rt_sigprocmask", "nanosleep")
          for action in ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS")),
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_AARCH64"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NOSUCH"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_TSYNC"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"] * 2},
        {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nowhere"},
        {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nowhere",
         "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 2**64 - 1, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 1}] * 7}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}] * 3000},
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": [], "action": "SCMP_ACT_ALLOW"}]},
    ),
    "linux.maskedPaths": (
        [], ["/"], ["/nowhere"], ["/etc/passwd"], ["/etc"], ["/proc"], ["/proc/self/exe"], ["/bin"],
        ["/lnk"], ["/.."], ["relative"], ["/dev/null"], ["/a\nb"], ["/" + LONG], ["/sys"] * 50,
        ["/proc/1"], ["/dev"],
    ),
    "linux.readonlyPaths": (
        [], ["/"], ["/nowhere"], ["/etc/passwd"], ["/proc"], ["/lnk"], ["/proc/self/fd"], ["/.."],
        ["relative"], ["/dev/null"], ["/a\nb"], ["/proc/1/root"], ["/tmp"] * 50,
    ),
    "linux.rootfsPropagation": (
        "shared", "slave", "private", "unbindable", "rshared", "nosuch", "rslave,shared",
    ),
    "linux.personality": ({"domain": "LINUX"}, {"domain": "LINUX32"}, {"domain": "SVR4"},
                          {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}),
    "linux.timeOffsets": (
        {"boottime": {"secs": 5}}, {"monotonic": {"secs": -(2**62)}}, {"nosuch": {}},
        {"boottime": {"nanosecs": 10**9}},
    ),
    "linux.intelRdt": ({}, {"closID": "{tag}"}, {"closID": ".."}, {"schemata": ["a\nb"]}),
    "linux.memoryPolicy": (
        {"mode": "MPOL_BIND", "nodes": "0"}, {"mode": "MPOL_BIND", "nodes": "999999"},
        {"mode": "MPOL_DEFAULT", "nodes": "0"}, {"mode": "MPOL_NOSUCH"}, {"mode": "MPOL_BIND"},
    ),
    "linux.netDevices": ({"nosuch0": {}}, {"nosuch0": {"name": "a/b"}}, {"": {}}, {"x" * 16: {}}),
    "linux.mountLabel": ("nosuch", "a,b\n"),
}  # fmt: skip

SINGLE = [(field, value) for field, values in ODD.items() for value in values]


def name_of(change: tuple[str, Any]) -> str:
    """Return what a failing example is called."""
    field, value = change
    text = "MISSING" if value is MISSING else repr(value)
    return f"{field}: {text if len(text) < 120 else text[:120] + '…'}"


class World:
    """What a configuration can refer to.

    Attributes:
        root: a root file system of the test's own.
        bundle: the bundle's folder.
        tag: what no other cgroup of this machine is named.
        holder: a process in namespaces of its own, of each kind but time.
    """

    def __init__(self, root: Path, bundle: Path, tag: str, holder: int) -> None:
        self.root, self.bundle, self.tag, self.holder = root, bundle, tag, holder
        self.pid_max = Path("/proc/sys/kernel/pid_max").read_text().strip()
        (bundle / "file").write_text("a file\n")
        (bundle / "link").symlink_to(root)
        os.mkfifo(bundle / "fifo")
        (root / "lnk").symlink_to("/../../..")
        (root / "self").symlink_to("/proc/self")

    def fill(self, value: Any) -> Any:
        """Return a copy of *value* with the names in braces replaced."""
        if isinstance(value, str):
            for name in ("root", "bundle", "tag", "holder", "pid_max"):
                value = value.replace(f"{{{name}}}", str(getattr(self, name)))
            return value
        if isinstance(value, list):
            return [self.fill(one) for one in value]
        if isinstance(value, dict):
            return {self.fill(key): self.fill(one) for key, one in value.items()}
        return copy.copy(value)


def base(world: World, kind: str) -> Config:
    """Return a good configuration: as ``runc spec`` has it, podman, or Docker."""
    config = configuration(world.root, "sleep", "1000")
    if kind == "spec":
        return config
    held = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_MKNOD"]
    process, linux = config["process"], config["linux"]
    process["capabilities"] = {kind: list(held) for kind in ("bounding", "effective", "permitted")}
    process["env"] += ["TERM=xterm", "HOME=/root", "HOSTNAME=cask"]
    del process["noNewPrivileges"]
    config["root"]["readonly"] = False
    config["annotations"] = {"org.opencontainers.image.stopSignal": "15"}
    config["mounts"].append(
        mount("/etc/hostname", "bind", f"{world.bundle}/file", "rbind", "rprivate")
    )
    linux["sysctl"] = {"net.ipv4.ping_group_range": "0 0"}
    linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["bpf", "mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    }
    linux["cgroupsPath"] = f"/{world.tag}/{kind}"
    if kind == "docker":
        process["oomScoreAdj"] = 0
        linux["resources"] |= {"memory": {"disableOOMKiller": False}, "cpu": {"shares": 0},
                               "blockIO": {"weight": 0}}  # fmt: skip
        config["hooks"] = {"prestart": [{"path": "/bin/true", "args": ["true", "key"]}]}
    else:
        linux["resources"]["pids"] = {"limit": 2048}
        process["user"]["umask"] = 0o22
    return config


def change(world: World, config: Config, field: str, value: Any) -> None:
    """Set the dotted *field* of *config*; ``+`` appends, ``=`` replaces the same ``type``.

    Where what it lies in is no object any more, by an earlier change, nothing is done.
    """
    value = value if value is MISSING else world.fill(value)
    names = field.rstrip("+=").split(".")
    inner: Any = config
    for name in names[:-1]:
        inner = inner.get(name) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        return
    for name in names[-1].split(","):
        if value is MISSING:
            inner.pop(name, None)
        elif field[-1] in "+=":
            entries = inner.setdefault(name, [])
            if isinstance(entries, list):
                if field[-1] == "=":
                    entries[:] = [e for e in entries if not isinstance(e, dict)
                                  or e.get("type") != value["type"]]  # fmt: skip
                entries.append(value)
        else:
            inner[name] = copy.deepcopy(value)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each member and entry below *value*."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, member in inside:
        found.append((*above, key))
        if isinstance(member, (dict, list)):
            found += places(member, (*above, key))
    return found


@st.composite
def configurations(draw: st.DrawFn, world: World) -> Config:
    """One of the good ones, changed in one to four places."""
    config = base(world, draw(st.sampled_from(("spec", "podman", "docker"))))
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.integers(0, 2)):
            field = draw(st.sampled_from(sorted(ODD)))
            change(world, config, field, draw(st.sampled_from(ODD[field])))
            continue
        found = places(config)
        if not found:
            continue
        *above, key = draw(st.sampled_from(found))
        inner: Any = config
        for name in above:
            inner = inner[name]
        how = draw(st.sampled_from(("another", "another", "missing", "twice", "swapped")))
        if how == "missing":
            del inner[key]
        elif how == "twice" and isinstance(inner, list):
            inner.append(copy.deepcopy(inner[key]))
        elif how == "swapped" and isinstance(inner, dict):
            other = draw(st.sampled_from(sorted(inner)))
            inner[key], inner[other] = inner[other], inner[key]
        else:
            inner[key] = copy.deepcopy(draw(st.sampled_from(ANYTHING)))
    return harmless(world, config)


def harmless(world: World, config: Config) -> Config:
    """Keep *config* from the machine: from its root, and from cgroups that are not ours."""
    root = config.get("root")
    if isinstance(root, dict) and _is_top(root.get("path"), world):
        root["path"] = str(world.root)
    mounts = config.get("mounts")
    for entry in mounts if isinstance(mounts, list) else ():
        if isinstance(entry, dict) and _is_top(entry.get("source"), world):
            entry["source"] = str(world.bundle)
    linux = config.get("linux")
    path = linux.get("cgroupsPath") if isinstance(linux, dict) else None
    if isinstance(path, str) and world.tag not in path and path.strip("/."):
        linux["cgroupsPath"] = f"/{world.tag}/{path}"
    return config


def _is_top(path: Any, world: World) -> bool:
    try:
        return isinstance(path, str) and os.path.realpath(os.path.join(world.bundle, path)) == "/"
    except ValueError:
        return False


def spell(config: Config) -> bytes:
    """Return *config* as JSON; halves of surrogate pairs stay escaped."""
    return json.dumps(config).encode()
