"""The Plan: everything the child needs, looked up and opened beforehand.

It holds ints (descriptors among them), strings, tuples and :class:`Mount` s of
these, and the function that loads the seccomp filter, so that the child parses
nothing and looks nothing of the host's up.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Mount:
    """One mount, in the terms of the calls that make it."""

    __slots__ = (
        "attr_clr",
        "attr_set",
        "data",
        "destination",
        "flags",
        "fstype",
        "kind",
        "propagation",
        "rec_clr",
        "rec_set",
        "recursive",
        "source",
        "tree_fd",
    )

    def __init__(self, kind: str, destination: str, source: str = "", fstype: str = "") -> None:
        # "mount" for a file system, "bind" for a tree of the host's, "symlink" for a
        # link (to source), "setattr" for new attributes of what is mounted there.
        self.kind = kind
        self.destination = destination  # inside the root, absolute
        self.source = source
        self.fstype = fstype
        self.recursive = False  # a bind takes the mounts below it too
        self.flags = 0  # MS_…
        self.data = ""
        self.attr_set = self.attr_clr = 0  # MOUNT_ATTR_…
        self.rec_set = self.rec_clr = 0
        self.propagation: tuple[int, ...] = ()  # MS_PRIVATE…, one call each
        self.tree_fd = -1  # a detached tree that the parent made, or -1


class Plan:
    """What :mod:`firkin.init.stages` carries out."""

    __slots__ = (
        "ambient",
        "args",
        "arguments_area",
        "bind_devices",
        "bounding",
        "cgroup_entries",
        "clone_flags",
        "cwd",
        "devices",
        "domainname",
        "effective",
        "env",
        "explain",
        "gid",
        "groups",
        "hostname",
        "inheritable",
        "init",
        "into_cgroup",
        "joined_user",
        "joins",
        "keep_fds",
        "last_cap",
        "loopback",
        "masked",
        "mounts",
        "new_cgroup",
        "new_user",
        "no_new_privs",
        "ns_gid",
        "ns_uid",
        "null_fd",
        "paths",
        "permitted",
        "personality",
        "readonly_paths",
        "readonly_root",
        "rlimits",
        "root",
        "root_propagation",
        "root_tree_fd",
        "seccomp",
        "set_groups",
        "sysctl",
        "terminal",
        "time_offsets",
        "uid",
        "umask",
        "unshare_flags",
        "watch_members",
        "window",
    )

    def __init__(self) -> None:
        # namespaces
        self.clone_flags = 0  # made by the clone itself
        self.unshare_flags = 0  # made by the child, while the parent works on its cgroup
        self.new_user = False
        self.joined_user = False
        # Who the child is inside it while it sets up: root, unless only another id is mapped.
        self.ns_uid = self.ns_gid = 0
        self.new_cgroup = False
        self.watch_members = False  # tell the parent the id of the mount namespace
        self.joins: tuple[tuple[int, int, str], ...] = ()  # (descriptor, flag, path)
        # v1: descriptors of the ``tasks`` files to write "0" to, to move in
        self.cgroup_entries: tuple[int, ...] = ()
        self.into_cgroup = -1  # a directory of cgroup v2 to be born in, or -1
        self.time_offsets: tuple[tuple[str, int, int], ...] = ()
        self.hostname = ""
        self.domainname = ""
        self.loopback = False
        self.sysctl: tuple[tuple[str, str], ...] = ()
        # root file system; root is "" where the mount namespace is not ours
        self.root = ""
        self.root_tree_fd = -1
        self.root_propagation = 0
        self.mounts: tuple[Mount, ...] = ()
        # (path, mode, device number, uid, gid); type is part of the mode
        self.devices: tuple[tuple[str, int, int, int, int], ...] = ()
        self.bind_devices = False  # in a user namespace nodes can't be made
        self.masked: tuple[str, ...] = ()
        self.readonly_paths: tuple[str, ...] = ()
        self.readonly_root = False
        # terminal
        self.terminal = False
        self.window = (0, 0)  # rows, columns
        self.null_fd = -1  # what standard input becomes, or -1: it stays
        # process
        self.args: tuple[str, ...] = ()
        self.env: tuple[str, ...] = ()
        self.paths: tuple[str, ...] = ()  # where the command is looked for
        self.cwd = "/"
        self.umask = -1
        self.uid = 0
        self.gid = 0
        self.groups: tuple[int, ...] = ()
        self.set_groups = True  # False where the user namespace forbids setgroups
        self.personality = -1
        self.rlimits: tuple[tuple[int, int, int], ...] = ()  # (resource, soft, hard)
        self.last_cap = 0
        self.bounding = self.effective = self.permitted = 0
        self.inheritable = self.ambient = 0
        self.no_new_privs = True
        self.seccomp: Callable[[], int] | None = None  # loads the filter
        self.keep_fds = 0  # descriptors 3 … 2+N are passed to the command
        self.init = False  # our reaper is pid 1
        self.arguments_area = (0, 0)  # where our own command line lies, for the reaper
        self.explain = False
