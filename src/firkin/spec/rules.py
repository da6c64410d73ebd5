"""What an OCI configuration must keep to beyond the types of its fields.

Each rule is a generator over the configuration, whose types the tables in
:mod:`firkin.spec.schema` have checked before. It yields the faults that it
finds, as the arguments of :class:`~firkin.errors.ConfigError`: field, why and,
where we know it, mend. From the text of the runtime specification and from
what runc's ``libcontainer/configs/validate`` refuses.
"""

from __future__ import annotations

from itertools import pairwise

from firkin.spec.kinds import entry, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Config = dict[str, Any]
    Fault = tuple[str, str] | tuple[str, str, str]
    Faults = Iterator[Fault]

# UID_GID_MAP_MAX_EXTENTS of linux/user_namespace.h: the kernel takes no more lines.
MAX_MAPPINGS = 340

# The largest id is no id at all: (uid_t) -1 means "leave it" to chown(2) and setresuid(2).
LAST_ID = (1 << 32) - 1

# The limits of cpu.cfs_period_us and the least of cpu.cfs_quota_us, in
# microseconds (kernel/sched/core.c).
PERIODS = range(1_000, 1_000_001)
LEAST_QUOTA = 1_000

# The kernel's parameters that each IPC namespace has for itself (ipc_namespaces(7)).
IPC_SYSCTLS = (
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
)

# The actions that carry a number for the caller or the tracer.
ERRNO_ACTIONS = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")


def sysctl_path(key: str) -> str:
    """Return the file below ``/proc/sys`` that the parameter *key* means.

    Both of sysctl(8)'s spellings are read: ``net.ipv4.conf.eth0/1.forwarding``
    and ``net/ipv4/conf/eth0.1/forwarding`` are the same file. Whichever
    separator comes first is the one.

    Returns:
        the relative path, or "" for a key that would leave the folder.
    """
    dot, slash = key.find("."), key.find("/")
    if dot >= 0 and (slash < 0 or dot < slash):
        key = key.translate({ord("."): "/", ord("/"): "."})
    if any(part in ("", ".", "..") for part in key.split("/")):
        return ""
    return key


def namespaces(config: Config) -> set[str]:
    """Return the types of namespace that the container has apart from the runtime's."""
    return {namespace["type"] for namespace in config.get("linux", {}).get("namespaces", [])}


def process(config: Config) -> Faults:
    """There is something to execute."""
    process = config.get("process", {"args": []})
    if "args" not in process and "commandLine" not in process:
        yield "process.args", "is missing"


def rlimits(config: Config) -> Faults:
    """Each limit is set once, and the soft one is not above the hard one: setrlimit(2)."""
    seen = set()
    for index, limit in enumerate(config.get("process", {}).get("rlimits", [])):
        field = f"process.rlimits[{index}]"
        if limit["type"] in seen:
            yield f"{field}.type", f"{limit['type']} is set twice"
        seen.add(limit["type"])
        if limit["soft"] > limit["hard"]:
            yield f"{field}.soft", f"{limit['soft']} is above the hard limit of {limit['hard']}"


def scheduler(config: Config) -> Faults:
    """Each policy has its own parameters: sched_setattr(2)."""
    scheduler = config.get("process", {}).get("scheduler", {})
    policy = scheduler.get("policy")
    if scheduler.get("priority") and policy not in ("SCHED_FIFO", "SCHED_RR"):
        yield "process.scheduler.priority", f"{policy} has none", "use SCHED_FIFO or SCHED_RR"
    for name in ("runtime", "deadline", "period"):
        if scheduler.get(name) and policy != "SCHED_DEADLINE":
            yield f"process.scheduler.{name}", f"{policy} has none", "use SCHED_DEADLINE"


def unique_namespaces(config: Config) -> Faults:
    """A process is in one namespace of each type."""
    seen = set()
    for index, namespace in enumerate(config.get("linux", {}).get("namespaces", [])):
        if namespace["type"] in seen:
            yield (
                f"linux.namespaces[{index}].type",
                f"there are two namespaces of type {namespace['type']}",
            )
        seen.add(namespace["type"])


