"""``engine/compose.py``: what a request becomes, and whether runc does what it says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firkin.cli import run_options
from firkin.cli import spec as spec_verb
from firkin.engine.compose import Machine, Root, compose, seccomp_profile
from firkin.engine.request import Mount, Request
from firkin.engine.resources import look_up_devices
from firkin.errors import FirkinError, UsageError
from firkin.linux.caps import NAMES
from firkin.spec import defaults
from firkin.spec.validate import validate
from support.requires import requires


class User:
    def __init__(self, uid: int = 0, gid: int = 0, groups: tuple[int, ...] = ()) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = "/root" if uid == 0 else "/home/alice"


ALICE = User(1000, 1000)
ONE_ID = [{"containerID": 0, "hostID": 1000, "size": 1}]
RANGE = [*ONE_ID, {"containerID": 1, "hostID": 100000, "size": 65536}]


def composed(
    *words: str,
    user: User | None = None,
    root: Root | None = None,
    machine: Machine | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Compose ``firkin run WORDS host true``; every result must be valid and fit JSON."""
    request = run_options.parse([*words, "host", "true"])
    machine = machine or Machine("0123456789abcdef", devices=look_up_devices(request), **fields)
    config = compose(request, root or Root("/rootfs"), machine, user or User())
    assert json.loads(json.dumps(config)) == config
    validate(config)
    return config


def mount_at(config: dict[str, Any], destination: str) -> dict[str, Any]:
    found = [m for m in config["mounts"] if m["destination"] == destination]
    assert len(found) == 1, found
    return found[0]


def namespaces(config: dict[str, Any]) -> dict[str, str]:
    return {n["type"]: n.get("path", "") for n in config["linux"]["namespaces"]}


# ---------------------------------------------------------------- what a run has by itself


