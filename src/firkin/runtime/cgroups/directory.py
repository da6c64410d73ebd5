"""One directory of a container's cgroup, and what can go wrong with its files."""

from __future__ import annotations

import errno
import os

from firkin.errors import ConfigError, FirkinError, SetupError, Unsupported
from firkin.linux import libc
from firkin.runtime.cgroups import tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.runtime.cgroups.layout import Hierarchy

DELEGATE = "run as root, or have a cgroup delegated to you (systemd: Delegate=yes)"


def refused(what: str, error: OSError, mend: str = "") -> FirkinError:
    """The error for a call on a cgroup's file that failed with *error*."""
    number = error.errno or 0
    why = os.strerror(number)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Unsupported(what, why, mend or DELEGATE)
    return SetupError(
        what, why, mend, step="cgroup", errno=number, path=os.fsdecode(error.filename or "")
    )


def write(path: str, value: str, field: str, why: str) -> None:
    """Write *value* to the cgroup file *path*.

    Args:
        path: the file.
        value: what to write; several lines are as many writes.
        field: the field of ``linux.resources`` that asks for it.
        why: for ``--explain``.

    Raises:
        Unsupported: the file is not there, or may not be written.
        ConfigError: it names a device that does not exist.
        SetupError: the kernel refused the value.
    """
    try:
        libc.because(why)
        if "\n" in value:
            _write_lines(path, value)
        else:
            libc.write_file(path, value)
    except FileNotFoundError:
        raise Unsupported(f"cannot set linux.resources.{field}", *_absent(path)) from None
    except OSError as error:
        if error.errno == errno.ENODEV:
            name = f"linux.resources.{field}"
            raise ConfigError(name, f"{value!r} names no device of this machine") from error
        if error.errno == errno.EBUSY and "memory." in path:
            why, mend = "more than that is in use already", "give more memory"
            raise SetupError(
                f"cannot write {value!r} to {path}",
                *(why, mend),
                step="cgroup",
                errno=errno.EBUSY,
                path=path,
            ) from error
        raise refused(f"cannot write {value!r} to {path}", error) from error


