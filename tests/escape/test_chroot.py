"""The classic way out of chroot(2): a second chroot below the working directory.

https://man7.org/linux/man-pages/man2/chroot.2.html: root "can escape from a
'chroot jail'" since chroot leaves the working directory where it is. It works
in a plain chroot; after pivot_root(2) there is nothing above the root.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.attack import PRELUDE, inside, outside
from support.command import Firkin

BREAK_OUT = """
os.makedirs("/tmp/jail", exist_ok=True)
os.chroot("/tmp/jail")
for _ in range(64):
    os.chdir("..")
os.chroot(".")
print(sorted(os.listdir("/"))[:1], os.path.exists(MARK))
"""


@pytest.fixture
def mark(tmp_path: Path) -> str:
    (tmp_path / "mark").touch()
    (tmp_path / "tmp").mkdir()
    return f"MARK = {str(tmp_path / 'mark')!r}\n"


def test_chroot_can_be_left(mark: str, tmp_path: Path) -> None:
    # The control: a jail that is only a chroot.
    assert PRELUDE
    jail = f"os.chroot({str(tmp_path)!r})\nos.chdir('/')\n"
    assert outside(mark + jail + BREAK_OUT).stdout.endswith("True\n")


def test_a_container_can_not(firkin: Firkin, mark: str) -> None:
    done = inside(firkin, code=mark + BREAK_OUT)
    assert done.stdout.endswith("False\n"), done.stderr
