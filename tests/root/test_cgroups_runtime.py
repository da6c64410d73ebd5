"""Cgroups as an OCI runtime's clients need them: everywhere, taken again, found again."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firkin.errors import FirkinError, SetupError, Unsupported, UsageError
from firkin.runtime.cgroups import detect, existing, light, open_cgroup, remove_paths, reopen, tree
from firkin.runtime.cgroups.group import Cgroup
from support.cgroups import (
    MIB,
    PATIENCE,
    Make,
    Start,
    gone,
    making,
    on_v2,
    path_of,
    starting,
    text,
    until,
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


def lines_of(pid: int | str) -> dict[str, str]:
    """The cgroup of a process in each hierarchy of the kernel, by its controllers."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}


def enter(cgroup: Cgroup, first: int = 0) -> str:
    """Join as the child of a start or of exec does; return its ``/proc/self/cgroup``."""
    directory = cgroup.directory_fd(first)
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
    cgroup.close()
    return done.stdout


# ---------------------------------------------------------------- every hierarchy


def test_it_is_in_each_hierarchy_as_with_runc(
    make: Make, name: str, runc: Runtime, busybox_root: Path, tmp_path: Path
) -> None:
    bundle = Bundle(tmp_path / "bundle", busybox_root)
    bundle.linux["cgroupsPath"] = f"{name}-runc"
    bundle.namespaces.append({"type": "cgroup"})
    theirs = lines_of(runc.state(runc.up(bundle).id)["pid"])
    cgroup = make({}, every_controller=True)
    ours = dict(line.split(":", 2)[1:] for line in enter(cgroup).splitlines())
    assert ours == {key: path.removesuffix("-runc") for key, path in theirs.items()}
    assert set(cgroup.paths()) == {path for path in cgroup.paths() if Path(path).exists()}
    assert len(cgroup.paths()) == list(ours.values()).count(name)
    if not on_v2():
        assert set(ours.values()) == {name}


@requires("cgroup v2")
def test_it_has_each_controller(make: Make) -> None:
    root = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    cgroup = make({}, suffix="/a/b", every_controller=True)
    (path,) = cgroup.paths()
    try:
        assert Path(path, "cgroup.controllers").read_text().split() == root
        assert set(root) > {"memory", "pids"}
    finally:
        cgroup.remove()
        os.rmdir(Path(path).parent)
        os.rmdir(Path(path).parent.parent)


@requires("cgroup v2")
def test_a_controller_that_cannot_be_had_is_passed_over(make: Make, name: str) -> None:
    above = Path(f"/sys/fs/cgroup{name}")
    above.mkdir()
    with subprocess.Popen(["sleep", "1000"]) as process:
        (above / "cgroup.procs").write_text(str(process.pid))
        try:
            # A cgroup with a process passes nothing on (cgroups(7), "no internal processes").
            cgroup = make({}, suffix="/below", every_controller=True)
            (path,) = cgroup.paths()
            assert Path(path, "cgroup.controllers").read_text().split() == []
            assert enter(cgroup) == f"0::{name}/below\n"
            cgroup.remove()
            with pytest.raises(Unsupported, match="has processes of its own"):
                make({"memory": {"limit": 64 * MIB}}, suffix="/below", every_controller=True)
        finally:
            process.kill()
            process.wait()
            remove_paths([str(above)])


READ_ONLY = """
import sys
from firkin.errors import FirkinError
from firkin.runtime.cgroups import detect, open_cgroup
for resources in ({}, {"blockIO": {"weight": 100}}):
    try:
        cgroup = open_cgroup(detect(), sys.argv[1], resources, every_controller=True)
        cgroup.create()
        print(*cgroup.paths())
        cgroup.remove()
    except FirkinError as error:
        print(error)
"""


