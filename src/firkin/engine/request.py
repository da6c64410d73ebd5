"""What a run is asked for, in plain values: the one input of ``engine/compose.py``.

``cli/run_options.py`` makes it from a command line. A caller in Python makes
it directly, so that nothing here is text that still needs parsing.
"""

from __future__ import annotations

from firkin.errors import UsageError
from firkin.spec.defaults import SHM_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    # Where a namespace comes from: ("private", ""), ("host", ""), ("none", "")
    # (network: private with lo only), ("path", "/proc/PID/ns/…") or
    # ("container", ID), which the engine turns into a path before compose.
    # User namespaces also: ("auto", ""), ("keep-id", "").
    Source = tuple[str, str]

PRIVATE = ("private", "")
HOST = ("host", "")
NONE = ("none", "")

# The parameters that ipc_namespaces(7) lists.
_IPC_SYSCTL = (
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
)


class Mount:
    """A mount that was asked for.

    Args:
        kind: ``bind``, ``tmpfs`` or ``overlay``.
        target: absolute, normalised path in the container.
        source: bind: absolute path on the host. overlay: its lower folders,
            absolute, the uppermost first, with colons between. tmpfs: empty.
        options: as in the OCI configuration; those of the file system included.
        read_only: what that means for mounts below *source*: ``""`` (writable),
            ``"auto"`` (recursively where the kernel can), ``"recursive"`` (or
            fail), ``"top"`` (the mounts below stay as they are).
        upper, work: overlay: folders for what is written. Empty means private
            ones, which the engine makes and fills in before compose.
        must_exist: bind: *source* is not made where it is missing.
    """

    __slots__ = ("kind", "must_exist", "options", "read_only", "source", "target", "upper", "work")

    def __init__(
        self,
        kind: str,
        target: str,
        source: str = "",
        options: tuple[str, ...] = (),
        *,
        read_only: str = "",
        upper: str = "",
        work: str = "",
        must_exist: bool = True,
    ) -> None:
        self.kind = kind
        self.target = target
        self.source = source
        self.options = options
        self.read_only = read_only
        self.upper = upper
        self.work = work
        self.must_exist = must_exist


