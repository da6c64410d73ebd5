"""What a container uses, in the form of ``runc events --stats``.

The names, their order and what is left out for being 0 are runc's (types/events.go), since
its clients read them; on v2 the kernel's names are mapped to those as runc does it
(libcontainer/cgroups/fs2). A file that is missing counts as 0: kernels differ.
"""

from __future__ import annotations

import errno
import os

from firkin.runtime.cgroups import tree
from firkin.runtime.cgroups.limits import parse_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firkin.runtime.cgroups.group import Cgroup

_TICK = 10_000_000  # nanoseconds; USER_HZ is 100 on every architecture
_UNLIMITED = (1 << 64) - 1  # runc's for "max"


def read(cgroup: Cgroup) -> dict[str, Any]:
    """What the container *cgroup* uses now: ``data`` of an event of type ``stats``.

    Sizes in bytes, times in nanoseconds.

    Raises:
        OSError: a file can't be read, though it is there.
    """
    return {
        "cpu": _cpu(cgroup),
        "cpuset": _cpuset(_place(cgroup, "cpuset", 1)),
        "memory": _memory(cgroup),
        "pids": _pids(_place(cgroup, "pids")),
        "blkio": _block(cgroup),
        "hugetlb": _huge_pages(cgroup),
        "intel_rdt": {},
        "network_interfaces": None,
    }


# ---------------------------------------------------------------- files


def _place(cgroup: Cgroup, controller: str, version: int = 0) -> str:
    """The directory that has *controller*, on that *version*; "" where there is none."""
    home = cgroup.home(controller)
    if home is None or version not in (0, home.hierarchy.version):
        return ""
    return home.path


def _text(folder: str, name: str) -> str:
    """The contents of a file, "" where it or its cgroup is missing."""
    if not folder:
        return ""
    try:
        return tree.read(f"{folder}/{name}").strip()
    except OSError as error:
        # Removed before the open or after it; or not supported with this kernel's options.
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return ""
        raise


def _number(folder: str, name: str) -> int:
    text = _text(folder, name)
    if text == "max":
        return _UNLIMITED
    # v1 has -1 and the like for what is not set.
    return int(text) if text.isdigit() else 0


def _table(folder: str, name: str) -> dict[str, int]:
    """A file with lines ``word number``."""
    found = {}
    for line in _text(folder, name).splitlines():
        word, _, number = line.partition(" ")
        if number.isdigit():
            found[word] = int(number)
    return found


def _some(**values: Any) -> dict[str, Any]:
    """Those that are not 0 or empty, as Go's ``omitempty``."""
    return {name: value for name, value in values.items() if value}


# ---------------------------------------------------------------- processors


def _cpu(cgroup: Cgroup) -> dict[str, Any]:
    home = cgroup.home("cpu") or cgroup.home("cgroup")
    # Every v2 cgroup has cpu.stat, with no controller, too.
    if home is not None and home.hierarchy.version == 2:
        stat = _table(home.path, "cpu.stat")
        usage = _some(total=stat.get("usage_usec", 0) * 1000)
        usage["kernel"] = stat.get("system_usec", 0) * 1000
        usage["user"] = stat.get("user_usec", 0) * 1000
        throttled = stat.get("throttled_usec", 0) * 1000
    else:
        stat = _table(home.path, "cpu.stat") if home is not None else {}
        usage = _cpu_account(_place(cgroup, "cpuacct"))
        throttled = stat.get("throttled_time", 0)
    throttling = _some(
        periods=stat.get("nr_periods"),
        throttledPeriods=stat.get("nr_throttled"),
        throttledTime=throttled,
    )
    return {"usage": usage, "throttling": throttling}


def _cpu_account(folder: str) -> dict[str, Any]:
    modes = [
        [int(word) for word in words[1:]]
        for line in _text(folder, "cpuacct.usage_all").splitlines()[1:]
        if len(words := line.split()) == 3
    ]
    ticks = _table(folder, "cpuacct.stat")
    usage = _some(
        total=_number(folder, "cpuacct.usage"),
        percpu=[int(word) for word in _text(folder, "cpuacct.usage_percpu").split()],
        percpu_kernel=[kernel for _, kernel in modes],
        percpu_user=[user for user, _ in modes],
    )
    usage["kernel"] = ticks.get("system", 0) * _TICK
    usage["user"] = ticks.get("user", 0) * _TICK
    return usage


def _cpuset(folder: str) -> dict[str, Any]:
    def numbers(name: str) -> list[int]:
        text = _text(folder, name)
        return sorted(parse_list(text)) if text else []

    found = _some(cpus=numbers("cpuset.cpus"))
    found["cpu_exclusive"] = _number(folder, "cpuset.cpu_exclusive")
    found |= _some(mems=numbers("cpuset.mems"))
    for name in (
        *("mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page"),
        *("memory_spread_slab", "memory_pressure", "sched_load_balance"),
    ):
        found[name] = _number(folder, f"cpuset.{name}")
    level = _text(folder, "cpuset.sched_relax_domain_level")
    found["sched_relax_domain_level"] = int(level or 0)
    return found


# ---------------------------------------------------------------- memory and processes


