"""Copy a working tree of git to a folder that every user can read.

    copy_tree.py SOURCE DESTINATION

Tracked files and untracked ones that git does not ignore; what is gone from the
source goes from the destination. Unchanged files are left alone, so that tests
that run from the copy meanwhile are not disturbed.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path


def wanted(source: Path) -> set[Path]:
    """Return the files of the tree, relative to *source*."""
    # safe.directory: root may copy a tree that another user cloned.
    git = ["git", "-c", "safe.directory=*", "-C", str(source)]
    listing = subprocess.run(
        [*git, "ls-files", "-coz", "--exclude-standard"], check=True, capture_output=True
    ).stdout
    names = (Path(os.fsdecode(name)) for name in listing.split(b"\0") if name)
    return {name for name in names if (source / name).is_file()}


def same(one: Path, other: Path) -> bool:
    """Tell whether *other* is a copy of *one*, by size, time and permissions."""
    try:
        a, b = one.stat(), other.lstat()
    except FileNotFoundError:
        return False
    return (a.st_size, a.st_mtime_ns, mode(a)) == (b.st_size, b.st_mtime_ns, b.st_mode & 0o7777)


def mode(status: os.stat_result) -> int:
    """Return permissions that let everyone read, and execute where the owner can."""
    return 0o755 if status.st_mode & stat.S_IXUSR else 0o644


def copy(source: Path, destination: Path) -> None:
    """Make *destination* a copy of the working tree *source*."""
    files = wanted(source)
    for name in sorted(files):
        original, twin = source / name, destination / name
        if same(original, twin):
            continue
        twin.parent.mkdir(parents=True, exist_ok=True)
        fresh = twin.with_name(f".{twin.name}.new")
        shutil.copyfile(original, fresh)
        status = original.stat()
        fresh.chmod(mode(status))
        os.utime(fresh, ns=(status.st_atime_ns, status.st_mtime_ns))
        fresh.replace(twin)
    for folder, _, names in os.walk(destination, topdown=False):
        if Path(folder).name == "__pycache__":
            continue
        for path in (Path(folder, leaf) for leaf in names):
            if path.relative_to(destination) not in files:
                path.unlink()
        # Byte code without its source could still be imported.
        rest = os.listdir(folder)
        if rest in ([], ["__pycache__"]):
            shutil.rmtree(folder)


if __name__ == "__main__":
    copy(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