@requires("cgroup v1", "program:unshare")
def test_a_hierarchy_that_cannot_be_written_is_passed_over(name: str) -> None:
    blkio = detect().controllers["blkio"].mount
    command = f'mount --bind {blkio} {blkio} && mount -o remount,ro,bind {blkio} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, "sh", sys.executable, "-c", READ_ONLY, name],
        check=True,
        capture_output=True,
        text=True,
    )
    paths, refusal = done.stdout.splitlines()
    assert blkio not in paths
    assert detect().controllers["freezer"].mount + name in paths.split()
    assert f"cannot create cgroup {blkio}{name}: no right to write in {blkio}" in refusal


@requires("namespace:cgroup", "program:unshare")
def test_what_the_container_sees(make: Make, start: Start, tmp_path: Path) -> None:
    cgroup = make({"pids": {"limit": 33}}, every_controller=True)
    lines = [f"cd {tmp_path}"]
    for kind, source, where, data in cgroup.mounts():
        if kind == "symlink":
            lines.append(f"ln -s {source} {where}")
            continue
        if where:
            lines.append(f"mkdir {where}")
        lines.append(f"mount -t {kind} {f'-o {data}' if data else ''} {source} {tmp_path}/{where}")
        lines.append(f"cd {tmp_path}")
    lines += ["cat pids.max pids/pids.max 2>/dev/null || :", "find . -name 'firkin-*'; ls"]
    process = start(
        cgroup,
        *("unshare", "--cgroup", "--mount", "--propagation", "private"),
        *("sh", "-e", "-c", "\n".join(lines)),
    )
    out, errors = process.communicate(timeout=PATIENCE)
    limit, *names = out.splitlines()
    assert limit == "33", errors
    if not on_v2():
        layout = detect()
        # As with runc: what no controller of ours is on is the host's business.
        named = {Path(hierarchy.mount).name for hierarchy in layout.named}
        assert named | set(layout.controllers) - {"hugetlb"} == set(names)


@requires("cgroup v2")
def test_the_cgroup_can_be_given_to_the_containers_user(make: Make) -> None:
    cgroup = make({}, every_controller=True)
    cgroup.delegate(12345)
    (path,) = cgroup.paths()
    given = {file.name for file in Path(path).iterdir() if file.stat().st_uid == 12345}
    assert Path(path).stat().st_uid == 12345
    assert {"cgroup.procs", "cgroup.subtree_control"} <= given
    assert given <= set(Path("/sys/kernel/cgroup/delegate").read_text().split())


@requires("cgroup v1")
def test_a_cgroup_of_v1_is_given_to_nobody(make: Make) -> None:
    cgroup = make({}, every_controller=True)
    cgroup.delegate(12345)
    assert {Path(path).stat().st_uid for path in cgroup.paths()} == {0}


# ---------------------------------------------------------------- one that is there


def test_an_empty_cgroup_is_taken(make: Make, start: Start) -> None:
    first = make({"pids": {"limit": 5}}, every_controller=True)
    Path(path_of(first, "pids.max").parent, "below").mkdir()
    again = make({"pids": {"limit": 6}}, every_controller=True, reuse=True)
    assert text(again, "pids.max") == "6"
    process = start(again, "sleep", "1000")
    assert again.pids() == {process.pid}
    again.kill()
    again.remove()
    assert gone(first.paths())


@pytest.mark.parametrize("below", ["", "/below"])
def test_one_with_processes_is_not(make: Make, start: Start, below: str) -> None:
    first = make({"pids": {"limit": 5}}, every_controller=True)
    start(first, "sleep", "1000")
    if below:
        path = f"{path_of(first, 'pids.max').parent}/below"
        os.mkdir(path)
        (pid,) = first.pids()
        Path(path, "cgroup.procs").write_text(str(pid))
    # Where one hierarchy's is empty, or missing, the others are looked at.
    if not on_v2():
        missing = next(path for path in first.paths() if "freezer" in path)
        pid = min(first.pids())
        Path(missing, "../tasks").write_text(str(pid))
        os.rmdir(missing)
    pattern = r"container's cgroup is not empty: 1 process\(es\) found"
    for attempt in ("check", "create"):
        other = open_cgroup(
            detect(), "/" + Path(first.paths()[0]).name, {"pids": {"limit": 6}},
            every_controller=True, reuse=True,
        )  # fmt: skip
        with pytest.raises(SetupError, match=pattern):
            getattr(other, attempt)()
    assert text(first, "pids.max") == "5"
    if not on_v2():
        assert not Path(missing).exists()  # all or nothing


