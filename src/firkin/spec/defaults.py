"""The default parts of an OCI configuration: what a container has when nothing else is asked.

Docker's, which images are written for; where docker leaves something to runc,
runc's. Each function returns fresh plain objects that the caller may change.

Source: https://github.com/moby/moby/blob/master/daemon/pkg/oci/defaults.go,
https://github.com/opencontainers/runc/blob/main/libcontainer/specconv/spec_linux.go,
https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

SHM = "/dev/shm"  # noqa: S108 - a mount point of the container
# Bytes of it.
SHM_SIZE = 64 * 1024 * 1024

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
)

# Host information and side channels that no namespace hides.
MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)

READONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

# The namespaces of the kernel's interface, by the specification's names.
NAMESPACES = ("mount", "pid", "ipc", "uts", "network", "cgroup")

# Character devices that every container may use: type, major, minor (None: any), access.
_DEVICES = (
    ("c", None, None, "m"),  # mknod alone opens nothing
    ("b", None, None, "m"),
    ("c", 1, 3, "rwm"),  # null
    ("c", 1, 5, "rwm"),  # zero
    ("c", 1, 7, "rwm"),  # full
    ("c", 1, 8, "rwm"),  # random
    ("c", 1, 9, "rwm"),  # urandom
    ("c", 5, 0, "rwm"),  # tty
    ("c", 5, 1, "rwm"),  # console
    ("c", 5, 2, "rwm"),  # ptmx
    ("c", 136, None, "rwm"),  # pts/*
)


def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    """Return one entry of ``mounts``."""
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def mounts(
    *, tty_gid: int | None = 5, shm_size: int = SHM_SIZE, writable_sys: bool = False
) -> list[dict[str, Any]]:
    """Return the mounts of every container, parents first.

    Args:
        tty_gid: the group of new terminals; None where the user namespace maps
            no such group, since devpts refuses an id without a mapping.
        shm_size: bytes of /dev/shm.
        writable_sys: leave /sys and /sys/fs/cgroup writable, for privileged containers.
    """
    tty = () if tty_gid is None else (f"gid={tty_gid}",)
    plain = ("nosuid", "noexec", "nodev")
    access = "rw" if writable_sys else "ro"
    return [
        mount("/proc", "proc", "proc", *plain),
        # 64 MiB bounds what a program that writes to a mistyped device can use.
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            *tty,
        ),
        mount(SHM, "tmpfs", "shm", *plain, "mode=1777", f"size={shm_size}"),
        mount("/dev/mqueue", "mqueue", "mqueue", *plain),
        mount("/sys", "sysfs", "sysfs", *plain, access),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", *plain, "relatime", access),
    ]


def host_tree(destination: str, *options: str) -> dict[str, Any]:
    """Return the host's own *destination* bound at the same place, with all mounts below it.

    For the file systems that the kernel does not let a user namespace mount
    afresh when it does not own the namespace they show.
    """
    return mount(
        destination, "bind", destination, "rbind", "rprivate", "nosuid", "noexec", "nodev", *options
    )


def device_rules() -> list[dict[str, Any]]:
    """Return the device cgroup's rules: nothing but the standard nodes."""
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for kind, major, minor, access in _DEVICES:
        rules.append(device_rule(kind, major, minor, access))
    return rules


def device_rule(kind: str, major: int | None, minor: int | None, access: str) -> dict[str, Any]:
    """Return a rule that allows a device: *kind* ``c`` or ``b``, numbers (None: any), access."""
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    if major is not None:
        rule["major"] = major
    if minor is not None:
        rule["minor"] = minor
    return rule
