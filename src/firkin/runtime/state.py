"""What a run leaves on record, so that the next start can sweep after a crash.

Each container has a folder below the state directory, and holds the lock in it
by descriptor for as long as its firkin lives. A folder whose lock is free
belongs to nobody: the record in it says what must go.

The record is a text file that only grows, a line at a time, each written before
the thing it names is made::

    cgroup /sys/fs/cgroup/pids/firkin/0123…
    scratch /var/lib/firkin/containers/0123…
    maps 0:100000:65536 0:100000:65536
    pid 4711 8123345
    mntns 4026531841
"""

from __future__ import annotations

import fcntl
import os
import stat

from firkin.errors import FirkinError, SetupError, UsageError
from firkin.linux import ns, signals
from firkin.runtime import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firkin.runtime.idmap import IdMaps

    # Removes a scratch folder, in a user namespace with the maps if there are some.
    RemoveScratch = Callable[[str, IdMaps | None], None]

# How often processes are looked for that multiply while they are killed.
_ROUNDS = 1000

_LOCK = "lock"
_RECORD = "record"
_FILES = frozenset((_LOCK, _RECORD))


def default_directory() -> str:
    """Return where the state of this user's containers is kept.

    ``$FIRKIN_STATE``; else ``/run/firkin`` for root, ``$XDG_RUNTIME_DIR/firkin``
    or ``/tmp/firkin-UID`` for others.
    """
    chosen = os.environ.get("FIRKIN_STATE")
    if chosen:
        return os.path.abspath(chosen)
    uid = os.geteuid()
    if uid == 0:
        return "/run/firkin"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return os.path.join(runtime, "firkin")
    return f"/tmp/firkin-{uid}"  # noqa: S108 - its owner and mode are checked


