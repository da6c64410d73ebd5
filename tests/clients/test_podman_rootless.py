"""podman as an ordinary user, with ``firkin-runtime`` in runc's place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.box import status
from support.cases_podman import *  # noqa: F403
from support.cases_podman_options import *  # noqa: F403
from support.clients import RUNTIMES
from support.podman import IMAGE, Podman, session, use
from support.requires import requires

pytestmark = requires("ordinary user", "subordinate ids", "user namespaces")


@pytest.fixture(scope="module", params=RUNTIMES)
def shared_podman(
    request: pytest.FixtureRequest, session_folder: Path, busybox_tar: Path
) -> Iterator[Podman]:
    yield from session(request.param, session_folder, busybox_tar)


@pytest.fixture
def podman(shared_podman: Podman) -> Iterator[Podman]:
    yield from use(shared_podman)


def maps(pid: int, kind: str = "uid") -> list[list[int]]:
    """Return the lines of a process's ``uid_map`` or ``gid_map``."""
    text = Path(f"/proc/{pid}/{kind}_map").read_text()
    return [[int(word) for word in line.split()] for line in text.splitlines()]


def test_root_is_the_user(podman: Podman) -> None:
    """Without --userns: in the namespace that podman made for itself."""
    with podman.container() as box:
        assert box.status()["Uid"].split() == [str(os.getuid())] * 4
        assert maps(box.pid)[0] == [0, os.getuid(), 1]
        assert box.read("exec", "id", "-u") == "0\n"
        assert box.read("exec -u 1000", "id", "-u") == "1000\n"


def test_user_namespace_keep_id(podman: Podman, tmp_path: Path) -> None:
    """The user has the same id inside as outside, and so owns what is the user's."""
    options = f"--userns=keep-id -v {tmp_path}:/v"
    with podman.container(options) as box:
        assert box.namespace("user") != os.readlink("/proc/self/ns/user")
        own = [str(os.getuid())] * 4
        assert box.status()["Uid"].split() == own
        assert box.read("exec", "id", "-u") == f"{os.getuid()}\n"
        box.read("exec", "touch", "/v/file")
        assert (tmp_path / "file").stat().st_uid == os.getuid()
        # Its root is one of the subordinate ids.
        box.read("exec --detach -u 0", "sleep", "999")
        (first, second) = [line for line in maps(box.pid) if line[0] in (0, os.getuid())]
        assert first[1] != os.getuid()
        assert second[1:] == [os.getuid(), 1]
        assert box("exec", "touch", "/etc/file").returncode == 1


@pytest.mark.parametrize("mode", ["nomap", "auto"])
def test_user_namespace_of_subordinate_ids(podman: Podman, mode: str) -> None:
    """The user's own id is not in it at all."""
    with podman.container(f"--userns={mode}") as box:
        for _, outside, count in maps(box.pid):
            assert not outside <= os.getuid() < outside + count
        assert box.status()["Uid"].split()[0] == str(maps(box.pid)[0][1])
        assert box.read("exec", "id", "-u") == "0\n"
        box.read("exec", "touch", "/etc/file")
        assert Path(f"/proc/{box.pid}/root/etc/file").stat().st_uid == maps(box.pid)[0][1]


def test_user_namespace_of_chosen_ids(podman: Podman) -> None:
    options = "--uidmap=0:1:10 --uidmap=10:0:1 --gidmap=0:100:50"
    with podman.container(options) as box:
        base = maps(box.pid)[0][1]
        assert maps(box.pid) == [[0, base, 10], [10, os.getuid(), 1]]
        assert box.read("exec -u 10", "id", "-u") == "10\n"
        found = status(box.pid)
        assert found["Uid"].split()[0] == str(base)


def test_device(podman: Podman) -> None:
    """An ordinary user makes no devices: the host's is bound."""
    with podman.container("--device=/dev/zero:/dev/nothing") as box:
        found = os.stat(f"/proc/{box.pid}/root/dev/nothing")
        assert found.st_rdev == os.stat("/dev/zero").st_rdev
        assert box.read("exec", "head", "-c", "3", "/dev/nothing") == "\0\0\0"


def test_limits_are_not_promised(podman: Podman) -> None:
    """Without a cgroup of the user's, podman leaves limits away, and says so."""
    done = podman("run", "--rm", "--memory=64m", IMAGE, "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "ignored" in done.stderr
