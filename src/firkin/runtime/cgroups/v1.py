"""What the limits are called on cgroup v1 (Documentation/admin-guide/cgroup-v1)."""

from __future__ import annotations

from firkin.runtime.cgroups import devices
from firkin.runtime.cgroups.limits import Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firkin.runtime.cgroups.limits import Limits

MEMORY = "memory.limit_in_bytes"
MEMORY_AND_SWAP = "memory.memsw.limit_in_bytes"
MEMORY_USAGE = "memory.usage_in_bytes"


def memory(limits: Limits) -> Iterator[Setting]:
    """All but the limit itself, which is written last."""
    if limits.reservation is not None:
        yield Setting(
            "memory", "memory.soft_limit_in_bytes", limits.reservation, "memory.reservation"
        )
    if limits.swappiness is not None:
        yield Setting("memory", "memory.swappiness", limits.swappiness, "memory.swappiness")
    if limits.oom_kill_disable:
        yield Setting("memory", "memory.oom_control", 1, "memory.disableOOMKiller")
    # Kernels that have these files no more limit nothing: what -1 asks for.
    if (kernel := limits.kernel) is not None:
        file = "memory.kmem.limit_in_bytes"
        yield Setting("memory", file, kernel, "memory.kernel", optional=kernel < 0)
    if (tcp := limits.kernel_tcp) is not None:
        file = "memory.kmem.tcp.limit_in_bytes"
        yield Setting("memory", file, tcp, "memory.kernelTCP", optional=tcp < 0)


def pids(limits: Limits) -> Iterator[Setting]:
    if limits.pids is not None:
        value = limits.pids if limits.pids > 0 else "max"
        yield Setting("pids", "pids.max", value, "pids.limit")


def cpu(limits: Limits) -> Iterator[Setting]:
    shares = limits.shares
    # The kernel refuses shares while cpu.idle is 1.
    if limits.idle == 0:
        yield Setting("cpu", "cpu.idle", 0, "cpu.idle")
    if shares is not None:
        yield Setting("cpu", "cpu.shares", shares, "cpu.shares")
    if limits.idle == 1:
        yield Setting("cpu", "cpu.idle", 1, "cpu.idle")
    if limits.period is not None:
        yield Setting("cpu", "cpu.cfs_period_us", limits.period, "cpu.period")
    if limits.quota is not None:
        yield Setting("cpu", "cpu.cfs_quota_us", limits.quota, "cpu.quota")
    if limits.burst is not None:
        yield Setting("cpu", "cpu.cfs_burst_us", limits.burst, "cpu.burst")
    if limits.rt_period is not None:
        yield Setting("cpu", "cpu.rt_period_us", limits.rt_period, "cpu.realtimePeriod")
    if limits.rt_runtime is not None:
        yield Setting("cpu", "cpu.rt_runtime_us", limits.rt_runtime, "cpu.realtimeRuntime")


def cpuset(limits: Limits) -> Iterator[Setting]:
    if limits.cpus is not None:
        yield Setting("cpuset", "cpuset.cpus", limits.cpus, "cpu.cpus")
    if limits.mems is not None:
        yield Setting("cpuset", "cpuset.mems", limits.mems, "cpu.mems")


_THROTTLES = {
    "ReadBps": "blkio.throttle.read_bps_device",
    "WriteBps": "blkio.throttle.write_bps_device",
    "ReadIOPS": "blkio.throttle.read_iops_device",
    "WriteIOPS": "blkio.throttle.write_iops_device",
}


def blkio(limits: Limits) -> Iterator[Setting]:
    # "{bfq}" is settled in the cgroup: with the BFQ scheduler the files have its name.
    field = "blockIO.weightDevice"
    if limits.block_weight is not None:
        yield Setting("blkio", "blkio.{bfq}weight", limits.block_weight, "blockIO.weight")
    if limits.leaf_weight is not None:
        yield Setting("blkio", "blkio.leaf_weight", limits.leaf_weight, "blockIO.leafWeight")
    for device, weight, leaf in limits.block_weight_devices:
        if weight is not None:
            yield Setting("blkio", "blkio.{bfq}weight_device", f"{device} {weight}", field)
        if leaf is not None:
            yield Setting("blkio", "blkio.leaf_weight_device", f"{device} {leaf}", field)
    for key, device, rate in limits.throttles:
        field = f"blockIO.throttle{key}Device"
        yield Setting("blkio", _THROTTLES[key], f"{device} {rate}", field)


def hugetlb(limits: Limits) -> Iterator[Setting]:
    for size, limit in limits.huge_pages:
        # Both: what is reserved, where the kernel counts that (from 5.7 on), and what is used.
        for kind, optional in (("", False), (".rsvd", True)):
            file = f"hugetlb.{size}{kind}.limit_in_bytes"
            yield Setting("hugetlb", file, limit, "hugepageLimits", optional=optional)


def net_cls(limits: Limits) -> Iterator[Setting]:
    if limits.class_id is not None:
        yield Setting("net_cls", "net_cls.classid", limits.class_id, "network.classID")


def net_prio(limits: Limits) -> Iterator[Setting]:
    for name, priority in limits.priorities:
        value = f"{name} {priority}"
        yield Setting("net_prio", "net_prio.ifpriomap", value, "network.priorities")


def rdma(limits: Limits) -> Iterator[Setting]:
    for value in limits.rdma:
        yield Setting("rdma", "rdma.max", value, "rdma")


SECTIONS: dict[str, Callable[[Limits], Iterator[Setting]]] = {
    "cpuset": cpuset,
    "cpu": cpu,
    "pids": pids,
    "memory": memory,
    "blkio": blkio,
    "hugetlb": hugetlb,
    "net_cls": net_cls,
    "net_prio": net_prio,
    "rdma": rdma,
}


def device_settings(rules: devices.Rules) -> list[Setting]:
    """Write the rules as the devices controller wants them: first none, then each exception.

    Raises:
        Unsupported: the controller cannot express these rules exactly.
    """
    default, exceptions = devices.exceptions(rules)
    first, rest = ("allow", "deny") if default else ("deny", "allow")
    settings = [Setting("devices", f"devices.{first}", "a", "devices")]
    lines = [
        f"{kind} {'*' if major is None else major}:{'*' if minor is None else minor} {access}"
        for (kind, major, minor), access in exceptions.items()
    ]
    if lines:
        settings.append(Setting("devices", f"devices.{rest}", "\n".join(lines), "devices"))
    return settings
