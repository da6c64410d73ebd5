"""The cgroup of a container that is there already, for commands on it."""

from __future__ import annotations

import os

from firkin.errors import SetupError, UsageError
from firkin.runtime.cgroups import tree
from firkin.runtime.cgroups.directory import Directory
from firkin.runtime.cgroups.group import Cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from firkin.runtime.cgroups.layout import Hierarchy, Layout


def reopen(layout: Layout, paths: Iterable[str]) -> Cgroup:
    """See :func:`firkin.runtime.cgroups.reopen`."""
    directories = []
    freezer = None
    for path in paths:
        hierarchy = _hierarchy(layout, path)
        if hierarchy is None:
            if not os.path.lexists(path):
                continue
            raise SetupError(
                f"cannot use cgroup {path}", "it lies in no cgroup hierarchy mounted here"
            )
        directory = Directory(hierarchy, path)
        if "freezer" in hierarchy.controllers:
            freezer = directory  # made by the first freeze, perhaps
        if hierarchy.version == 1:
            if not os.path.isdir(path):
                continue
            directory.wanted += hierarchy.controllers
        else:
            try:
                directory.wanted += tree.read(f"{path}/cgroup.controllers").split()
            except FileNotFoundError:
                continue
        directories.append(directory)
    return Cgroup(directories, freezer=freezer)


def _hierarchy(layout: Layout, path: str) -> Hierarchy | None:
    """The hierarchy that *path* lies in, below its root; the innermost mount's."""
    if os.path.normpath(path) != path:
        return None
    found = [
        hierarchy
        for hierarchy in (*layout.hierarchies, *layout.named)
        if path.startswith(hierarchy.mount + "/")
    ]
    return max(found, key=lambda hierarchy: len(hierarchy.mount), default=None)


def within(cgroup: Cgroup, places: Sequence[str]) -> Cgroup:
    """The cgroups below *cgroup* that a process is to join: ``exec --cgroup``.

    Args:
        cgroup: the container's.
        places: ``PATH``, below each of its directories, or several
            ``CONTROLLER[,CONTROLLER]:PATH`` for v1. They must exist.

    Raises:
        UsageError: malformed, not below the container's cgroup, or of a controller that
            it has not.
    """
    moved = {id(directory): directory.path for directory in cgroup.directories}
    for place in places:
        names, colon, path = place.rpartition(":")
        what = f"cannot use --cgroup '{place}'"
        if ":" in names:
            raise UsageError(what, "expected PATH or CONTROLLER:PATH")
        if not colon and len(places) > 1:
            raise UsageError(what, "CONTROLLER: is missing before it")
        if ".." in path.split("/"):
            raise UsageError(what, "it is not a sub cgroup path")
        for name in names.split(",") if colon else ("",):
            chosen = [d for d in cgroup.directories if not colon or _has(d, name)]
            if not chosen:
                raise UsageError(what, f"the container has no cgroup of controller '{name}'")
            for directory in chosen:
                moved[id(directory)] = os.path.normpath(f"{directory.path}/{path}")
    below = []
    for directory in cgroup.directories:
        new = Directory(directory.hierarchy, moved[id(directory)])
        new.wanted = directory.wanted
        below.append(new)
    return Cgroup(below)


def _has(directory: Directory, name: str) -> bool:
    return name in (*directory.wanted, directory.hierarchy.option)
