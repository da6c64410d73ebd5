"""One container's cgroup: a directory in each hierarchy that it needs."""

from __future__ import annotations

import errno
import os

from firkin.errors import FirkinError, SetupError, Unsupported
from firkin.linux import libc
from firkin.runtime.cgroups import tree, v1, v2
from firkin.runtime.cgroups.directory import refused, require, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from firkin.runtime.cgroups.devices import Rules
    from firkin.runtime.cgroups.directory import Directory
    from firkin.runtime.cgroups.limits import Limits, Setting

# For --explain, by controller.
_WHY = {
    "pids": "a fork bomb ends at this many processes",
    "memory": "use more memory, and the kernel kills a process of this container, not the host's",
    "cpu": "share the processors fairly",
    "cpuset": "run on these processors and memory nodes only",
    "blkio": "share the disks fairly",
    "io": "share the disks fairly",
    "devices": "no other device may be opened or made, whatever nodes the container creates",
}

# Written when the child is ready for its execve: v2's names, from "unified".
_LAST = (v2.MEMORY, v2.SWAP, "memory.high")


class Stats:
    """What the kernel counted; ``None`` where it does not.

    Attributes:
        oom_kills: processes killed for want of memory.
        peak_memory: the most memory used at once, in bytes.
        pids_denied: forks that the limit on processes refused.
    """

    __slots__ = ("oom_kills", "peak_memory", "pids_denied")

    def __init__(
        self, oom_kills: int | None, peak_memory: int | None, pids_denied: int | None
    ) -> None:
        self.oom_kills = oom_kills
        self.peak_memory = peak_memory
        self.pids_denied = pids_denied


