"""CVE-2022-0492: cgroup v1's ``release_agent``, a program that the host's kernel runs as root.

A container that can write it, in a hierarchy shown to it or in one that it
mounts itself from a new user namespace, runs anything on the host.
"""

from __future__ import annotations

import pytest

from support.attack import inside
from support.command import Firkin
from support.requires import requires

WRITE = """
import glob
agents = glob.glob("/sys/fs/cgroup/**/release_agent", recursive=True)
agents += glob.glob("/sys/fs/cgroup/*/notify_on_release")
print([tried(os.open, path, os.O_WRONLY) for path in agents if path[-5:] == "agent"])
print({tried(os.open, path, os.O_WRONLY) for path in agents} - {"EROFS"})
print([tried(os.mkdir, path + "/new") for path in glob.glob("/sys/fs/cgroup/*")][:1])
"""
MOUNT = """
os.mkdir("/tmp/c")
print([errno.errorcode.get(-call("mount", b"c", b"/tmp/c", b"cgroup", 0, o), "mounted")
       for o in (b"rdma", b"memory", b"none,name=firkin-escape")])
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWCGROUP = 0x10000000, 0x20000, 0x2000000
print([errno.errorcode.get(-call("unshare", flag), "unshared")
       for flag in (CLONE_NEWUSER | CLONE_NEWNS, CLONE_NEWCGROUP)])
print([errno.errorcode.get(-call("mount", b"", t, b"", 32 | 4096, b""), "mounted")  # remount, bind
       for t in (b"/sys/fs/cgroup", b"/sys/fs/cgroup/memory")])
"""


@requires("cgroup v1")
def test_release_agent_can_not_be_written(firkin: Firkin) -> None:
    done = inside(firkin, code=WRITE)
    _, others, made = done.stdout.splitlines()
    assert (others, made) == ("set()", "['EROFS']"), done.stdout + done.stderr


@pytest.mark.parametrize("user", ["0", "1000"])
def test_no_hierarchy_can_be_mounted(firkin: Firkin, user: str) -> None:
    done = inside(firkin, "-u", user, code=MOUNT)
    assert "mounted" not in done.stdout
    assert "unshared" not in done.stdout
    assert done.stdout.count("EPERM") == 7, done.stdout + done.stderr
