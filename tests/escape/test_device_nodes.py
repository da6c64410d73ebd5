"""Making a node of the host's disk or memory and reading it (the oldest way out of LXC).

CAP_MKNOD is in Docker's default set, so mknod(2) succeeds; the device cgroup
refuses to open what it made. It works with ``--privileged``.
"""

from __future__ import annotations

import os

import pytest

from support.attack import inside
from support.command import Firkin

# Any block device that is there, and what is never a container's: /dev/mem, /dev/kmsg.
DISK = os.stat(os.stat("/").st_dev and "/").st_dev
NODES = {
    "disk": ("S_IFBLK", os.major(DISK), os.minor(DISK)),
    "mem": ("S_IFCHR", 1, 1),
    "kmsg": ("S_IFCHR", 1, 11),
    "fuse": ("S_IFCHR", 10, 229),
}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("where", ["/tmp", "/dev"])
def test_a_node_can_not_be_opened(firkin: Firkin, name: str, where: str) -> None:
    kind, major, minor = NODES[name]
    code = f"""
path = {where!r} + "/node"
made = tried(os.mknod, path, 0o666 | stat.{kind}, os.makedev({major}, {minor}))
print(made, [tried(os.open, path, flags) for flags in (os.O_RDONLY, os.O_WRONLY)])
"""
    done = inside(firkin, code=code)
    assert done.stdout in ("None ['EPERM', 'EPERM']\n", "None ['EACCES', 'EACCES']\n"), done.stderr


def test_it_works_without_protection(firkin: Firkin) -> None:
    # The control, on /dev/kmsg: it is there on every machine, and opening it does nothing.
    code = """
tried(os.mknod, "/tmp/node", 0o666 | stat.S_IFCHR, os.makedev(1, 11))
print(type(tried(os.open, "/tmp/node", os.O_RDONLY)))
"""
    assert inside(firkin, "--privileged", code=code).stdout == "<class 'int'>\n"


def test_a_user_namespace_makes_no_nodes(firkin: Firkin) -> None:
    code = "print(tried(os.mknod, '/tmp/n', 0o666 | stat.S_IFCHR, os.makedev(1, 3)))"
    assert inside(firkin, "--userns", "auto", code=code).stdout == "EPERM\n"