def test_one_that_is_frozen_is_not(make: Make) -> None:
    first = make({}, every_controller=True)
    first.freeze()
    other = open_cgroup(
        detect(), "/" + Path(first.paths()[0]).name, {}, every_controller=True, reuse=True
    )
    with pytest.raises(SetupError, match="container's cgroup unexpectedly frozen"):
        other.create()
    first.thaw()
    other.create()


# ---------------------------------------------------------------- found again


def test_what_was_made_before_is_found_by_its_paths(make: Make, start: Start) -> None:
    made = make({}, every_controller=True)
    process = start(made, "sleep", "1000")
    again = reopen(detect(), made.paths())
    assert again.paths() == made.paths()
    assert again.pids() == {process.pid}
    assert enter(again, process.pid) == enter(made)
    again.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    again.remove()
    assert gone(made.paths())


def test_directories_that_are_gone_are_passed_over(make: Make, start: Start) -> None:
    cgroup = make({}, every_controller=True)
    paths = [*cgroup.paths(), cgroup.paths()[0] + "-never"]
    if not on_v2():
        missing = next(path for path in paths if "/blkio/" in path)
        os.rmdir(missing)
    again = reopen(detect(), paths)
    assert set(again.paths()) == {path for path in paths if Path(path).exists()}
    process = start(again, "sleep", "1000")
    assert again.pids() == {process.pid}
    again.kill()
    again.remove()
    # The container is gone: nothing to do, and nothing that fails.
    for empty in (again, reopen(detect(), paths), reopen(detect(), [])):
        assert empty.pids() == set()
        assert empty.is_frozen() is False
        empty.kill()
        empty.thaw() if empty.paths() else None
        empty.remove()


@pytest.mark.parametrize("path", ["/tmp", "{mount}/../../../../tmp", "{mount}/.", "."])
def test_a_path_elsewhere_is_refused(path: str) -> None:
    path = path.format(mount=detect().controllers["pids"].mount)
    with pytest.raises(SetupError, match="in no cgroup hierarchy mounted here"):
        reopen(detect(), [path])


@requires("cgroup v2")
def test_exec_follows_a_container_that_has_cgroups_of_its_own(make: Make, start: Start) -> None:
    """As systemd or dockerd in a container: then no process can be at its top."""
    cgroup = make({}, every_controller=True)
    (top,) = cgroup.paths()
    script = f"cd {top}; mkdir -p init/deep; echo $$ > init/cgroup.procs; echo +memory > cgroup."
    process = start(cgroup, "sh", "-c", script + "subtree_control; echo; exec sleep 1000")
    assert process.stdout
    assert process.stdout.readline() == "\n"
    again = reopen(detect(), cgroup.paths())
    assert enter(again, process.pid) == f"0::{top.removeprefix('/sys/fs/cgroup')}/init\n"


def test_exec_can_be_told_where(make: Make, start: Start) -> None:
    cgroup = make({}, every_controller=True)
    process = start(cgroup, "sleep", "1000")
    for path in cgroup.paths():
        if "/cpuset/" in path:  # v1's are empty otherwise
            Path(path, "cgroup.clone_children").write_text("1")
        os.makedirs(f"{path}/a/b")
    again = reopen(detect(), cgroup.paths())
    inside = enter(existing.within(again, ["/a/b"]), process.pid)
    assert inside.count("/a/b\n") == len(cgroup.paths())
    # Where it is told, it is not the first process's.
    assert enter(existing.within(again, ["/"]), process.pid) == enter(again)
    if not on_v2():
        inside = enter(existing.within(again, ["pids,memory:a", "name=systemd:a/b"]))
        moved = {line.split(":")[1] for line in inside.splitlines() if "/a" in line}
        assert moved == {"pids", "memory", "name=systemd"} & {"pids", "memory", *lines_of("self")}


