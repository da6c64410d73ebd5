"""Control groups: one small interface over cgroup v1, v2 and hybrid machines.

How the parent process uses it::

    cgroup = open_cgroup(detect(), "/firkin-ID", resources)
    cgroup.check()              # all that can be refused, before anything starts
    cgroup.create()
    cgroup.apply()              # every limit but memory's
    ... fork; the child joins ...
    cgroup.apply_memory()       # last, so that a small limit spares the child's own set-up
    ... run ...
    cgroup.kill(); cgroup.remove()

Another process finds it again by what :meth:`paths` returned::

    cgroup = reopen(detect(), paths)
    cgroup.update(resources); cgroup.freeze(); stats.read(cgroup); oom.Watcher(cgroup)

and :mod:`.light` removes it, or tells whether it is frozen, without loading any of this.

A child joins in one of two ways:

- ``clone3`` with ``CLONE_INTO_CGROUP`` and :meth:`directory_fd` where that is not
  ``None``, and writes ``b"0"`` to each descriptor of :meth:`entries` itself. Fast: nothing waits.
- :meth:`join` by the parent. Moving another process makes the kernel wait for
  an RCU grace period (``cgroup_threadgroup_rwsem``), 5 to 15 ms on an idle machine.
"""

from __future__ import annotations

from firkin.runtime.cgroups.layout import Layout, detect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from firkin.runtime.cgroups.group import Cgroup
    from firkin.runtime.cgroups.none import NoCgroup

__all__ = ["Layout", "detect", "open_cgroup", "remove_paths", "reopen"]


def open_cgroup(
    layout: Layout,
    path: str,
    resources: dict[str, Any],
    *,
    device_control: bool = True,
    every_controller: bool = False,
    reuse: bool = False,
) -> Cgroup | NoCgroup:
    """Prepare a container's cgroup; nothing is created yet.

    Args:
        layout: what :func:`detect` returned.
        path: OCI's ``linux.cgroupsPath``. Absolute: from the root of the mounted
            hierarchy. Relative: on v1 below the caller's own cgroup; on v2 beside it
            (below its parent), as in runc, since a v2 cgroup with processes
            cannot give its children controllers. The last part is created, and
            must not exist; parts above it are created where missing, and stay.
        resources: OCI's ``linux.resources``.
        device_control: ``False`` where the container has a user namespace of its
            own: it cannot make device nodes there. It is also off for a
            caller that is an ordinary user, or is itself in a user namespace, as in runc.
        every_controller: for the OCI runtime: a directory in each hierarchy of the
            machine and on v2 each controller, needed or not, as in runc, since its
            clients read statistics wherever ``/proc/PID/cgroup`` points. What no
            limit needs and can't be had is passed over. Limits are judged by the kernel
            alone, and ``/dev/net/tun`` may be opened, as in runc.
        reuse: take a cgroup that exists if no process is in it, as runc does.

    Returns:
        A cgroup; or one that does nothing, where no limit needs one and none can be created.

    Raises:
        ConfigError: the path or a limit is malformed or contradicts another.
        Unsupported: a limit that this cgroup version does not have.
    """
    from firkin.runtime.cgroups.prepare import prepare

    return prepare(
        layout,
        path,
        resources,
        device_control=device_control,
        every_controller=every_controller,
        reuse=reuse,
    )


def reopen(layout: Layout, paths: Iterable[str]) -> Cgroup:
    """The cgroup of a container that was made before, by another process perhaps.

    Args:
        layout: what :func:`detect` returned.
        paths: what :meth:`Cgroup.paths` returned.

    Returns:
        A cgroup for all but :meth:`Cgroup.create` and what sets the limits at first.
        Directories that are gone are left out.

    Raises:
        SetupError: a path lies in none of the hierarchies mounted here.
    """
    from firkin.runtime.cgroups import existing

    return existing.reopen(layout, paths)


def remove_paths(paths: Iterable[str]) -> None:
    """Kill what runs in the cgroups at *paths* and remove them: what a sweep does.

    Args:
        paths: absolute directories, as :meth:`Cgroup.paths` returned them; those
            that are gone are passed over.

    Raises:
        SetupError: a path does not lie within a cgroup file system (then nothing
            was touched), or processes are still there.
        OSError: a cgroup may not be removed.
    """
    from firkin.runtime.cgroups import tree

    tree.remove_paths(paths)
