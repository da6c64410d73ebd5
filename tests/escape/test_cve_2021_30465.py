"""CVE-2021-30465: exchanging a mount point with a link while the runtime mounts.

Two containers share a volume; one swaps a folder and a link to ``/`` in it
while the other is started with a mount point there. With paths joined as
strings, the mount lands on the host's side.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

from support import leftovers
from support.command import Firkin

ROUNDS = 12
RENAME_EXCHANGE = 2


def test_swapping_a_mount_point(firkin: Firkin, busybox_root: Path, tmp_path: Path) -> None:
    outside, volume = tmp_path / "outside", tmp_path / "volume"
    (volume / "folder/deep").mkdir(parents=True)
    (outside / "deep").mkdir(parents=True)
    (volume / "link").symlink_to("../" * 40 + str(outside).lstrip("/"))
    libc = ctypes.CDLL(None, use_errno=True)
    stop = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        one, other = os.fsencode(volume / "folder"), os.fsencode(volume / "link")
        while not stop.is_set():
            assert libc.renameat2(-100, one, -100, other, RENAME_EXCHANGE) == 0
            swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    started = 0
    try:
        for _ in range(ROUNDS):
            options = ["-v", f"{volume}:/v", "--tmpfs", "/v/folder/deep/new"]
            done = firkin("run", *options, busybox_root, "sh", "-c", "touch /v/folder/deep/new/x")
            assert "Traceback" not in done.stderr
            started += done.returncode == 0
    finally:
        stop.set()
        thread.join()
    assert swaps > ROUNDS
    # Neither made nor mounted outside, however the race went.
    assert os.listdir(outside / "deep") == []
    assert not any(str(outside) in line for line in leftovers.mountinfo())
