"""What firkin says to bad input, as root: one line, the right status, nothing left behind."""

from __future__ import annotations

import os
import shlex
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from support import cases_bad_input as cases
from support.cases_bad_input import Bad
from support.command import Firkin
from support.requires import requires

bad = cases.bad  # a fixture
TRUE = "{root} true"


@pytest.mark.parametrize(
    ("arguments", "status", "message"), cases.CASES.values(), ids=cases.CASES.keys()
)
def test_bad_input(bad: Bad, arguments: str, status: int, message: str) -> None:
    bad.refused(arguments, status, message)


@pytest.mark.parametrize("members", cases.CLIMBERS.values(), ids=cases.CLIMBERS.keys())
def test_an_archive_that_climbs(bad: Bad, members: list[tarfile.TarInfo]) -> None:
    cases.check_an_archive_that_climbs(bad, members)


def test_user_namespaces_forbidden(bad: Bad) -> None:
    cases.check_user_namespaces_forbidden(bad, "--userns keep-id")


@requires("user:firkin-nosub")
def test_no_subordinate_ids(
    bad: Bad, as_user: Callable[..., CompletedProcess[Any]], busybox_root: Path, tmp_path: Path
) -> None:
    """One user and one group are mapped; the others can't be had, and the mend says how."""
    own = tmp_path / "nosub"
    own.mkdir(mode=0o777)
    own.chmod(0o777)
    done = bad.firkin(
        "run",
        *("-u", "1000", busybox_root, "true"),
        user="firkin-nosub",
        env={"FIRKIN_STORE": f"{own}/store", "FIRKIN_STATE": f"{own}/state"},
    )
    bad.check(
        done,
        125,
        "cannot run with user id 1000: there are no subordinate ids, …; …usermod …",
    )
    assert not os.listdir(own / "state")


def test_a_state_directory_of_another(bad: Bad) -> None:
    bad.home.state.mkdir()
    os.chown(bad.home.state, 1000, 1000)
    bad.refused(TRUE, 125, "cannot use the state directory '{folder}/state': …; set FIRKIN_STATE …")


def test_a_state_directory_that_others_may_write(bad: Bad) -> None:
    bad.home.state.mkdir()
    bad.home.state.chmod(0o777)
    bad.refused(TRUE, 125, "cannot use the state directory '{folder}/state': …; set FIRKIN_STATE …")


def test_a_store_of_another(bad: Bad) -> None:
    bad.home.store.mkdir()
    os.chown(bad.home.store, 1000, 1000)
    bad.refused(
        TRUE, 125, "cannot use store '{folder}/store': it belongs to uid 1000; set FIRKIN_STORE …"
    )


def on_a_mount(bad: Bad, mount: str, arguments: str) -> CompletedProcess[str]:
    """Run firkin where *mount*, a shell's command, has been done for it alone."""
    words = [bad.firkin.command(), "run", *shlex.split(bad.fill_in(arguments))]
    script = f'{bad.fill_in(mount)} && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *words],
        env=bad.home.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_read_only_state_directory(bad: Bad) -> None:
    bad.home.state.mkdir()
    done = on_a_mount(bad, "mount -t tmpfs -o ro,mode=711 none {folder}/state", TRUE)
    bad.check(done, 125, "cannot …{folder}/state…: Read-only file system; set FIRKIN_STATE …")


def test_a_read_only_store(bad: Bad) -> None:
    bad.home.store.mkdir()
    done = on_a_mount(bad, "mount -t tmpfs -o ro,mode=711 none {folder}/store", TRUE)
    bad.check(done, 125, "cannot …{folder}/store…: Read-only file system…")


@pytest.mark.parametrize("limit", ["nr_inodes=6", "nr_inodes=12", "size=8k"])
def test_a_full_store(bad: Bad, limit: str) -> None:
    bad.home.store.mkdir()
    done = on_a_mount(bad, f"mount -t tmpfs -o {limit},mode=711 none {{folder}}/store", TRUE)
    bad.check(done, 125, "cannot …: No space left on device…")


def test_a_store_too_small_for_the_archive(bad: Bad, busybox_tar: Path) -> None:
    """More than is free is taken for an archive that means to fill the disk."""
    bad.home.store.mkdir()
    mount = "mount -t tmpfs -o size=512k,mode=711 none {folder}/store"
    done = on_a_mount(bad, mount, f"{busybox_tar} true")
    bad.check(done, 125, "cannot unpack …: the archive has more than … bytes of data")


def test_a_full_state_directory(bad: Bad) -> None:
    bad.home.state.mkdir()
    done = on_a_mount(bad, "mount -t tmpfs -o nr_inodes=2,mode=711 none {folder}/state", TRUE)
    bad.check(done, 125, "cannot …: No space left on device…")


def test_a_failed_start_leaves_no_cidfile(
    firkin: Firkin, busybox_root: Path, tmp_path: Path
) -> None:
    cidfile = tmp_path / "id"
    assert firkin("run", "--cidfile", cidfile, busybox_root, "no-such").returncode == 127
    assert not cidfile.exists()
    assert firkin("run", "--cidfile", cidfile, busybox_root, "true").returncode == 0
    assert len(cidfile.read_text()) == 64
