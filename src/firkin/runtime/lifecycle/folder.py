"""Where a container is remembered between two operations: its folder, lock, state and status.

::

    ROOT/ID/lock          locked by whoever changes the container, by descriptor
    ROOT/ID/state.json    what the operations have to know (:class:`Record`)
    ROOT/ID/config.json   the configuration as it was at creation, for ``exec``
    ROOT/ID/exec.fifo     the container's process waits on it for ``start``, which removes it
    ROOT/ID/exec.error    what the process says when it can't become the command

The record is written before what it names exists, by renaming a whole file into
place: whatever was killed at whatever instruction, ``delete --force`` finds all.

Nothing here loads ctypes, for ``state``, ``kill`` and ``start`` do without.

Source: runtime-spec runtime.md, "State"; flock(2), rename(2), proc(5).
"""

from __future__ import annotations

import fcntl
import os
import stat
from time import monotonic, sleep, strftime, time_ns

from firkin.errors import SetupError, UsageError
from firkin.runtime.cgroups.light import is_frozen
from firkin.spec import OCI_VERSION, jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CREATING, CREATED, RUNNING, PAUSED, STOPPED = "creating", "created", "running", "paused", "stopped"

FIFO = "exec.fifo"
ERROR = "exec.error"
CONFIG = "config.json"
_LOCK = "lock"
_STATE = "state.json"

_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-")
_MAX_ID = 240  # NAME_MAX, and room for what the folder is called while it is removed
# In the name of a folder that is being removed; no id has it.
_GONE = "~"

# An operation on a container takes milliseconds, but `create` may run hooks.
_PATIENCE = 60.0