def _write_lines(path: str, value: str) -> None:
    """Write each line of *value* by itself, as cgroup files take them, to one open file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def write(path: str, line: str) -> None:
        try:
            os.write(fd, line.encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None

    try:
        for line in value.splitlines():
            libc.via(write, path, line)
    finally:
        os.close(fd)


def require(path: str, field: str) -> None:
    """Raise :class:`Unsupported` where the cgroup file *path* does not exist."""
    if not os.path.exists(path):
        raise Unsupported(f"cannot set linux.resources.{field}", *_absent(path))


def _absent(path: str) -> tuple[str, str]:
    name = path.rpartition("/")[2]
    mend = "this kernel was built without it"
    if "memsw" in name or "swap" in name:
        mend = "boot the kernel with swapaccount=1, or leave the swap limit out"
    elif name.endswith(("weight", "weight_device")):
        mend = "load the BFQ disk scheduler (modprobe bfq), or leave the weight out"
    return f"{path} does not exist", mend


class Directory:
    """The cgroup's directory in one hierarchy.

    Attributes:
        hierarchy: where it is.
        path: its absolute path.
        wanted: the controllers that it is used for.
        all_controllers: whether it is to have each other controller of v2, too, if it can.
    """

    __slots__ = ("all_controllers", "hierarchy", "path", "wanted")

    def __init__(self, hierarchy: Hierarchy, path: str) -> None:
        self.hierarchy = hierarchy
        self.path = path
        self.wanted: list[str] = []
        self.all_controllers = False

    def ancestor(self) -> str:
        """The nearest directory above it that exists."""
        above = self.path.rpartition("/")[0]
        while above != self.hierarchy.mount and not os.path.isdir(above):
            above = above.rpartition("/")[0]
        return above

    def exists(self) -> SetupError:
        """The error for a cgroup that is somebody's already."""
        return SetupError(
            f"cannot create cgroup {self.path}",
            "it exists already",
            "choose another name, or remove it",
            step="cgroup",
            errno=errno.EEXIST,
            path=self.path,
        )

    def vacant(self) -> None:
        """Refuse a cgroup that exists and can't be a new container's.

        Raises:
            SetupError: there are processes in it or below, or it is frozen: who
                enters stands still.
        """
        what = f"cannot use cgroup {self.path}"
        count = tree.members(self.path)
        if count:
            why = f"container's cgroup is not empty: {count} process(es) found"
            raise SetupError(what, why, step="cgroup", errno=errno.EBUSY, path=self.path)
        from firkin.runtime.cgroups import light

        if light.is_frozen((self.path,)):
            why = "container's cgroup unexpectedly frozen"
            raise SetupError(what, why, step="cgroup", errno=errno.EBUSY, path=self.path)

    def create(self, *, reuse: bool = False) -> bool:
        """Make it, and what is missing above it.

        Args:
            reuse: take it where it exists and nobody uses it.

        Returns:
            Whether it was made.

        Raises:
            OSError: of mkdir(2) or write(2).
            SetupError: it exists, and is used.
        """
        above = self.ancestor()
        parent = self.path.rpartition("/")[0]
        levels = [parent]
        while levels[-1] != above:
            levels.append(levels[-1].rpartition("/")[0])
        for level in reversed(levels):
            if level != above:
                _make(level)
            if self.hierarchy.version == 2:
                self._enable(level)
            elif level != self.hierarchy.mount:
                self._inherit(level)
        if self.all_controllers:
            self._offer()
        made = _make(self.path)
        if not made:
            if not reuse:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path)
            self.vacant()
        if self.all_controllers:
            self.wanted = tree.read(f"{self.path}/cgroup.controllers").split()
        if self.hierarchy.version == 1:
            try:
                self._inherit(self.path, new=made)
            except OSError:
                if made:
                    os.rmdir(self.path)  # all or nothing
                raise
        return made

    def _enable(self, level: str) -> None:
        """Let the children of the v2 cgroup *level* have the controllers wanted."""
        file = f"{level}/cgroup.subtree_control"
        enabled = tree.read(file).split()
        missing = [c for c in self.wanted if c not in enabled]
        if not missing:
            return
        available = tree.read(f"{level}/cgroup.controllers").split()
        if level != self.hierarchy.mount and not set(missing) <= set(available):
            self._enable(level.rpartition("/")[0])
        libc.because("a v2 cgroup has only those controllers that its parent passes on")
        libc.write_file(file, " ".join("+" + c for c in missing))

    def delegate(self, uid: int) -> None:
        """Make *uid* the owner of a v2 cgroup and of those files that the kernel lists for that.

        Raises:
            SetupError: the kernel refuses.
        """
        try:
            names = tree.read("/sys/kernel/cgroup/delegate").split()
        except FileNotFoundError:  # before Linux 4.15
            names = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]
        libc.because("the container's user may make cgroups below its own")
        for path in (self.path, *(f"{self.path}/{name}" for name in names)):
            try:
                libc.via(os.chown, path, uid, -1)
            except FileNotFoundError:
                continue  # of a controller that the cgroup has not
            except OSError as error:
                raise refused(f"cannot give user {uid} cgroup {self.path}", error) from error

    def _offer(self) -> None:
        """Pass on each controller that there is to the cgroup, as far as the kernel lets us.

        Those that are not wanted for a limit count what clients show to people.
        """
        mount = self.hierarchy.mount
        level = mount
        for part in self.path[len(mount) + 1 :].split("/"):
            file = f"{level}/cgroup.subtree_control"
            enabled = tree.read(file).split()
            available = tree.read(f"{level}/cgroup.controllers").split()
            missing = [c for c in available if c not in enabled]
            # With processes of its own, the controllers of threads that it passes on would
            # leave the cgroups below "domain invalid": nobody could enter them.
            if missing and level != mount and tree.read(f"{level}/cgroup.procs").strip():
                missing = []
            for controller in missing:
                libc.because("count what the container uses; nothing is limited by it")
                try:
                    libc.write_file(file, f"+{controller}")
                except OSError:
                    continue  # not ours to enable
            level = f"{level}/{part}"

    def _inherit(self, level: str, *, new: bool = False) -> None:
        """A v1 cpuset starts empty, and takes no process before it has both lists."""
        if "cpuset" not in self.hierarchy.controllers:
            return
        for name in ("cpuset.cpus", "cpuset.mems"):
            if new or not tree.read(f"{level}/{name}").strip():
                libc.because("an empty cpuset takes no process: start with the parent's")
                value = tree.read(f"{level.rpartition('/')[0]}/{name}").strip()
                libc.write_file(f"{level}/{name}", value)


def _make(path: str) -> bool:
    """Make the cgroup *path*; return whether it was not there."""
    try:
        libc.because("a cgroup of its own, to count and limit what the container uses")
        libc.via(os.mkdir, path, 0o755)
    except FileExistsError:
        return False
    return True