def test_a_run_without_options_is_closed() -> None:
    config = composed()
    assert namespaces(config) == dict.fromkeys(defaults.NAMESPACES, "")
    assert config["process"]["noNewPrivileges"] is True
    assert set(config["process"]["capabilities"]["bounding"]) == set(defaults.CAPABILITIES)
    assert "inheritable" not in config["process"]["capabilities"]
    assert "ambient" not in config["process"]["capabilities"]
    masked = (
        "asound acpi interrupts kcore keys latency_stats timer_list timer_stats sched_debug scsi"
    )
    assert set(config["linux"]["maskedPaths"]) == {
        *(f"/proc/{name}" for name in masked.split()),
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    }
    protected = {f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")}
    assert set(config["linux"]["readonlyPaths"]) == protected
    assert config["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert "ro" in mount_at(config, "/sys")["options"]
    assert "seccomp" not in config["linux"]


def test_seccomp_is_what_the_caller_gives() -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW"}
    config = compose(Request(command=["true"]), Root("/r"), Machine("c"), User(), profile)
    assert config["linux"]["seccomp"] is profile


@pytest.mark.parametrize(
    ("words", "profile"),
    [
        ([], "default"),
        (["--privileged"], "unconfined"),
        (["--privileged", "--security-opt", "seccomp=default"], "default"),
        (["--security-opt", "seccomp=unconfined"], "unconfined"),
        (["--security-opt", "seccomp=/p.json"], "/p.json"),
    ],
)
def test_the_seccomp_profile(words: list[str], profile: str) -> None:
    assert seccomp_profile(run_options.parse([*words, "host", "true"])) == profile


def test_each_call_gives_fresh_objects() -> None:
    first = composed()
    first["mounts"].clear()
    first["linux"]["maskedPaths"].clear()
    first["process"]["capabilities"]["bounding"].clear()
    assert composed()["mounts"]
    assert composed()["linux"]["maskedPaths"]
    assert composed()["process"]["capabilities"]["bounding"]


def test_a_run_needs_a_command() -> None:
    with pytest.raises(UsageError, match="there is no command"):
        compose(Request(), Root("/r"), Machine("c"), User())
    config = compose(Request(entrypoint=["sh"]), Root("/r"), Machine("c"), User())
    assert config["process"]["args"] == ["sh"]


def test_entrypoint_stands_before_the_command() -> None:
    assert composed("--entrypoint", "sh")["process"]["args"] == ["sh", "true"]
    assert composed("--entrypoint", "")["process"]["args"] == ["true"]


# ---------------------------------------------------------------- environment


def env(config: dict[str, Any]) -> list[str]:
    variables: list[str] = config["process"]["env"]
    return variables


def test_the_environment_in_order() -> None:
    assert env(composed("-e", "A=1", terminal="vt100")) == [
        f"PATH={defaults.PATH}",
        "HOME=/root",
        "TERM=vt100",
        "HOSTNAME=0123456789ab",
        "A=1",
    ]


def test_term_is_there_with_a_terminal_only() -> None:
    assert not any(v.startswith("TERM=") for v in env(composed()))
    assert "TERM=xterm" in env(composed("-t"))
    assert composed("-t")["process"]["terminal"] is True


def test_later_variables_win_and_none_is_twice() -> None:
    root = Root("/r", environment={"PATH": "/image", "A": "image", "B": "image"})
    variables = env(composed("-e", "A=1", "-e", "A=2", "-e", "HOME=/h", root=root))
    assert "PATH=/image" in variables
    assert "A=2" in variables
    assert "B=image" in variables
    assert "HOME=/h" in variables
    names = [v.partition("=")[0] for v in variables]
    assert len(names) == len(set(names))


def test_a_variable_the_caller_lacks_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIRKIN_NO_SUCH", raising=False)
    root = Root("/r", environment={"FIRKIN_NO_SUCH": "image"})
    assert not any(
        v.startswith("FIRKIN_NO_SUCH") for v in env(composed("-e", "FIRKIN_NO_SUCH", root=root))
    )


# ---------------------------------------------------------------- namespaces and names


def test_host_namespaces_are_left_out() -> None:
    config = composed(
        "--pid=host", "--ipc=host", "--uts=host", "--net=host", "--cgroupns=host", hostname="box"
    )
    assert namespaces(config) == {"mount": ""}
    assert "hostname" not in config
    assert "HOSTNAME=box" in env(config)


def test_namespaces_are_joined_by_path() -> None:
    found = namespaces(composed("--net", "/run/netns/a", "--pid", "ns:/proc/1/ns/pid"))
    assert found["network"] == "/run/netns/a"
    assert found["pid"] == "/proc/1/ns/pid"


def test_an_unresolved_container_is_an_error() -> None:
    for option in ("--net", "--userns"):
        with pytest.raises(UsageError, match="namespace of 'web'"):
            composed(option, "container:web")


def test_a_user_namespace_has_its_mappings() -> None:
    config = composed(uid_mappings=RANGE, gid_mappings=RANGE, rootless=True)
    assert "user" in namespaces(config)
    assert config["linux"]["uidMappings"] == RANGE
    assert config["linux"]["gidMappings"] == RANGE
    joined = composed("--userns", "/proc/7/ns/user")
    assert namespaces(joined)["user"] == "/proc/7/ns/user"
    assert "uidMappings" not in joined["linux"]


def test_time_offsets_make_a_time_namespace() -> None:
    config = composed("--time-offset", "boottime=60", "--time-offset", "monotonic=-0.5")
    assert "time" in namespaces(config)
    assert config["linux"]["timeOffsets"] == {
        "boottime": {"secs": 60, "nanosecs": 0},
        "monotonic": {"secs": -1, "nanosecs": 500_000_000},
    }


def test_host_and_domain_names() -> None:
    config = composed("-h", "web", "--domainname", "example.org")
    assert (config["hostname"], config["domainname"]) == ("web", "example.org")
    assert composed()["hostname"] == "0123456789ab"


# ---------------------------------------------------------------- users and capabilities


@pytest.mark.parametrize(("user", "word"), [(ALICE, "user"), (User(0, 5), "group")])
def test_an_id_without_a_mapping_is_refused(user: User, word: str) -> None:
    with pytest.raises(UsageError, match=f"{word} id .*no subordinate ids.*newuidmap"):
        composed(user=user, uid_mappings=ONE_ID, gid_mappings=ONE_ID, rootless=True)
    composed(user=user, uid_mappings=RANGE, gid_mappings=RANGE, rootless=True)


def test_an_id_beyond_the_range_is_refused() -> None:
    with pytest.raises(UsageError, match=r"user id 70000.*not mapped"):
        composed(user=User(70000), uid_mappings=RANGE, gid_mappings=RANGE)


def test_groups_that_nobody_asked_for_are_only_those_that_exist() -> None:
    groups = User(0, 0, (0, 10, 99999))

    def gids(config: dict[str, Any]) -> Any:
        return config["process"]["user"].get("additionalGids")

    assert gids(composed(user=groups)) == [0, 10, 99999]
    assert gids(composed(user=groups, uid_mappings=RANGE, gid_mappings=RANGE)) == [0, 10]
    one = {"uid_mappings": ONE_ID, "gid_mappings": ONE_ID, "rootless": True}
    assert gids(composed(user=groups, **one)) is None
    with pytest.raises(UsageError, match="group id 10"):
        composed("--group-add", "10", user=groups, **one)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cap-add", "net_admin"], {*defaults.CAPABILITIES, "CAP_NET_ADMIN"}),
        (["--cap-drop", "CAP_CHOWN"], {*defaults.CAPABILITIES} - {"CAP_CHOWN"}),
        (["--cap-drop", "all"], set()),
        (["--cap-drop", "ALL", "--cap-add", "kill"], {"CAP_KILL"}),
        (["--cap-add", "ALL"], set(NAMES)),
        (["--cap-add", "ALL", "--cap-drop", "bpf"], set(NAMES) - {"CAP_BPF"}),
        (["--privileged"], set(NAMES)),
    ],
)
def test_capabilities(words: list[str], expected: set[str]) -> None:
    caps = composed(*words)["process"]["capabilities"]
    for kind in ("bounding", "effective", "permitted"):
        assert set(caps[kind]) == expected, kind
        assert caps[kind] == sorted(caps[kind], key=NAMES.index)
    other = composed(*words, user=ALICE)["process"]["capabilities"]
    assert set(other["bounding"]) == expected
    assert other["effective"] == other["permitted"] == []


