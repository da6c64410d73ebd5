"""Read ``linux.resources`` of an OCI configuration into plain, checked values.

Everything that can be wrong with a limit on its own, on any cgroup version, is
found here. Zero and negative values mean what they mean to runc 1.1, since
Docker, podman and containerd write them for it:

- memory: 0 is "not given", -1 "unlimited"; ``swap`` is the total of memory and swap;
- pids: 0 is "not given", negative "unlimited" (Docker writes both for "no limit");
- cpu shares, quota and period: 0 is "not given"; quota -1 is "unlimited".

Sources: OCI runtime-spec config-linux.md; cgroup-v1 and cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

from firkin.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Docker's minimum: with less, the kernel kills the container before its execve.
MINIMUM_MEMORY = 6 << 20
# The kernel's own bounds (kernel/sched/core.c), in microseconds and shares.
MINIMUM_QUOTA = 1_000
MINIMUM_PERIOD, MAXIMUM_PERIOD = 1_000, 1_000_000
MINIMUM_SHARES, MAXIMUM_SHARES = 2, 262_144
MINIMUM_WEIGHT, MAXIMUM_WEIGHT = 10, 1_000

_MAXIMUM = (1 << 63) - 1
# -1 in an unsigned field: how Docker writes "not given" for the swappiness.
_NOT_GIVEN = (1 << 64) - 1
_R = "linux.resources"


# Files of "cgroup" that do something to processes; all others of a cgroup may be set
# ("Configuration unknown to the runtime MUST still be written", config-linux.md, "Unified").
_NO_LIMITS = ("procs", "threads", "type", "kill", "freeze", "subtree_control")


class Setting:
    """One value for one file of a cgroup.

    Attributes:
        controller: the controller whose file it is.
        file: the file's name.
        value: what to write, in one ``write``.
        field: the field of ``linux.resources`` that asks for it.
        optional: whether a kernel without the file does what is asked anyway.
    """

    __slots__ = ("controller", "field", "file", "optional", "value")

    def __init__(
        self, controller: str, file: str, value: str | int, field: str, *, optional: bool = False
    ) -> None:
        self.controller = controller
        self.file = file
        self.value = str(value)
        self.field = field
        self.optional = optional


class Limits:
    """The checked values; ``None`` or an empty tuple where nothing was given.

    Bytes, microseconds and counts as in the configuration. ``devices`` is a tuple
    of ``(allow, type, major, minor, access)`` with ``None`` for "any number".

    Args:
        resources: OCI's ``linux.resources``.
        strict: refuse what the specification allows and what helps nobody: too little
            memory to start, a reservation above the limit, a burst without a quota.
        partial: these change limits that are there: what is not given is no contradiction.

    Raises:
        ConfigError: naming the field and the value.
    """

    __slots__ = (
        "block_weight",
        "block_weight_devices",
        "burst",
        "check_before_update",
        "class_id",
        "cpus",
        "devices",
        "huge_pages",
        "idle",
        "kernel",
        "kernel_tcp",
        "leaf_weight",
        "memory",
        "mems",
        "oom_kill_disable",
        "period",
        "pids",
        "priorities",
        "quota",
        "rdma",
        "reservation",
        "rt_period",
        "rt_runtime",
        "shares",
        "swap",
        "swappiness",
        "throttles",
        "unified",
    )

    def __init__(
        self, resources: dict[str, Any], *, strict: bool = True, partial: bool = False
    ) -> None:
        self._read_memory(resources.get("memory") or {})
        self._relate_memory(partial)
        if strict:
            self._judge_memory()
        self._read_cpu(resources.get("cpu") or {})
        # The kernel keeps a burst for the day that there is a quota.
        if self.burst and self.quota is not None and -1 < self.quota < self.burst:
            raise ConfigError(
                f"{_R}.cpu.burst", f"{self.burst} is more than cpu.quota {self.quota}"
            )
        if strict and self.burst and (self.quota or -1) < 0:
            raise ConfigError(f"{_R}.cpu.burst", f"{self.burst} is more than cpu.quota unlimited")
        self._read_block(resources.get("blockIO") or {})
        self._read_network(resources.get("network") or {})
        pids = resources.get("pids") or {}
        self.pids = _integer(pids, f"{_R}.pids.limit", -_MAXIMUM, _MAXIMUM) or None
        self.huge_pages = tuple(
            _huge_page(entry, f"{_R}.hugepageLimits[{i}]")
            for i, entry in enumerate(resources.get("hugepageLimits") or ())
        )
        self.rdma = tuple(
            _rdma(device, entry) for device, entry in (resources.get("rdma") or {}).items()
        )
        self.devices = tuple(
            _device(entry, f"{_R}.devices[{i}]")
            for i, entry in enumerate(resources.get("devices") or ())
        )
        self.unified = tuple(
            _unified(name, value) for name, value in (resources.get("unified") or {}).items()
        )

    def _read_memory(self, memory: dict[str, Any]) -> None:
        name = f"{_R}.memory."
        self.memory = _integer(memory, name + "limit", -1, _MAXIMUM) or None
        self.swap = _integer(memory, name + "swap", -1, _MAXIMUM) or None
        self.reservation = _integer(memory, name + "reservation", -1, _MAXIMUM) or None
        self.kernel = _integer(memory, name + "kernel", -1, _MAXIMUM) or None
        self.kernel_tcp = _integer(memory, name + "kernelTCP", -1, _MAXIMUM) or None
        self.swappiness: int | None = None
        if memory.get("swappiness") not in (-1, _NOT_GIVEN):
            self.swappiness = _integer(memory, name + "swappiness", 0, 100)
        self.oom_kill_disable = bool(memory.get("disableOOMKiller"))
        self.check_before_update = bool(memory.get("checkBeforeUpdate"))
        if memory.get("useHierarchy") is False:
            raise ConfigError(name + "useHierarchy", "the kernel always counts the whole tree")

    def _relate_memory(self, partial: bool) -> None:
        name = f"{_R}.memory."
        limit, swap = self.memory, self.swap
        if limit == -1 and swap is None:
            self.swap = -1  # as runc: "unlimited" would else keep an older total
        if swap is None or swap < 0 or (partial and limit is None):
            return
        total = "the swap limit is the total of memory and swap"
        if limit is None or limit < 0:
            raise ConfigError(name + "swap", f"{swap} without memory.limit: {total}")
        if swap < limit:
            raise ConfigError(name + "swap", f"{swap} is less than memory.limit {limit}: {total}")

    def _judge_memory(self) -> None:
        name = f"{_R}.memory."
        limit = self.memory
        if limit is not None and 0 < limit < MINIMUM_MEMORY:
            raise ConfigError(
                name + "limit",
                f"{limit} bytes are too few to start a container",
                f"give at least {MINIMUM_MEMORY} (6m)",
            )
        if limit and self.reservation and 0 < limit < self.reservation:
            raise ConfigError(
                name + "reservation", f"{self.reservation} is more than memory.limit {limit}"
            )

    def _read_cpu(self, cpu: dict[str, Any]) -> None:
        name = f"{_R}.cpu."
        self.shares = _unless_zero(cpu, name + "shares", MINIMUM_SHARES, MAXIMUM_SHARES)
        self.quota = _integer(cpu, name + "quota", -1, _MAXIMUM // 1000) or None
        self.period = _unless_zero(cpu, name + "period", MINIMUM_PERIOD, MAXIMUM_PERIOD)
        self.burst = _integer(cpu, name + "burst", 0, _MAXIMUM // 1000)
        self.idle = _integer(cpu, name + "idle", 0, 1)
        self.rt_runtime = _integer(cpu, name + "realtimeRuntime", -1, _MAXIMUM // 1000) or None
        self.rt_period = _integer(cpu, name + "realtimePeriod", 0, _MAXIMUM // 1000) or None
        self.cpus = _list(cpu, name + "cpus")
        self.mems = _list(cpu, name + "mems")
        if self.quota is not None and -1 < self.quota < MINIMUM_QUOTA:
            raise ConfigError(
                name + "quota",
                f"{self.quota} is below the kernel's minimum of {MINIMUM_QUOTA} microseconds",
            )

    def _read_block(self, block: dict[str, Any]) -> None:
        name = f"{_R}.blockIO."
        bounds = MINIMUM_WEIGHT, MAXIMUM_WEIGHT
        self.block_weight = _unless_zero(block, name + "weight", *bounds)
        self.leaf_weight = _unless_zero(block, name + "leafWeight", *bounds)
        devices = []
        for i, entry in enumerate(block.get("weightDevice") or ()):
            field = f"{name}weightDevice[{i}]."
            devices.append(
                (
                    _number(entry, field),
                    _unless_zero(entry, field + "weight", *bounds),
                    _unless_zero(entry, field + "leafWeight", *bounds),
                )
            )
        self.block_weight_devices = tuple(devices)
        throttles = []
        for key in ("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS"):
            for i, entry in enumerate(block.get(f"throttle{key}Device") or ()):
                field = f"{name}throttle{key}Device[{i}]."
                rate = _integer(entry, field + "rate", 0, _MAXIMUM)
                if rate is None:
                    raise ConfigError(field + "rate", "missing")
                throttles.append((key, _number(entry, field), rate))
        self.throttles = tuple(throttles)

    def _read_network(self, network: dict[str, Any]) -> None:
        name = f"{_R}.network."
        self.class_id = _integer(network, name + "classID", 0, 0xFFFFFFFF) or None
        priorities = []
        for i, entry in enumerate(network.get("priorities") or ()):
            field = f"{name}priorities[{i}]."
            interface = _word(entry.get("name"), field + "name")
            priorities.append((interface, _integer(entry, field + "priority", 0, 0xFFFFFFFF) or 0))
        self.priorities = tuple(priorities)


def parse_list(text: str) -> frozenset[int]:
    """Read a list of numbers as cpusets write them (``0-3,8``); see cpuset(7), List format.

    Raises:
        ValueError: it is not such a list.
    """
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        low = _decimal(first)
        high = _decimal(last) if dash else low
        # A million is beyond any machine; the bound keeps a hostile list small.
        if high < low or high >= 1 << 20:
            raise ValueError(text)
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 8):
        raise ValueError(text)
    return int(text)


def _integer(section: dict[str, Any], field: str, low: int, high: int) -> int | None:
    """The integer that *field* names by its last part, ``None`` where it is not given."""
    value = section.get(field.rpartition(".")[2])
    if value is None:
        return None
    if type(value) is not int:
        raise ConfigError(field, f"expected an integer, not {value!r}")
    if not low <= value <= high:
        raise ConfigError(field, f"{value} is not between {low} and {high}")
    return value


def _unless_zero(section: dict[str, Any], field: str, low: int, high: int) -> int | None:
    """As :func:`_integer`, where zero means "not given"."""
    value = section.get(field.rpartition(".")[2])
    if type(value) is int and value == 0:
        return None
    return _integer(section, field, low, high)


def _word(value: Any, field: str) -> str:
    """A name that goes into a cgroup file among others: no space, nothing unprintable."""
    if type(value) is not str or not value.isprintable() or not value or " " in value:
        raise ConfigError(field, f"expected a name, not {value!r}")
    return value


def _list(section: dict[str, Any], field: str) -> str | None:
    value = section.get(field.rpartition(".")[2])
    if value is None or value == "":
        return None
    try:
        parse_list(value)
    except (AttributeError, ValueError):
        raise ConfigError(field, f"expected a list such as 0-3,8, not {value!r}") from None
    text: str = value
    return text.strip()


def _number(entry: dict[str, Any], field: str) -> str:
    major = _integer(entry, field + "major", 0, (1 << 32) - 1)
    minor = _integer(entry, field + "minor", 0, (1 << 32) - 1)
    if major is None or minor is None:
        raise ConfigError(field + ("major" if major is None else "minor"), "missing")
    return f"{major}:{minor}"


def _huge_page(entry: dict[str, Any], field: str) -> tuple[str, int]:
    size = entry.get("pageSize")
    number, unit = (size[:-2], size[-2:]) if type(size) is str else ("", "")
    if unit not in ("KB", "MB", "GB") or not (number.isascii() and number.isdigit()):
        raise ConfigError(field + ".pageSize", f"expected a size such as 2MB, not {size!r}")
    limit = _integer(entry, field + ".limit", 0, (1 << 64) - 1)
    if limit is None:
        raise ConfigError(field + ".limit", "missing")
    return f"{int(number)}{unit}", limit


def _rdma(device: str, entry: dict[str, Any]) -> str:
    field = f"{_R}.rdma.{device}"
    parts = [_word(device, field)]
    for key, name in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object")):
        value = _integer(entry, f"{field}.{key}", 0, (1 << 31) - 1)
        if value is not None:
            parts.append(f"{name}={value}")
    return " ".join(parts)


def _device(entry: dict[str, Any], field: str) -> tuple[bool, str, int | None, int | None, str]:
    allow = entry.get("allow")
    if type(allow) is not bool:
        raise ConfigError(field + ".allow", f"expected true or false, not {allow!r}")
    kind = entry.get("type") or "a"
    if kind not in ("a", "b", "c"):
        raise ConfigError(field + ".type", f"expected a, b or c, not {kind!r}")
    access = entry.get("access") or "rwm"
    if type(access) is not str or not set(access) <= set("rwm"):
        raise ConfigError(field + ".access", f"expected some of r, w and m, not {access!r}")
    numbers = []
    for key in ("major", "minor"):
        value = _integer(entry, f"{field}.{key}", -1, (1 << 32) - 1)
        numbers.append(None if value is None or value < 0 else value)
    return allow, kind, numbers[0], numbers[1], access


def _unified(name: Any, value: Any) -> tuple[str, str]:
    field = f"{_R}.unified.{name}"
    controller, dot, rest = str(name).partition(".")
    safe = str(name).isascii() and not set(str(name)) & set("/\0\n ")
    if not (safe and dot and controller and rest):
        raise ConfigError(field, "expected the name of a cgroup v2 file, such as memory.high")
    if controller == "cgroup" and rest in _NO_LIMITS:
        raise ConfigError(field, "this file moves or stops processes; it is not a limit")
    if type(value) is not str or not value:
        raise ConfigError(field, f"expected text, not {value!r}")
    return str(name), value
