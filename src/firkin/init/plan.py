"""The Plan: everything the child needs, looked up and opened beforehand.

It holds ints (descriptors among them), strings, tuples and :class:`Mount` s of
these, and the function that loads the seccomp filter, so that the child parses
nothing and looks nothing of the host's up.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firkin.init.hooks import Hook


class Mount:
    """One mount, in the terms of the calls that make it."""

    __slots__ = (
        "attr_clr",
        "attr_set",
        "copy_up",
        "data",
        "destination",
        "flags",
        "fstype",
        "kind",
        "nofollow",
        "onto_link",
        "propagation",
        "rec_clr",
        "rec_set",
        "recursive",
        "source",
        "tree_fd",
    )

    def __init__(self, kind: str, destination: str, source: str = "", fstype: str = "") -> None:
        # "mount" for a file system, "bind" for a tree of the host's, "symlink" for a
        # link (to source); of what is mounted there, "setattr" for new attributes and
        # "remount" for new options.
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
        self.nofollow = False  # a source that is a link is bound itself
        self.onto_link = False  # a destination that is a link is mounted on itself
        self.copy_up = False  # a tmpfs begins with what it covers


class Plan:
    """What :mod:`firkin.init.stages` carries out."""

    __slots__ = (
        "affinity",
        "ambient",
        "args",
        "arguments_area",
        "bind_devices",
        "bounding",
        "cgroup_entries",
        "clone_flags",
        "create_hooks",
        "cwd",
        "detached",
        "devices",
        "domainname",
        "effective",
        "env",
        "error_fd",
        "explain",
        "fifo_fd",
        "find_home",
        "gid",
        "groups",
        "hook_states",
        "hostname",
        "inheritable",
        "init",
        "into_cgroup",
        "io_priority",
        "joined_user",
        "joins",
        "keep_fds",
        "labels",
        "last_cap",
        "listener",
        "loopback",
        "masked",
        "memory_policy",
        "mounts",
        "net_devices",
        "new_cgroup",
        "new_keyring",
        "new_user",
        "no_new_privs",
        "no_pivot",
        "ns_gid",
        "ns_uid",
        "null_fd",
        "paths",
        "permitted",
        "personality",
        "readonly_paths",
        "readonly_root",
        "release_fds",
        "rlimits",
        "root",
        "root_propagation",
        "root_tree_fd",
        "runtime_hooks",
        "sched_attr",
        "seccomp",
        "set_groups",
        "start_hooks",
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
        # Names on the host and inside, of what the parent moves into our network namespace.
        self.net_devices: tuple[tuple[str, str], ...] = ()
        self.sysctl: tuple[tuple[str, str], ...] = ()
        # root file system; root is "" where the mount namespace is not ours
        self.root = ""
        self.root_tree_fd = -1
        self.root_propagation = 0
        self.no_pivot = False  # on a ramfs: move the root to "/" and chroot
        self.mounts: tuple[Mount, ...] = ()
        # (path, mode, device number, uid, gid, path on the host); type is part of the mode
        self.devices: tuple[tuple[str, int, int, int, int, str], ...] = ()
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
        self.find_home = False  # the environment lacks HOME: /etc/passwd has it
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
        self.listener = 0  # how the parent gets the filter's: LISTENER_… of init/listener.py
        self.sched_attr = b""  # struct sched_attr, or empty; set by the parent
        self.io_priority = -1  # for ioprio_set(2), or -1; set by the parent
        # Processors before and after the child has joined the cgroup; set by the parent.
        self.affinity: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self.memory_policy: tuple[int, bytes] = (-1, b"")  # mode, mask of nodes
        # What the next execve is to run as: files below /proc/thread-self, of which the
        # first that is there takes the text.
        self.labels: tuple[tuple[tuple[str, ...], str], ...] = ()
        self.new_keyring = True  # a session keyring of its own
        self.keep_fds = 0  # descriptors 3 … 2+N are passed to the command
        self.init = False  # our reaper is pid 1
        self.arguments_area = (0, 0)  # where our own command line lies, for the reaper
        self.explain = False
        # lifecycle: an OCI container outlives the process that makes it
        self.detached = False
        self.release_fds: tuple[int, ...] = ()  # the parent's alone: a lock, the cgroup
        self.fifo_fd = -1  # to wait on before the command, or -1: don't wait
        self.error_fd = -1  # where what fails after that wait is written
        self.runtime_hooks = False  # the parent runs hooks before the pivot
        self.create_hooks: tuple[Hook, ...] = ()
        self.start_hooks: tuple[Hook, ...] = ()
        # The state on a hook's stdin, before and after the pid; at creation, at the start.
        self.hook_states: tuple[tuple[str, str], tuple[str, str]] = (("", ""), ("", ""))