@pytest.mark.parametrize(
    ("places", "why"),
    [
        (["../x"], "not a sub cgroup path"),
        (["a/../../x"], "not a sub cgroup path"),
        (["pids:../x"], "not a sub cgroup path"),
        (["a", "b"], "CONTROLLER: is missing"),
        (["a:b:c"], "expected PATH or CONTROLLER:PATH"),
        (["blub:a"], "no cgroup of controller 'blub'"),
    ],
)
def test_a_place_that_is_none_is_refused(make: Make, places: list[str], why: str) -> None:
    cgroup = make({}, every_controller=True)
    with pytest.raises(UsageError, match=why):
        existing.within(cgroup, places)


def test_a_place_that_is_not_there_is_refused(make: Make) -> None:
    cgroup = existing.within(make({}, every_controller=True), ["nowhere"])
    with pytest.raises(SetupError, match=r"cannot open .*/nowhere"):
        enter(cgroup)
    cgroup.close()


# ---------------------------------------------------------------- paused


def test_what_is_frozen_says_so(make: Make, start: Start) -> None:
    made = make({}, every_controller=True)
    process = start(made, "sh", "-c", "while :; do echo x; sleep 0.01; done")
    assert process.stdout
    out = process.stdout.fileno()
    again = reopen(detect(), made.paths())
    for _ in range(3):
        assert os.read(out, 100)
        assert not again.is_frozen()
        again.freeze()
        assert again.is_frozen()
        assert light.is_frozen(made.paths())
        again.freeze()  # once more is no error
        os.set_blocking(out, False)
        while select.select([out], [], [], 0)[0]:
            os.read(out, 1 << 16)
        assert select.select([out], [], [], 0.1)[0] == []
        os.set_blocking(out, True)
        again.thaw()
        assert not again.is_frozen()
        assert select.select([out], [], [], PATIENCE)[0] == [out]


FORKING = "while :; do sleep 0.05 & sh -c ':' & sleep 0.005; done"


def test_processes_that_fork_are_frozen(make: Make, start: Start) -> None:
    """On v1 the freezer can stay FREEZING while processes keep appearing."""
    cgroup = make({"pids": {"limit": 200}}, every_controller=True)
    for _ in range(3):
        start(cgroup, "sh", "-c", FORKING)
    until(lambda: len(cgroup.pids()) > 10)
    again = reopen(detect(), cgroup.paths())

    def states() -> set[str]:
        stats = [Path(f"/proc/{pid}/stat").read_text() for pid in cgroup.pids()]
        return {stat.rpartition(")")[2].split()[0] for stat in stats}

    for _ in range(10):
        again.freeze()
        before = cgroup.pids()
        # One that was woken by the last thaw, and has not run since, goes back to sleep.
        until(lambda: states() <= set("DSTZ"))
        assert cgroup.pids() == before
        again.thaw()


def test_what_the_container_froze_stays_frozen(make: Make, start: Start) -> None:
    """As a container paused by an engine inside of this one."""
    cgroup = make({}, every_controller=True)
    file = "cgroup.freeze" if on_v2() else "freezer.state"
    frozen, thawed = ("1", "0") if on_v2() else ("FROZEN", "THAWED")
    below = path_of(cgroup, file).parent / "below"
    below.mkdir()
    (below / file).write_text(frozen)
    cgroup.freeze()
    cgroup.thaw()
    assert (below / file).read_text().strip() == frozen
    assert not cgroup.is_frozen()
    assert light.is_frozen([str(below)])
    # One above that is frozen is not this one's doing.
    (below / file).write_text(thawed)
    cgroup.freeze()
    assert not light.is_frozen([str(below)])


def test_paused_processes_are_killed(make: Make, start: Start) -> None:
    cgroup = make({}, every_controller=True)
    process = start(cgroup, "sh", "-c", "sleep 1000 & sleep 1000 & exec sleep 1000")
    until(lambda: len(cgroup.pids()) == 3)
    cgroup.freeze()
    reopen(detect(), cgroup.paths()).kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert cgroup.pids() == set()