class Request:
    """All that one run is asked for. Attributes that are not given have the defaults below.

    Sizes are in bytes, times in seconds, processors in billionths (``nano_cpus``).
    None means: not asked for.
    """

    __slots__ = (
        "add_hosts",
        "annotations",
        "blkio_weight",
        "bundle",
        "cap_add",
        "cap_drop",
        "cgroup_parent",
        "cgroupns",
        "cidfile",
        "command",
        "cpu_period",
        "cpu_quota",
        "cpu_shares",
        "cpuset_cpus",
        "cpuset_mems",
        "device_rates",
        "devices",
        "dns",
        "domainname",
        "entrypoint",
        "environment",
        "explain",
        "group_add",
        "hostname",
        "image",
        "init",
        "interactive",
        "ipc",
        "labels",
        "memory",
        "memory_reservation",
        "memory_swap",
        "memory_swappiness",
        "mounts",
        "name",
        "nano_cpus",
        "network",
        "no_new_privileges",
        "oom_score_adj",
        "pid",
        "pids_limit",
        "preserve_fds",
        "privileged",
        "read_only",
        "rlimits",
        "seccomp",
        "shm_size",
        "sysctl",
        "system_paths",
        "time_offsets",
        "timeout",
        "tty",
        "user",
        "userns",
        "uts",
        "workdir",
    )

    def __init__(self, **given: Any) -> None:
        # What runs.
        self.image: str | None = None
        self.command: list[str] = []
        self.bundle: str | None = None  # absolute path of an OCI bundle, instead of image
        # Process. entrypoint: None is the image's; [] is none.
        self.entrypoint: list[str] | None = None
        # A value of None takes the variable away from the defaults.
        self.environment: dict[str, str | None] = {}
        self.workdir: str | None = None
        self.user: str | None = None  # NAME|UID[:GROUP|GID], looked up in the container
        self.group_add: list[str] = []  # names or numbers, looked up in the container
        self.init = False
        self.name: str | None = None
        self.cidfile: str | None = None
        self.labels: dict[str, str] = {}
        self.annotations: dict[str, str] = {}
        self.timeout: float | None = None
        self.preserve_fds = 0  # how many descriptors from 3 on the command keeps
        # Namespaces. userns: None leaves it to the engine.
        self.userns: Source | None = None
        self.pid: Source = PRIVATE
        self.ipc: Source = PRIVATE
        self.uts: Source = PRIVATE
        self.network: Source = NONE
        self.cgroupns: Source = PRIVATE
        # clock ("boottime", "monotonic") to (seconds, nanoseconds).
        self.time_offsets: dict[str, tuple[int, int]] = {}
        self.hostname: str | None = None
        self.domainname: str | None = None
        self.dns: list[str] = []
        self.add_hosts: list[tuple[str, str]] = []  # (name, address)
        # File system.
        self.read_only = False
        self.mounts: list[Mount] = []
        self.shm_size = SHM_SIZE
        # (path on the host, path in the container, access out of "rwm").
        self.devices: list[tuple[str, str, str]] = []
        # Limits. -1 is unlimited where the field knows that (pids, swap).
        self.pids_limit: int | None = None
        self.memory: int | None = None
        self.memory_reservation: int | None = None
        self.memory_swap: int | None = None  # memory and swap together
        self.memory_swappiness: int | None = None
        self.nano_cpus: int | None = None
        self.cpu_shares: int | None = None
        self.cpu_quota: int | None = None  # microseconds
        self.cpu_period: int | None = None  # microseconds
        self.cpuset_cpus: str | None = None
        self.cpuset_mems: str | None = None
        self.blkio_weight: int | None = None
        # (OCI field as "throttleReadBpsDevice", path of the device, rate a second).
        self.device_rates: list[tuple[str, str, int]] = []
        self.oom_score_adj: int | None = None
        self.rlimits: dict[str, tuple[int, int]] = {}  # RLIMIT_NAME to (soft, hard)
        self.cgroup_parent: str | None = None
        self.sysctl: dict[str, str] = {}
        # Privileges. Capabilities as CAP_NAME, or "ALL".
        self.cap_add: list[str] = []
        self.cap_drop: list[str] = []
        self.privileged = False
        # "default", "unconfined" or a profile's path; None: default, unless privileged.
        self.seccomp: str | None = None
        self.no_new_privileges: bool | None = None  # None: yes, unless privileged
        self.system_paths = True  # mask and protect parts of /proc and /sys
        # Terminal and output.
        self.interactive = False
        self.tty = False
        self.explain: str | None = None  # "text" or "json"
        for name, value in given.items():
            setattr(self, name, value)

    def check(self) -> None:
        """Check what can be checked without the machine: fields that contradict each other.

        Raises:
            UsageError: with what cannot be had together, and why.
        """
        if self.nano_cpus is not None and (self.cpu_quota or self.cpu_period):
            raise UsageError(
                "cannot combine --cpus with --cpu-quota or --cpu-period", "it sets both"
            )
        self._check_memory()
        if "ALL" in self.cap_add and "ALL" in self.cap_drop:
            raise UsageError("cannot both add and drop ALL capabilities", "one undoes the other")
        if self.uts != PRIVATE and (self.hostname is not None or self.domainname is not None):
            raise UsageError(
                "cannot set the host name", "the container has no UTS namespace of its own"
            )
        targets: set[str] = set()
        for mount in self.mounts:
            if mount.target in targets:
                raise UsageError(
                    f"cannot mount on '{mount.target}'", "it is the target of two mounts"
                )
            targets.add(mount.target)
        for name in self.sysctl:
            self._check_sysctl(name)

    def _check_memory(self) -> None:
        limit, reserved, swap = self.memory, self.memory_reservation, self.memory_swap
        if limit is not None and reserved is not None and reserved > limit:
            raise UsageError(f"cannot reserve {reserved} bytes of memory", f"the limit is {limit}")
        if swap is None or swap == -1:
            return
        if limit is None:
            raise UsageError(
                f"cannot set --memory-swap to {swap}",
                "it is a limit of memory and swap together",
                "set --memory as well",
            )
        if swap < limit:
            raise UsageError(
                f"cannot set --memory-swap to {swap}",
                f"it counts memory and swap together, and memory alone may have {limit}",
            )

    def _check_sysctl(self, name: str) -> None:
        if name.startswith("net."):
            kind, source = "network", self.network
        elif name.startswith("fs.mqueue.") or name in _IPC_SYSCTL:
            kind, source = "IPC", self.ipc
        elif name == "kernel.domainname":
            kind, source = "UTS", self.uts
        else:
            # Set on the host for everybody if it were let through.
            raise UsageError(f"cannot set sysctl {name}", "it is not part of any namespace")
        if source == HOST:
            raise UsageError(
                f"cannot set sysctl {name}", f"the container has the host's {kind} namespace"
            )