def default_root() -> str:
    """Return the root that is used without ``--root``.

    ``/run/firkin-runtime``; for an ordinary user, also one that is root in a user
    namespace of their own, ``firkin-runtime`` below ``$XDG_RUNTIME_DIR``.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and not _is_host_root():
        return os.path.join(runtime, "firkin-runtime")
    if os.geteuid() == 0:
        return "/run/firkin-runtime"
    return f"/tmp/firkin-runtime-{os.geteuid()}"  # noqa: S108 - its owner is checked


def _is_host_root() -> bool:
    if os.geteuid() != 0:
        return False
    with open("/proc/self/uid_map") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def check_id(container_id: str) -> None:
    """Refuse what is no container id: it becomes the name of a folder and of a cgroup.

    Raises:
        UsageError: it is empty, too long, has other characters than ``A-Za-z0-9_+.-``,
            or is ``.`` or ``..``.
    """
    what = f"invalid container id '{container_id}'"
    if not container_id:
        raise UsageError("invalid container id", "it is empty")
    if not _ID_CHARACTERS.issuperset(container_id):
        raise UsageError(what, "only letters, digits and _+.- can be in it")
    if container_id in (".", ".."):
        raise UsageError(what, "it is a path")
    if len(container_id) > _MAX_ID:
        raise UsageError(what, f"it is longer than {_MAX_ID} characters")


class Busy(UsageError):
    """Another operation on the container does not end."""


class Record:
    """What is remembered of a container; all plain values, as JSON has them.

    Attributes:
        id: the container's id.
        pid: of its first process in the caller's PID namespace; 0 before it is there.
        started: when that process started, in clock ticks since boot.
        created: whether ``create`` came to its end.
        time: when it was created, RFC 3339 in UTC.
        bundle: the absolute path of the bundle.
        rootfs: the absolute path of the root file system.
        owner: the name of the user who created it, where it is not root.
        annotations: those of the configuration.
        cgroups: absolute directories, one a hierarchy.
        hooks: the configuration's ``poststart`` and ``poststop``.
        shares_pids: whether the end of the first process is not the end of all.
        mount_namespace: the id of its mount namespace, where only that finds its processes.
        undo: what a field of the configuration left behind that ``delete`` takes away.
    """

    __slots__ = (
        "annotations",
        "bundle",
        "cgroups",
        "created",
        "hooks",
        "id",
        "mount_namespace",
        "owner",
        "pid",
        "rootfs",
        "shares_pids",
        "started",
        "time",
        "undo",
    )

    def __init__(self, container_id: str) -> None:
        self.id = container_id
        self.pid = self.started = 0
        self.created = False
        self.time = _now()
        self.bundle = self.rootfs = self.owner = ""
        self.annotations: dict[str, str] = {}
        self.cgroups: list[str] = []
        self.hooks: dict[str, Any] = {}
        self.shares_pids = False
        self.mount_namespace = 0
        self.undo: dict[str, Any] = {}

    def state(self, status: str) -> dict[str, Any]:
        """Return the state as the specification has it, which hooks get on their stdin."""
        state: dict[str, Any] = {
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "status": status,
            "pid": 0 if status == STOPPED else self.pid,
            "bundle": self.bundle,
        }
        if self.annotations:
            state["annotations"] = self.annotations
        return state


def _read_record(container_id: str, text: str) -> Record:
    """Return the record that *text* spells.

    Raises:
        ValueError: it is none, or not that container's.
    """
    record = Record(container_id)
    values = jsontext.load(text)
    if not isinstance(values, dict) or values.get("id") != container_id:
        raise ValueError("not the record of this container")
    for name in Record.__slots__:
        default = getattr(record, name)
        value = values.get(name, default)
        if type(value) is not type(default):
            raise ValueError(f"{name} is no {type(default).__name__}")
        setattr(record, name, value)
    return record


def _now() -> str:
    seconds, nanoseconds = divmod(time_ns(), 1_000_000_000)
    return strftime("%Y-%m-%dT%H:%M:%S", _utc(seconds)) + f".{nanoseconds:09d}Z"


def _utc(seconds: int) -> Any:
    from time import gmtime

    return gmtime(seconds)


class Container:
    """The folder of one container.

    Args:
        root: the root of all containers.
        container_id: checked here; it becomes a file name.
    """

    __slots__ = ("_lock", "id", "path", "record", "root")

    def __init__(self, root: str, container_id: str) -> None:
        check_id(container_id)
        self.root = root
        self.id = container_id
        self.path = f"{root}/{container_id}"
        self.record = Record(container_id)
        self._lock = -1

    # -- making, finding, removing ---------------------------------------------------

    def make(self) -> None:
        """Make the folder, locked; the id is then this container's.

        Raises:
            UsageError: a container has that id.
            SetupError: the root can't be written to.
        """
        try:
            if not os.path.isdir(self.root):
                os.makedirs(self.root, 0o711, exist_ok=True)
            _check_owner(self.root)
            # Others pass through to exec.fifo only by a descriptor that they were given.
            try:
                os.mkdir(self.path, 0o711)
            except FileExistsError:
                raise UsageError(
                    f"cannot create container '{self.id}'",
                    "container with given ID already exists",
                ) from None
            try:
                self.lock()
            except OSError:
                os.rmdir(self.path)
                raise
        except OSError as error:
            raise SetupError(
                f"cannot make '{self.path}'",
                error.strerror or "",
                "choose another folder with --root",
                errno=error.errno or 0,
                path=self.path,
            ) from error

    def find(self) -> Container:
        """Read the record of an existing container, and return self.

        Raises:
            UsageError: there is none with that id.
            SetupError: its record can't be read.
        """
        try:
            with open(f"{self.path}/{_STATE}", encoding="utf-8") as file:
                self.record = _read_record(self.id, file.read())
        except FileNotFoundError:
            # It is just being made, or its maker was killed that early.
            if not self.is_busy():
                raise self.unknown() from None
        except ValueError:
            raise SetupError(
                f"cannot read the state of container '{self.id}'",
                f"'{self.path}/{_STATE}' is damaged",
                "delete --force removes the container",
            ) from None
        except OSError as error:
            raise SetupError(
                f"cannot read the state of '{self.id}'", error.strerror or ""
            ) from None
        return self

    def unknown(self) -> UsageError:
        """The error for an id that no container has."""
        return UsageError(f"cannot find container '{self.id}'", "container does not exist")

    def lock(self, patience: float = _PATIENCE) -> None:
        """Have this container for ourselves until :meth:`close`, or the end of this process.

        Raises:
            UsageError: it is gone.
            Busy: another operation on it does not end.
        """
        try:
            fd = os.open(f"{self.path}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise self.unknown() from None
        pause, end = 0.0005, monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() > end:
                    os.close(fd)
                    raise Busy(
                        f"cannot use container '{self.id}'",
                        "another operation on it is still under way",
                    ) from None
            sleep(pause)
            pause = min(pause * 2, 0.02)
        # Whoever had the lock may have deleted the container, and the id may be another's.
        if os.fstat(fd).st_nlink == 0:
            os.close(fd)
            raise self.unknown()
        self._lock = fd

    def is_busy(self) -> bool:
        """Whether another process holds the lock."""
        try:
            fd = os.open(f"{self.path}/{_LOCK}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def fileno(self) -> int:
        """Return the descriptor of the lock; a copy of it in a child holds it, too."""
        return self._lock

    def close(self) -> None:
        """Let others have the container."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def save(self) -> None:
        """Write the record, whole or not at all."""
        record = self.record
        text = jsontext.dump({name: getattr(record, name) for name in Record.__slots__})
        self.write(_STATE, text.encode())

    def write(self, name: str, data: bytes) -> None:
        """Put *data* into the file *name* of the folder, whole or not at all."""
        temporary = f"{self.path}/.{name}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        os.rename(temporary, f"{self.path}/{name}")

    def forget(self) -> None:
        """Remove the folder: by a rename, which frees the id at once, then file by file."""
        os.rename(self.path, f"{self.root}/{_GONE}{self.id}{_GONE}{os.getpid()}")
        self.clear()
        self.close()

    def clear(self) -> None:
        """Remove what a :meth:`forget` that was killed has left of this id's folders."""
        for name in os.listdir(self.root):
            if name.startswith(f"{_GONE}{self.id}{_GONE}"):
                _remove(f"{self.root}/{name}")

    # -- status ----------------------------------------------------------------------

    def status(self) -> str:
        """Return the container's status: what its first process is doing now."""
        record = self.record
        if not record.created and self.is_busy() and self._lock < 0:
            return CREATING
        if not record.pid or not is_alive(record.pid, record.started):
            return STOPPED
        if not record.created:
            return CREATING
        if is_frozen(record.cgroups):
            return PAUSED
        return CREATED if os.path.exists(f"{self.path}/{FIFO}") else RUNNING


