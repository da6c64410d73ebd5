"""podman's options, with a runtime: what root and an ordinary user do alike.

Each case looks from inside the container and from the host.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from support.box import eventually, fields, gone, status
from support.podman import (
    DEFAULT_CAPABILITIES,
    IMAGE,
    INIT,
    Podman,
    everything,
    wanted_ulimits,
)

NET_ADMIN = 1 << 12


def on_host(box_pid: int, number: int, kind: str = "uid") -> int:
    """Return the host's number of a user or group that a container calls *number*."""
    for line in Path(f"/proc/{box_pid}/{kind}_map").read_text().splitlines():
        inside, outside, count = (int(word) for word in line.split())
        if inside <= number < inside + count:
            return outside + number - inside
    raise AssertionError(f"{number} is not mapped")


# ---------------------------------------------------------------- the process


def test_user_and_groups(podman: Podman) -> None:
    with podman.container("-u 1000:1000 --group-add=7 --umask=027") as box:
        assert box.read("exec", "id", "-G").split() == ["1000", "7"]
        found = box.status()
        uid, gid, other = (
            on_host(box.pid, 1000),
            on_host(box.pid, 1000, "gid"),
            on_host(box.pid, 7, "gid"),
        )
        assert found["Uid"].split() == [str(uid)] * 4
        assert found["Gid"].split() == [str(gid)] * 4
        assert set(found["Groups"].split()) == {str(gid), str(other)}
        assert found["Umask"] == "0027"
    # By name, with the groups that the image gives.
    assert podman.run("-u alice", "id").startswith("uid=1000(alice) gid=1000(alice)")


def test_environment_and_directory(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("FROM_FILE=2\n")
    with podman.container(f"-e A='x y' --env-file={tmp_path}/env -w /usr/bin") as box:
        found = dict(line.split("=", 1) for line in box.proc("environ").split("\0") if line)
        assert found["A"] == "x y"
        assert found["FROM_FILE"] == "2"
        assert found["container"] == "podman"
        assert os.readlink(f"/proc/{box.pid}/cwd") == "/usr/bin"
    found = podman.run("-e A=1 --unsetenv-all", "/bin/env").splitlines()
    assert "A=1" in found
    assert not any(line.startswith("PATH=") for line in found)


def test_entrypoint(podman: Podman) -> None:
    options = ["--entrypoint", json.dumps(["echo", "one two"])]
    assert podman.read("run", "--rm", *options, IMAGE, "three") == "one two three\n"


def test_hostname(podman: Podman) -> None:
    assert podman.run("--hostname=some.name", "cat", "/proc/sys/kernel/hostname") == "some.name\n"
    assert podman.run("--uts=host", "cat", "/proc/sys/kernel/hostname").strip() == os.uname()[1]


def test_init(podman: Podman) -> None:
    """Its init is the first process, and reaps what nobody waits for."""
    with podman.container("--init", "sh", "-c", "(sleep 0.01 &); exec sleep 1000") as box:
        assert box.proc("cmdline").startswith("/run/podman-init\0")
        children = Path(f"/proc/{box.pid}/task/{box.pid}/children")

        def names() -> list[str]:
            try:
                commands = [Path(f"/proc/{pid}/cmdline") for pid in children.read_text().split()]
                return [command.read_text() for command in commands]
            except OSError:  # reaped meanwhile
                return []

        eventually(lambda: names() == ["sleep\0001000\0"], "only the command is left")
    done = podman("run", "--rm", "--init", IMAGE, "sh", "-c", "kill -9 $$")
    assert done.returncode == 137


def test_limits_of_the_process(podman: Podman) -> None:
    processes = wanted_ulimits()["nproc"]  # what podman would set else needs CAP_SYS_RESOURCE
    options = f"--ulimit=memlock=4096:8192 --ulimit=core=0:0 --ulimit=nproc={processes}:{processes}"
    with podman.container(f"--ulimit=nofile=200:200 {options} --oom-score-adj=500") as box:
        limits = {
            line[:26].strip(): line[26:].split()[:2] for line in box.proc("limits").split("\n")
        }
        assert limits["Max locked memory"] == ["4096", "8192"]
        assert limits["Max open files"] == ["200", "200"]
        assert limits["Max core file size"] == ["0", "0"]
        assert box.proc("oom_score_adj") == "500\n"
        assert box.read("exec", "sh", "-c", "ulimit -l; ulimit -Hl").split() == ["4", "8"]


# ---------------------------------------------------------------- privileges


def test_default_privileges(podman: Podman) -> None:
    with podman.container() as box:
        found = box.status()
        for kind in ("CapBnd", "CapPrm", "CapEff"):
            assert int(found[kind], 16) == DEFAULT_CAPABILITIES
        assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
        assert found["Seccomp"] == "2"
        assert "ro" in box.mount("/proc/sys")[0]
        assert box("exec", "sh", "-c", "echo 1 >/proc/sys/kernel/msgmax").returncode == 1


def test_masked_paths(podman: Podman) -> None:
    candidates = ("acpi", "kcore", "keys", "latency_stats", "timer_list", "scsi")
    names = [name for name in candidates if Path("/proc", name).exists()]
    assert names
    with podman.container() as box:
        root = Path(f"/proc/{box.pid}/root/proc")
        for name in names:
            options, kind, _, _ = box.mount(f"/proc/{name}")
            if Path("/proc", name).is_dir():
                assert (kind, os.listdir(root / name)) == ("tmpfs", [])
                assert "ro" in options
                assert box.read("exec", "ls", f"/proc/{name}") == ""
            else:
                assert os.stat(root / name).st_rdev == os.stat("/dev/null").st_rdev
                assert box.read("exec", "cat", f"/proc/{name}") == ""


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("--cap-drop=all", 0),
        ("--cap-drop=all --cap-add=net_admin", NET_ADMIN),
        ("--cap-drop=chown --cap-add=net_admin", DEFAULT_CAPABILITIES & ~1 | NET_ADMIN),
    ],
)
def test_capabilities(podman: Podman, options: str, wanted: int) -> None:
    with podman.container(options) as box:
        found = box.status()
        assert [int(found[kind], 16) for kind in ("CapBnd", "CapPrm", "CapEff")] == [wanted] * 3
        # The container's own network: made there, by who may.
        added = box("exec", "ip", "link", "add", "v0", "type", "dummy")
        changed = box("exec", "ip", "link", "set", "lo", "mtu", "1500")
        assert (changed.returncode == 0) == bool(wanted & NET_ADMIN), added.stderr
        chown = box("exec", "chown", "1", "/tmp")
        assert (chown.returncode == 0) == bool(wanted & 1)


