"""What is read from /proc, what limits mean and what they are called, without touching a cgroup."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firkin.errors import ConfigError, Unsupported
from firkin.runtime.cgroups import devices, devices_bpf, v1, v2
from firkin.runtime.cgroups.layout import parse
from firkin.runtime.cgroups.limits import Limits, parse_list

# ---------------------------------------------------------------- layout


def mount(root: str, point: str, kind: str, options: str) -> str:
    return f"31 23 0:26 {root} {point} rw,relatime shared:5 - {kind} {kind} {options}\n"


OTHERS = (
    "23 1 254:0 / / rw,relatime - ext4 /dev/root rw\n"
    "24 23 0:20 / /x\\040y rw - tmpfs cgroup-like rw\n"
)


def test_v2() -> None:
    layout = parse(
        "0::/user.slice/a.scope\n", OTHERS + mount("/", "/sys/fs/cgroup", "cgroup2", "rw")
    )
    assert layout.version == "v2"
    assert layout.unified is not None
    assert (layout.unified.mount, layout.unified.own) == ("/sys/fs/cgroup", "/user.slice/a.scope")


def test_v1_with_controllers_mounted_together() -> None:
    layout = parse(
        "4:cpu,cpuacct:/a\n3:memory:/b:c\n1:name=systemd:/s\n",
        mount("/", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
        + mount("/", "/sys/fs/cgroup/memory", "cgroup", "rw,xattr,memory,clone_children")
        + mount("/", "/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,name=systemd"),
    )
    assert layout.version == "v1"
    assert layout.controllers["cpu"] is layout.controllers["cpuacct"]
    assert layout.controllers["cpu"].own == "/a"
    assert layout.controllers["memory"].controllers == ("memory",)
    assert layout.controllers["memory"].own == "/b:c"
    assert len(layout.hierarchies) == 2
    assert layout.controllers["cpu"].option == "cpu,cpuacct"
    assert [(h.mount, h.own, h.option) for h in layout.named] == [
        ("/sys/fs/cgroup/systemd", "/s", "name=systemd")
    ]


def test_hybrid() -> None:
    layout = parse(
        "2:pids:/p\n0::/u\n",
        mount("/", "/sys/fs/cgroup/unified", "cgroup2", "rw")
        + mount("/", "/sys/fs/cgroup/pids", "cgroup", "rw,pids"),
    )
    assert layout.version == "hybrid"
    assert [h.version for h in layout.hierarchies] == [1, 2]


def test_named_v1_hierarchies_beside_v2_make_no_hybrid() -> None:
    layout = parse(
        "1:name=systemd:/\n0::/u\n",
        mount("/", "/sys/fs/cgroup/systemd", "cgroup", "rw,name=systemd")
        + mount("/", "/sys/fs/cgroup/unified", "cgroup2", "rw"),
    )
    assert layout.version == "v2"


def test_net_cls_mounted_by_another_program_makes_no_hybrid() -> None:
    layout = parse(
        "1:net_cls:/\n0::/u\n",
        mount("/", "/sys/fs/cgroup/net_cls", "cgroup", "rw,net_cls")
        + mount("/", "/sys/fs/cgroup", "cgroup2", "rw"),
    )
    assert layout.version == "v2"
    assert layout.controllers["net_cls"].version == 1


def test_nothing_mounted() -> None:
    assert parse("0::/\n", OTHERS).version == "none"


@pytest.mark.parametrize(
    ("path", "root", "own"),
    [
        ("/docker/abc", "/docker/abc", "/"),
        ("/docker/abc/x", "/docker/abc", "/x"),
        ("/docker/abcd", "/docker/abc", None),
        ("/", "/", "/"),
        # A mount from outside of our cgroup namespace, and the other way round.
        ("/", "/../..", None),
        ("/../other", "/", None),
    ],
)
def test_own_cgroup_in_another_container(path: str, root: str, own: str | None) -> None:
    layout = parse(
        f"5:memory:{path}\n", mount(root, "/sys/fs/cgroup/memory", "cgroup", "rw,memory")
    )
    assert layout.controllers["memory"].own == own


def test_the_mount_that_shows_us_is_taken() -> None:
    layout = parse(
        "5:memory:/a/b\n",
        mount("/x", "/mnt/one", "cgroup", "rw,memory")
        + mount("/a", "/mnt/two\\040\\134", "cgroup", "rw,memory"),
    )
    assert layout.controllers["memory"].mount == "/mnt/two \\"
    assert layout.controllers["memory"].own == "/b"


# ---------------------------------------------------------------- limits

MIB = 1 << 20


@pytest.mark.parametrize(
    ("resources", "field", "text"),
    [
        ({"memory": {"limit": 1024}}, "memory.limit", "1024 bytes are too few"),
        ({"memory": {"limit": "64m"}}, "memory.limit", "not '64m'"),
        ({"memory": {"limit": True}}, "memory.limit", "not True"),
        ({"memory": {"limit": -2}}, "memory.limit", "-2 is not between"),
        ({"memory": {"limit": 1 << 63}}, "memory.limit", "is not between"),
        ({"memory": {"limit": 64 * MIB, "swap": 32 * MIB}}, "memory.swap", "is less than"),
        ({"memory": {"swap": 32 * MIB}}, "memory.swap", "without memory.limit"),
        ({"memory": {"limit": -1, "swap": 32 * MIB}}, "memory.swap", "without memory.limit"),
        ({"memory": {"limit": 64 * MIB, "reservation": 65 * MIB}}, "memory.reservation", "more"),
        ({"memory": {"swappiness": 101}}, "memory.swappiness", "101 is not between 0 and 100"),
        ({"memory": {"kernel": -2}}, "memory.kernel", "-2 is not between"),
        ({"pids": {"limit": 1.5}}, "pids.limit", "not 1.5"),
        ({"cpu": {"quota": 999}}, "cpu.quota", "999 is below the kernel's minimum of 1000"),
        ({"cpu": {"period": 10}}, "cpu.period", "10 is not between"),
        ({"cpu": {"period": 2_000_000}}, "cpu.period", "2000000 is not between"),
        ({"cpu": {"shares": 1}}, "cpu.shares", "1 is not between 2 and 262144"),
        ({"cpu": {"burst": 2000, "quota": 1000}}, "cpu.burst", "2000 is more than cpu.quota 1000"),
        ({"cpu": {"burst": 2000}}, "cpu.burst", "2000 is more than cpu.quota unlimited"),
        ({"cpu": {"idle": 2}}, "cpu.idle", "2 is not between"),
        ({"cpu": {"cpus": "0-"}}, "cpu.cpus", "'0-'"),
        ({"cpu": {"mems": "0-99999999"}}, "cpu.mems", "expected a list"),
        ({"blockIO": {"weight": 9}}, "blockIO.weight", "9 is not between 10 and 1000"),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "rate": 1}]}},
            "blockIO.throttleReadBpsDevice[0].minor",
            "missing",
        ),
        ({"hugepageLimits": [{"pageSize": "2M", "limit": 1}]}, "hugepageLimits[0].pageSize", "2M"),
        ({"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}, "hugepageLimits", "../2MB"),
        ({"network": {"priorities": [{"name": "a b", "priority": 1}]}}, "priorities[0].name", "a"),
        ({"rdma": {"x\ny": {}}}, "rdma", "expected a name"),
        ({"devices": [{"allow": True, "type": "p"}]}, "devices[0].type", "'p'"),
        ({"devices": [{"allow": 1}]}, "devices[0].allow", "not 1"),
        ({"devices": [{"allow": True, "access": "rx"}]}, "devices[0].access", "'rx'"),
        ({"unified": {"../memory.max": "1"}}, "unified.../memory.max", "the name of a cgroup v2"),
        ({"unified": {"memory": "1"}}, "unified.memory", "the name of a cgroup v2"),
        ({"unified": {"cgroup.procs": "1"}}, "unified.cgroup.procs", "not a limit"),
        ({"unified": {"memory.high": 1}}, "unified.memory.high", "expected text"),
    ],
)
def test_a_bad_limit_is_refused_by_name(resources: Any, field: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Limits(resources)
    assert field in caught.value.field
    assert text in str(caught.value)


def test_zero_is_not_given_as_for_runc() -> None:
    limits = Limits(
        {
            "memory": {"limit": 0, "swap": 0, "reservation": 0},
            "pids": {"limit": 0},
            "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": ""},
            "blockIO": {"weight": 0},
        }
    )
    sections = [*v1.SECTIONS.values(), *v2.SECTIONS.values()]
    assert [setting for section in sections for setting in section(limits)] == []
    assert limits.memory is limits.swap is None


def test_unlimited_memory_takes_the_swap_limit_away_too() -> None:
    assert Limits({"memory": {"limit": -1}}).swap == -1


@given(st.frozensets(st.integers(0, 300), min_size=1))
def test_lists_are_read_as_the_kernel_writes_them(numbers: frozenset[int]) -> None:
    text = ",".join(f"{n}-{n + 1}" if n % 2 else str(n) for n in sorted(numbers))
    assert parse_list(text) == {m for n in numbers for m in ((n, n + 1) if n % 2 else (n,))}


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000)])
def test_cpu_shares_become_a_weight(shares: int, weight: int) -> None:
    assert v2.cpu_weight(shares) == weight


@pytest.mark.parametrize(("old", "new"), [(10, 1), (500, 4950), (1000, 10000)])
def test_block_weights_become_io_weights(old: int, new: int) -> None:
    assert v2.io_weight(old) == new


@pytest.mark.parametrize(
    ("memory", "value"),
    [
        ({"limit": 64 * MIB}, None),
        ({"limit": 64 * MIB, "swap": 64 * MIB}, 0),
        ({"limit": 64 * MIB, "swap": 96 * MIB}, 32 * MIB),
        ({"limit": 64 * MIB, "swap": -1}, "max"),
        ({"limit": -1}, "max"),
    ],
)
def test_swap_on_v2_is_without_memory(memory: dict[str, int], value: int | str | None) -> None:
    assert v2.swap_value(Limits({"memory": memory})) == value


@pytest.mark.parametrize(
    "resources",
    [
        {"memory": {"swappiness": 10}},
        {"memory": {"disableOOMKiller": True}},
        {"memory": {"kernelTCP": MIB}},
        {"cpu": {"realtimeRuntime": 1000}},
        {"network": {"classID": 1}},
        {"network": {"priorities": [{"name": "eth0", "priority": 1}]}},
        {"blockIO": {"leafWeight": 10}},
    ],
)
def test_what_v2_does_not_have_is_refused(resources: Any) -> None:
    with pytest.raises(Unsupported, match="cgroup v2 has no such setting"):
        v2.refuse(Limits(resources))


def test_what_a_controller_on_v2_does_not_have_is_refused_on_a_hybrid_machine() -> None:
    limits = Limits({"memory": {"swappiness": 10}})
    v2.refuse(limits, {"cpu", "io"})
    with pytest.raises(Unsupported, match=r"memory\.swappiness: cgroup v2 has no such setting"):
        v2.refuse(limits, {"memory"})


# ---------------------------------------------------------------- devices

ALL = (False, "a", None, None, "rwm")
numbers = st.one_of(st.none(), st.integers(0, 2))
rule = st.tuples(
    st.booleans(),
    st.sampled_from("abc"),
    numbers,
    numbers,
    st.sampled_from(["r", "w", "rw", "rwm"]),
)
requests = st.tuples(st.sampled_from("bc"), st.integers(0, 2), st.integers(0, 2))


def decided(rules: devices.Rules, kind: str, major: int, minor: int, access: str) -> bool:
    """What the runtime-spec says: the last rule that covers this one access."""
    allowed = False
    for allow, its, wanted_major, wanted_minor, accesses in rules:
        same = its in ("a", kind) and wanted_major in (None, major)
        if same and wanted_minor in (None, minor) and access in accesses:
            allowed = allow
    return allowed


@given(st.lists(rule, max_size=6), requests, st.sampled_from("rwm"))
def test_v1_exceptions_say_the_same_as_the_rules(
    given_rules: list[devices.Rule], request_: tuple[str, int, int], access: str
) -> None:
    rules = (ALL, *given_rules)
    try:
        default, exceptions = devices.exceptions(rules)
    except Unsupported:
        return  # refused rather than done by half
    kind, major, minor = request_
    hit = any(
        key[0] == kind and key[1] in (None, major) and key[2] in (None, minor) and access in its
        for key, its in exceptions.items()
    )
    assert (hit != default) == decided(rules, kind, major, minor, access)


def execute(program: bytes, kind: str, major: int, minor: int, access: int) -> int:
    """Interpret the few BPF instructions that are used (instruction-set.rst)."""
    context = struct.pack("=III", access << 16 | {"b": 1, "c": 2}[kind], major, minor)
    code = list(struct.iter_unpack("=BBhi", program))
    registers = [0] * 11
    at = 0
    while True:
        operation, pair, offset, value = code[at]
        to, source = pair & 15, pair >> 4
        at += 1
        match operation:
            case 0x61:
                registers[to] = struct.unpack_from("=I", context, offset)[0]
            case 0xB4:
                registers[to] = value
            case 0xBC:
                registers[to] = registers[source]
            case 0x54:
                registers[to] &= value & 0xFFFFFFFF
            case 0x74:
                registers[to] >>= value
            case 0x05:
                at += offset
            case 0x56:
                at += offset if registers[to] != value else 0
            case 0x46:
                at += offset if registers[to] & value else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(hex(operation))


@given(
    st.booleans(),
    st.lists(rule, max_size=6),
    requests,
    st.sets(st.sampled_from("rwm"), min_size=1),
)
def test_the_bpf_program_says_the_same_as_the_rules(
    default: bool, given_rules: list[devices.Rule], request_: tuple[str, int, int], access: set[str]
) -> None:
    rules = ((default, "a", None, None, "rwm"), *given_rules)
    bits = sum({"m": 1, "r": 2, "w": 4}[c] for c in access)
    expected = all(decided(rules, *request_, one) for one in access)
    assert execute(devices_bpf.compile_rules(rules), *request_, bits) == expected


def test_what_v1_would_silently_ignore_is_refused() -> None:
    rules = (ALL, (True, "c", 1, None, "rw"), (False, "c", 1, 11, "r"))
    with pytest.raises(Unsupported, match=r"deny device c 1:11 r.*out of c 1:\* rw"):
        devices.exceptions(rules)


def test_the_default_devices_come_last() -> None:
    rules = devices.complete(((True, "c", 10, 229, "rw"), (False, "a", None, None, "rwm")))
    assert rules == (ALL, *devices.DEFAULTS)


def test_privileged_is_no_control_at_all() -> None:
    everything = (True, "a", None, None, "rwm")
    assert devices.complete((ALL, everything)) == ()
    assert devices.complete((everything, (False, "c", 1, 11, "r")))[0] == everything