class Cgroup:
    """A container's cgroup; made by :func:`firkin.runtime.cgroups.open_cgroup`.

    The methods raise :class:`Unsupported` where this user or machine cannot do
    it, :class:`SetupError` where the kernel refuses, and :class:`ConfigError`
    for a value that can never be right here.
    """

    __slots__ = (
        "_descriptors",
        "_freezer",
        "_limits",
        "_reuse",
        "_rules",
        "_settings",
        "directories",
    )

    def __init__(
        self,
        directories: list[Directory],
        limits: Limits | None = None,
        settings: Iterable[Setting] = (),
        rules: Rules = (),
        freezer: Directory | None = None,
        *,
        reuse: bool = False,
    ) -> None:
        self.directories = directories
        self._limits = limits
        self._settings = settings
        self._rules = rules
        self._freezer = freezer
        self._reuse = reuse
        self._descriptors: list[int] = []

    def check(self) -> None:
        """Refuse what this machine cannot give, before anything exists.

        What only shows in the new cgroup (a file that this kernel lacks) is
        refused by :meth:`apply`, which is before anything has started, too.
        """
        from firkin.runtime.cgroups.prepare import check

        if self._limits is not None:
            check(self.directories, self._limits, self._reuse)

    def create(self) -> None:
        """Make the directories; all of them or none.

        The cgroup must not exist: what is found there is another's. With *reuse* it
        may, if no process is in it.
        """
        made: list[str] = []
        try:
            for directory in self.directories:
                try:
                    if directory.create(reuse=self._reuse):
                        made.append(directory.path)
                except OSError as error:
                    if error.errno == errno.EEXIST:
                        raise directory.exists() from error
                    raise refused(f"cannot create cgroup {directory.path}", error) from error
        except FirkinError:
            for path in made:
                tree.remove(path)
            raise

    def apply(self) -> None:
        """Set all limits but those on memory and swap."""
        again = []
        for setting in self._settings:
            if setting.file in _LAST:
                continue
            try:
                self._set(setting)
            except SetupError as error:
                # It may contradict another that is still to come, in a cgroup that was there.
                if error.errno != errno.EINVAL:
                    raise
                again.append(setting)
        for setting in again:
            self._set(setting)
        directory_fd = self.directory_fd() if self._rules else None
        if directory_fd is not None:
            from firkin.runtime.cgroups import devices_bpf

            devices_bpf.attach(directory_fd, self._rules)
        # Refused now rather than when the child is waiting.
        for file, _, field in self._memory():
            require(f"{self._home('memory', field).path}/{file}", field)

    def join(self, pid: int) -> None:
        """Move the process *pid* in; see the package's text for the faster way."""
        libc.because("from here on its use is counted, and its children start in the cgroup")
        for directory in self.directories:
            try:
                libc.write_file(f"{directory.path}/cgroup.procs", str(pid))
            except OSError as error:
                what = f"cannot move process {pid} to cgroup {directory.path}"
                raise refused(what, error) from error

    def entries(self) -> list[int]:
        """Descriptors to each of which a single-threaded process writes ``b"0"`` to move in.

        For the v1 hierarchies, whose ``tasks`` files let a thread move itself with no
        wait; with :meth:`directory_fd` for the unified one. :meth:`close` closes them.
        """
        return [
            self._open(f"{d.path}/tasks", os.O_WRONLY)
            for d in self.directories
            if d.hierarchy.version == 1
        ]

    def directory_fd(self, first: int = 0) -> int | None:
        """An ``O_PATH`` descriptor of the v2 directory, for ``CLONE_INTO_CGROUP`` (clone3(2)).

        ``None`` where the cgroup is on v1 alone. :meth:`close` closes it.

        Args:
            first: the container's first process, for one that is to join it. A
                container that made cgroups below its own and gave them controllers
                can have no process at the top any more (cgroups(7), "no internal
                processes"): then it is the cgroup of this one, as in runc.
        """
        for directory in self.directories:
            if directory.hierarchy.version == 2:
                if first and tree.read(f"{directory.path}/cgroup.subtree_control").strip():
                    fd = tree.find(directory.path, first)
                    if fd is not None:
                        self._descriptors.append(fd)
                        return fd
                return self._open(directory.path, os.O_PATH | os.O_DIRECTORY)
        return None

    def apply_memory(self) -> None:
        """Set the limits on memory and swap, when the child is ready for its ``execve``.

        Raises:
            SetupError: the container uses more than that already.
        """
        limits = self._limits
        if limits is None:
            return
        limit = limits.memory or -1
        for file, value, field in self._memory():
            home = self._home("memory", field)
            path = f"{home.path}/{file}"
            mend = "give more memory"
            if home.hierarchy.version == 2 or limits.check_before_update:
                # v1 says EBUSY; v2 would start to kill.
                usage = v1.MEMORY_USAGE if home.hierarchy.version == 1 else v2.MEMORY_USAGE
                used = int(tree.read(f"{home.path}/{usage}"))
                if -1 < limit < used:
                    raise SetupError(
                        f"cannot write {value!r} to {path}", f"{used} bytes are in use", mend
                    )
            write(path, value, field, _WHY["memory"])
        for setting in self._settings:
            if setting.file in _LAST:
                self._set(setting)

    def paths(self) -> list[str]:
        """The absolute directories, for the state file and for :func:`remove_paths`.

        With the freezer's, which exists only after :meth:`freeze`.
        """
        paths = [directory.path for directory in self.directories]
        if self._freezer and self._freezer.path not in paths:
            paths.append(self._freezer.path)
        return paths

    def mounts(self, private: bool = True) -> list[tuple[str, str, str, str]]:
        """What the child has to mount at ``/sys/fs/cgroup``, in order.

        Only the hierarchies of this cgroup: in any other the container would see the host's.

        Args:
            private: whether the container has a cgroup namespace of its own.

        Returns:
            ``(type, source, name, data)``, with *name* below ``/sys/fs/cgroup`` ("" for
            itself); the type is one of mount(2), or ``"bind"``, or ``"symlink"``
            whose source is what the link says.
        """
        if len(self.directories) == 1 and self.directories[0].hierarchy.version == 2:
            path = self.directories[0].path
            return [("cgroup2", "cgroup2", "", "") if private else ("bind", path, "", "")]
        mounts = [("tmpfs", "tmpfs", "", "mode=755")]
        for directory in self.directories:
            hierarchy = directory.hierarchy
            if hierarchy.version == 2 and not directory.wanted:
                continue  # nothing to read there: on a hybrid machine all is on v1
            name = hierarchy.mount.rpartition("/")[2]
            if not private:
                mounts.append(("bind", directory.path, name, ""))
            elif hierarchy.version == 2:
                mounts.append(("cgroup2", "cgroup2", name, ""))
            else:
                mounts.append(("cgroup", "cgroup", name, hierarchy.option))
            if hierarchy.version == 1:
                links = [c for c in hierarchy.controllers if c != name]
                mounts += [("symlink", name, controller, "") for controller in links]
        return mounts

    def pids(self) -> set[int]:
        """The processes in it and in the cgroups below it, by their numbers here."""
        return set().union(*(tree.pids(d.path) for d in self.directories))

    def kill(self, patience: float = tree.PATIENCE) -> None:
        """Kill all processes and wait until they are gone; nothing can start in it afterwards.

        Args:
            patience: how long to wait, in seconds.

        Raises:
            SetupError: a process is still there, or it is the caller.
        """
        tree.kill_all(self.paths(), patience)

    def freeze(self) -> None:
        """Stop all processes where they are.

        On v1 the freezer's directory is made, and the processes are moved there, when
        first needed: it would slow each start and serve few.
        """
        libc.because("stop every process of the container where it is")
        if self._freezer is None:
            home = self._unified("freeze")
            write(f"{home.path}/cgroup.freeze", "1", "freeze", "")
            self._await(f"{home.path}/cgroup.events", "frozen 1")
            return
        path = self._freezer.path
        if self._freezer not in self.directories:
            if not os.path.isdir(path):  # from an earlier freeze
                self._freezer.create()
            while missing := self.pids() - tree.pids(path):
                for pid in missing:
                    try:
                        libc.write_file(f"{path}/cgroup.procs", str(pid))
                    except ProcessLookupError:
                        continue  # ended meanwhile
        try:
            self._await(f"{path}/freezer.state", "FROZEN", freezer=True)
        except (OSError, SetupError) as error:
            self.thaw()  # half frozen would be worse than not
            if isinstance(error, SetupError):
                raise
            raise refused("cannot freeze the container", error) from error

    def thaw(self) -> None:
        """Let all processes go on after :meth:`freeze`.

        Not those in cgroups below that the container itself has frozen.
        """
        libc.because("let the processes of the container go on")
        try:
            if self._freezer is None:
                home = self._unified("thaw")
                libc.write_file(f"{home.path}/cgroup.freeze", "0")
                self._await(f"{home.path}/cgroup.events", "frozen 0")
            else:
                libc.write_file(f"{self._freezer.path}/freezer.state", "THAWED")
        except FileNotFoundError:
            return  # never frozen, or gone
        except OSError as error:
            raise refused("cannot thaw the container", error) from error

    def is_frozen(self) -> bool:
        """Whether :meth:`freeze` is in force."""
        from firkin.runtime.cgroups import light

        return light.is_frozen(self.paths())

    def update(self, resources: dict[str, Any]) -> None:
        """Change limits of a container that is there; see :mod:`firkin.runtime.cgroups.update`.

        Args:
            resources: OCI's ``linux.resources``: what is not given stays as it is,
                and devices always do.
        """
        from firkin.runtime.cgroups.update import update

        update(self, resources)

    def delegate(self, uid: int) -> None:
        """Give the container's user *uid*, as the host counts, power over the v2 cgroup.

        For a container that has a cgroup namespace and sees its cgroup writable
        (config-linux.md, "Cgroup ownership"). Nothing is done where any controller is
        on v1, which is not safe to delegate.
        """
        if len(self.directories) == 1 and self.directories[0].hierarchy.version == 2:
            self.directories[0].delegate(uid)

    def stats(self) -> Stats:
        """What happened in it so far; to be read before :meth:`remove`."""
        oom_kills = peak = denied = None
        for directory in self.directories:
            old = directory.hierarchy.version == 1
            if "memory" in directory.wanted:
                file = "memory.oom_control" if old else "memory.events"
                oom_kills = tree.count(directory.path, file, "oom_kill", below=old)
                file = "memory.max_usage_in_bytes" if old else "memory.peak"
                try:
                    peak = int(tree.read(f"{directory.path}/{file}"))
                except FileNotFoundError:
                    peak = None  # memory.peak is from Linux 5.19 on
            if "pids" in directory.wanted:
                denied = tree.count(directory.path, "pids.events", "max", below=old)
        return Stats(oom_kills, peak, denied)

    def remove(self, patience: float = tree.PATIENCE) -> None:
        """Remove it, with the cgroups that the container made below it.

        Args:
            patience: how long to wait for processes that are ending, in seconds.

        Raises:
            SetupError: it still has processes.
        """
        self.close()
        first: FirkinError | None = None
        for path in self.paths():
            try:
                tree.remove(path, patience)
            except FirkinError as error:
                first = first or error
            except OSError as error:
                first = first or refused(f"cannot remove cgroup {path}", error)
        if first is not None:
            raise first

    def close(self) -> None:
        """Close what :meth:`entries` and :meth:`directory_fd` opened."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _open(self, path: str, flags: int) -> int:
        try:
            fd: int = libc.via(os.open, path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise refused(f"cannot open {path}", error) from error
        self._descriptors.append(fd)
        return fd

    def home(self, controller: str) -> Directory | None:
        """The directory that has *controller*, if any; ``"cgroup"`` is in the unified one."""
        unified = None
        for directory in self.directories:
            hierarchy = directory.hierarchy
            if controller in directory.wanted:
                return directory
            if hierarchy.version == 2:
                unified = directory
            elif controller in hierarchy.controllers:
                return directory
        return unified if controller == "cgroup" else None

    def _home(self, controller: str, field: str) -> Directory:
        directory = self.home(controller)
        if directory is None:
            why = f"the container has no cgroup of the {controller} controller"
            raise Unsupported(f"cannot set linux.resources.{field}", why)
        return directory

    def _unified(self, doing: str) -> Directory:
        for directory in self.directories:
            if directory.hierarchy.version == 2:
                return directory
        why = "the freezer controller of cgroup v1 is not mounted here"
        if not self.paths():
            why = "its cgroup is gone"
        raise Unsupported(f"cannot {doing} the container", why)

    def resolve(self, setting: Setting) -> tuple[str, str]:
        """The file of *setting* in this cgroup, and the value that it takes there.

        Raises:
            Unsupported: the cgroup has none for the controller.
        """
        home = self._home(setting.controller, setting.field)
        file, value = setting.file, setting.value
        if "{bfq}" in file:
            file = file.format(bfq="bfq.")
            if not os.path.exists(f"{home.path}/{file}"):
                file = setting.file.format(bfq="")
                if home.hierarchy.version == 2:  # io.weight has a range of its own
                    device, space, weight = value.rpartition(" ")
                    value = f"{device}{space}{v2.io_weight(int(weight))}"
        return f"{home.path}/{file}", value

    def _set(self, setting: Setting) -> None:
        path, value = self.resolve(setting)
        if setting.optional and not os.path.exists(path):
            return
        why = _WHY.get(setting.controller, f"linux.resources.{setting.field} asks for it")
        write(path, value, setting.field, why)

    def _memory(self) -> list[tuple[str, str, str]]:
        """The limits on memory and swap in the order of writing: ``(file, value, field)``."""
        limits = self._limits
        if limits is None or (limits.memory is None and limits.swap is None):
            return []
        home = self._home("memory", "memory.limit")
        memory, total = limits.memory, limits.swap
        if home.hierarchy.version == 2:
            swap = v2.swap_value(limits)
            writes = [(v2.SWAP, swap, "memory.swap")]
            writes.append(
                (v2.MEMORY, None if memory is None else v2.or_max(memory), "memory.limit")
            )
        else:
            writes = [
                (v1.MEMORY, memory, "memory.limit"),
                (v1.MEMORY_AND_SWAP, total, "memory.swap"),
            ]
            # The kernel keeps memory <= total at each moment: what grows goes first.
            if memory is not None and total is not None:
                now = int(tree.read(f"{home.path}/{v1.MEMORY}"))
                if total == -1 or now < total:
                    writes.reverse()
        # Without swap in the kernel there are no such files, and nothing to limit.
        swapless = not os.path.exists("/proc/swaps")
        return [
            (file, str(value), field)
            for file, value, field in writes
            if value is not None and not (swapless and field == "memory.swap")
        ]

    def _await(self, path: str, line: str, *, freezer: bool = False) -> None:
        """Wait until the file *path* has *line*.

        With *freezer*, by writing it: a v1 freezer in which processes are just forking
        stays FREEZING, and needs to be told again, or thawed first (runc does the same).
        """
        for attempt, _ in enumerate(tree.pauses(tree.PATIENCE)):
            if freezer:
                if attempt % 8 == 7:
                    libc.write_file(path, "THAWED")
                libc.write_file(path, line)
            if line in tree.read(path).splitlines():
                return
        raise SetupError(
            f"cannot wait for {line!r} in {path}",
            f"not so after {tree.PATIENCE:g} s: a process is in uninterruptible sleep",
        )
