"""Where the host has a device, for containers that can't make a node of their own.

Source: mknod(2), user_namespaces(7); udev(7) for the links by number.
"""

from __future__ import annotations

import os
import stat

from firkin.errors import ConfigError

# How far below /dev nodes are looked for: /dev/bus/usb/001/002 is the deepest of udev's.
_MAX_DEPTH = 4


def find(path: str, mode: int, number: int, field: str) -> str:
    """Return the path of the host's node of a device.

    Args:
        path: what the container calls it, which is what the host calls most.
        mode: with the type, ``S_IFCHR`` or ``S_IFBLK``.
        number: as ``os.makedev`` makes it.
        field: of the configuration, for the error.

    Raises:
        ConfigError: the host has no node of it.
    """
    kind = stat.S_IFMT(mode)
    by_number = "block" if kind == stat.S_IFBLK else "char"
    label = f"{os.major(number)}:{os.minor(number)}"
    for candidate in (path, f"/dev/{by_number}/{label}"):
        if _is(candidate, kind, number):
            return candidate
    found = _search("/dev", kind, number, _MAX_DEPTH)
    if not found:
        raise ConfigError(
            field,
            f"the host has no {by_number} device {label}",
            "in a user namespace only devices that /dev of the host has can be given",
        )
    return found


def _is(path: str, kind: int, number: int) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_IFMT(status.st_mode) == kind and status.st_rdev == number


def _search(folder: str, kind: int, number: int, depth: int) -> str:
    try:
        with os.scandir(folder) as entries:
            # Sorted, that the same machine always gives the same node.
            names = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return ""
    for entry in names:
        try:
            if entry.is_dir(follow_symlinks=False):
                found = _search(entry.path, kind, number, depth - 1) if depth > 1 else ""
                if found:
                    return found
            elif not entry.is_symlink() and _is(entry.path, kind, number):
                return entry.path
        except OSError:
            continue
    return ""