def test_capabilities_of_an_ordinary_user(podman: Podman) -> None:
    """What was added reaches the command through the ambient set, the rest does not."""
    with podman.container("-u 1000 --cap-add=net_admin") as box:
        found = box.status()
        kinds = ("CapPrm", "CapEff", "CapInh", "CapAmb")
        assert [int(found[kind], 16) for kind in kinds] == [NET_ADMIN] * 4
        assert int(found["CapBnd"], 16) == DEFAULT_CAPABILITIES | NET_ADMIN
        box.read("exec", "ip", "link", "set", "lo", "mtu", "1500")
    with podman.container("-u 1000") as box:
        found = box.status()
        assert [int(found[kind], 16) for kind in kinds] == [0] * 4


def test_seccomp_profile(podman: Podman, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    rules = [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {
            "names": ["kill"],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}],
        },
    ]
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
    with podman.container(f"--security-opt=seccomp={profile}") as box:
        assert box.status()["Seccomp"] == "2"
        for verb in ("exec", "exec --user=1000"):
            done = box(verb, "mkdir", "/tmp/new")
            assert "No space left on device" in done.stderr
        assert "not permitted" in box("exec", "kill", "-10", "1").stderr
        box.read("exec", "kill", "-0", "1")
        assert not Path(f"/proc/{box.pid}/root/tmp/new").exists()


def test_seccomp_unconfined(podman: Podman) -> None:
    # personality(2): the default profile knows the usual ones only.
    command = ["linux64", "-R", "true"]
    with podman.container("--security-opt=seccomp=unconfined") as box:
        assert box.status()["Seccomp"] == "0"
        box.read("exec", *command)
    with podman.container() as box:
        assert box.status()["Seccomp"] == "2"
        # The profile's default errno, ENOSYS.
        assert "Function not implemented" in box("exec", *command).stderr


