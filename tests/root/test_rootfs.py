"""The root file system of containers that root runs, and what only root can set up to test it."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command import Firkin, execute
from support.requires import need
from support.rootfs_cases import *  # noqa: F403 - the tests that hold for everyone
from support.rootfs_cases import digest, shell


@pytest.fixture
def markers() -> Iterator[list[Path]]:
    """Files with an unlikely name all over the host."""
    name = f"firkin-secret-{uuid.uuid4().hex}"
    folders = ("/root", "/home", "/home/firkin-test", "/var", "/var/tmp", "/run", "/etc", "/tmp")
    paths = [Path(folder, name) for folder in (*folders, "/opt/..", "/etc/ssl/private")]
    paths = [path for path in paths if path.parent.is_dir()]
    for path in paths:
        path.touch(0o644)
    yield paths
    for path in paths:
        path.unlink(missing_ok=True)


def test_files_of_the_host_are_not_there(firkin: Firkin, markers: list[Path]) -> None:
    script = f"find / -path /proc -prune -o -path /sys -prune -o -name {markers[0].name} -print"
    # The control: the same search finds them on the host.
    folders = [str(path.parent) for path in markers]
    found = execute(["find", *folders, "-maxdepth", "1", "-name", markers[0].name]).stdout
    assert len(found.splitlines()) == len(markers)
    assert shell(firkin, "host", script) == []


def test_an_image_of_root_run_by_an_ordinary_user(firkin: Firkin, busybox_root: Path) -> None:
    need("user:firkin-test")
    before = digest(busybox_root)
    # Below / only: the image's own folders belong to an id that the container lacks.
    script = "touch /new && ls -A /new; rm -r /home 2>/dev/null; true"
    done = firkin("run", busybox_root, "sh", "-c", script, user="firkin-test")
    assert (done.returncode, done.stdout) == (0, "/new\n"), done.stderr
    assert digest(busybox_root) == before


@pytest.mark.parametrize("user", ["firkin-test", "firkin-nosub"])
def test_the_host_base_for_ordinary_users(firkin: Firkin, user: str) -> None:
    need(f"user:{user}")
    done = firkin("run", "host", "python3", "-c", "print(open('/etc/hostname').read())", user=user)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- mounts that the host makes

PREPARE = """
set -e
mount -t tmpfs none "$SRC"; mkdir "$SRC/sub"; mount -t tmpfs none "$SRC/sub"
"""


def in_mount_namespace(
    firkin: Firkin, script: str, *arguments: str | os.PathLike[str], source: Path
) -> subprocess.CompletedProcess[Any]:
    """Run ``firkin run ARGUMENTS`` as ``"$@"`` of *script*, where mounts are shared and the test's.

    The namespace's own mounts are peers of each other, as systemd has them, and
    of nothing on the machine.
    """
    private = f"mount --make-rprivate / && mount --make-rshared / && {{ {script}\n}}"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", private, "sh"]
    run = [firkin.command(), "run", *(os.fspath(argument) for argument in arguments)]
    return execute([*command, *run], env=firkin.env() | {"SRC": str(source)})


@pytest.mark.parametrize(
    ("option", "written"),
    [
        ("-v{}:/v", ["top", "below"]),
        ("-v{}:/v:ro", []),
        ("-v{}:/v:rro", []),
        ("-v{}:/v:bind,ro", []),
        ("--mount=type=bind,src={},dst=/v,readonly", []),
        ("--mount=type=bind,src={},dst=/v,readonly,bind-recursive=writable", ["below"]),
    ],
)
def test_read_only_reaches_the_mounts_below(
    firkin: Firkin, busybox_root: Path, tmp_path: Path, option: str, written: list[str]
) -> None:
    touch = "touch /v/top 2>/dev/null; touch /v/sub/below 2>/dev/null; true"
    script = PREPARE + '"$@"; ls "$SRC" "$SRC/sub"'
    image = [option.format(tmp_path), busybox_root, "sh", "-c", touch]
    done = in_mount_namespace(firkin, script, *image, source=tmp_path)
    names = {line for line in done.stdout.split() if line in ("top", "below")}
    assert names == set(written), done.stderr


WATCH = "echo ready; read go; ls /v/late"
# The container's input ends only after the host has mounted.
FEED = """
mkfifo /tmp/in.$$ /tmp/out.$$
"$@" </tmp/in.$$ >/tmp/out.$$ & exec 8>/tmp/in.$$ 9</tmp/out.$$; rm /tmp/in.$$ /tmp/out.$$
read ready <&9
mkdir "$SRC/late"; mount -t tmpfs none "$SRC/late"; touch "$SRC/late/appeared"
echo go >&8; cat <&9; wait
"""


@pytest.mark.parametrize("mode", ["rslave", "rshared", "rprivate", ""])
def test_mounts_of_the_host_appear_only_where_asked_for(
    firkin: Firkin, busybox_root: Path, tmp_path: Path, mode: str
) -> None:
    volume = f"{tmp_path}:/v{':' if mode else ''}{mode}"
    run = ["-i", "-v", volume, busybox_root, "sh", "-c", WATCH]
    done = in_mount_namespace(firkin, PREPARE + FEED, *run, source=tmp_path)
    expected = "appeared" if mode in ("rslave", "rshared") else ""
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize(("mode", "reaches"), [("rshared", 1), ("rslave", 0), ("rprivate", 0)])
def test_mounts_of_the_container_reach_the_host_only_where_asked_for(
    firkin: Firkin, busybox_root: Path, tmp_path: Path, mode: str, reaches: int
) -> None:
    make = "mkdir /v/inside && mount -t tmpfs none /v/inside && mount -t tmpfs none /mnt"
    own = ["--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined"]
    run = [*own, "-v", f"{tmp_path}:/v:{mode}", "--tmpfs", "/mnt", busybox_root, "sh", "-c", make]
    count = 'before=$(grep -vc inside /proc/self/mountinfo); "$@" || echo failed; '
    count += 'grep -c "$SRC/inside" /proc/self/mountinfo || true; '
    count += "echo $(($(grep -vc inside /proc/self/mountinfo) - before))"
    done = in_mount_namespace(firkin, PREPARE + count, *run, source=tmp_path)
    assert done.stdout.split() == [str(reaches), "0"], done.stderr


def test_nothing_stays_mounted_where_the_host_shares_its_mounts(
    firkin: Firkin, busybox_root: Path, tmp_path: Path
) -> None:
    script = PREPARE + 'cat /proc/self/mountinfo >"$SRC/before"; "$@"; '
    script += 'cat /proc/self/mountinfo | cmp - "$SRC/before" && echo same'
    run = ["-v", f"{tmp_path}:/v", "--tmpfs", "/t", busybox_root, "true"]
    done = in_mount_namespace(firkin, script, *run, source=tmp_path)
    assert done.stdout == "same\n", done.stderr