# ---------------------------------------------------------------- with os alone


def test_empty_cgroups_are_removed(make: Make, start: Start) -> None:
    cgroup = make({}, every_controller=True)
    for _ in range(10):
        process = start(cgroup, "true")
        process.wait(PATIENCE)
        assert light.remove([*cgroup.paths(), cgroup.paths()[0] + "-never"], PATIENCE) == []
        assert gone(cgroup.paths())
        cgroup.create()


def test_a_process_that_is_ending_is_waited_for(make: Make, start: Start) -> None:
    cgroup = make({}, every_controller=True)
    process = start(cgroup, "sleep", "1000")
    timer = threading.Timer(0.05, process.kill)
    timer.start()
    try:
        assert light.remove(cgroup.paths(), PATIENCE) == []
    finally:
        timer.join()


def test_what_has_processes_or_cgroups_is_left(make: Make, start: Start) -> None:
    cgroup = make({}, every_controller=True)
    paths = cgroup.paths()
    os.mkdir(f"{paths[0]}/below")
    assert light.remove(paths) == [paths[0]]
    os.rmdir(f"{paths[0]}/below")
    assert light.remove(paths) == []
    cgroup.create()
    process = start(cgroup, "sleep", "1000")
    assert light.remove(paths, 0.01) == paths
    assert cgroup.pids() == {process.pid}


def test_nothing_but_a_cgroup_is_removed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("empty")
    paths = [str(tmp_path / name) for name in ("empty", "file", "link", "file/below", "never")]
    assert light.remove(paths) == paths[:3]
    assert (tmp_path / "empty").is_dir()
    assert light.is_frozen(paths) is False


def test_little_is_loaded_for_it() -> None:
    code = "import sys, firkin.runtime.cgroups.light; print(*sys.modules)"
    line = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path = {sys.path!r}; {code}"]
    loaded = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()
    assert "firkin.runtime.cgroups.light" in loaded
    heavy = {"ctypes", "_ctypes", "enum", "re", "json", "struct", "firkin.linux.libc"}
    assert not heavy & set(loaded)


# ---------------------------------------------------------------- devices

NONE = {"allow": False, "access": "rwm"}


def char(allow: bool, major: int, minor: int, access: str = "rwm") -> dict[str, Any]:
    return {"allow": allow, "type": "c", "major": major, "minor": minor, "access": access}


STANDARD = [char(True, *number) for number in ((1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1))]
# What clients write into config.json.
LISTS: dict[str, list[dict[str, Any]]] = {
    "podman run": [NONE],
    "podman run --privileged": [{"allow": True, "access": "rwm"}],
    "podman run --device /dev/fuse --device-cgroup-rule 'c 42:* rmw'": [
        NONE,
        char(True, 10, 229),
        {"allow": True, "type": "c", "major": 42, "access": "rmw"},
    ],
    "docker run": [NONE, *STANDARD, char(False, 10, 229)],
    "docker run --device /dev/fuse --device-cgroup-rule 'c 42:* rmw'": [
        *(NONE, *STANDARD, char(False, 10, 229), char(True, 10, 229)),
        char(True, 42, -1, "rmw"),
    ],
    "ctr run": [NONE],
    "containerd's CRI": [
        NONE,
        {"allow": True, "type": "c", "access": "m"},
        {"allow": True, "type": "b", "access": "m"},
        *STANDARD,
        {"allow": True, "type": "c", "major": 136, "access": "rwm"},
        char(True, 5, 2),
    ],
    "privileged but for one": [{"allow": True, "access": "rwm"}, char(False, 1, 11)],
    "one again and again": [NONE, char(True, 1, 11, "r"), char(True, 1, 11), char(True, 1, 11)],
    "given and taken": [NONE, char(True, 1, 11), char(False, 1, 11, "w")],
    "all of one kind": [NONE, {"allow": True, "type": "b", "access": "rwm"}],
}