@pytest.mark.parametrize(
    ("option", "effective"), [("--security-opt=no-new-privileges", 1000), ("", 0)]
)
def test_no_new_privileges(podman: Podman, option: str, effective: int) -> None:
    """With it, a set-user-ID program gives nobody another id."""
    with podman.container(f"{option} -u 1000") as box:
        found = box.status()
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("1" if option else "0", "2")
        # Not BusyBox: that gives the id back by itself.
        script = "cat >/suid; chmod 4755 /suid"
        box.read("exec -i -u 0", "sh", "-c", script, input=Path(INIT).read_bytes(), text=False)
        box.read("exec --detach", "/suid", "sleep", "999")
        place = Path(f"/proc/{box.pid}/root/proc")

        def ids() -> list[str]:
            for process in place.glob("[0-9]*"):
                if (process / "cmdline").read_bytes().startswith(b"/suid\0"):
                    return fields((process / "status").read_text())["Uid"].split()
            return []

        eventually(ids, "it runs")
        assert ids()[:2] == [str(on_host(box.pid, 1000)), str(on_host(box.pid, effective))]


def test_privileged(podman: Podman) -> None:
    with podman.container("--privileged") as box:
        found = box.status()
        assert found["Seccomp"] == "0"
        assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == everything()
        assert "rw" in box.mount("/sys")[0]
        assert "rw" in box.mount("/proc")[0]
        assert " /proc/" not in box.proc("mountinfo")  # nothing masked, nothing read-only
        box.read("exec", "mount", "-t", "tmpfs", "none", "/tmp")


# ---------------------------------------------------------------- files


def test_read_only(podman: Podman) -> None:
    with podman.container("--read-only") as box:
        assert "ro" in box.mount("/")[0]
        assert "Read-only file system" in box("exec", "touch", "/file").stderr
        assert "Read-only file system" in box("exec", "touch", "/etc/passwd").stderr
        # podman gives it these to write to.
        for path in ("/tmp", "/run", "/var/tmp", "/dev/shm"):
            box.read("exec", "touch", f"{path}/file")
            assert Path(f"/proc/{box.pid}/root{path}/file").exists()
    assert "Read-only" in podman("run", "--rm", "--read-only", "--read-only-tmpfs=false",
                                 IMAGE, "touch", "/tmp/file").stderr  # fmt: skip


def test_tmpfs(podman: Podman) -> None:
    with podman.container("--tmpfs=/t:size=1m,mode=0710,noexec --tmpfs=/etc --shm-size=2m") as box:
        options, kind, fs_options, _ = box.mount("/t")
        assert kind == "tmpfs"
        assert {"nosuid", "nodev", "noexec"} <= options
        assert {"size=1024k", "mode=710"} <= fs_options
        assert "size=2048k" in box.mount("/dev/shm")[2]
        assert "No space" in box("exec", "dd", "if=/dev/zero", "of=/t/f", "bs=2M", "count=1").stderr
        # podman's tmpfs starts with what the image has there (tmpcopyup).
        assert box.mount("/etc")[1] == "tmpfs"
        assert "alice" in box.read("exec", "cat", "/etc/passwd")