def prepare_directory(path: str) -> str:
    """Make the state directory *path* if it is missing; return it.

    Raises:
        SetupError: it cannot be made, or belongs to somebody else.
    """
    try:
        os.makedirs(path, 0o711, exist_ok=True)
        found = os.lstat(path)
    except OSError as error:
        raise SetupError(
            f"cannot make the state directory '{path}'",
            error.strerror or str(error),
            "set FIRKIN_STATE to a folder of your own",
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise SetupError(
            f"cannot use the state directory '{path}'",
            "it is not a folder that you own and only you can write to",
            "set FIRKIN_STATE to a folder of your own",
        )
    return path


class State:
    """The folder of one container, locked by this process.

    Args:
        directory: the state directory.
        container_id: a checked id; it becomes a file name.

    Raises:
        UsageError: a living container has that id.
    """

    __slots__ = ("_directory", "_lock", "_record", "id", "maps", "path", "scratch")

    def __init__(self, directory: str, container_id: str, remove_scratch: RemoveScratch) -> None:
        self.id = container_id
        self.path = os.path.join(directory, container_id)
        self._directory = directory
        self.scratch = ""
        self.maps: IdMaps | None = None
        try:
            if not self._make():
                # A crash may have left it; then it is swept and the name is free.
                _sweep(directory, [container_id], remove_scratch)
                if not self._make():
                    raise UsageError(
                        f"cannot use the name '{container_id}'", "a running container has it"
                    )
        except OSError as error:
            raise SetupError(
                f"cannot write to the state directory '{directory}'",
                error.strerror or str(error),
                "set FIRKIN_STATE to a folder of your own",
                errno=error.errno or 0,
                path=directory,
            ) from error

    def _make(self) -> bool:
        """Make the folder and lock it; tell whether the name was free."""
        directory = _lock_directory(self._directory)
        try:
            os.mkdir(self.path, 0o711)
            try:
                self._lock, self._record = (
                    os.open(os.path.join(self.path, name), flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    for name, flags in ((_LOCK, os.O_RDWR), (_RECORD, os.O_WRONLY | os.O_APPEND))
                )
            except OSError:
                # Full: all or nothing.
                for name in os.listdir(self.path):
                    os.unlink(os.path.join(self.path, name))
                os.rmdir(self.path)
                raise
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except FileExistsError:
            return False
        finally:
            os.close(directory)
        return True

    def record(self, kind: str, value: str) -> None:
        """Note *value*, before what it names exists."""
        os.write(self._record, f"{kind} {value}\n".encode("utf-8", "surrogateescape"))

    def record_scratch(self, path: str, maps: IdMaps | None) -> None:
        """Note the scratch folder, and the id maps that own what is in it."""
        self.scratch, self.maps = path, maps
        self.record("scratch", path)
        if maps is None:
            return
        uids, gids = (
            ",".join(f"{a}:{b}:{n}" for a, b, n in mappings) for mappings in (maps.uids, maps.gids)
        )
        self.record("maps", f"{uids} {gids}")

    def remove(self) -> None:
        """Take the folder away; everything that it recorded must be gone."""
        _remove_folder(self._directory, self.path)
        os.close(self._record)
        os.close(self._lock)


def started(pid: int) -> int:
    """Return when *pid* started, in clock ticks since boot; with it a pid names one process.

    Raises:
        OSError: there is no such process.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name, in parentheses, may hold anything; starttime is field 22.
        return int(file.read().rpartition(b")")[2].split()[19])


def find_pid(directory: str, container_id: str) -> int:
    """Return the pid of the running container *container_id*.

    Raises:
        UsageError: there is none.
    """
    error = UsageError(
        f"cannot find container '{container_id}'", "no running container has that id"
    )
    if not container_id or "/" in container_id or container_id.startswith("."):
        raise error
    for kind, value in _read(os.path.join(directory, container_id)):
        if kind == "pid":
            pid, start = value.split()
            try:
                if started(int(pid)) == int(start):
                    return int(pid)
            except (OSError, ValueError):
                break
    raise error


def sweep(directory: str, remove_scratch: RemoveScratch) -> list[str]:
    """Remove what dead firkins have left; return the ids of what was swept.

    What can't be removed stays recorded, for the next sweep.
    """
    try:
        return _sweep(directory, os.listdir(directory), remove_scratch)
    except OSError:
        # The directory can't be read or locked: not what this start is about.
        return []


def _lock_directory(directory: str) -> int:
    """Lock the state directory for adding and removing folders; return what to close.

    Held for a few system calls. Without it a folder that is just being made, and
    not locked yet, would look like one that a crash has left.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _sweep(directory: str, names: list[str], remove_scratch: RemoveScratch) -> list[str]:
    orphans = []
    directory_lock = _lock_directory(directory)
    try:
        for name in names:
            lock = _lock_orphan(os.path.join(directory, name))
            if lock >= 0:
                orphans.append((name, lock))
    finally:
        os.close(directory_lock)
    swept = []
    for name, lock in orphans:
        path = os.path.join(directory, name)
        try:
            _undo(path, remove_scratch)
            _remove_folder(directory, path)
            swept.append(name)
        except (OSError, ValueError, OverflowError, FirkinError):
            continue
        finally:
            os.close(lock)
    return swept


def _lock_orphan(path: str) -> int:
    """Lock the folder *path*; return the lock, or -1 where its firkin lives or it is none."""
    try:
        # Whatever else is kept where the state directory was set to is not ours.
        if os.path.islink(path) or not _FILES.issuperset(os.listdir(path)):
            return -1
        # A folder without a lock is one whose maker died before it made the file.
        lock = os.open(
            os.path.join(path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
    except OSError:
        return -1
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return -1
    return lock


def _read(path: str) -> list[tuple[str, str]]:
    try:
        with open(os.path.join(path, _RECORD), encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().split("\n")
    except OSError:
        return []
    # What follows the last newline was being written when its writer died.
    entries = []
    for line in lines[:-1]:
        kind, _, value = line.partition(" ")
        entries.append((kind, value))
    return entries


def _undo(path: str, remove_scratch: RemoveScratch) -> None:
    entries = _read(path)
    maps = None
    for kind, value in entries:
        if kind == "pid":
            pid, start = value.split()
            _kill(int(pid), int(start))
        elif kind == "scratch":
            _check_scratch(value, os.path.basename(path))
        elif kind == "maps":
            from firkin.runtime.idmap import IdMaps

            uids, gids = (
                [(int(a), int(b), int(n)) for a, b, n in (m.split(":") for m in text.split(","))]
                for text in value.split(" ")
            )
            maps = IdMaps(uids, gids)
    cgroups.remove_paths([value for kind, value in entries if kind == "cgroup"])
    for kind, value in entries:
        if kind == "mntns":
            kill_members(int(value))
    for kind, value in entries:
        if kind == "scratch":
            remove_scratch(value, maps)


def _check_scratch(path: str, container_id: str) -> None:
    """Refuse to remove what is not the scratch folder of *container_id*."""
    if os.path.normpath(path) != path or not path.endswith(f"/containers/{container_id}"):
        raise SetupError(f"cannot remove '{path}'", f"not a folder of container {container_id}")


def kill_members(mount_namespace: int) -> None:
    """Kill every process whose mount namespace has the id *mount_namespace*, and wait.

    For a container without a cgroup in a PID namespace that it shares: its mount
    namespace is what its processes have in common.
    """
    if not mount_namespace:
        return
    for _ in range(_ROUNDS):
        found = [pid for pid in _pids() if _is_member(pid, mount_namespace)]
        if not found:
            return
        for pid in found:
            try:
                _kill(pid, started(pid))
            except OSError:
                continue
    raise SetupError("cannot end the container", "its processes multiply faster than they die")


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_member(pid: int, mount_namespace: int) -> bool:
    try:
        return ns.mount_namespace_id(pid) == mount_namespace
    except OSError:
        return False


def _kill(pid: int, start: int) -> None:
    """Kill the process *pid* if it is still the one that started at *start*, and wait for it."""
    import select

    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # The descriptor is open: from here on the number can't come to mean another.
        if started(pid) == start:
            signals.pidfd_send_signal(pidfd, signals.SIGKILL)
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.poll(5000)
    except OSError:
        return
    finally:
        os.close(pidfd)


def _remove_folder(directory: str, path: str) -> None:
    directory_lock = _lock_directory(directory)
    try:
        for name in _FILES.intersection(os.listdir(path)):
            os.unlink(os.path.join(path, name))
        os.rmdir(path)
    finally:
        os.close(directory_lock)
