"""What a container with mapped ids needs from the parent, beyond the maps themselves."""

from __future__ import annotations

import os

from firkin.errors import SetupError
from firkin.linux import libc, mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.init.plan import Plan
    from firkin.runtime.compiler import Opened
    from firkin.runtime.idmap import IdMaps


def apply_maps(plan: Plan, maps: IdMaps) -> None:
    """Say in *plan* who its child is inside the user namespace of *maps*, new or joined."""
    plan.ns_uid, plan.ns_gid = maps.first_ids()
    can_deny = os.geteuid() != 0 or plan.joined_user
    plan.set_groups = not (can_deny and maps.is_single())


def open_binds(plan: Plan, opened: Opened) -> None:
    """Open the sources of binds that the container's root, another user outside, may not reach."""
    for entry in plan.mounts:
        # The container's cgroup is still to be made, and anyone may open it.
        if entry.kind != "bind" or entry.fstype == "cgroup" or entry.tree_fd >= 0:
            continue
        libc.because("a volume that only the host's root may open")
        try:
            tree = mount.open_tree(
                entry.source, recursive=entry.recursive, follow=not entry.nofollow
            )
        except OSError as error:
            raise SetupError(f"cannot mount '{entry.source}'", error.strerror or "") from error
        entry.tree_fd = opened.add(tree)