def test_capabilities_that_the_machine_lacks() -> None:
    have = [name for name in NAMES if name != "CAP_SYS_RESOURCE"]
    caps = composed("--privileged", capabilities=have)["process"]["capabilities"]["bounding"]
    assert caps == have
    with pytest.raises(UsageError, match="CAP_SYS_RESOURCE"):
        composed("--cap-add", "sys_resource", capabilities=have)


def test_privileged_opens_what_it_says() -> None:
    config = composed("--privileged")
    assert config["process"]["noNewPrivileges"] is False
    assert "maskedPaths" not in config["linux"]
    assert "readonlyPaths" not in config["linux"]
    assert "rw" in mount_at(config, "/sys")["options"]
    assert config["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    again = composed("--privileged", "--security-opt", "no-new-privileges")
    assert again["process"]["noNewPrivileges"] is True


def test_no_new_privileges_and_system_paths_can_be_switched_off() -> None:
    config = composed(
        "--security-opt", "no-new-privileges=false", "--security-opt", "systempaths=unconfined"
    )
    assert config["process"]["noNewPrivileges"] is False
    assert "maskedPaths" not in config["linux"]


# ---------------------------------------------------------------- mounts


def bind(source: str, destination: str) -> dict[str, Any]:
    return defaults.mount(destination, "bind", source, "bind", "rprivate")


ETC = [bind("/state/hosts", "/etc/hosts"), bind("/state/resolv.conf", "/etc/resolv.conf")]
ROOT = Root(
    "/rootfs",
    mounts=[defaults.mount("/", "overlay", "overlay", "lowerdir=/a", "upperdir=/b", "workdir=/c")],
    etc=ETC,
)


def test_mounts_come_in_order() -> None:
    config = composed("-v", "/d/e:/x/y/z", "-v", "/d:/x", "--tmpfs", "/a/b", root=ROOT)
    order = [m["destination"] for m in config["mounts"]]
    assert order[:3] == ["/", "/proc", "/dev"]
    assert order[-5:] == ["/etc/hosts", "/etc/resolv.conf", "/x", "/a/b", "/x/y/z"]


@pytest.mark.parametrize(
    ("target", "gone"),
    [
        ("/etc/hosts", {"/etc/hosts"}),
        ("/etc", {"/etc/hosts", "/etc/resolv.conf"}),
        ("/dev/shm", {"/dev/shm"}),
        ("/dev", {"/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"}),
        ("/sys/", {"/sys", "/sys/fs/cgroup"}),
        ("/de", set()),
    ],
)
def test_a_mount_takes_the_place_of_the_standard_ones(target: str, gone: set[str]) -> None:
    before = [m["destination"] for m in composed(root=ROOT)["mounts"]]
    after = [m["destination"] for m in composed("-v", f"/mine:{target}", root=ROOT)["mounts"]]
    assert after == [d for d in before if d not in gone] + [target.rstrip("/")]


def test_a_mount_on_etc_hosts_is_the_users() -> None:
    config = composed("-v", "/mine:/etc/hosts", root=ROOT)
    assert mount_at(config, "/etc/hosts")["source"] == "/mine"


@pytest.mark.parametrize(
    ("words", "with_kernel", "without"),
    [
        (["-v", "/s:/t"], ["rbind", "rprivate"], ["rbind", "rprivate"]),
        (["-v", "/s:/t:ro"], ["rbind", "rprivate", "ro", "rro"], ["rbind", "rprivate", "ro"]),
        (["-v", "/s:/t:ro,bind"], ["bind", "rprivate", "ro"], ["bind", "rprivate", "ro"]),
        (
            ["-v", "/s:/t:rro"],
            ["rbind", "rprivate", "ro", "rro"],
            ["rbind", "rprivate", "ro", "rro"],
        ),
        (
            ["--mount", "type=bind,src=/s,dst=/t,ro,bind-recursive=writable"],
            ["rbind", "rprivate", "ro"],
            ["rbind", "rprivate", "ro"],
        ),
        (
            ["--mount", "type=bind,src=/s,dst=/t,ro,bind-nonrecursive"],
            ["bind", "rprivate", "ro"],
            ["bind", "rprivate", "ro"],
        ),
        (
            ["--mount", "type=bind,src=/s,dst=/t,bind-propagation=rslave"],
            ["rbind", "rslave"],
            ["rbind", "rslave"],
        ),
    ],
)
def test_options_of_binds(words: list[str], with_kernel: list[str], without: list[str]) -> None:
    new = mount_at(composed(*words, recursive_read_only=True), "/t")
    assert (new["type"], new["source"], new["options"]) == ("bind", "/s", with_kernel)
    assert mount_at(composed(*words), "/t")["options"] == without


def test_options_of_tmpfs() -> None:
    plain = mount_at(composed("--tmpfs", "/t"), "/t")
    assert plain["type"] == "tmpfs"
    assert plain["options"] == ["noexec", "nosuid", "nodev"]
    full = mount_at(composed("--tmpfs", "/t:exec,size=1m,mode=755,ro"), "/t")
    assert full["options"] == ["exec", "nosuid", "nodev", "size=1048576", "mode=755", "ro"]
    long = mount_at(composed("--mount", "type=tmpfs,dst=/t,tmpfs-size=64k,tmpfs-mode=700"), "/t")
    assert long["options"] == ["noexec", "nosuid", "nodev", "size=65536", "mode=700"]


def test_overlay_mounts_need_their_folders() -> None:
    words = "type=overlay,src=/a:/b,dst=/t,upperdir=/u,workdir=/w"
    mount = mount_at(composed("--mount", words), "/t")
    assert mount["type"] == "overlay"
    assert mount["options"] == ["lowerdir=/a:/b", "upperdir=/u", "workdir=/w"]
    in_userns = composed("--mount", words, uid_mappings=RANGE, gid_mappings=RANGE)
    assert "userxattr" in mount_at(in_userns, "/t")["options"]
    with pytest.raises(UsageError, match="no upper folder"):
        composed("--mount", "type=overlay,src=/a,dst=/t")


def test_propagation_of_the_root_follows_the_mounts() -> None:
    assert "rootfsPropagation" not in composed("-v", "/s:/t")["linux"]
    assert composed("-v", "/s:/t:rshared")["linux"]["rootfsPropagation"] == "shared"
    assert composed("-v", "/s:/t:rslave")["linux"]["rootfsPropagation"] == "rslave"


def test_a_read_only_root_protects_the_files_made_for_it() -> None:
    config = composed("--read-only", root=ROOT)
    assert config["root"]["readonly"] is True
    assert "ro" in mount_at(config, "/etc/hosts")["options"]
    assert "ro" not in ETC[0]["options"]


def test_terminals_have_a_group_that_is_mapped() -> None:
    assert "gid=5" in mount_at(composed(), "/dev/pts")["options"]
    one = composed(uid_mappings=ONE_ID, gid_mappings=ONE_ID)
    assert "gid=5" not in mount_at(one, "/dev/pts")["options"]


def test_a_user_namespace_shows_the_hosts_file_systems_where_it_must() -> None:
    mapped: dict[str, Any] = {"uid_mappings": RANGE, "gid_mappings": RANGE}
    config = composed("--net=host", "--pid=host", "--cgroupns=host", **mapped)
    for destination in ("/proc", "/sys", "/sys/fs/cgroup"):
        mount = mount_at(config, destination)
        assert (mount["type"], mount["source"]) == ("bind", destination)
        assert "rbind" in mount["options"]
    assert "ro" in mount_at(config, "/sys")["options"]
    assert mount_at(composed(**mapped), "/sys")["type"] == "sysfs"
    assert mount_at(composed("--net=host"), "/sys")["type"] == "sysfs"


def test_the_hosts_ipc_comes_with_its_files() -> None:
    config = composed("--ipc=host")
    assert mount_at(config, "/dev/shm")["source"] == "/dev/shm"
    assert mount_at(config, "/dev/mqueue")["type"] == "mqueue"
    mapped = composed("--ipc=host", uid_mappings=RANGE, gid_mappings=RANGE)
    assert "/dev/mqueue" not in [m["destination"] for m in mapped["mounts"]]


def test_the_size_of_dev_shm() -> None:
    assert "size=1048576" in mount_at(composed("--shm-size", "1m"), "/dev/shm")["options"]


# ---------------------------------------------------------------- limits and devices


def test_limits() -> None:
    words = "-m 64m --memory-reservation 32m --memory-swap 128m --memory-swappiness 10"
    words += " --pids-limit 20 --cpus 1.5 --cpu-shares 512 --cpuset-cpus 0 --cpuset-mems 0"
    words += " --blkio-weight 300 --oom-score-adj 100 --ulimit nofile=64:128"
    config = composed(*words.split())
    resources = {k: v for k, v in config["linux"]["resources"].items() if k != "devices"}
    assert resources == {
        "memory": {
            "limit": 64 << 20,
            "reservation": 32 << 20,
            "swap": 128 << 20,
            "swappiness": 10,
        },
        "cpu": {"shares": 512, "quota": 150000, "period": 100000, "cpus": "0", "mems": "0"},
        "blockIO": {"weight": 300},
        "pids": {"limit": 20},
    }
    assert config["process"]["oomScoreAdj"] == 100
    assert config["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}]


def test_swap_is_limited_where_it_can_be() -> None:
    def memory(config: dict[str, Any]) -> Any:
        return config["linux"]["resources"]["memory"]

    assert memory(composed("-m", "1m")) == {"limit": 1 << 20}
    assert memory(composed("-m", "1m", swap_limit=True)) == {"limit": 1 << 20, "swap": 2 << 20}


def test_without_limits_there_are_none() -> None:
    words = [
        "-m",
        "0",
        "--memory-swap",
        "0",
        "--pids-limit",
        "-1",
        "--cpus",
        "0",
        "--cpu-shares",
        "0",
        "--cpu-quota",
        "-1",
    ]
    assert set(composed(*words)["linux"]["resources"]) == {"devices"}
    assert "resources" not in composed(*words, rootless=True)["linux"]


def test_the_place_of_the_cgroup() -> None:
    def place(*words: str) -> Any:
        return composed(*words)["linux"].get("cgroupsPath")

    assert place() is None
    assert place("--cgroup-parent", "/a/b/") == "/a/b/0123456789abcdef"
    assert place("--cgroup-parent", "user.slice") == "user.slice:firkin:0123456789abcdef"


def test_devices_have_a_node_and_a_rule() -> None:
    config = composed("--device", "/dev/null:/dev/mine:rw", "--device-read-iops", "/dev/null:7")
    (device,) = config["linux"]["devices"]
    assert (device["path"], device["type"], device["major"], device["minor"]) == (
        "/dev/mine",
        "c",
        1,
        3,
    )
    rule = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}
    assert config["linux"]["resources"]["devices"][-1] == rule
    throttle = config["linux"]["resources"]["blockIO"]["throttleReadIOPSDevice"]
    assert throttle == [{"major": 1, "minor": 3, "rate": 7}]


@pytest.mark.parametrize("path", ["/dev", "/etc/passwd", "/dev/firkin-no-such"])
def test_what_is_not_a_device_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match=path):
        look_up_devices(run_options.parse(["--device", path, "host", "true"]))


