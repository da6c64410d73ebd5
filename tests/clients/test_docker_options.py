"""What Docker's options make of a container, with ``firkin-runtime`` in runc's place.

Each is looked at from the host, by the kernel's files, or felt inside.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from support.clients import on_v1
from support.command import execute
from support.docker import IMAGE, Container, Docker
from support.requires import CAPABILITIES, need, requires
from support.running import wait_until

pytestmark = requires("root")

M = 1 << 20


# ---------------------------------------------------------------- limits


def test_limits_in_the_cgroup(docker: Docker) -> None:
    options = "--memory 64m --memory-swap 64m --pids-limit 20 --cpus 0.5 --cpuset-cpus 0"
    with docker.container(options) as box:
        assert f"/{docker.cgroup}/{box.inspect()['Id']}" in box.proc("cgroup")
        assert box.limit("memory") == str(64 * M)
        assert box.limit("pids") == "20"
        assert box.limit("cpuset") == "0"
        assert box.cpus() == 0.5
        assert box.status()["Cpus_allowed_list"] == "0"
    with docker.container() as box:
        assert (box.limit("pids"), box.cpus()) == ("max", -1)
        # Docker passes zeros for what nobody asked for: they are no limits.
        assert box.limit("memory") == "max" or int(box.limit("memory")) > 1 << 50


@requires("cgroup v1")
def test_further_limits(docker: Docker) -> None:
    options = "--cpu-shares 512 --memory 64m --memory-reservation 32m --memory-swappiness 10"
    with docker.container(f"{options} --cpu-period 60000 --cpu-quota 30000") as box:
        wanted = {
            ("cpu", "cpu.shares"): 512,
            ("cpu", "cpu.cfs_period_us"): 60000,
            ("cpu", "cpu.cfs_quota_us"): 30000,
            ("memory", "memory.soft_limit_in_bytes"): 32 * M,
            ("memory", "memory.swappiness"): 10,
        }
        for (controller, file), value in wanted.items():
            assert int((box.cgroup(controller) / file).read_text()) == value, file


def test_limit_of_processes_is_felt(docker: Docker) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 100 & done; echo never"
    done = docker("run", "--rm", "--pids-limit=5", IMAGE, "sh", "-c", script)
    assert done.returncode != 0
    assert "can't fork" in done.stderr
    assert "never" not in done.stdout


def test_ulimits(docker: Docker) -> None:
    with docker.container("--ulimit nofile=100:200 --ulimit core=0") as box:
        lines = [re.split(r"\s{2,}", line) for line in box.proc("limits").splitlines()]
        limits = {line[0]: line[1:3] for line in lines}
        assert limits["Max open files"] == ["100", "200"]
        assert limits["Max core file size"] == ["0", "0"]
        assert box.read("exec", "sh", "-c", "ulimit -n; ulimit -Hn") == "100\n200\n"


def test_oom_score(docker: Docker) -> None:
    with docker.container("--oom-score-adj 500") as box:
        assert box.proc("oom_score_adj") == "500\n"


# ---------------------------------------------------------------- privileges

# What Docker gives without a word, capabilities(7).
DEFAULT = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}
NET_ADMIN, NET_RAW, SYS_TIME = 12, 13, 25


def capabilities(box: Container, field: str) -> set[int]:
    bits = int(box.status()[field], 16)
    return {number for number in range(64) if bits >> number & 1}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("", DEFAULT),
        ("--cap-drop ALL", set()),
        ("--cap-drop NET_RAW", DEFAULT - {NET_RAW}),
        ("--cap-add NET_ADMIN", DEFAULT | {NET_ADMIN}),
        ("--cap-drop ALL --cap-add SYS_TIME", {SYS_TIME}),
    ],
)
def test_capabilities(docker: Docker, options: str, wanted: set[int]) -> None:
    with docker.container(options) as box:
        assert capabilities(box, "CapEff") == capabilities(box, "CapPrm") == wanted
        assert capabilities(box, "CapBnd") == wanted


def test_capabilities_are_felt(docker: Docker) -> None:
    chown = ["sh", "-c", "touch /x && chown 1000 /x"]
    assert docker("run", "--rm", IMAGE, *chown).returncode == 0
    done = docker("run", "--rm", "--cap-drop=CHOWN", IMAGE, *chown)
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr


def test_privileged(docker: Docker) -> None:
    if docker.runtime == "runc":
        # It insists on all that Docker lists; the specification asks for a warning.
        need(*(f"capability:{name}" for name in CAPABILITIES))
    with docker.container("--privileged") as box:
        own = int(Path("/proc/self/status").read_text().partition("CapBnd:")[2].split()[0], 16)
        # Docker's list is older than CAP_PERFMON (38) and what came after it.
        wanted = {number for number in range(38) if own >> number & 1}
        assert capabilities(box, "CapEff") == capabilities(box, "CapBnd") == wanted
        assert box.status()["Seccomp"] == "0"
        assert "rw" in box.mount("/sys")[0]
        assert not [point for point in box.mounts() if point.startswith("/proc/")]
        host = {name for name in os.listdir("/dev") if Path("/dev", name).is_block_device()}
        inside = Path(f"/proc/{box.pid}/root/dev")
        assert {name for name in os.listdir(inside) if (inside / name).is_block_device()} == host


def test_what_is_masked(docker: Docker) -> None:
    with docker.container() as box:
        assert box.mount("/proc/sys")[0] >= {"ro", "nosuid", "nodev", "noexec"}
        assert "ro" in box.mount("/sys")[0]
        masked = [Path(path) for path in box.inspect()["HostConfig"]["MaskedPaths"]]
        there = [path for path in masked if path.exists()]
        assert there
        for path in there:
            inside = Path(f"/proc/{box.pid}/root{path}")
            assert not os.listdir(inside) if path.is_dir() else inside.read_bytes() == b"", path


def test_seccomp(docker: Docker, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    with docker.container(f"--security-opt seccomp={profile}") as box:
        assert box.status()["Seccomp"] == "2"
        done = box("exec", "mkdir", "/new")
        assert done.returncode == 1
        assert "Operation not permitted" in done.stderr
    with docker.container() as box:
        assert box.status()["Seccomp"] == "2"
        box.read("exec", "mkdir", "/new")
        # Of Docker's own profile, and not for want of a capability.
        assert "Operation not permitted" in box("exec", "unshare", "-U", "true").stderr
    with docker.container("--security-opt seccomp=unconfined") as box:
        assert box.status()["Seccomp"] == "0"


def test_no_new_privileges(docker: Docker) -> None:
    with docker.container("--security-opt no-new-privileges") as box:
        assert box.status()["NoNewPrivs"] == "1"
    with docker.container() as box:
        assert box.status()["NoNewPrivs"] == "0"


@pytest.mark.parametrize(
    ("options", "uids", "gids", "groups"),
    [
        ("--user 1000", "1000", "1000", {"50", "1000"}),
        ("--user alice:staff", "1000", "50", {"50"}),
        ("--user 4242:4243 --group-add 77", "4242", "4243", {"77"}),
    ],
)
def test_user(docker: Docker, options: str, uids: str, gids: str, groups: set[str]) -> None:
    with docker.container(options) as box:
        assert box.status()["Uid"].split() == [uids] * 4
        assert box.status()["Gid"].split() == [gids] * 4
        assert set(box.status()["Groups"].split()) >= groups
        assert capabilities(box, "CapEff") == set()
        assert capabilities(box, "CapBnd") == DEFAULT


# ---------------------------------------------------------------- files


def test_read_only(docker: Docker) -> None:
    with docker.container("--read-only --tmpfs /t") as box:
        assert "ro" in box.mount("/")[0]
        done = box("exec", "touch", "/x")
        assert done.returncode == 1
        assert "Read-only file system" in done.stderr
        box.read("exec", "touch", "/t/x", "/dev/shm/x")


def test_tmpfs_and_shared_memory(docker: Docker) -> None:
    with docker.container("--tmpfs /t:size=1m,mode=700,exec --shm-size 2m") as box:
        options, kind, settings, _ = box.mount("/t")
        assert kind == "tmpfs"
        assert settings >= {"size=1024k", "mode=700"}
        assert options >= {"rw", "nosuid", "nodev"}
        assert "noexec" not in options
        assert box.mount("/dev/shm")[2] >= {"size=2048k"}
        done = box("exec", "dd", "if=/dev/zero", "of=/t/x", "bs=1M", "count=2")
        assert "No space left on device" in done.stderr


def test_volumes(docker: Docker, tmp_path: Path) -> None:
    for name in ("ro", "rw"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"{name}\n")
    words = f"--volume {tmp_path}/ro:/ro:ro --volume {tmp_path}/rw:/rw --volume /anonymous"
    with docker.container(words) as box:
        assert box.read("exec", "cat", "/ro/file", "/rw/file") == "ro\nrw\n"
        assert "ro" in box.mount("/ro")[0]
        assert "Read-only file system" in box("exec", "touch", "/ro/x").stderr
        box.read("exec", "touch", "/rw/x", "/anonymous/x")
        assert (tmp_path / "rw/x").exists()


@pytest.mark.parametrize("mode", ["rprivate", "rslave", "rshared"])
def test_propagation(docker: Docker, tmp_path: Path, mode: str) -> None:
    """Mounts that come later arrive, or not; those of the container go out, or not."""
    words = f"--cap-add SYS_ADMIN --volume {tmp_path}:/v:{mode}"
    with docker.container(words) as box:
        outside = str(tmp_path / "host")
        (tmp_path / "host").mkdir()
        enter = ["nsenter", "--mount", f"--target={docker.daemon.pid}"]
        docker_mounts = Path(f"/proc/{docker.daemon.pid}/mountinfo")
        execute([*enter, "mount", "-t", "tmpfs", "none", outside], check=True)
        try:
            assert ("/v/host" in box.mounts()) == (mode != "rprivate")
            box.read("exec", "mkdir", "/v/box")
            box.read("exec", "mount", "-t", "tmpfs", "none", "/v/box")
            assert "/v/box" in box.mounts()
            went_out = f"{tmp_path}/box " in docker_mounts.read_text()
            assert went_out == (mode == "rshared")
            box.read("exec", "umount", "/v/box")
        finally:
            execute([*enter, "umount", outside], check=True)


def test_devices(docker: Docker) -> None:
    disk = next(d for d in Path("/sys/block").iterdir() if Path("/dev", d.name).is_block_device())
    major, minor = (disk / "dev").read_text().strip().split(":")
    with docker.container(f"--device /dev/{disk.name}:/dev/renamed:r") as box:
        node = Path(f"/proc/{box.pid}/root/dev/renamed").stat()
        assert node.st_rdev == os.makedev(int(major), int(minor))
        box.read("exec", "sh", "-c", "exec 3< /dev/renamed")
        # Of the cgroup, whatever the file's mode says.
        done = box("exec", "sh", "-c", "exec 3>> /dev/renamed")
        assert "Operation not permitted" in done.stderr
        if on_v1("devices"):
            allowed = (box.cgroup("devices") / "devices.list").read_text().splitlines()
            assert f"b {major}:{minor} r" in allowed
            assert "a *:* rwm" not in allowed
    with docker.container() as box:
        # One that nobody gave can be made, and not opened.
        box.read("exec", "mknod", "/disk", "b", major, minor)
        done = box("exec", "sh", "-c", "exec 3< /disk")
        assert "Operation not permitted" in done.stderr
        box.read("exec", "sh", "-c", "echo > /dev/null; exec 3< /dev/urandom 4< /dev/full")


def test_init(docker: Docker) -> None:
    script = "(sleep 0.1 &); sleep 1000"
    with docker.container("--init", "sh", "-c", script) as box:
        assert box.proc("cmdline").split("\0")[0].endswith("docker-init")
        assert "/sbin/docker-init" in box.mounts()

        def names() -> list[str]:
            return box.read("exec", "ps", "-o", "comm").split()[1:]

        # Whose parent has gone is its child, and it is no zombie.
        wait_until(lambda: sorted(names()) == ["docker-init", "ps", "sleep"], "one sleep")
        box.read("stop --time 20")
        assert box.wait() == 143


def test_settings_of_the_kernel(docker: Docker) -> None:
    options = "--sysctl net.ipv4.ip_forward=1 --sysctl kernel.msgmax=4096"
    before = Path("/proc/sys/kernel/msgmax").read_text()
    files = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/msgmax"]
    assert docker.run(options, "cat", *files) == "1\n4096\n"
    assert Path("/proc/sys/kernel/msgmax").read_text() == before


# ---------------------------------------------------------------- names, environment


def test_names(docker: Docker) -> None:
    with docker.container("--hostname here --domainname example.org") as box:
        assert box.read("exec", "hostname") == "here\n"
        assert box.read("exec", "cat", "/proc/sys/kernel/domainname") == "example.org\n"
        assert os.uname().nodename != "here"


def test_environment_and_command(docker: Docker) -> None:
    words = "--env A=1 --env B= --workdir /new/folder --entrypoint /bin/sh"
    assert docker.run(words, "-c", 'echo "$A" "${B-unset}"; pwd') == "1 \n/new/folder\n"


# ---------------------------------------------------------------- namespaces


def own(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{kind}")


def test_namespaces_of_its_own(docker: Docker) -> None:
    with docker.container("--cgroupns private") as box:
        for kind in ("cgroup", "ipc", "mnt", "net", "pid", "uts"):
            assert box.namespace(kind) != own(kind), kind
        for kind in ("user", "time"):
            assert box.namespace(kind) == own(kind), kind
        assert box.read("exec", "sh", "-c", "grep :pids: /proc/self/cgroup").endswith(":/\n")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("--pid host", "pid"),
        ("--ipc host", "ipc"),
        ("--uts host", "uts"),
        ("--network host", "net"),
        ("--cgroupns host", "cgroup"),
    ],
)
def test_namespaces_of_the_host(docker: Docker, options: str, kind: str) -> None:
    with docker.container(options) as box:
        assert box.namespace(kind) == own(kind)
        assert box.namespace("mnt") != own("mnt")
        pid = box.pid
        # It can't hold on to what a PID namespace of its own would take along.
        box.read("rm --force")
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its end")


def test_namespaces_of_another_container(docker: Docker) -> None:
    with docker.container("--ipc shareable") as first:
        joined = " ".join(f"--{kind} container:{first.name}" for kind in ("pid", "ipc", "network"))
        with docker.container(joined, "sleep", "998") as second:
            for kind in ("pid", "ipc", "net"):
                assert second.namespace(kind) == first.namespace(kind), kind
            assert second.namespace("mnt") != first.namespace("mnt")
            first.read("exec", "touch", "/dev/shm/x")
            second.read("exec", "ls", "/dev/shm/x")
            assert "sleep 998" in first.read("exec", "ps", "-o", "args")
            assert "sleep 1000" in second.read("exec", "ps", "-o", "args")
            second.read("rm --force")
            assert first.state["Running"]


def test_shared_pid_namespace_ends_with_its_first_container(docker: Docker) -> None:
    with (
        docker.container() as first,
        docker.container(f"--pid container:{first.name}", "sleep", "998") as second,
    ):
        first.read("kill")
        assert first.wait() == 137
        assert second.wait() == 137
