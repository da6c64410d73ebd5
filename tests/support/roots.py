"""Test roots: BusyBox's, made in milliseconds, and Debian's, made by ``tools/make_roots``."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

CACHE = Path("/var/cache/firkin-test/roots")
DEBIAN_FOLDER = CACHE / "debian"
DEBIAN_ARCHIVE = CACHE / "debian.tar.zst"

SYSTEM = ("bin", "dev", "etc", "lib", "proc", "root", "run", "sbin", "sys", "tmp")
OTHERS = ("home", "home/alice", "usr", "usr/bin", "usr/sbin", "var", "var/tmp")
PASSWD = """\
root:x:0:0:root:/root:/bin/sh
alice:x:1000:1000:Alice:/home/alice:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
# alice is also in staff, by the fourth field.
GROUP = """\
root:x:0:
staff:x:50:alice
alice:x:1000:
nogroup:x:65534:
"""


def make_busybox_root(folder: Path) -> Path:
    """Make a root file system of BusyBox in *folder*, and return it.

    All applets are links in ``/bin``; the users are root, alice (1000:1000, also
    in group staff, 50) and nobody. Nothing is mounted in it.
    """
    busybox = shutil.which("busybox")
    assert busybox, "busybox is not installed; Debian's package is busybox-static"
    for name in (*SYSTEM, *OTHERS):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name).chmod(0o755)
    for name in ("tmp", "var/tmp"):
        (folder / name).chmod(0o1777)
    shutil.copy(busybox, folder / "bin/busybox")
    (folder / "bin/busybox").chmod(0o755)
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            (folder / "bin" / applet).symlink_to("busybox")
    for name, text in {"passwd": PASSWD, "group": GROUP, "hostname": "busybox\n"}.items():
        (folder / "etc" / name).write_text(text)
        (folder / "etc" / name).chmod(0o644)
    if os.geteuid() == 0:
        os.chown(folder / "home/alice", 1000, 1000)
    return folder


def pack(folder: Path, archive: Path) -> Path:
    """Pack *folder* into *archive*, a ``.tar.gz``."""

    def as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
        alice = member.name.startswith("./home/alice")
        member.uid = member.gid = 1000 if alice else 0
        member.uname = member.gname = "alice" if alice else "root"
        return member

    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, ".", filter=as_root)
    return archive
