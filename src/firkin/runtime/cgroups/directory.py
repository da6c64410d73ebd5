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
        value: what to write.
        field: the field of ``linux.resources`` that asks for it.
        why: for ``--explain``.

    Raises:
        Unsupported: the file is not there, or may not be written.
        ConfigError: it names a device that does not exist.
        SetupError: the kernel refused the value.
    """
    try:
        libc.because(why)
        libc.write_file(path, value)
    except FileNotFoundError:
        raise Unsupported(f"cannot set linux.resources.{field}", *_absent(path)) from None
    except OSError as error:
        if error.errno == errno.ENODEV:
            name = f"linux.resources.{field}"
            raise ConfigError(name, f"{value!r} names no device of this machine") from error
        raise refused(f"cannot write {value!r} to {path}", error) from error


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
    """

    __slots__ = ("hierarchy", "path", "wanted")

    def __init__(self, hierarchy: Hierarchy, path: str) -> None:
        self.hierarchy = hierarchy
        self.path = path
        self.wanted: list[str] = []

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

    def create(self) -> None:
        """Make it, and what is missing above it; raises :class:`OSError`."""
        above = self.ancestor()
        parent = self.path.rpartition("/")[0]
        levels = [parent]
        while levels[-1] != above:
            levels.append(levels[-1].rpartition("/")[0])
        for level in reversed(levels):
            if level != above:
                _make(level, exist_ok=True)
            if self.hierarchy.version == 2:
                self._enable(level)
            elif level != self.hierarchy.mount:
                self._inherit(level)
        _make(self.path)
        if self.hierarchy.version == 1:
            try:
                self._inherit(self.path)
            except OSError:
                os.rmdir(self.path)  # all or nothing
                raise

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

    def _inherit(self, level: str) -> None:
        """A v1 cpuset starts empty, and takes no process before it has both lists."""
        if "cpuset" not in self.hierarchy.controllers:
            return
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not tree.read(f"{level}/{name}").strip():
                libc.because("an empty cpuset takes no process: start with the parent's")
                value = tree.read(f"{level.rpartition('/')[0]}/{name}").strip()
                libc.write_file(f"{level}/{name}", value)


def _make(path: str, exist_ok: bool = False) -> None:
    try:
        libc.because("a cgroup of its own, to count and limit what the container uses")
        libc.via(os.mkdir, path, 0o755)
    except FileExistsError:
        if not exist_ok:
            raise
