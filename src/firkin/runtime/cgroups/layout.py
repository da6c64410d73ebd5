"""Which cgroup hierarchies this machine has, where they are mounted, and where the caller is.

Read from ``/proc/self/cgroup`` and ``/proc/self/mountinfo`` (cgroups(7),
proc(5)), so that it also holds inside another container, where a mount shows
only a part of the hierarchy.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# Every controller's name up to Linux 7; other words among a v1 mount's options
# ("rw", "clone_children", "xattr") are not controllers.
V1_CONTROLLERS = frozenset(
    (
        *("cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "net_cls"),
        *("perf_event", "net_prio", "hugetlb", "pids", "rdma", "misc", "debug", "dmem"),
    )
)
# Without one of these on v1 the machine is one of v2, though another program may have mounted
# net_cls, say, for itself: only v1 has that.
_MAIN = frozenset(
    ("cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "pids", "hugetlb")
)


class Hierarchy:
    """One mounted cgroup hierarchy.

    Attributes:
        version: 1 or 2.
        mount: the mount point.
        controllers: the controllers on it; several share one hierarchy where co-mounted.
        own: the caller's own cgroup as a path below the mount point (``"/"`` for
            the mount's root), or ``None`` where the mount does not show it.
        option: what mounts it once more: v1's controllers, or the name of a
            hierarchy that has none (``name=systemd``).
    """

    __slots__ = ("controllers", "mount", "option", "own", "version")

    def __init__(
        self,
        version: int,
        mount: str,
        controllers: Iterable[str],
        own: str | None,
        option: str = "",
    ) -> None:
        self.version = version
        self.mount = mount
        self.controllers = tuple(controllers)
        self.own = own
        self.option = option or ",".join(self.controllers)


class Layout:
    """The hierarchies of this machine.

    Attributes:
        version: ``"v1"``, ``"v2"``, ``"hybrid"`` (controllers on v1 and a cgroup2
            mount beside them) or ``"none"``. Controllers that v2 never had do not count.
        hierarchies: the v1 hierarchies that have controllers, then the unified one.
        controllers: each controller's hierarchy.
        unified: the cgroup2 hierarchy, or ``None``.
        named: the v1 hierarchies that have a name and no controller, as systemd's own.
    """

    __slots__ = ("controllers", "hierarchies", "named", "unified", "version")

    def __init__(self, hierarchies: Iterable[Hierarchy], named: Iterable[Hierarchy] = ()) -> None:
        self.hierarchies = tuple(hierarchies)
        self.named = tuple(named)
        self.controllers = {c: h for h in self.hierarchies for c in h.controllers}
        self.unified = next((h for h in self.hierarchies if h.version == 2), None)
        old = any(h.version == 1 and not _MAIN.isdisjoint(h.controllers) for h in self.hierarchies)
        if self.unified:
            self.version = "hybrid" if old else "v2"
        else:
            self.version = "v1" if old else "none"


def detect() -> Layout:
    """Look at the machine.

    Raises:
        OSError: ``/proc`` is not mounted.
    """
    layout = parse(_read("/proc/self/cgroup"), _read("/proc/self/mountinfo"))
    unified = layout.unified
    if unified is None:
        return layout
    # Only the kernel knows which controllers the unified hierarchy has.
    try:
        unified.controllers = tuple(_read(unified.mount + "/cgroup.controllers").split())
    except OSError:  # hidden under another mount, or masked
        return Layout((h for h in layout.hierarchies if h is not unified), layout.named)
    return Layout(layout.hierarchies, layout.named)


def parse(memberships: str, mountinfo: str) -> Layout:
    """Build a Layout from the text of ``/proc/self/cgroup`` and ``/proc/self/mountinfo``.

    The unified hierarchy's controllers are left empty.
    """
    own: dict[str, str] = {}
    for line in memberships.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):  # "" for the unified hierarchy
            own[name] = path
    found: dict[tuple[str, ...], Hierarchy] = {}
    for line in mountinfo.splitlines():
        if " - cgroup" not in line:  # most of a busy machine's mounts
            continue
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        fields = left.split(" ")
        root, mount = _unescape(fields[3]), _unescape(fields[4])
        controllers: tuple[str, ...] = ()
        name = ""
        if kind == "cgroup":
            controllers = tuple(o for o in options.split(",") if o in V1_CONTROLLERS)
            if not controllers:  # name=systemd and the like hold no limits
                name = next((o for o in options.split(",") if o.startswith("name=")), "")
                if not name:
                    continue
        cgroup = own.get(controllers[0] if controllers else name)
        below = None if cgroup is None else _below(cgroup, root)
        key = controllers or (name,)
        known = found.get(key)
        # The same hierarchy may be mounted twice; prefer a mount that shows us.
        if known is None or (known.own is None and below is not None):
            found[key] = Hierarchy(1 if kind == "cgroup" else 2, mount, controllers, below, name)
    named = [h for h in found.values() if h.version == 1 and not h.controllers]
    rest = [h for h in found.values() if h not in named]
    # A stable sort: the v1 hierarchies in the machine's order, the unified one last.
    return Layout(sorted(rest, key=lambda h: h.version), named)


def _below(path: str, root: str) -> str | None:
    """The cgroup *path* as seen from a mount whose root is the cgroup *root*."""
    # "/.." in either: outside of our cgroup namespace, so nothing can be told.
    if path.startswith("/..") or root.startswith("/.."):
        return "/" if path == root else None
    if root == "/":
        return path
    if path == root or path.startswith(root + "/"):
        return path[len(root) :] or "/"
    return None


def _unescape(text: str) -> str:
    """Undo proc(5)'s octal escapes for space, tab, newline and backslash."""
    if "\\" not in text:
        return text
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        text = text.replace("\\" + code, character)
    return text


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    finally:
        os.close(fd)
    return os.fsdecode(b"".join(parts))