def test_volume(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("hello")
    options = f"-v {tmp_path}:/rw:z -v {tmp_path}:/ro:ro -v {tmp_path}/given:/file:ro,Z"
    with podman.container(options) as box:
        assert "rw" in box.mount("/rw")[0]
        assert "ro" in box.mount("/ro")[0]
        assert box.read("exec", "cat", "/file") == "hello"
        box.read("exec", "sh", "-c", "echo written >/rw/new")
        assert (tmp_path / "new").read_text() == "written\n"
        # root there is who started it.
        assert (tmp_path / "new").stat().st_uid == os.geteuid()
        for path in ("/ro/other", "/file"):
            assert "Read-only" in box("exec", "touch", path).stderr


def test_volume_for_the_user(podman: Podman, tmp_path: Path) -> None:
    """``:U`` gives the folder to the container's user."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    with podman.container(f"-u 1000:1000 -v {folder}:/v:U") as box:
        box.read("exec", "touch", "/v/file")
        found = folder.stat()
        assert found.st_uid == on_host(box.pid, 1000)
        assert found.st_gid == on_host(box.pid, 1000, "gid")
        box.read("exec -u 0", "chown", "-R", "0:0", "/v")


def test_named_volume(podman: Podman) -> None:
    podman.run("-v named:/v", "sh", "-c", "echo kept >/v/file")
    with podman.container("-v named:/v:nosuid,nodev,noexec") as box:
        assert box.read("exec", "cat", "/v/file") == "kept\n"
        assert {"nosuid", "nodev", "noexec"} <= box.mount("/v")[0]
    place = podman.read("volume", "inspect", "--format={{.Mountpoint}}", "named").strip()
    assert Path(place, "file").read_text() == "kept\n"
    podman.read("volume", "rm", "named")


def test_mount_options(podman: Podman, tmp_path: Path) -> None:
    options = (
        f"--mount=type=bind,src={tmp_path},dst=/b,ro,bind-nonrecursive,bind-propagation=private"
    )
    with podman.container(f"{options} -v {tmp_path}:/n:noexec,nosuid,nodev") as box:
        found, _, _, propagation = box.mount("/b")
        assert "ro" in found
        assert propagation == []
        assert {"nosuid", "nodev", "noexec"} <= box.mount("/n")[0]


def test_root_file_system_of_a_folder(podman: Podman, own_root: Path) -> None:
    done = podman("run", "--rm", "--rootfs", own_root, "sh", "-c", "echo written >/new; exit 3")
    assert done.returncode == 3, done.stderr
    assert (own_root / "new").read_text() == "written\n"


def test_devices(podman: Podman) -> None:
    with podman.container() as box:
        names = set(box.read("exec", "ls", "/dev").split())
        assert names >= {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "shm"}
        for name in ("null", "zero", "full", "random", "urandom", "tty"):
            there = os.stat(f"/proc/{box.pid}/root/dev/{name}")
            assert there.st_rdev == os.stat(f"/dev/{name}").st_rdev
        box.read("exec -u 1000", "sh", "-c", "echo x >/dev/null; head -c 9 /dev/urandom >/dev/full")
        assert box("exec", "mknod", "/tmp/mem", "b", "1", "1").returncode == 1


# ---------------------------------------------------------------- namespaces, kernel settings


def test_sysctl(podman: Podman) -> None:
    before = Path("/proc/sys/kernel/msgmax").read_text()
    options = "--sysctl=kernel.msgmax=4321 --sysctl=net.ipv4.ip_default_ttl=33"
    with podman.container(options) as box:
        files = ["/proc/sys/kernel/msgmax", "/proc/sys/net/ipv4/ip_default_ttl"]
        assert box.read("exec", "cat", *files).split() == ["4321", "33"]
        assert box.read("exec", "cat", "/proc/sys/net/ipv4/ping_group_range").split() == ["0", "0"]
    assert Path("/proc/sys/kernel/msgmax").read_text() == before


def test_network_none(podman: Podman) -> None:
    lines = podman.run("--network=none", "ip", "addr").splitlines()
    # Some kernels put tunnels that are down into each network.
    assert [line.split(":")[1].strip() for line in lines if ",UP" in line] == ["lo"]
    assert any(line.strip().startswith("inet 127.0.0.1/8") for line in lines)


def test_namespaces_of_the_host(podman: Podman) -> None:
    with podman.container("--network=host --uts=host") as box:
        for kind in ("net", "uts"):
            assert box.namespace(kind) == os.readlink(f"/proc/self/ns/{kind}")
        assert box.read("exec", "ls", "/sys/class/net").split() == sorted(
            os.listdir("/sys/class/net")
        )


def test_pid_namespace_of_the_host(podman: Podman) -> None:
    """Without one of its own, its processes still end with it."""
    command = ["sh", "-c", "setsid sleep 997 & echo $!; exec sleep 998"]
    with podman.container("--pid=host", *command) as box:
        assert box.namespace("pid") == os.readlink("/proc/self/ns/pid")
        other = int(eventually(lambda: box.read("logs"), "the number of its child"))
        assert status(other)
        assert box.read("exec", "readlink", f"/proc/{box.pid}/exe") == "/bin/busybox\n"
        box.read("rm --force --time=0")
        if os.geteuid() == 0:
            # An ordinary user has no cgroup by which they could be found.
            eventually(lambda: gone(other), "the child ends with the container")
        elif not gone(other):
            os.kill(other, signal.SIGKILL)


def test_namespaces_of_another_container(podman: Podman) -> None:
    with podman.container("--ipc=shareable") as one:
        kinds = ("pid", "ipc", "net")
        with podman.container(" ".join(f"--{k}=container:{one.name}" for k in
                                       ("pid", "ipc", "network"))) as two:  # fmt: skip
            for kind in kinds:
                assert two.namespace(kind) == one.namespace(kind)
            for kind in ("mnt", "uts"):
                assert two.namespace(kind) != one.namespace(kind)
            assert "sleep\x001000" in two.read("exec", "cat", "/proc/1/cmdline")
            box_pid = two.pid
            two.read("kill")
            assert two.wait() == 137
            assert gone(box_pid)
            assert one.state["Status"] == "running"


def test_pod(podman: Podman) -> None:
    podman.read("pod", "create", "--name=pod", "--hostname=podname", "--share=net,ipc,uts,pid")
    try:
        with podman.container("--pod=pod") as one, podman.container("--pod=pod") as two:
            for kind in ("net", "ipc", "uts", "pid"):
                assert one.namespace(kind) == two.namespace(kind)
                assert one.namespace(kind) != os.readlink(f"/proc/self/ns/{kind}")
            assert one.namespace("mnt") != two.namespace("mnt")
            assert one.read("exec", "hostname") == two.read("exec", "hostname") == "podname\n"
            # A server of one is the other's neighbour.
            one.read("exec --detach", "nc", "-l", "-p", "80", "-e", "echo", "served")
            eventually(
                lambda: two("exec", "nc", "127.0.0.1", "80").stdout == "served\n", "it is served"
            )
            podman.read("pod", "stop", "--time=0", "pod")
            for box in (one, two):
                eventually(lambda box=box: box.state["Status"] == "exited", "it stops")
            podman.read("pod", "start", "pod")
            assert one.namespace("net") == two.namespace("net")
    finally:
        podman("pod", "rm", "--force", "--time=0", "pod")


# ---------------------------------------------------------------- hooks, build


def test_hooks(podman: Podman, tmp_path: Path) -> None:
    """podman adds the hooks of a folder to the configuration."""
    folder = tmp_path / "hooks.d"
    folder.mkdir()
    stages = ["prestart", "createRuntime", "poststart", "poststop"]
    for stage in stages:
        script = tmp_path / stage
        script.write_text(f"#!/bin/sh\ncat >{tmp_path}/{stage}.json\n")
        script.chmod(0o755)
        hook = {
            "version": "1.0.0",
            "hook": {"path": str(script), "env": ["PATH=/bin:/usr/bin"]},
            "when": {"always": True},
            "stages": [stage],
        }
        (folder / f"{stage}.json").write_text(json.dumps(hook))
    podman.read(f"--hooks-dir={folder}", "run", "--rm", IMAGE, "true")
    states = {stage: json.loads((tmp_path / f"{stage}.json").read_text()) for stage in stages}
    assert {stage: state["status"] for stage, state in states.items()} == {
        "prestart": "creating",
        "createRuntime": "creating",
        # runtime-spec, "Lifecycle": the user-specified program has been executed.
        "poststart": "created" if podman.runtime == "runc" else "running",
        "poststop": "stopped",
    }
    assert len({state["id"] for state in states.values()}) == 1


def test_build(podman: Podman, tmp_path: Path) -> None:
    """A RUN step is a container of the runtime's, driven by podman without conmon."""
    (tmp_path / "Containerfile").write_text(
        f"FROM {IMAGE}\nRUN echo built >/built && id -u >/who\nUSER alice\nRUN id -u >/tmp/alice\n"
    )
    options = ["--isolation=oci", "--network=none", "--layers=false", "--tag=built"]
    podman.read("build", *options, tmp_path)
    try:
        text = podman.read("run", "--rm", "built", "cat", "/built", "/who", "/tmp/alice")
        assert text.split() == ["built", "0", "1000"]
        (tmp_path / "Containerfile").write_text(f"FROM {IMAGE}\nRUN exit 7\n")
        done = podman("build", *options, tmp_path)
        assert done.returncode != 0
        assert "exit status 7" in done.stderr
    finally:
        podman("rmi", "--force", "built")
