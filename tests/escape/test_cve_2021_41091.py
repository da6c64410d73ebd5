"""CVE-2021-41091: other users of the host executed what containers had made set-user-ID root.

Docker's folder let everybody pass through, so a program that root of a container
made set-user-ID, in its own layer, gave root on the host to who knew its path.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.command import Firkin
from support.containers import running
from support.requires import requires


@requires("user:firkin-test")
@pytest.mark.parametrize("options", [[], ["--userns", "auto"]], ids=["root", "user namespace"])
def test_no_other_user_reaches_what_a_container_wrote(
    firkin: Firkin,
    busybox_root: Path,
    as_user: Callable[..., subprocess.CompletedProcess[Any]],
    options: list[str],
) -> None:
    script = "cp /bin/busybox /suid; chmod 4755 /suid"
    with running(firkin, *options, image=busybox_root, script=script) as box:
        fields = box.mounts()["/"][2].split(",")
        upper = next(f.removeprefix("upperdir=") for f in fields if f.startswith("upperdir="))
        program = Path(upper, "suid")
        assert program.stat().st_mode & 0o4001 == 0o4001
        for command in (["test", "-e", str(program)], ["ls", str(program.parent)]):
            assert as_user("firkin-test", command).returncode != 0


@requires("user:firkin-test")
def test_no_other_user_reaches_what_an_archive_held(
    firkin: Firkin,
    busybox_tar: Path,
    as_user: Callable[..., subprocess.CompletedProcess[Any]],
    tmp_path: Path,
) -> None:
    with running(firkin, image=busybox_tar) as box:
        fields = box.mounts()["/"][2].split(",")
        lower = next(f.removeprefix("lowerdir=") for f in fields if f.startswith("lowerdir="))
        assert Path(lower, "bin/busybox").exists()
        assert as_user("firkin-test", ["test", "-e", f"{lower}/bin/busybox"]).returncode != 0