def test_privileged_finds_the_devices_of_the_host() -> None:
    found = look_up_devices(Request(privileged=True))
    assert not {"/dev/null", "/dev/ptmx", "/dev/tty"} & set(found)
    assert not any(path.startswith(("/dev/pts/", "/dev/shm/")) for path in found)
    for path, (kind, major, minor, *_) in found.items():
        status = os.stat(path)
        assert kind in "cb"
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (major, minor)


def test_init_labels_and_annotations() -> None:
    config = composed("--init", "-l", "a=1", "-l", "b", "--annotation", "a=2")
    assert config["annotations"] == {"org.firkin.init": "true", "a": "2", "b": ""}
    assert "annotations" not in composed()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cpus 1 --cpu-quota 1000", "--cpus"),
        ("--memory-swap 1m", "--memory"),
        ("-m 2m --memory-swap 1m", "memory alone may have"),
        ("-m 1m --memory-reservation 2m", "the limit is"),
        ("--cap-add ALL --cap-drop ALL", "ALL capabilities"),
        ("--uts host -h web", "UTS"),
        ("-v /a:/x --tmpfs /x/", "'/x'.*two mounts"),
        ("--sysctl kernel.panic=1", "not part of any namespace"),
        ("--sysctl net.core.somaxconn=1 --net host", "host's network"),
        ("--sysctl kernel.msgmax=1 --ipc host", "host's IPC"),
    ],
)
def test_contradictions(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        composed(*words.split())


# ---------------------------------------------------------------- runc agrees


@pytest.fixture
def runc(busybox_root: Path, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Run ``sh -c SCRIPT`` with options of ``firkin run`` through runc, and return what it says."""
    bundles = 0

    def run(script: str, *words: str, user: User | None = None, **fields: Any) -> str:
        nonlocal bundles
        bundles += 1
        name = f"firkin-test-{os.getpid()}-{bundles}"
        request = run_options.parse([*words, "/root", "sh", "-c", script])
        machine = Machine(name, devices=look_up_devices(request), **fields)
        config = compose(request, Root(str(busybox_root)), machine, user or User())
        validate(config)
        bundle = tmp_path / name
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(config))
        done = subprocess.run(
            ["runc", "--root", tmp_path / "state", "run", "--bundle", bundle, name],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    yield run
    assert not any((tmp_path / "state").glob("*"))


with_runc = requires("root", "program:runc", "program:busybox")


@with_runc
def test_runc_gives_environment_folder_and_name(runc: Callable[..., str]) -> None:
    out = runc("env; pwd; hostname", "-e", "A=a b", "-w", "/var/tmp", "-h", "web")
    lines = out.splitlines()
    assert lines[-2:] == ["/var/tmp", "web"]
    for variable in (f"PATH={defaults.PATH}", "HOME=/root", "HOSTNAME=web", "A=a b"):
        assert variable in lines


def caps(status: str) -> dict[str, int]:
    return {
        line.split(":")[0]: int(line.split()[1], 16)
        for line in status.splitlines()
        if line.startswith("Cap")
    }


def bits(names: list[str] | tuple[str, ...]) -> int:
    return sum(1 << NAMES.index(name) for name in names)


@with_runc
def test_runc_gives_user_and_capabilities(runc: Callable[..., str]) -> None:
    everything = 0xA80425FB  # what any docker container shows
    root = caps(runc("cat /proc/self/status"))
    assert root["CapPrm"] == root["CapEff"] == root["CapBnd"] == everything
    assert root["CapInh"] == root["CapAmb"] == 0
    out = runc("id -u; id -G; cat /proc/self/status", user=User(1000, 1000, (50,)))
    assert out.splitlines()[:2] == ["1000", "1000 50"]
    assert caps(out)["CapPrm"] == caps(out)["CapEff"] == 0
    assert caps(out)["CapBnd"] == everything
    assert "NoNewPrivs:\t1" in out
    few = caps(runc("cat /proc/self/status", "--cap-drop", "ALL", "--cap-add", "kill"))
    assert few["CapEff"] == few["CapBnd"] == bits(["CAP_KILL"])
    assert "NoNewPrivs:\t0" in runc(
        "cat /proc/self/status", "--security-opt", "no-new-privileges=false"
    )


@with_runc
def test_runc_mounts_what_was_asked_for(runc: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/file").write_text("from outside\n")
    out = runc(
        "cat /proc/mounts /data/file; cat /dev/zero > /small/x; stat -c %s /small/x; ulimit -n",
        *("-v", f"{tmp_path}/shared:/data:ro", "--tmpfs", "/small:size=64k,mode=700"),
        *("--read-only", "--shm-size", "1m", "--ulimit", "nofile=100:200"),
        recursive_read_only=True,
    )
    lines = out.splitlines()
    mounts = {line.split()[1]: line.split() for line in lines if line.count(" ") == 5}
    assert mounts["/sys"][2] == "sysfs"
    for read_only in ("/", "/sys", "/data"):
        assert mounts[read_only][3].split(",")[0] == "ro", read_only
    assert mounts["/dev/mqueue"][2] == "mqueue"
    assert "size=1024k" in mounts["/dev/shm"][3]
    assert {"size=64k", "mode=700", "noexec"} <= set(mounts["/small"][3].split(","))
    assert lines[-3:] == ["from outside", "65536", "100"]


@with_runc
def test_runc_masks_what_must_not_be_seen(runc: Callable[..., str]) -> None:
    paths = [path for path in defaults.MASKED_PATHS if os.path.isfile(path)]
    script = f"for f in {' '.join(paths)}; do cat $f; done; ls /sys/firmware; true"
    script += "; echo x > /proc/sys/kernel/domainname || echo refused"
    assert paths
    assert runc(script) == "refused"
    opened = runc(script, "--security-opt", "systempaths=unconfined")
    assert len(opened) > 100
    assert "refused" not in opened


@with_runc
def test_runc_takes_limits_and_devices(runc: Callable[..., str]) -> None:
    out = runc(
        "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max;"
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max;"
        "head -c 3 /dev/mine | wc -c; cat /proc/self/oom_score_adj; exit 0",
        *[
            "--pids-limit",
            "33",
            "-m",
            "64m",
            "--device",
            "/dev/zero:/dev/mine",
            "--oom-score-adj",
            "77",
        ],
    )
    assert out.splitlines() == ["33", str(64 << 20), "3", "77"]


@with_runc
def test_runc_takes_a_privileged_container(runc: Callable[..., str]) -> None:
    have = caps(Path("/proc/self/status").read_text())["CapBnd"]
    names = [name for number, name in enumerate(NAMES) if have >> number & 1]
    out = runc(
        "cat /proc/self/status; cat /dev/devices/one /dev/zero | head -c 4 | wc -c; true",
        *("--privileged", "--device", "/dev/null:/dev/devices/one"),
        capabilities=names,
    )
    assert caps(out)["CapEff"] == have & bits(NAMES)
    assert "NoNewPrivs:\t0" in out
    assert out.splitlines()[-1] == "4"


@with_runc
def test_runc_takes_host_namespaces_and_sysctls(runc: Callable[..., str]) -> None:
    out = runc(
        "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; cat /proc/sys/kernel/domainname",
        *("--net=host", "--ipc=host", "--sysctl", "kernel.domainname=firkin.test"),
    )
    host = [os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/ipc")]
    assert out.splitlines() == [*host, "firkin.test"]


@with_runc
@requires("user namespaces")
def test_runc_takes_a_user_namespace(runc: Callable[..., str]) -> None:
    mappings = [{"containerID": 0, "hostID": 0, "size": 1000}]
    out = runc(
        "tail -n 1 /proc/self/uid_map; stat -c %t /dev/null; ls -d /sys/kernel",
        uid_mappings=mappings,
        gid_mappings=mappings,
    )
    assert out.split() == ["0", "0", "1000", "1", "/sys/kernel"]


# ---------------------------------------------------------------- firkin spec


def test_spec_without_image_prints_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    assert spec_verb.main(["--pids-limit", "9", "--device", "/dev/zero"]) == 0
    config = json.loads(capsys.readouterr().out)
    validate(config)
    assert config["root"]["path"] == "rootfs"
    assert config["process"]["args"] == ["sh"]
    assert config["linux"]["resources"]["pids"] == {"limit": 9}


def test_spec_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert spec_verb.main(["--help"]) == 0
    assert "Usage: firkin spec [OPTIONS] [IMAGE" in capsys.readouterr().out


def test_spec_refuses_a_bundle() -> None:
    with pytest.raises(FirkinError, match="--bundle"):
        spec_verb.main(["--bundle", "."])


def test_a_library_can_make_a_request() -> None:
    request = Request(command=["true"], mounts=[Mount("tmpfs", "/t")], memory=1 << 20)
    config = compose(request, Root("/r"), Machine("c"), User())
    assert mount_at(config, "/t")["options"] == []
    with pytest.raises(AttributeError):
        Request(memroy=1)