def needed_namespaces(config: Config) -> Faults:
    """What belongs to a namespace is not set in the runtime's own, which is the host's."""
    linux = config.get("linux", {})
    needs = (
        ("hostname", config, "uts"),
        ("domainname", config, "uts"),
        ("uidMappings", linux, "user"),
        ("gidMappings", linux, "user"),
        ("timeOffsets", linux, "time"),
        ("maskedPaths", linux, "mount"),
        ("readonlyPaths", linux, "mount"),
    )
    present = namespaces(config)
    for name, section, namespace in needs:
        if section.get(name) and namespace not in present:
            yield (
                name if section is config else f"linux.{name}",
                f"needs a {namespace} namespace of the container's own",
                f'add {{"type": "{namespace}"}} to linux.namespaces',
            )


def _overlap(mappings: list[dict[str, int]], start: str) -> tuple[int, int] | None:
    """Return the indices of two mappings that share an id counted from *start*, if any do."""
    order = sorted(range(len(mappings)), key=lambda index: mappings[index][start])
    for before, after in pairwise(order):
        if mappings[before][start] + mappings[before]["size"] > mappings[after][start]:
            return before, after
    return None


def _mappings(mappings: list[dict[str, int]], field: str) -> Faults:
    if len(mappings) > MAX_MAPPINGS:
        yield field, f"has {len(mappings)} entries; the kernel takes {MAX_MAPPINGS}"
    for start in ("containerID", "hostID"):
        for index, mapping in enumerate(mappings):
            if mapping[start] + mapping["size"] > LAST_ID:
                yield (
                    f"{field}[{index}].size",
                    f"{mapping['size']} ids from {start} {mapping[start]} go beyond {LAST_ID - 1}",
                )
        shared = _overlap(mappings, start)
        if shared:
            first, second = sorted(shared)
            yield f"{field}[{second}].{start}", f"overlaps with {field}[{first}]"


def id_mappings(config: Config) -> Faults:
    """The kernel will take the maps: user_namespaces(7), "Defining user and group ID mappings"."""
    linux = config.get("linux", {})
    for name in ("uidMappings", "gidMappings"):
        yield from _mappings(linux.get(name, []), f"linux.{name}")
    for index, mount in enumerate(config.get("mounts", [])):
        # mount_setattr(2) takes one user namespace, which has both maps.
        for name, other in (("uidMappings", "gidMappings"), ("gidMappings", "uidMappings")):
            if mount.get(name) and not mount.get(other):
                yield f"mounts[{index}].{other}", f"is missing, and {name} is there"
            yield from _mappings(mount.get(name, []), f"mounts[{index}].{name}")


def sysctl_namespace(path: str) -> str:
    """Return the type of the namespaces that have the parameter at *path* each; "" for none."""
    if path in IPC_SYSCTLS or path.startswith("fs/mqueue/"):
        return "ipc"
    if path.startswith("net/"):
        return "network"
    return "uts" if path == "kernel/domainname" else ""


def sysctls(config: Config) -> Faults:
    """Only parameters that a namespace of the container has for itself, or the host's would change.

    A namespace that is joined by path may still be the host's; who opens it must
    see to that.
    """
    present = namespaces(config)
    for key in config.get("linux", {}).get("sysctl", {}):
        field = entry("linux.sysctl", key)
        path = sysctl_path(key)
        if path == "kernel/hostname":
            yield field, "conflicts with a field of its own", "use hostname"
            continue
        needed = sysctl_namespace(path)
        if not needed:
            yield field, f"{show(key)} is not a parameter that a container has for itself"
        elif needed not in present:
            yield field, f"would change the host: it needs a {needed} namespace"


def devices(config: Config) -> Faults:
    """A device has a number; a named pipe ("p") has none."""
    for index, device in enumerate(config.get("linux", {}).get("devices", [])):
        for name in ("major", "minor"):
            if device["type"] != "p" and name not in device:
                yield f"linux.devices[{index}].{name}", f"is missing, and type is {device['type']}"


