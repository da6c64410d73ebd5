"""Namespaces of containers that an ordinary user runs: always below a user namespace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.command import Firkin, execute
from support.containers import refused, running
from support.namespace_cases import *  # noqa: F403 - the tests that hold for everyone
from support.namespace_cases import NEW, own
from support.requires import requires

UID, GID = os.getuid(), os.getgid()
IDS = "stat -c %u:%g /; id -u; id -g"


def ranges(path: str) -> list[int]:
    """Return this user's first subordinate range: first id and count."""
    name = Path.home().owner()
    for line in Path(path).read_text().splitlines():
        owner, *numbers = line.split(":")
        if owner in (name, str(UID)):
            return [int(number) for number in numbers]
    return []


def mapped(text: str) -> list[list[int]]:
    return [[int(number) for number in line.split()] for line in text.splitlines()]


@requires("subordinate ids")
def test_user_namespace_with_subordinate_ids(firkin: Firkin, busybox_root: Path) -> None:
    with running(firkin, image=busybox_root, script=IDS) as box:
        assert all(box.namespace(kind) != own(kind) for kind in (*NEW, "user"))
        for kind, number in (("uid", UID), ("gid", GID)):
            first, count = ranges(f"/etc/sub{kind}")
            rest = [1, first, min(count, 65535)]
            assert mapped(box.read(f"{kind}_map")) == [[0, number, 1], rest]
        assert f"Uid:\t{UID}\t{UID}\t" in box.read("status")
        assert box.output == ["0:0", "0", "0"]


@requires("subordinate ids")
def test_a_user_of_the_image_is_a_subordinate_id(firkin: Firkin, busybox_root: Path) -> None:
    with running(firkin, "-u", "alice", image=busybox_root, script="id -u") as box:
        first, _ = ranges("/etc/subuid")
        assert f"Uid:\t{first + 999}\t" in box.read("status")
        assert box.output == ["1000"]


@pytest.mark.parametrize("image", ["busybox", "host"])
def test_keep_id(firkin: Firkin, busybox_root: Path, tmp_path: Path, image: str) -> None:
    root = busybox_root if image == "busybox" else "host"
    options = ["--userns", "keep-id", "-v", f"{tmp_path}:/work"]
    script = "id -u; id -g; stat -c %u:%g /work; touch /work/new"
    with running(firkin, *options, image=root, script=script) as box:
        assert box.namespace("user") != own("user")
        assert f"Uid:\t{UID}\t{UID}\t" in box.read("status")
        assert box.output == [str(UID), str(GID), f"{UID}:{GID}"]
    status = (tmp_path / "new").stat()
    assert (status.st_uid, status.st_gid) == (UID, GID)


def test_no_user_namespace_is_refused(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", "--userns", "host", busybox_root, "true")
    refused(done, "without a user namespace", "leave out --userns host")


@requires("user namespaces")
def test_forbidden_user_namespaces(firkin: Firkin, busybox_root: Path) -> None:
    # The sysctl is one of the user namespace: the machine's own stays as it is.
    before = Path("/proc/sys/user/max_user_namespaces").read_text()
    script = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    inside = ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", script, "sh"]
    run = [firkin.command(), "run", str(busybox_root), "true"]
    done = execute([*inside, *run], env=firkin.env())
    refused(done, "user namespace", "user.max_user_namespaces is 0")
    assert Path("/proc/sys/user/max_user_namespaces").read_text() == before


def test_a_namespace_of_the_hosts_is_not_the_users_to_join(
    firkin: Firkin, busybox_root: Path
) -> None:
    done = firkin("run", "--net", "/proc/1/ns/net", busybox_root, "true")
    refused(done, "/proc/1/ns/net", "Permission denied")


@pytest.mark.parametrize("by", ["name", "path"])
def test_a_joined_user_namespace(firkin: Firkin, busybox_root: Path, by: str) -> None:
    with running(firkin, "--name", "first", image=busybox_root) as first:
        source = "container:first" if by == "name" else f"/proc/{first.pid}/ns/user"
        options = ["--userns", source]
        with running(firkin, *options, image=busybox_root, script="id -u") as other:
            assert other.namespace("user") == first.namespace("user") != own("user")
            assert other.output == ["0"]
