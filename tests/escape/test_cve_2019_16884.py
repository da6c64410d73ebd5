"""CVE-2019-16884: a ``/proc`` that is not procfs, so that masks and labels go to a fake.

An image (or a volume) put something else in the place of ``/proc``, and runc
protected that instead of the kernel's own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.command import Firkin
from support.containers import refused


@pytest.mark.parametrize("where", ["proc", "sys"])
@pytest.mark.parametrize("target", ["/fake", "fake", "/", "/tmp/../fake"])
def test_a_link(firkin: Firkin, own_root: Path, where: str, target: str) -> None:
    (own_root / "fake/self").mkdir(parents=True)
    shutil.rmtree(own_root / where)
    (own_root / where).symlink_to(target)
    refused(firkin("run", own_root, "true"), f"/{where}")


def test_a_volume_in_its_place(firkin: Firkin, busybox_root: Path, tmp_path: Path) -> None:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/core_pattern").write_text("host\n")
    # Without /proc the container sees nothing of the kernel, and nothing to protect.
    done = firkin(
        "run", "-v", f"{tmp_path}:/proc", busybox_root, "sh", "-c", "ls /proc; ls /proc/self"
    )
    assert done.stdout.split() in ([], ["sys"]), done.stderr
    assert (tmp_path / "sys/kernel/core_pattern").read_text() == "host\n"
