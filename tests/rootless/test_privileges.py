"""Rights of an ordinary user's containers; most is in ``support/cases_privileges.py``."""

from __future__ import annotations

from pathlib import Path

from support.cases_privileges import Cases
from support.command import Firkin
from support.requires import requires
from support.running import Running

pytestmark = requires("user namespaces")


class TestPrivileges(Cases):
    """As :class:`Cases`, in a user namespace."""


def test_capabilities_hold_in_the_user_namespace_only(firkin: Firkin, busybox_root: Path) -> None:
    with Running(firkin, busybox_root, "--privileged") as box:
        assert box.proc("uid_map").split()[:2] != ["0", "0"]
        assert box.status("Uid").split()[0] != "0"
    done = firkin("run", "--privileged", busybox_root, "sh", "-c", "mknod /tmp/x b 254 0")
    assert done.returncode == 1
    assert "not permitted" in done.stderr