@requires("cgroup v1", "controller:devices")
@pytest.mark.parametrize("client", LISTS)
def test_the_kernel_gets_the_list_that_runc_gives_it(
    make: Make, runc: Runtime, busybox_root: Path, tmp_path: Path, name: str, client: str
) -> None:
    bundle = Bundle(tmp_path / "bundle", busybox_root)
    bundle.linux["cgroupsPath"] = f"{name}-runc"
    bundle.linux["resources"] = {"devices": LISTS[client]}
    runc.up(bundle)
    ours = make({"devices": LISTS[client]}, every_controller=True, device_control=True)
    file = path_of(ours, "devices.list")
    theirs = Path(f"{file.parent}-runc/devices.list")
    assert sorted(file.read_text().splitlines()) == sorted(theirs.read_text().splitlines())


# By list: what else than the standard devices may be opened, of these.
NODES = {"kmsg": (1, 11), "fuse": (10, 229), "tun": (10, 200), "null": (1, 3)}
OPENED = {
    "podman run --privileged": {"kmsg", "fuse", "tun", "null"},
    "podman run --device /dev/fuse --device-cgroup-rule 'c 42:* rmw'": {"fuse", "tun", "null"},
    "docker run --device /dev/fuse --device-cgroup-rule 'c 42:* rmw'": {"fuse", "tun", "null"},
    "privileged but for one": {"fuse", "tun", "null"},
    "one again and again": {"kmsg", "tun", "null"},
    "given and taken": {"kmsg", "tun", "null"},
}


@requires("capability:CAP_MKNOD")
@pytest.mark.parametrize("client", LISTS)
def test_devices_that_may_be_opened(make: Make, start: Start, tmp_path: Path, client: str) -> None:
    for node, number in NODES.items():
        os.mknod(tmp_path / node, 0o600 | 0o020000, os.makedev(*number))
    cgroup = make({"devices": LISTS[client]}, every_controller=True, device_control=True)
    # ENXIO and ENODEV: it may be opened, and this kernel has no driver for it.
    script = f"cd {tmp_path}; for n in {' '.join(NODES)}; do (: <$n) 2>&1 || :; done"
    process = start(cgroup, "sh", "-c", script)
    out, errors = process.communicate(timeout=PATIENCE)
    refused = set(re.findall(r"open (\w+): Operation not permitted", out))
    assert set(NODES) - refused == OPENED.get(client, {"tun", "null"}), out + errors


# ---------------------------------------------------------------- an ordinary user

