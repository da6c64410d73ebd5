"""That the search for leftovers finds each kind of thing that a container may leave."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import leftovers
from support.requires import cgroup_mounts


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "PATIENCE", 0.1)


@pytest.fixture
def before(session_folder: Path) -> leftovers.Snapshot:
    return leftovers.take(str(session_folder))


def left(before: leftovers.Snapshot, folder: Path) -> str:
    return "\n".join(leftovers.after(before, str(folder)))


def test_nothing_is_found_where_nothing_is(
    before: leftovers.Snapshot, session_folder: Path
) -> None:
    assert left(before, session_folder) == ""


def test_a_mount_is_found(before: leftovers.Snapshot, session_folder: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    try:
        assert f"{tmp_path} rw" in left(before, session_folder)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert left(before, session_folder) == ""


def test_a_mount_on_the_hosts_own_is_found(
    before: leftovers.Snapshot, session_folder: Path
) -> None:
    # In a mount namespace of its own: the machine's /dev/shm is not ours to cover.
    script = (
        "from support import leftovers; import subprocess, sys\n"
        "before = leftovers.take(sys.argv[1])\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'none', '/dev/shm'], check=True)\n"
        "print(leftovers.take(sys.argv[1]).since(before))\n"
    )
    unshare = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script]
    env = os.environ | {"PYTHONPATH": str(Path(leftovers.__file__).parents[1])}
    done = subprocess.run(
        [*unshare, session_folder], env=env, check=True, capture_output=True, text=True
    )
    assert "/dev/shm" in done.stdout
    assert left(before, session_folder) == ""


@pytest.mark.parametrize("how", ["child", "environment", "arguments", "mounts"])
def test_a_process_is_found(
    before: leftovers.Snapshot, session_folder: Path, tmp_path: Path, how: str
) -> None:
    mark = str(session_folder)
    # But for "child", the shell in between ends and the process is nobody's here.
    orphan = ["sh", "-c", '"$@" >/dev/null 2>&1 & echo $!', "sh"]
    mount = f"mount -t tmpfs none {tmp_path}; exec env -i sleep 1000"
    command = {
        "child": ["sleep", "1000"],
        "environment": [*orphan, "env", "-i", f"FIRKIN_STATE={mark}/x", "sleep", "1000"],
        "arguments": [*orphan, "env", "-i", "sh", "-c", "sleep 1000; :", mark],
        "mounts": [*orphan, "unshare", "--mount", "sh", "-c", mount],
    }[how]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={"PATH": os.environ["PATH"]}
    )
    pid = process.pid
    if how != "child":
        assert process.stdout
        pid = int(process.stdout.readline())
        process.wait()
    try:
        assert f"process: {pid} " in seen(before, session_folder, pid)
    finally:
        described = leftovers.kill_new(before, mark)
        if how == "child":
            process.wait()
        if process.stdout:
            process.stdout.close()
    assert "sleep" in described or "unshare" in described
    leftovers.PATIENCE = 5.0
    assert left(before, session_folder) == ""


def seen(before: leftovers.Snapshot, folder: Path, pid: int) -> str:
    """Look until *pid* shows, which has to execute something first."""
    for _ in range(100):
        found = left(before, folder)
        if f" {pid} " in found:
            return found
    return ""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    mounts = cgroup_mounts()
    path = Path(mounts.get("pids", mounts.get("unified", "")), f"firkin-{uuid.uuid4().hex}")
    path.mkdir()
    yield path
    if path.exists():
        path.rmdir()


def test_a_cgroup_is_found(session_folder: Path, cgroup: Path) -> None:
    here = leftovers.take(str(session_folder))
    assert str(cgroup) in here.cgroups
    cgroup.rmdir()
    assert str(cgroup) in "\n".join(here.since(leftovers.take(str(session_folder))))


def test_a_cgroup_of_somebody_else_is_not(session_folder: Path, cgroup: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        (cgroup / "cgroup.procs").write_text(str(process.pid))
        assert str(cgroup) not in leftovers.take(str(session_folder)).cgroups
        process.kill()
        process.wait()


def test_a_network_interface_is_found(before: leftovers.Snapshot, session_folder: Path) -> None:
    name = f"fk{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", f"{name}p"], check=True)
    try:
        assert f"interface: {name}\ninterface: {name}p" in left(before, session_folder)
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)


def test_a_mount_below_a_folder_is_taken_away_before_it(tmp_path: Path, busybox_root: Path) -> None:
    point = tmp_path / "a b"
    point.mkdir()
    subprocess.run(["mount", "--bind", busybox_root, point], check=True)
    leftovers.unmount_all(str(tmp_path))
    assert not list(point.iterdir())
    assert (busybox_root / "bin/sh").is_symlink()
