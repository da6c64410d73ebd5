"""CVE-2024-21626: a working directory of ``/proc/self/fd/N``, where N is a folder of the host.

runc left a descriptor of the host's cgroup file system open over the change of
directory, so that the command started outside its root.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.command import Firkin
from support.containers import refused

FDS = range(3, 14)


@pytest.mark.parametrize("fd", FDS)
def test_as_the_working_directory(firkin: Firkin, busybox_root: Path, fd: int) -> None:
    # A folder of the host's is open as each of them, as a careless caller may have it.
    host = os.open("/", os.O_RDONLY)
    try:
        done = firkin("run", "-w", f"/proc/self/fd/{fd}", busybox_root, "ls", "..", pass_fds=[host])
    finally:
        os.close(host)
    if done.returncode:
        refused(done, f"/proc/self/fd/{fd}")
    else:
        assert set(done.stdout.split()) <= {"proc", "bin", *os.listdir(busybox_root)}


def test_by_a_link_of_the_image(firkin: Firkin, own_root: Path) -> None:
    for fd in FDS:
        (own_root / f"dir{fd}").symlink_to(f"/proc/self/fd/{fd}/../../..")
        done = firkin("run", "-w", f"/dir{fd}", own_root, "/bin/pwd")
        refused(done, f"/dir{fd}")


def test_no_descriptor_of_the_host_is_open(firkin: Firkin, busybox_root: Path) -> None:
    host = os.open("/etc", os.O_RDONLY)
    try:
        script = "cd /proc/self/fd && for f in *; do readlink $f; done | grep -v ^pipe:"
        for options in ([], ["--init"]):
            done = firkin("run", *options, busybox_root, "sh", "-c", script, pass_fds=[host])
            assert set(done.stdout.split()) <= {"/dev/null", "/proc/1/fd", "/proc/2/fd"}, done
    finally:
        os.close(host)


def test_a_directory_that_climbs(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", "-w", "/tmp/../../../../..", busybox_root, "ls")
    assert sorted(done.stdout.split()) == sorted(os.listdir(busybox_root)), done.stderr