USER = """
import sys
sys.path[:0] = [sys.argv[3]]
from firkin.errors import FirkinError
from firkin.runtime.cgroups import detect, open_cgroup
try:
    as_runc = {"every_controller": True, "reuse": True}
    cgroup = open_cgroup(detect(), sys.argv[1], eval(sys.argv[2]), **as_runc)
    print(type(cgroup).__name__, cgroup.paths(), cgroup.entries(), cgroup.directory_fd())
except FirkinError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("resources", "pattern"),
    [
        ({"devices": [NONE]}, r"NoCgroup \[\] \[\] None"),
        ({"pids": {"limit": 5}}, "no right to write .*run as root, or have a cgroup delegated"),
        ({"memory": {"limit": 64 * MIB}}, "no right to write .*have a cgroup delegated to you"),
    ],
)
def test_an_ordinary_user_has_no_cgroup(
    as_user: Any, name: str, tmp_path: Path, resources: Any, pattern: str
) -> None:
    from support.command import SHARED_PYTHON

    need("user:firkin-test")
    source = str(Path(SHARED_PYTHON).parents[2] / "tree" / "src")
    done = as_user(
        "firkin-test", [SHARED_PYTHON, "-c", USER, name, repr(resources), source], check=True
    )
    assert re.search(pattern, done.stdout), done.stdout


# ---------------------------------------------------------------- values the specification has


@pytest.mark.parametrize(
    ("resources", "old", "new"),
    [
        # Its own examples: nothing is refused that the kernel may take.
        (
            {"memory": {"limit": 64 * MIB, "reservation": 128 * MIB}},
            {"memory.soft_limit_in_bytes": str(128 * MIB)},
            {"memory.low": str(128 * MIB)},
        ),
        ({"memory": {"kernel": -1, "kernelTCP": -1}}, {}, {}),
        ({"cpu": {"burst": 10_000}}, {"cpu.cfs_burst_us": "10000"}, {"cpu.max.burst": "10000"}),
        # Docker's "not given".
        ({"memory": {"swappiness": (1 << 64) - 1}}, {"memory.swappiness": "60"}, {}),
    ],
)
def test_values(make: Make, resources: Any, old: dict[str, str], new: dict[str, str]) -> None:
    cgroup = make(resources, every_controller=True)
    cgroup.apply_memory()
    if "memory.swappiness" in old:
        old = {"memory.swappiness": Path("/proc/sys/vm/swappiness").read_text().strip()}
    for file, value in (new if on_v2() else old).items():
        assert text(cgroup, file) == value


@requires("cgroup v1")
def test_a_limit_on_kernel_memory_is_the_kernels_to_judge(make: Make) -> None:
    """dockerd passes it on; the kernel takes it and counts it in the whole (since 5.16)."""
    file = "memory.kmem.limit_in_bytes"
    if not Path(detect().controllers["memory"].mount, file).exists():
        with pytest.raises(Unsupported, match=rf"{file} does not exist"):
            make({"memory": {"kernel": 50 * MIB}}, every_controller=True)
        return
    cgroup = make({"memory": {"kernel": 50 * MIB, "limit": 64 * MIB}}, every_controller=True)
    cgroup.apply_memory()
    assert text(cgroup, "memory.limit_in_bytes") == str(64 * MIB)


@requires("controller:hugetlb")
def test_huge_pages_that_are_reserved_count(make: Make) -> None:
    limits = [{"pageSize": "2MB", "limit": 4 * MIB}]
    cgroup = make({"hugepageLimits": limits}, every_controller=True)
    if detect().controllers["hugetlb"].version == 1:
        files = ["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"]
    else:
        files = ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"]
    assert [text(cgroup, file) for file in files] == [str(4 * MIB)] * 2


@pytest.mark.parametrize(
    ("resources", "pattern"),
    [
        ({"network": {"classID": 1}}, "network.classID"),
        ({"network": {"priorities": [{"name": "lo", "priority": 1}]}}, "network.priorities"),
        ({"rdma": {"mlx5_1": {"hcaHandles": 3}}}, "rdma|names no device"),
        ({"memory": {"kernel": 50 * MIB}}, "memory.kernel"),
        ({"unified": {"cgroup.procs": "1"}}, "unified.cgroup.procs"),
        ({"unified": {"nothing.max": "1"}}, "unified"),
    ],
)
def test_what_cannot_be_had_is_refused(
    make: Make, start: Start, resources: Any, pattern: str
) -> None:
    mounted = set(detect().controllers)
    if "network" in resources and mounted & {"net_cls", "net_prio"}:
        resources, pattern = {"network": {"priorities": [{"name": "no", "priority": 1}]}}, "no"
    if "kernel" in pattern and not on_v2():
        resources = {"memory": {"kernel": -2}}
    with pytest.raises(FirkinError, match=pattern):
        start(make(resources, every_controller=True), sys.executable, "-c", "pass")


def test_the_walk_of_a_tree_sees_who_is_where(make: Make, start: Start) -> None:
    cgroup = make({}, every_controller=True)
    process = start(cgroup, "sleep", "1000")
    path = cgroup.paths()[0]
    os.makedirs(f"{path}/a/b")
    assert tree.members(path) == 1
    Path(path, "a/cgroup.procs").write_text(str(process.pid))
    assert tree.members(path) == 1
    fd = tree.find(path, process.pid)
    assert fd is not None
    assert os.readlink(f"/proc/self/fd/{fd}") == f"{path}/a"
    os.close(fd)
    assert tree.find(path, os.getpid()) is None
