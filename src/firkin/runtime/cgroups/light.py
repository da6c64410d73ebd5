"""What a container's cgroup tells, and its removal, with :mod:`os` alone.

For commands that start, look and end: the kernel interface with ctypes costs more
to import than all that they do. What takes more is in the modules beside this one.
"""

from __future__ import annotations

import errno
import os
from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# What a cgroup's file gives when the cgroup is removed before the open, or after it.
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)

# A process leaves its cgroup a moment after its parent has waited for it, in seconds.
PATIENCE = 0.1
# How long FREEZING lasts, or the freezer is stuck; who asked for it tries again.
_FREEZING = 0.05


def is_frozen(paths: Iterable[str]) -> bool:
    """Whether the cgroup at *paths* has been frozen, itself and not one above it.

    Args:
        paths: the container's directories, one a hierarchy; those that are gone
            are passed over.

    Raises:
        OSError: a file can't be read.
    """
    # On v1 one of them can tell; most often it is named so.
    for path in sorted(paths, key=lambda path: "/freezer/" not in path):
        state = _settled(f"{path}/freezer.state")
        if state is not None:
            return state != "THAWED" and _read(f"{path}/freezer.self_freezing") != "0"
        state = _read(f"{path}/cgroup.freeze")
        # On a hybrid machine the unified directory is there as well as the freezer's.
        if state == "1":
            return True
    return False


def _settled(file: str) -> str | None:
    """The state of a v1 freezer, once it is no more ``FREEZING`` or takes too long."""
    end = 0.0
    while True:
        state = _read(file)
        if state != "FREEZING":
            return state
        now = monotonic()
        end = end or now + _FREEZING
        if now > end:
            return state
        sleep(0.001)


def remove(paths: Sequence[str], patience: float = PATIENCE) -> list[str]:
    """Remove the cgroups at *paths*, which have nothing in them any more.

    Args:
        paths: the container's directories; those that are gone are passed over.
        patience: how long to wait for processes that have just ended, in seconds.

    Returns:
        Those that are still there, because they have processes or cgroups below:
        :func:`firkin.runtime.cgroups.remove_paths` is for them. A directory that is
        no cgroup is among them, untouched.
    """
    left = []
    end = 0.0
    for path in paths:
        while True:
            # Only a cgroup has this file, and without it: rmdir takes any empty directory.
            if not os.path.exists(f"{path}/cgroup.procs"):
                if os.path.lexists(path):
                    left.append(path)
                break
            try:
                os.rmdir(path)
                break
            except FileNotFoundError:
                break
            except OSError as error:
                now = monotonic()
                end = end or now + patience
                # kernfs counts subdirectories as links: those do not end by waiting.
                if error.errno != errno.EBUSY or now > end or _links(path) > 2:
                    left.append(path)
                    break
            sleep(0.0005)
    return left


def _links(path: str) -> int:
    try:
        return os.stat(path).st_nlink
    except OSError:
        return 0


def _read(file: str) -> str | None:
    """The text of a small file without its end of line; None where it is gone."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    try:
        return os.read(fd, 64).decode().strip()
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    finally:
        os.close(fd)