def _memory(cgroup: Cgroup) -> dict[str, Any]:
    home = cgroup.home("memory")
    folder = home.path if home is not None else ""
    raw = _table(folder, "memory.stat")
    if home is not None and home.hierarchy.version == 2:
        cache = raw.get("file", 0)
        used, limit = _number(folder, "memory.current"), _number(folder, "memory.max")
        usage, swap = _entry(limit, used), _entry(0)
        if _text(folder, "memory.swap.current"):
            # As on v1, swap is the total of memory and swap.
            more = _number(folder, "memory.swap.max")
            total = more if more == _UNLIMITED else more + limit & _UNLIMITED
            swap = _entry(total, _number(folder, "memory.swap.current") + used)
        kernel = kernel_tcp = _entry(0)
    else:
        cache = raw.get("cache", 0)
        usage, swap, kernel, kernel_tcp = (
            _entry(
                _number(folder, f"memory{kind}.limit_in_bytes"),
                _number(folder, f"memory{kind}.usage_in_bytes"),
                _number(folder, f"memory{kind}.max_usage_in_bytes"),
                _number(folder, f"memory{kind}.failcnt"),
            )
            for kind in ("", ".memsw", ".kmem", ".kmem.tcp")
        )
    return {
        **_some(cache=cache),
        "usage": usage,
        "swap": swap,
        "kernel": kernel,
        "kernelTCP": kernel_tcp,
        **_some(raw=dict(sorted(raw.items()))),
    }


def _entry(limit: int, usage: int = 0, most: int = 0, failures: int = 0) -> dict[str, int]:
    return {"limit": limit, **_some(usage=usage, max=most), "failcnt": failures}


def _pids(folder: str) -> dict[str, int]:
    limit = _number(folder, "pids.max")
    return _some(current=_number(folder, "pids.current"), limit=0 if limit == _UNLIMITED else limit)


# ---------------------------------------------------------------- disks and huge pages

# v1, by what runc calls each; the first prefix whose files are there counts.
_V1_BLOCK = (
    ("blkio.bfq.", "_recursive", True),
    ("blkio.", "_recursive", True),
    ("blkio.throttle.", "_recursive", False),
    ("blkio.throttle.", "", False),
)
_V1_FILES = {
    "ioServiceBytesRecursive": "io_service_bytes",
    "ioServicedRecursive": "io_serviced",
    "ioQueueRecursive": "io_queued",
    "ioServiceTimeRecursive": "io_service_time",
    "ioWaitTimeRecursive": "io_wait_time",
    "ioMergedRecursive": "io_merged",
    "ioTimeRecursive": "time",
    "sectorsRecursive": "sectors",
}
_V2_KEYS = {
    "rbytes": ("ioServiceBytesRecursive", "Read"),
    "wbytes": ("ioServiceBytesRecursive", "Write"),
    "rios": ("ioServicedRecursive", "Read"),
    "wios": ("ioServicedRecursive", "Write"),
}


def _block(cgroup: Cgroup) -> dict[str, list[dict[str, Any]]]:
    folder = _place(cgroup, "io")
    if folder:
        return _block_v2(folder)
    folder = _place(cgroup, "blkio")
    for prefix, suffix, detailed in _V1_BLOCK:
        found = {}
        for name, file in _V1_FILES.items():
            if detailed or file in ("io_service_bytes", "io_serviced"):
                lines = _text(folder, f"{prefix}{file}{suffix}").splitlines()
                found[name] = [entry for line in lines for entry in _block_line(line)]
        if any(found.values()):
            return _some(**found)
    return {}


def _block_line(line: str) -> list[dict[str, Any]]:
    """One line of v1: ``MAJOR:MINOR [OPERATION] NUMBER``; that with the sum has no device."""
    words = line.replace(":", " ").split()
    if len(words) not in (3, 4) or not (words[0].isdigit() and words[-1].isdigit()):
        return []
    operation = words[2] if len(words) == 4 else ""
    major, minor, value = int(words[0]), int(words[1]), int(words[-1])
    return [_some(major=major, minor=minor, op=operation, value=value)]


def _block_v2(folder: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _V1_FILES}
    for line in _text(folder, "io.stat").splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key in _V2_KEYS and minor.isdigit() and value.isdigit():
                name, operation = _V2_KEYS[key]
                found[name].append(
                    _some(major=int(major), minor=int(minor), op=operation, value=int(value))
                )
    return _some(**found)


def _huge_pages(cgroup: Cgroup) -> dict[str, dict[str, int]]:
    home = cgroup.home("hugetlb")
    if home is None or not os.path.isdir(home.path):
        return {}
    found = {}
    for size in _page_sizes():
        prefix = f"hugetlb.{size}"
        if home.hierarchy.version == 2:
            failures = _table(home.path, f"{prefix}.events").get("max", 0)
            found[size] = _some(usage=_number(home.path, f"{prefix}.current"))
        else:
            failures = _number(home.path, f"{prefix}.failcnt")
            found[size] = _some(
                usage=_number(home.path, f"{prefix}.usage_in_bytes"),
                max=_number(home.path, f"{prefix}.max_usage_in_bytes"),
            )
        found[size]["failcnt"] = failures
    return found


def _page_sizes() -> list[str]:
    """The sizes of huge pages here, as the files of cgroups name them: ``2MB``."""
    try:
        names = os.listdir("/sys/kernel/mm/hugepages")
    except OSError:
        return []
    sizes = []
    for name in names:
        kilobytes = int(name.removeprefix("hugepages-").removesuffix("kB"))
        for unit, factor in (("GB", 1 << 20), ("MB", 1 << 10), ("KB", 1)):
            if kilobytes >= factor:
                sizes.append(f"{kilobytes // factor}{unit}")
                break
    return sorted(sizes)
