"""A new user namespace inside gives all capabilities over the kernel's network and mount code.

The first step of many kernel exploits (CVE-2022-0185, CVE-2022-25636). Docker's
default profile refuses unshare(2), clone(2) and clone3(2) with namespace flags.
"""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from support.attack import inside
from support.command import Firkin
from support.requires import requires

FLAGS = {"user": 0x10000000, "mnt": 0x20000, "net": 0x40000000, "pid": 0x20000000}
CODE = """
flag = {flag}
clone = 220 if os.uname().machine == "aarch64" else 56
print(errno.errorcode.get(-call("unshare", flag)),
      errno.errorcode.get(-call("syscall", clone, flag | 17, 0, 0, 0, 0)),
      errno.errorcode.get(-call("syscall", 435, None, 0)),
      errno.errorcode.get(-call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0)))
"""


@pytest.mark.parametrize("kind", FLAGS)
@pytest.mark.parametrize("options", [[], ["-u", "1000"], ["--userns", "auto"]])
def test_it_is_refused(firkin: Firkin, kind: str, options: list[str]) -> None:
    done = inside(firkin, *options, code=CODE.format(flag=FLAGS[kind]))
    # clone3 seems not to exist, so that C libraries fall back to clone.
    assert done.stdout == "EPERM EPERM ENOSYS EPERM\n", done.stderr


@requires("user namespaces")
def test_it_works_without_the_filter(firkin: Firkin, busybox_root: Path) -> None:
    assert platform.system() == "Linux"
    open_ = ["--security-opt", "seccomp=unconfined", "-u", "1000"]
    done = firkin("run", *open_, busybox_root, "unshare", "-U", "echo", "in")
    assert done.stdout == "in\n", done.stderr
