"""The root file system of containers that an ordinary user runs."""

from __future__ import annotations

import os
from pathlib import Path

from support.command import Firkin
from support.requires import requires
from support.rootfs_cases import *  # noqa: F403 - the tests that hold for everyone
from support.rootfs_cases import shell


@requires("subordinate ids")
def test_an_image_that_root_owns(firkin: Firkin, debian_root: Path) -> None:
    assert debian_root.stat().st_uid == 0
    script = "touch /new && echo x >/etc/new && grep -c '^root:' /etc/passwd"
    assert shell(firkin, debian_root, script) == ["1"]


@requires("subordinate ids")
def test_owners_in_an_archive_are_kept(firkin: Firkin, busybox_tar: Path) -> None:
    script = "stat -c %u:%g /home/alice; chown 1:1 /tmp; stat -c %u /tmp"
    assert shell(firkin, busybox_tar, script) == ["1000:1000", "1"]


def test_files_of_the_users_are_not_there(firkin: Firkin, tmp_path: Path) -> None:
    home = Path.home()
    (tmp_path / "secret").touch()
    script = f"ls -d {home} {tmp_path} /run/user 2>/dev/null; true"
    assert shell(firkin, "host", script) == []
    assert os.path.isdir(home)