def memory(config: Config) -> Faults:
    """``swap`` counts memory and swap together, so it is not below ``limit``."""
    memory = config.get("linux", {}).get("resources", {}).get("memory", {})
    limit, swap = memory.get("limit", 0), memory.get("swap", 0)
    field = "linux.resources.memory.swap"
    if swap > 0 and limit <= 0:
        yield field, "cannot be limited while memory is not", "set linux.resources.memory.limit"
    elif 0 < swap < limit:
        yield field, f"{swap} is below the memory limit of {limit}: it counts memory and swap"


def cpu(config: Config) -> Faults:
    """The numbers that the kernel takes for the bandwidth of a cgroup; 0 is unset."""
    cpu = config.get("linux", {}).get("resources", {}).get("cpu", {})
    period, quota, burst = cpu.get("period", 0), cpu.get("quota", 0), cpu.get("burst", 0)
    field = "linux.resources.cpu"
    if period and period not in PERIODS:
        yield f"{field}.period", f"{period} is outside 1000 to 1000000 microseconds"
    if 0 < quota < LEAST_QUOTA:
        yield f"{field}.quota", f"{quota} is below {LEAST_QUOTA} microseconds"
    if burst > quota > 0:
        yield f"{field}.burst", f"{burst} is above the quota of {quota}"


def one_of_two(config: Config) -> Faults:
    """Entries that limit something must say what."""
    resources = config.get("linux", {}).get("resources", {})
    weights = resources.get("blockIO", {}).get("weightDevice", [])
    for index, device in enumerate(weights):
        if "weight" not in device and "leafWeight" not in device:
            field = f"linux.resources.blockIO.weightDevice[{index}]"
            yield field, "has neither weight nor leafWeight"
    for name, limits in resources.get("rdma", {}).items():
        if "hcaHandles" not in limits and "hcaObjects" not in limits:
            field = entry("linux.resources.rdma", name)
            yield field, "has neither hcaHandles nor hcaObjects"


def seccomp(config: Config) -> Faults:
    """config-linux.md, "Seccomp"."""
    seccomp = config.get("linux", {}).get("seccomp", {})
    field = "linux.seccomp"
    action = seccomp.get("defaultAction")
    if "defaultErrnoRet" in seccomp and action not in ERRNO_ACTIONS:
        yield f"{field}.defaultErrnoRet", f"{action} returns no errno"
    if action == "SCMP_ACT_NOTIFY":
        # The system calls that hand the listener over would wait for the listener.
        yield f"{field}.defaultAction", "SCMP_ACT_NOTIFY cannot be the default"
    notify = False
    for index, rule in enumerate(seccomp.get("syscalls", [])):
        at = f"{field}.syscalls[{index}]"
        if "errnoRet" in rule and rule["action"] not in ERRNO_ACTIONS:
            yield f"{at}.errnoRet", f"{rule['action']} returns no errno"
        notify = notify or rule["action"] == "SCMP_ACT_NOTIFY"
    if not seccomp.get("listenerPath"):
        if notify:
            yield f"{field}.listenerPath", "is missing, and a rule says SCMP_ACT_NOTIFY"
        if seccomp.get("listenerMetadata"):
            yield f"{field}.listenerMetadata", "is there, and listenerPath is not"


def personality(config: Config) -> Faults:
    """The specification knows no flag, and the kernel's weaken the container."""
    if config.get("linux", {}).get("personality", {}).get("flags"):
        yield "linux.personality.flags", "no flag is supported"


RULES = (
    process,
    rlimits,
    scheduler,
    unique_namespaces,
    needed_namespaces,
    id_mappings,
    sysctls,
    devices,
    memory,
    cpu,
    one_of_two,
    seccomp,
    personality,
)

# Those of a process, and of limits that are to be changed, which come without the rest: memory
# and swap that go together may have been set before.
PROCESS_RULES = (process, rlimits, scheduler)
RESOURCE_RULES = (cpu, one_of_two)
