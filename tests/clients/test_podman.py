"""podman as root, with ``firkin-runtime`` in runc's place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.box import eventually, gone
from support.cases_podman import *  # noqa: F403
from support.cases_podman_options import *  # noqa: F403
from support.clients import RUNTIMES
from support.command import execute
from support.podman import IMAGE, Podman, session, use
from support.requires import requires

pytestmark = requires("root")


@pytest.fixture(scope="module", params=RUNTIMES)
def shared_podman(
    request: pytest.FixtureRequest, session_folder: Path, busybox_tar: Path
) -> Iterator[Podman]:
    yield from session(request.param, session_folder, busybox_tar)


@pytest.fixture
def podman(shared_podman: Podman) -> Iterator[Podman]:
    yield from use(shared_podman)


# ---------------------------------------------------------------- cgroups


@requires("controller:memory", "controller:pids", "controller:cpu", "controller:cpuset")
def test_limits(podman: Podman) -> None:
    options = "--memory=64m --pids-limit=33 --cpus=0.5 --cpuset-cpus=0"
    with podman.container(options) as box:
        assert box.cgroup("memory").parent.name == podman.cgroup
        assert box.limit("memory") == str(64 << 20)
        assert box.limit("pids") == "33"
        assert box.cpus() == 0.5
        assert box.limit("cpuset") == "0"
        assert box.status()["Cpus_allowed_list"] == "0"
        # A command of exec is limited as the first one is.
        box.read("exec --detach", "sleep", "999")
        procs = box.cgroup("pids") / "cgroup.procs"
        eventually(lambda: len(procs.read_text().split()) == 2, "both are in the cgroup")
        script = "i=0; while [ $i -lt 60 ]; do sleep 1 & i=$((i+1)); done; wait"
        assert "can't fork" in box("exec", "sh", "-c", script).stderr


@requires("controller:memory", "controller:cpu")
def test_update(podman: Podman) -> None:
    with podman.container("--memory=64m") as box:
        podman.read("update", "--memory=48m", "--cpus=0.25", box.name)
        assert box.limit("memory") == str(48 << 20)
        assert box.cpus() == 0.25


@requires("controller:memory")
def test_out_of_memory(podman: Podman, tmp_path: Path) -> None:
    """tail keeps the last line, and /dev/zero is a single one."""
    options = ["--memory=32m", "--memory-swap=32m"]
    done = podman("run", "--rm", *options, IMAGE, "tail", "/dev/zero", cwd=tmp_path)
    assert done.returncode == 137
    # conmon, which watches the cgroup, notes it here; this version misses podman's folder.
    assert (tmp_path / "oom").exists()


@requires("controller:memory", "controller:pids")
def test_stats(podman: Podman) -> None:
    with podman.container("--memory=64m", "sh", "-c", "sleep 999 & sleep 999; true") as box:
        eventually(lambda: "sleep" in box.read("top", "comm"), "it runs")
        (found,) = json.loads(box.read("stats --no-stream --format=json"))
        assert found["name"] == box.name
        assert found["pids"] == "3"
        assert found["mem_usage"].endswith("/ 67.11MB")
        assert not found["mem_usage"].startswith("0B")


def test_pause(podman: Podman) -> None:
    script = "while :; do echo x; sleep 0.01; done"
    with podman.container("", "sh", "-c", script) as box:
        eventually(lambda: box.read("logs"), "it runs")
        box.read("pause")
        assert box.state["Status"] == "paused"
        assert box.is_frozen()
        shown = box.read("logs")
        assert "running containers" in box("exec", "true").stderr
        assert box.read("logs") == shown
        box.read("unpause")
        assert box.state["Status"] == "running"
        assert not box.is_frozen()
        eventually(lambda: box.read("logs") != shown, "it goes on")
        box.read("pause")
        # Removing it has to thaw it: what is frozen does not die.
        pid = box.pid
        box.read("rm --force --time=0")
        assert gone(pid)


def test_cgroup_namespace(podman: Podman) -> None:
    """Without one a container sees where its cgroup is; with one it is the top."""
    host = os.readlink("/proc/self/ns/cgroup")
    for mode, private in (("host", False), ("private", True)):
        with podman.container(f"--cgroupns={mode}") as box:
            assert (box.namespace("cgroup") != host) is private
            inside = box.read("exec", "cat", "/proc/1/cgroup")
            assert (podman.cgroup in inside) is not private
            # The command of exec is in the same.
            assert box.read("exec", "cat", "/proc/self/cgroup") == inside


@requires("controller:memory")
def test_cgroup_files_are_seen_and_not_written(podman: Podman) -> None:
    with podman.container("--memory=64m") as box:
        on_v2 = (box.cgroup("memory") / "cgroup.controllers").exists()
        folder = "/sys/fs/cgroup" if on_v2 else "/sys/fs/cgroup/memory"
        name = "memory.max" if on_v2 else "memory.limit_in_bytes"
        assert box.read("exec", "cat", f"{folder}/{name}") == f"{64 << 20}\n"
        assert "ro" in box.mount(folder)[0]
        done = box("exec", "sh", "-c", f"echo 1 >{folder}/cgroup.procs")
        assert "Read-only" in done.stderr


def test_no_cgroups(podman: Podman) -> None:
    """``--cgroups=disabled``: the container stays where podman is."""
    if podman.runtime == "runc":
        done = podman("run", "--rm", "--cgroups=disabled", IMAGE, "true")
        assert "not compatible with NoCgroups" in done.stderr  # podman's: it has no such option
        return
    with podman.container("--cgroups=disabled") as box:
        assert box.proc("cgroup") == Path("/proc/self/cgroup").read_text()


# ---------------------------------------------------------------- devices


def test_device(podman: Podman) -> None:
    options = "--device=/dev/zero:/dev/mine:rw --device=/dev/full:/dev/other:r --cap-add=mknod"
    with podman.container(options) as box:
        root = Path(f"/proc/{box.pid}/root/dev")
        assert os.stat(root / "mine").st_rdev == os.stat("/dev/zero").st_rdev
        assert box.read("exec", "head", "-c", "3", "/dev/mine") == "\0\0\0"
        # What was not given can be made by who has CAP_MKNOD, and not opened.
        box.read("exec", "mknod", "/tmp/mem", "c", "1", "1")
        assert "not permitted" in box("exec", "head", "-c", "1", "/tmp/mem").stderr
        box.read("exec", "mknod", "/tmp/null", "c", "1", "3")
        box.read("exec", "sh", "-c", "echo >/tmp/null")


def some_device() -> Path:
    """Return a character device of the host that no container gets by itself."""
    candidates = ("/dev/fuse", "/dev/loop-control", "/dev/kvm", "/dev/net/tun")
    return next(path for path in map(Path, candidates) if path.is_char_device())


def test_device_that_may_only_be_read(podman: Podman) -> None:
    with podman.container(f"--device={some_device()}:/dev/mine:r") as box:
        found = os.stat(f"/proc/{box.pid}/root/dev/mine")
        assert found.st_rdev == some_device().stat().st_rdev
        box.read("exec", "sh", "-c", "exec </dev/mine")
        assert "not permitted" in box("exec", "sh", "-c", "exec >/dev/mine").stderr


def test_device_rule(podman: Podman) -> None:
    number = some_device().stat().st_rdev
    major, minor = os.major(number), os.minor(number)
    for options, code in ((f"--device-cgroup-rule='c {major}:{minor} rwm'", 0), ("", 1)):
        with podman.container(f"{options} --cap-add=mknod") as box:
            box.read("exec", "mknod", "/tmp/mine", "c", str(major), str(minor))
            assert box("exec", "sh", "-c", "exec </tmp/mine").returncode == code


# ---------------------------------------------------------------- mounts between host and container


@pytest.fixture
def shared_folder(tmp_path: Path) -> Iterator[Path]:
    """A mount that is shared with other mount namespaces; ``/`` need not be one."""
    folder = tmp_path / "shared"
    folder.mkdir()
    mount("-t", "tmpfs", "none", folder)
    try:
        mount("--make-shared", folder)
        for name in ("host", "box"):
            (folder / name).mkdir()
        yield folder
    finally:
        execute(["umount", "--recursive", str(folder)], check=True)


def mount(*words: str | Path) -> None:
    execute(["mount", *(str(word) for word in words)], check=True)


@pytest.mark.parametrize(
    ("mode", "inwards", "outwards"),
    [("rshared", True, True), ("rslave", True, False), ("rprivate", False, False)],
)
def test_propagation(
    podman: Podman, shared_folder: Path, mode: str, inwards: bool, outwards: bool
) -> None:
    with podman.container(f"--privileged -v {shared_folder}:/v:{mode}") as box:
        kinds = {word.split(":")[0] for word in box.mount("/v")[3]}
        assert ("shared" in kinds) is outwards
        assert ("master" in kinds) is (inwards and not outwards)
        mount("-t", "tmpfs", "none", shared_folder / "host")
        (shared_folder / "host/file").touch()
        assert (box("exec", "ls", "/v/host/file").returncode == 0) is inwards
        box.read("exec", "mount", "-t", "tmpfs", "none", "/v/box")
        box.read("exec", "touch", "/v/box/file")
        assert (shared_folder / "box/file").exists() is outwards


# ---------------------------------------------------------------- user namespaces


def ids(pid: int) -> tuple[int, int]:
    """Return the host's first id and the number of ids, of a map that is one line."""
    inside, outside, count = (int(w) for w in Path(f"/proc/{pid}/uid_map").read_text().split())
    assert inside == 0
    return outside, count


