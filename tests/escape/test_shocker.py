"""Shocker (2014): opening the host's files by guessed handles, open_by_handle_at(2).

A handle of inode 2 is the root of an ext4 file system; CAP_DAC_READ_SEARCH,
which Docker then left to containers, opens it from any mount of that disk.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.attack import inside
from support.command import Firkin

CODE = """
class Handle(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_int), ("bytes", ctypes.c_ubyte * 64))
AT_FDCWD = -100
handle, mount = Handle(size=64), ctypes.c_int()
got = call("name_to_handle_at", AT_FDCWD, b"/v", ctypes.byref(handle), ctypes.byref(mount), 0)
if got < 0:  # the filter, or a file system without handles: make ext4's by hand
    handle.size, handle.kind, handle.bytes[0] = 8, 1, 2
fd = call("open_by_handle_at", os.open("/v", os.O_RDONLY), ctypes.byref(handle), 0)
print(errno.errorcode.get(-fd, "opened"))
"""


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--security-opt", "seccomp=unconfined"],
        ["--userns", "auto", "--security-opt", "seccomp=unconfined"],
    ],
)
def test_a_handle_can_not_be_opened(firkin: Firkin, tmp_path: Path, options: list[str]) -> None:
    done = inside(firkin, *options, "-v", f"{tmp_path}:/v", code=CODE)
    assert done.stdout == "EPERM\n", done.stderr


def test_it_works_with_the_capability(firkin: Firkin, tmp_path: Path) -> None:
    options = ["--cap-add", "DAC_READ_SEARCH", "-v", f"{tmp_path}:/v"]
    assert inside(firkin, *options, code=CODE).stdout == "opened\n"
