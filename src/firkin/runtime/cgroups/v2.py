"""What the limits are called on cgroup v2 (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

from firkin.errors import Unsupported
from firkin.runtime.cgroups.limits import Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from firkin.runtime.cgroups.limits import Limits

MEMORY = "memory.max"
SWAP = "memory.swap.max"
MEMORY_USAGE = "memory.current"


def cpu_weight(shares: int) -> int:
    """Map v1's 2..262144 linearly to v2's 1..10000, with the formula of runc and crun."""
    return 1 + (shares - 2) * 9999 // 262142


def io_weight(weight: int) -> int:
    """Map v1's 10..1000 linearly to io.weight's 1..10000, with runc's formula."""
    return 1 + (weight - 10) * 9999 // 990


def or_max(value: int) -> int | str:
    """``max`` is v2's word for "no limit"."""
    return "max" if value < 0 else value


def swap_value(limits: Limits) -> int | str | None:
    """memory.swap.max counts swap alone; OCI gives the total of memory and swap."""
    if limits.swap is None:
        return None
    return "max" if limits.swap < 0 else limits.swap - (limits.memory or 0)


# The controllers whose fields v2 does not all have; on v2, or nowhere.
LESS = ("memory", "cpu", "net_cls", "net_prio", "io")


def refuse(limits: Limits, controllers: Collection[str] = LESS) -> None:
    """Refuse what only cgroup v1 has, of those *controllers* that are on v2.

    Raises:
        Unsupported: naming the field.
    """
    for controller, field, given in (
        ("memory", "memory.swappiness", limits.swappiness is not None),
        ("memory", "memory.disableOOMKiller", limits.oom_kill_disable),
        ("memory", "memory.kernel", (limits.kernel or -1) > 0),
        ("memory", "memory.kernelTCP", (limits.kernel_tcp or -1) > 0),
        ("cpu", "cpu.realtimeRuntime", limits.rt_runtime is not None),
        ("cpu", "cpu.realtimePeriod", limits.rt_period is not None),
        ("net_cls", "network.classID", limits.class_id is not None),
        ("net_prio", "network.priorities", bool(limits.priorities)),
        ("io", "blockIO.leafWeight", limits.leaf_weight is not None),
        ("io", "blockIO.leafWeight", any(leaf for _, _, leaf in limits.block_weight_devices)),
    ):
        if given and controller in controllers:
            raise Unsupported(
                f"cannot set linux.resources.{field}", "cgroup v2 has no such setting"
            )


def memory(limits: Limits) -> Iterator[Setting]:
    """All but the limit itself, which is written last."""
    if limits.reservation is not None:
        value = or_max(limits.reservation)
        yield Setting("memory", "memory.low", value, "memory.reservation")


def pids(limits: Limits) -> Iterator[Setting]:
    if limits.pids is not None:
        value = limits.pids if limits.pids > 0 else "max"
        yield Setting("pids", "pids.max", value, "pids.limit")


def cpu(limits: Limits) -> Iterator[Setting]:
    # The kernel refuses a weight while cpu.idle is 1.
    if limits.idle == 0:
        yield Setting("cpu", "cpu.idle", 0, "cpu.idle")
    if limits.shares is not None:
        yield Setting("cpu", "cpu.weight", cpu_weight(limits.shares), "cpu.shares")
    if limits.idle == 1:
        yield Setting("cpu", "cpu.idle", 1, "cpu.idle")
    if limits.quota is not None or limits.period is not None:
        quota = or_max(-1 if limits.quota is None else limits.quota)
        period = "" if limits.period is None else f" {limits.period}"
        yield Setting("cpu", "cpu.max", f"{quota}{period}", "cpu.quota and cpu.period")
    if limits.burst is not None:
        yield Setting("cpu", "cpu.max.burst", limits.burst, "cpu.burst")


def cpuset(limits: Limits) -> Iterator[Setting]:
    if limits.cpus is not None:
        yield Setting("cpuset", "cpuset.cpus", limits.cpus, "cpu.cpus")
    if limits.mems is not None:
        yield Setting("cpuset", "cpuset.mems", limits.mems, "cpu.mems")


_THROTTLES = {"ReadBps": "rbps", "WriteBps": "wbps", "ReadIOPS": "riops", "WriteIOPS": "wiops"}


def io(limits: Limits) -> Iterator[Setting]:
    # "{bfq}" is settled in the cgroup: BFQ's file takes v1's range, io.weight its own.
    if limits.block_weight is not None:
        yield Setting("io", "io.{bfq}weight", limits.block_weight, "blockIO.weight")
    for device, weight, _ in limits.block_weight_devices:
        if weight is not None:
            yield Setting("io", "io.{bfq}weight", f"{device} {weight}", "blockIO.weightDevice")
    for key, device, rate in limits.throttles:
        value = f"{device} {_THROTTLES[key]}={rate or 'max'}"  # 0 lifts the limit, as on v1
        yield Setting("io", "io.max", value, f"blockIO.throttle{key}Device")


def hugetlb(limits: Limits) -> Iterator[Setting]:
    for size, limit in limits.huge_pages:
        # Both: what is reserved, where the kernel counts that (from 5.7 on), and what is used.
        for kind, optional in (("", False), (".rsvd", True)):
            file = f"hugetlb.{size}{kind}.max"
            yield Setting("hugetlb", file, limit, "hugepageLimits", optional=optional)


def rdma(limits: Limits) -> Iterator[Setting]:
    for value in limits.rdma:
        yield Setting("rdma", "rdma.max", value, "rdma")


SECTIONS: dict[str, Callable[[Limits], Iterator[Setting]]] = {
    "cpuset": cpuset,
    "cpu": cpu,
    "pids": pids,
    "memory": memory,
    "io": io,
    "hugetlb": hugetlb,
    "rdma": rdma,
}


def unified(limits: Limits) -> list[Setting]:
    """``linux.resources.unified``: each line of a value is one write."""
    return [
        Setting(name.partition(".")[0], name, line, f"unified.{name}")
        for name, value in limits.unified
        for line in value.splitlines()
    ]