def test_user_namespace_auto(podman: Podman) -> None:
    """Each container gets ids of its own, of those that the machine sets aside."""
    options = "--userns=auto:size=1024"
    with podman.container(options) as one, podman.container(options) as two:
        starts = []
        for box in (one, two):
            start, count = ids(box.pid)
            assert (start > 0, count) == (True, 1024)
            assert box.namespace("user") != os.readlink("/proc/self/ns/user")
            assert box.status()["Uid"].split() == [str(start)] * 4
            assert box.read("exec", "id", "-u") == "0\n"
            box.read("exec", "touch", "/etc/file")
            assert Path(f"/proc/{box.pid}/root/etc/file").stat().st_uid == start
            starts.append(start)
        assert abs(starts[0] - starts[1]) >= 1024


def test_user_namespace_of_chosen_ids(podman: Podman, tmp_path: Path) -> None:
    options = "--uidmap=0:300000:1000 --gidmap=0:400000:1000"
    tmp_path.chmod(0o777)
    with podman.container(f"{options} -v {tmp_path}:/v -u 7:8 --read-only") as box:
        box.read("exec", "touch", "/v/file")
        found = (tmp_path / "file").stat()
        assert (found.st_uid, found.st_gid) == (300007, 400008)
        assert box.status()["Uid"].split() == ["300007"] * 4
        assert box.read("exec -u 0", "cat", "/proc/self/uid_map").split() == ["0", "300000", "1000"]
        # Nothing that the namespace does not map.
        assert box("exec -u 2000", "true").returncode != 0


def test_user_namespace_of_a_user(podman: Podman) -> None:
    """``keep-id`` and ``nomap`` are for ordinary users, and root is told."""
    for mode in ("keep-id", "nomap"):
        done = podman("run", "--rm", f"--userns={mode}", IMAGE, "true")
        assert done.returncode == 125
        assert "rootless" in done.stderr


def test_ipc_of_the_host(podman: Podman) -> None:
    with podman.container("--ipc=host") as box:
        assert box.namespace("ipc") == os.readlink("/proc/self/ns/ipc")


def test_for_systemd(podman: Podman) -> None:
    """``--systemd=always`` makes what systemd wants: a /run and a cgroup of its own to write to."""
    with podman.container("--systemd=always") as box:
        for point in ("/run", "/run/lock", "/tmp"):
            options, kind, _, _ = box.mount(point)
            assert (kind, "rw" in options) == ("tmpfs", True)
        point = "/sys/fs/cgroup/systemd"
        if Path(point).exists():
            assert "rw" in box.mount(point)[0]
