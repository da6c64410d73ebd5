"""Who ``-u NAME|UID[:GROUP|GID]`` is, by the container's own ``/etc/passwd`` and ``/etc/group``.

The rules are those of Docker and runc (``GetExecUser`` in github.com/moby/sys/user):

- a name must stand in the file; a number need not, and is never taken for a name;
- of several entries the first wins;
- without a group: the group of the user's passwd entry, else 0, and every group
  that lists the user as a member;
- with a group: that one, and no other.

Unlike there, a line whose ids are not numbers is skipped; runc reads such an id as 0.
"""

from __future__ import annotations

import errno
import os

from firkin.errors import UsageError
from firkin.linux import paths

# A real passwd file with 100000 users has 6 MB.
_FILE_LIMIT = 16 << 20
# (uid_t) -1 means "unchanged" to setresuid(2) and chown(2).
MAX_ID = 2**32 - 2
# NGROUPS_MAX of setgroups(2).
_MAX_GROUPS = 65536


class User:
    """A user of a container: numeric ids, supplementary *groups*, and what HOME is to be."""

    __slots__ = ("gid", "groups", "home", "name", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str, name: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home
        self.name = name  # empty for a uid without an entry


def lookup_user(root_fd: int, spec: str) -> User:
    """Find the user *spec* in the container whose root directory is *root_fd*.

    Args:
        root_fd: the root directory; links in it are followed inside it only.
        spec: ``NAME|UID[:GROUP|GID]``; an empty user means uid 0, as for Docker.

    Raises:
        UsageError: an unknown name, an id outside 0..2**32-2, a malformed *spec*, or
            files that cannot be read.
    """
    user_part, colon, group_part = spec.partition(":")
    if ":" in group_part or "\0" in spec or (colon and not group_part):
        raise UsageError(f"cannot run as user '{spec}'", "expected NAME|UID[:GROUP|GID]")
    uid = _number(spec, user_part or "0")
    gid = _number(spec, group_part) if group_part else None

    user = User(0 if uid is None else uid, 0, [], "/", "")
    for fields in _entries(root_fd, spec, "etc/passwd", 6):
        entry_uid, entry_gid = _id(fields[2]), _id(fields[3])
        if entry_uid is None or entry_gid is None:
            continue
        if entry_uid == uid if uid is not None else fields[0] == user_part:
            user = User(entry_uid, entry_gid, [], fields[5] or "/", fields[0])
            break
    else:
        if uid is None:
            raise UsageError(f"cannot run as user '{spec}'", "not in the container's /etc/passwd")

    if gid is not None:
        user.gid = gid
    elif group_part:
        user.gid = _named_group(root_fd, spec, group_part)
    elif user.name:
        user.groups = _groups_of(root_fd, spec, user.name)
    return user


def _named_group(root_fd: int, spec: str, name: str) -> int:
    for fields in _entries(root_fd, spec, "etc/group", 3):
        gid = _id(fields[2])
        if gid is not None and fields[0] == name:
            return gid
    raise UsageError(
        f"cannot run as user '{spec}'", f"group '{name}' is not in the container's /etc/group"
    )


def _groups_of(root_fd: int, spec: str, name: str) -> list[int]:
    found: dict[int, None] = {}
    for fields in _entries(root_fd, spec, "etc/group", 4):
        gid = _id(fields[2])
        if gid is not None and name in fields[3].split(","):
            found[gid] = None
    if len(found) > _MAX_GROUPS:
        raise UsageError(
            f"cannot run as user '{spec}'",
            f"in {len(found)} groups of the container's /etc/group; the kernel allows "
            f"{_MAX_GROUPS}",
        )
    return list(found)


def _number(spec: str, text: str) -> int | None:
    """Return the id that *text* is, or None if it is a name."""
    if not (text.isascii() and text.isdigit()):
        return None
    number = _id(text)
    if number is None:
        raise UsageError(f"cannot run as user '{spec}'", f"ids go from 0 to {MAX_ID}")
    return number


def _id(text: str) -> int | None:
    # The length first: int() refuses, or takes long over, thousands of digits.
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        return None
    number = int(text)
    return number if number <= MAX_ID else None


def _entries(root_fd: int, spec: str, path: str, fields: int) -> list[list[str]]:
    """Return the lines of a passwd-like file that have at least *fields* fields."""
    try:
        data = paths.read_in_root(root_fd, path, _FILE_LIMIT)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        why = f"more than {_FILE_LIMIT >> 20} MiB" if error.errno == errno.EFBIG else error.strerror
        raise UsageError(
            f"cannot run as user '{spec}'", f"cannot read the container's /{path}: {why}"
        ) from None
    entries = []
    for line in data.split(b"\n"):
        parts = os.fsdecode(line.strip()).split(":")
        if len(parts) >= fields and "\0" not in parts[0] and "\0" not in parts[-1]:
            entries.append(parts)
    return entries
