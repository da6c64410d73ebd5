"""Settings through which the kernel runs programs or stops the machine: core_pattern, sysrq.

``/proc/sys/kernel/core_pattern`` names a program that the host's kernel runs as
root when anything crashes. Open with ``--privileged``, which is the control.
"""

from __future__ import annotations

import pytest

from support.attack import inside
from support.command import Firkin

PATHS = ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger")
OPEN = f"""
print([tried(os.open, p, os.O_WRONLY) for p in {PATHS} if os.path.exists(p)])
MS_REMOUNT, MS_BIND = 32, 4096
print([errno.errorcode.get(-call("mount", b"", t, b"", MS_REMOUNT | MS_BIND, b""), "mounted")
       for t in (b"/proc/sys", b"/proc", b"/sys")])
os.mkdir("/tmp/p")
print([errno.errorcode.get(-call("mount", b"x", b"/tmp/p", t, 0, b""), "mounted")
       for t in (b"proc", b"sysfs", b"debugfs", b"securityfs", b"tmpfs")])
print([errno.errorcode.get(-call("umount2", t, 2), "unmounted")
       for t in (b"/proc/sys", b"/proc/kcore")])
"""


@pytest.mark.parametrize("options", [[], ["--init"], ["--security-opt=no-new-privileges=false"]])
def test_they_can_not_be_written(firkin: Firkin, options: list[str]) -> None:
    done = inside(firkin, *options, code=OPEN)
    opened, *others = done.stdout.splitlines()
    assert set(opened.strip("[]").split(", ")) == {"'EROFS'"}, done.stdout
    assert others == [str(["EPERM"] * n) for n in (3, 5, 2)], done.stderr


def test_seccomp_alone_does_not_protect(firkin: Firkin) -> None:
    # Without the filter, the lack of CAP_SYS_ADMIN refuses the same.
    done = inside(firkin, "--security-opt", "seccomp=unconfined", code=OPEN)
    assert "mounted" not in done.stdout
    # Nine or ten: not every kernel has /proc/kcore to unmount.
    assert done.stdout.count("EPERM") >= 9, done.stdout


def test_privileged_can(firkin: Firkin) -> None:
    code = f"print(type(tried(os.open, {PATHS[0]!r}, os.O_WRONLY)))"
    assert inside(firkin, "--privileged", code=code).stdout == "<class 'int'>\n"