def is_alive(pid: int, started: int) -> bool:
    """Whether the process *pid* that started at *started* has not ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything; state is field 3, starttime 22.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[19]) == started and fields[0] not in (b"Z", b"X")


def processes_of(container: Container) -> list[int]:
    """Return the processes in the container's PID namespace, for one without a cgroup."""
    try:
        wanted = os.stat(f"/proc/{container.record.pid}/ns/pid").st_ino
    except OSError:
        return []
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}/ns/pid").st_ino == wanted:
                    found.append(int(name))
            except OSError:
                continue  # ended, or another user's
    return sorted(found)


def never_executed(pid: int) -> bool:
    """Whether *pid* is a zombie that never called execve: PF_FORKNOEXEC (linux/sched.h) is set."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False  # its parent has waited for it: nothing tells any more
    return fields[0] in (b"Z", b"X") and bool(int(fields[6]) & 0x40)


def start_time(pid: int) -> int:
    """Return when *pid* started, in clock ticks since boot; with it a pid names one process.

    Raises:
        OSError: there is no such process.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def thaw(cgroups: list[str]) -> None:
    """Let the processes go on that v1's freezer holds in one of *cgroups*.

    They get no signal before that, not even SIGKILL; v2's freezer lets it through.
    """
    for path in cgroups:
        try:
            with open(f"{path}/freezer.state", "w") as file:
                file.write("THAWED")
        except OSError:
            continue  # of another controller, or gone


def containers(root: str) -> list[Container]:
    """Return all containers below *root*, sorted by id; none where there is no root."""
    found = []
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SetupError(f"cannot read '{root}'", error.strerror or "") from error
    for name in names:
        try:
            found.append(Container(root, name).find())
        except (UsageError, SetupError):
            continue  # not ours, or deleted meanwhile
    return found


def _remove(path: str) -> None:
    try:
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)
    except FileNotFoundError:
        return  # another process is at the same


def _check_owner(path: str) -> None:
    """Refuse a root that another user could have planted, or can write to."""
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o002:
        raise SetupError(
            f"cannot keep containers in '{path}'",
            "it is not a folder that you own and only you can write to",
            "choose another with --root",
        )
