"""Binds whose files have other owners in the container than on the host: idmapped mounts.

The parent makes them, for it takes CAP_SYS_ADMIN over the file system.

Source: runtime-spec config.md, "Linux mount options" and "POSIX-platform Mounts";
mount_setattr(2).
"""

from __future__ import annotations

import errno

from firkin.errors import ConfigError, SetupError
from firkin.linux import clone, libc, mount
from firkin.runtime import idmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firkin.init.plan import Mount, Plan
    from firkin.runtime.compiler import Opened

_MENDS = {
    errno.EPERM: "it takes root, and files that are not mapped already",
    errno.EINVAL: "its file system has no idmapped mounts",
    errno.ENOSYS: "Linux 5.12 is needed",
}


def map_ids(
    plan: Plan,
    linux: dict[str, Any],
    opened: Opened,
    mounts: list[tuple[Mount, dict[str, Any], str]],
) -> None:
    """Open the trees of *mounts* with their ids mapped.

    Args:
        plan: with its namespaces.
        linux: the section of the configuration, for the maps of a new user namespace.
        opened: takes the trees.
        mounts: each with its entry of the configuration, and the field where that stands.

    Raises:
        ConfigError: there is nothing to take the ids from, or it is no bind.
        SetupError: the kernel refused, or the file system can't.
    """
    # By their maps: one namespace does for all mounts that have the same.
    namespaces: dict[str, int] = {}
    for made, entry, field in mounts:
        if made.kind != "bind":
            raise ConfigError(f"{field}.options", "only the ids of a bind mount can be mapped")
        namespace = _namespace(plan, linux, opened, entry, field, namespaces)
        recursive = "ridmap" in (entry.get("options") or ())
        libc.because("a volume whose files belong to other ids in the container")
        try:
            made.tree_fd = opened.add(
                mount.open_tree(made.source, recursive=made.recursive, follow=not made.nofollow)
            )
            mount.mount_setattr(
                made.tree_fd,
                attr_set=mount.MOUNT_ATTR_IDMAP,
                userns_fd=namespace,
                recursive=recursive,
                at=made.source,
            )
        except OSError as error:
            raise SetupError(
                f"cannot map the ids of '{made.source}'",
                error.strerror or "",
                _MENDS.get(error.errno or 0, ""),
                step="map_ids",
                errno=error.errno or 0,
                path=made.source,
            ) from error


def _namespace(
    plan: Plan,
    linux: dict[str, Any],
    opened: Opened,
    entry: dict[str, Any],
    field: str,
    namespaces: dict[str, int],
) -> int:
    """Return a descriptor of a user namespace with the maps for *entry*."""
    maps = _maps(entry)
    if not maps.uids:
        for fd, flag, _ in plan.joins:
            if flag == clone.CLONE_NEWUSER:
                return fd
        if not plan.new_user:
            raise ConfigError(
                f"{field}.options",
                "there are no ids to map: no uidMappings, and no user namespace",
            )
        maps = _maps(linux)
    key = f"{maps.uids}{maps.gids}"
    if key not in namespaces:
        try:
            namespaces[key] = opened.add(idmap.holder(maps))
        except OSError as error:
            raise SetupError(
                f"cannot make a user namespace for {field}",
                error.strerror or "",
                step="map_ids",
                errno=error.errno or 0,
            ) from error
    return namespaces[key]


def _maps(section: dict[str, Any]) -> idmap.IdMaps:
    uids, gids = (
        [(m["containerID"], m["hostID"], m["size"]) for m in section.get(kind) or ()]
        for kind in ("uidMappings", "gidMappings")
    )
    return idmap.IdMaps(uids, gids)
