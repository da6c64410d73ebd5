"""The reader and checker of OCI configurations, against the specification's schemas and examples,
against what runc, crun and podman write, and against what runc and the kernel refuse."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import referencing
import referencing.jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firkin.errors import ConfigError, UsageError
from firkin.spec import rules
from firkin.spec.kinds import Array, Map, Object
from firkin.spec.schema import CONFIG
from firkin.spec.validate import MAX_DEPTH, MAX_SIZE, parse, validate
from support.requires import need, requires

REFERENCE = Path(__file__).parents[1] / "data" / "runtime-spec"
GOOD = sorted((REFERENCE / "test" / "config" / "good").glob("*.json"))
BAD = sorted((REFERENCE / "test" / "config" / "bad").glob("*.json"))

# Every field that the tables know, once; test_full_is_full sees to that.
FULL = json.loads((REFERENCE.parent / "config-full.json").read_text())

MAPPING = {"containerID": 0, "hostID": 1000, "size": 32000}
NUMBER = {"major": 8, "minor": 0}
NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")

DELETE = object()


def changed(path, value):
    """Return FULL with *value* at *path*: names and indices, separated by "/" or in a tuple."""
    config = copy.deepcopy(FULL)
    *parents, last = path.split("/") if isinstance(path, str) else path
    holder = config
    for name in parents:
        holder = holder[int(name) if isinstance(holder, list) else name]
    last = int(last) if isinstance(holder, list) else last
    if value is DELETE:
        del holder[last]
    else:
        holder[last] = value
    return config


def without(*types):
    return [{"type": name} for name in NAMESPACES if name not in types]


def mappings(*rows):
    return [dict(zip(("containerID", "hostID", "size"), row, strict=True)) for row in rows]


def refusal(config):
    """Return the field that *config* is refused for, "" when it is accepted."""
    fault = None
    try:
        validate(config)
    except ConfigError as error:
        fault = error
    if fault is None:
        return ""
    assert fault.why
    assert str(fault).startswith("invalid configuration: ")
    assert str(fault).isprintable()
    return fault.field


# What is put where, and the field that must be named ("" stands for the path itself).
REFUSED = [
    ("ociVersion", DELETE, ""),
    ("ociVersion", "1", ""),
    ("ociVersion", "1.2", ""),
    ("ociVersion", "1.02.3", ""),
    ("ociVersion", "1.0.0-", ""),
    ("ociVersion", "1.0.0+a b", ""),
    ("ociVersion", "2.0.0", ""),
    ("root", DELETE, ""),
    ("root/path", DELETE, "root.path"),
    ("root/path", "", "root.path"),
    ("root/path", "a\0b", "root.path"),
    ("root/path", "\ud800", "root.path"),
    ("root/readonly", 1, "root.readonly"),
    ("process/args", [], "process.args"),
    ("process/args", ["a", "b\0"], "process.args[1]"),
    ("process", {"cwd": "/"}, "process.args"),
    ("process/cwd", DELETE, "process.cwd"),
    ("process/cwd", "tmp", "process.cwd"),
    ("process/cwd", "", "process.cwd"),
    ("process/env", ["A=b", "novalue"], "process.env[1]"),
    ("process/env", ["=value"], "process.env[0]"),
    ("process/env", ["A=\0"], "process.env[0]"),
    ("process/user/uid", 2**32, "process.user.uid"),
    ("process/user/gid", -1, "process.user.gid"),
    ("process/user/additionalGids", [1, 1.0], "process.user.additionalGids[1]"),
    ("process/terminal", "yes", "process.terminal"),
    ("process/consoleSize/width", 65536, "process.consoleSize.width"),
    ("process/capabilities/ambient", [12], "process.capabilities.ambient[0]"),
    ("process/rlimits/0/type", "RLIMIT_BEER", "process.rlimits[0].type"),
    ("process/rlimits/1/type", "RLIMIT_NOFILE", "process.rlimits[1].type"),
    ("process/rlimits/0/soft", 4097, "process.rlimits[0].soft"),
    ("process/rlimits/0/hard", 2**64, "process.rlimits[0].hard"),
    ("process/rlimits/0/hard", DELETE, "process.rlimits[0].hard"),
    ("process/oomScoreAdj", 1001, "process.oomScoreAdj"),
    ("process/ioPriority/class", "IOPRIO_CLASS_NONE", "process.ioPriority.class"),
    ("process/ioPriority/priority", 8, "process.ioPriority.priority"),
    ("process/scheduler/policy", "SCHED_LUCKY", "process.scheduler.policy"),
    ("process/scheduler/policy", DELETE, "process.scheduler.policy"),
    ("process/scheduler/policy", "SCHED_OTHER", "process.scheduler.runtime"),
    ("process/scheduler/priority", 1, "process.scheduler.priority"),
    ("process/scheduler/nice", 20, "process.scheduler.nice"),
    ("process/execCPUAffinity/initial", "all", "process.execCPUAffinity.initial"),
    ("hostname", "h" * 65, ""),
    ("linux/namespaces", without("uts"), "hostname"),
    ("linux/namespaces", without("user"), "linux.uidMappings"),
    ("linux/namespaces", without("time"), "linux.timeOffsets"),
    ("linux/namespaces", without("mount"), "linux.maskedPaths"),
    ("linux/namespaces", without("network"), 'linux.sysctl["net.ipv4.ip_forward"]'),
    ("linux/namespaces", without("ipc"), 'linux.sysctl["kernel.shmmax"]'),
    ("linux/namespaces", [*without(), {"type": "pid"}], "linux.namespaces[8].type"),
    ("linux/namespaces/0/type", "net", "linux.namespaces[0].type"),
    ("linux/namespaces/0/type", DELETE, "linux.namespaces[0].type"),
    ("linux/namespaces/0/path", "proc/1/ns/pid", "linux.namespaces[0].path"),
    ("linux/namespaces/0/path", "", "linux.namespaces[0].path"),
    ("linux/uidMappings/0/size", 0, "linux.uidMappings[0].size"),
    ("linux/uidMappings/1/hostID", 32999, "linux.uidMappings[1].hostID"),
    ("linux/uidMappings/1/containerID", 31999, "linux.uidMappings[1].containerID"),
    ("linux/gidMappings", mappings((1, 0, 2**32 - 1)), "linux.gidMappings[0].size"),
    ("linux/gidMappings", mappings(*((i, i, 1) for i in range(341))), "linux.gidMappings"),
    ("linux/timeOffsets/boottime/nanosecs", 10**9, "linux.timeOffsets.boottime.nanosecs"),
    ("mounts/0/destination", DELETE, "mounts[0].destination"),
    ("mounts/0/destination", "", "mounts[0].destination"),
    ("mounts/0/gidMappings", DELETE, "mounts[0].gidMappings"),
    ("mounts/0/uidMappings", [], "mounts[0].uidMappings"),
    ("mounts/0/uidMappings/0/size", 0, "mounts[0].uidMappings[0].size"),
    ("mounts/0/uidMappings", [MAPPING, MAPPING], "mounts[0].uidMappings[1].containerID"),
    ("mounts/0/options", ["ro", None], "mounts[0].options[1]"),
    ("hooks/prestart/0/path", "hook", "hooks.prestart[0].path"),
    ("hooks/poststop/0/timeout", 0, "hooks.poststop[0].timeout"),
    ("hooks/createRuntime/0/env", ["A"], "hooks.createRuntime[0].env[0]"),
    ("linux/devices/0/type", "d", "linux.devices[0].type"),
    ("linux/devices/0/path", "dev/null", "linux.devices[0].path"),
    ("linux/devices/0/major", DELETE, "linux.devices[0].major"),
    ("linux/devices/1/type", "u", "linux.devices[1].major"),
    ("linux/devices/0/minor", 2**20, "linux.devices[0].minor"),
    ("linux/devices/0/fileMode", 2**16, "linux.devices[0].fileMode"),
    ("linux/netDevices", {"a/b": {}}, 'linux.netDevices["a/b"]'),
    ("linux/netDevices/eth0/name", "sixteen_bytes_is", 'linux.netDevices["eth0"].name'),
    ("linux/netDevices/eth0/name", "..", 'linux.netDevices["eth0"].name'),
    ("linux/cgroupsPath", "/a/../../b", "linux.cgroupsPath"),
    ("linux/cgroupsPath", "system.slice:..:name", "linux.cgroupsPath"),
    ("linux/cgroupsPath", "a\0", "linux.cgroupsPath"),
    ("linux/resources/devices/0/allow", DELETE, "linux.resources.devices[0].allow"),
    ("linux/resources/devices/1/type", "x", "linux.resources.devices[1].type"),
    ("linux/resources/devices/1/access", "rx", "linux.resources.devices[1].access"),
    ("linux/resources/memory/limit", -2, "linux.resources.memory.limit"),
    ("linux/resources/memory/limit", True, "linux.resources.memory.limit"),
    ("linux/resources/memory/limit", 2**63, "linux.resources.memory.limit"),
    ("linux/resources/memory/limit", DELETE, "linux.resources.memory.swap"),
    ("linux/resources/memory/limit", 2**29 + 1, "linux.resources.memory.swap"),
    ("linux/resources/memory/swappiness", 101, "linux.resources.memory.swappiness"),
    ("linux/resources/cpu/shares", -1, "linux.resources.cpu.shares"),
    ("linux/resources/cpu/period", 999, "linux.resources.cpu.period"),
    ("linux/resources/cpu/quota", 999, "linux.resources.cpu.quota"),
    ("linux/resources/cpu/burst", 50001, "linux.resources.cpu.burst"),
    ("linux/resources/cpu/idle", 2, "linux.resources.cpu.idle"),
    ("linux/resources/cpu/cpus", 3, "linux.resources.cpu.cpus"),
    ("linux/resources/pids", {}, "linux.resources.pids.limit"),
    ("linux/resources/pids/limit", "max", "linux.resources.pids.limit"),
    ("linux/resources/blockIO/weight", 65536, "linux.resources.blockIO.weight"),
    (
        "linux/resources/blockIO/weightDevice",
        [NUMBER],
        "linux.resources.blockIO.weightDevice[0]",
    ),
    (
        "linux/resources/blockIO/throttleReadBpsDevice",
        [NUMBER],
        "linux.resources.blockIO.throttleReadBpsDevice[0].rate",
    ),
    (
        "linux/resources/hugepageLimits/0/pageSize",
        "64kB",
        "linux.resources.hugepageLimits[0].pageSize",
    ),
    (
        "linux/resources/hugepageLimits/0/pageSize",
        "0MB",
        "linux.resources.hugepageLimits[0].pageSize",
    ),
    ("linux/resources/rdma/mlx5_1", {}, 'linux.resources.rdma["mlx5_1"]'),
    ("linux/resources/unified", {"../x": "1"}, 'linux.resources.unified["../x"]'),
    ("linux/resources/unified", {"": "1"}, "linux.resources.unified"),
    ("linux/rootfsPropagation", "sharedish", "linux.rootfsPropagation"),
    ("linux/maskedPaths", ["proc/kcore"], "linux.maskedPaths[0]"),
    ("linux/readonlyPaths", [""], "linux.readonlyPaths[0]"),
    ("linux/seccomp/defaultAction", DELETE, "linux.seccomp.defaultAction"),
    ("linux/seccomp/defaultAction", "SCMP_ACT_DANCE", "linux.seccomp.defaultAction"),
    ("linux/seccomp/defaultAction", "SCMP_ACT_ALLOW", "linux.seccomp.defaultErrnoRet"),
    ("linux/seccomp/architectures", ["x86_64"], "linux.seccomp.architectures[0]"),
    ("linux/seccomp/flags", ["TSYNC"], "linux.seccomp.flags[0]"),
    ("linux/seccomp/listenerPath", "", "linux.seccomp.listenerPath"),
    ("linux/seccomp/syscalls/0/names", [], "linux.seccomp.syscalls[0].names"),
    ("linux/seccomp/syscalls/0/action", "SCMP_ACT_KILL", "linux.seccomp.syscalls[0].errnoRet"),
    ("linux/seccomp/syscalls/0/args/0/index", 6, "linux.seccomp.syscalls[0].args[0].index"),
    ("linux/seccomp/syscalls/0/args/0/op", "EQ", "linux.seccomp.syscalls[0].args[0].op"),
    ("linux/seccomp", {"defaultAction": "SCMP_ACT_NOTIFY"}, "linux.seccomp.defaultAction"),
    (
        "linux/seccomp",
        {"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"},
        "linux.seccomp.listenerMetadata",
    ),
    ("linux/sysctl/kernel.hostname", "x", 'linux.sysctl["kernel.hostname"]'),
    ("linux/sysctl/kernel.core_pattern", "|x", 'linux.sysctl["kernel.core_pattern"]'),
    ("linux/sysctl/net.ipv4.ip_forward", 1, 'linux.sysctl["net.ipv4.ip_forward"]'),
    ("linux/sysctl/fs.mqueue", "1", 'linux.sysctl["fs.mqueue"]'),
    (
        ("linux", "sysctl", "net/../kernel/core_pattern"),
        "|x",
        'linux.sysctl["net/../kernel/core_pattern"]',
    ),
    (
        ("linux", "sysctl", "net.//.kernel.core_pattern"),
        "|x",
        'linux.sysctl["net.//.kernel.core_pattern"]',
    ),
    ("linux/personality/domain", "LINUX64", "linux.personality.domain"),
    ("linux/personality/domain", DELETE, "linux.personality.domain"),
    ("linux/personality/flags", ["ADDR_NO_RANDOMIZE"], "linux.personality.flags"),
    ("linux/intelRdt/closID", "..", "linux.intelRdt.closID"),
    ("linux/intelRdt/memBwSchema", "MB:0=20\nL3:0=1", "linux.intelRdt.memBwSchema"),
    ("linux/memoryPolicy/mode", "MPOL_ELSEWHERE", "linux.memoryPolicy.mode"),
    ("linux/memoryPolicy/flags", ["MPOL_F_NODE"], "linux.memoryPolicy.flags[0]"),
    ("annotations", {"": "x"}, "annotations"),
    ("annotations", {"a\0": "x"}, 'annotations["a\0"]'),
    ("annotations/com.example.key", 7, 'annotations["com.example.key"]'),
]


@pytest.mark.parametrize(("path", "value", "field"), REFUSED)
def test_refused_with_the_name_of_the_field(path, value, field):
    assert refusal(changed(path, value)) == (field or path)


@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("hostname", "uts"),
        ("domainname", "uts"),
        ("linux.uidMappings", "user"),
        ("linux.gidMappings", "user"),
        ("linux.timeOffsets", "time"),
        ("linux.maskedPaths", "mount"),
        ("linux.readonlyPaths", "mount"),
    ],
)
def test_needs_a_namespace(name, namespace):
    section, _, last = name.rpartition(".")
    value = (FULL[section] if section else FULL)[last]
    config = {"ociVersion": "1.0.0", "root": {"path": "/"}, "linux": {"namespaces": []}}
    (config[section] if section else config)[last] = value
    assert refusal(config) == name
    for joined in ({}, {"path": "/run/netns/a"}):
        config["linux"]["namespaces"] = [{"type": namespace, **joined}]
        validate(config)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ociVersion", "1.0.2-dev"),
        ("ociVersion", "1.3.7-rc.1+build-5"),
        ("ociVersion", "0.5.0-dev"),
        ("process", DELETE),
        ("process/args", DELETE),  # commandLine stands in
        ("hostname", ""),
        ("mounts/0/destination", "/../etc"),
        ("linux", DELETE),
        ("linux/gidMappings", mappings((0, 0, 1), (1, 1, 2**32 - 2))),
        ("linux/rootfsPropagation", "rslave"),
        ("linux/devices/0/fileMode", 0o666),
        ("linux/resources/memory/swap", -1),
        ("linux/resources/cpu/quota", -1),
        ("unknown", {"anything": [None]}),
        ("windows", "not ours to judge"),
        ("vm", {"kernel": 1}),
    ],
)
def test_accepted(path, value):
    config = changed(path, value)
    if path == "linux":  # what needs a namespace goes with it
        del config["hostname"], config["domainname"]
    validate(config)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_good_examples_of_the_specification(path):
    validate(parse(path.read_bytes(), path.name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("invalid-json.json", "invalid-json.json: not JSON at line 1, column 2"),
        ("linux-hugepage.json", "linux.resources.hugepageLimits[0].pageSize: '64kB'"),
        ("linux-netdevice.json", 'linux.netDevices["eth0"].name: expected a string, not a number'),
        ("linux-rdma.json", 'linux.resources.rdma["mlx5_1"].hcaHandles: expected a whole number'),
    ],
)
def test_bad_examples_of_the_specification(name, message):
    path = next(path for path in BAD if path.name == name)
    with pytest.raises(UsageError) as caught:
        validate(parse(path.read_bytes(), name))
    assert message in str(caught.value)


def test_no_bad_example_is_left_out():
    assert len(BAD) == 4
    assert len(GOOD) == 5


def places(value, kind, path=(), field=""):
    """Yield each place of *value* that the tables know: its path and its field."""
    yield path, field
    if isinstance(kind, Object):
        for name, member in kind.members.items():
            if name in value:
                yield from places(
                    value[name], member, (*path, name), f"{field}.{name}" if field else name
                )
    elif isinstance(kind, Map):
        for name in value:
            yield from places(value[name], kind.values, (*path, name), f'{field}["{name}"]')
    elif isinstance(kind, Array):
        for index, item in enumerate(value):
            yield from places(item, kind.items, (*path, index), f"{field}[{index}]")


def test_every_field_has_a_type():
    checked = 0
    for path, field in places(FULL, CONFIG):
        for wrong in (None, 1.0, {}, "x", [], True):
            config = changed(path, wrong) if path else wrong
            value = FULL
            for name in path:
                value = value[name]
            if type(value) is not type(wrong):
                assert refusal(config) == (field or "the document"), (path, wrong)
                checked += 1
    assert checked > 1000


def members(kind, path="config"):
    """Yield the path of each member of each object in the tables."""
    if isinstance(kind, Object):
        for name, member in kind.members.items():
            yield f"{path}.{name}"
            yield from members(member, f"{path}.{name}")
    elif isinstance(kind, Array):
        yield from members(kind.items, path)
    elif isinstance(kind, Map):
        yield from members(kind.values, path)


def plain(value, kind, path="config"):
    """Yield the same for what *value* holds."""
    if isinstance(kind, Object):
        for name, member in kind.members.items():
            if name in value:
                yield f"{path}.{name}"
                yield from plain(value[name], member, f"{path}.{name}")
    elif isinstance(kind, Array):
        for item in value:
            yield from plain(item, kind.items, path)
    elif isinstance(kind, Map):
        for item in value.values():
            yield from plain(item, kind.values, path)


def test_full_is_full():
    validate(FULL)
    assert set(members(CONFIG)) == set(plain(FULL, CONFIG))


def reference():
    """Return the specification's schemas, without what we do otherwise on purpose.

    That is: sections of other platforms are not judged, fileMode may hold the
    type of the file, and rootfsPropagation may be recursive.
    """
    documents = {path.name: json.loads(path.read_text()) for path in REFERENCE.glob("*.json")}
    for name in ("solaris", "windows", "vm", "zos", "freebsd"):
        documents["config-schema.json"]["properties"][name] = {}
    documents["defs.json"]["definitions"]["FileMode"]["maximum"] = 0o177777
    propagation = documents["defs-linux.json"]["definitions"]["RootfsPropagation"]["enum"]
    propagation += [f"r{name}" for name in propagation]
    return referencing.Registry().with_resources(
        (BASE + name, referencing.jsonschema.DRAFT4.create_resource(document))
        for name, document in documents.items()
    )


BASE = "https://schema.invalid/"
SCHEMAS = reference()
SCHEMA = jsonschema.Draft4Validator({"$ref": BASE + "config-schema.json"}, registry=SCHEMAS)


def test_tables_know_every_member_of_the_schema():
    """Compare the tables with the schema, object by object."""
    compared = []

    def gather(schema, resolver, found):
        """Collect into *found* what *schema* and the schemas it refers to say."""
        if "$ref" in schema:
            target = resolver.lookup(schema["$ref"])
            gather(target.contents, target.resolver, found)
            return found
        for part in schema.get("allOf", []) + schema.get("anyOf", []):
            gather(part, resolver, found)
        for name, part in schema.get("properties", {}).items():
            found["members"][name] = (part, resolver)
        found["required"] |= set(schema.get("required", []))
        for name in ("items", "additionalProperties"):
            if name in schema:
                found[name] = (schema[name], resolver)
        return found

    def compare(kind, schema, resolver, path):
        found = gather(schema, resolver, {"members": {}, "required": set()})
        compared.append(path)
        if isinstance(kind, Object):
            foreign = {"solaris", "windows", "vm", "zos", "freebsd"}
            assert set(found["members"]) - foreign == set(kind.members), path
            assert found["required"] <= set(kind.required), path
            for name, member in kind.members.items():
                compare(member, *found["members"][name], f"{path}.{name}")
        elif isinstance(kind, Array):
            compare(kind.items, *found["items"], path)
        elif isinstance(kind, Map) and "additionalProperties" in found:
            compare(kind.values, *found["additionalProperties"], path)

    root = SCHEMAS.resolver().lookup(BASE + "config-schema.json")
    compare(CONFIG, root.contents, root.resolver, "config")
    assert len(compared) > 200


VALUES = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            False,
            -1,
            0,
            1,
            1.0,
            0.5,
            2**16,
            2**31,
            2**32,
            2**63,
            2**64,
            -(2**63) - 1,
            "",
            "/",
            "..",
            "\0",
            "\ud800",
            "64kB",
            "RLIMIT_X",
            "SCMP_ACT_ALLOW",
            "network",
            "c",
            [],
            {},
            [[]],
            [None],
            [{}],
            {"": 1},
            {"a": {}},
            {"type": "pid"},
        ]
    ),
    st.integers(),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(), st.text(max_size=4)), max_size=2),
    st.dictionaries(st.text(max_size=4), st.one_of(st.integers(), st.text(max_size=4)), max_size=2),
)

SEEDS = [FULL, *(json.loads(path.read_text()) for path in GOOD)]


def slots(value):
    """Yield each place inside of *value*, as the holder and the name or index in it."""
    names = list(value) if isinstance(value, dict) else range(len(value))
    for name in names:
        yield value, name
        if isinstance(value[name], (dict, list)):
            yield from slots(value[name])


@st.composite
def mutants(draw):
    """A good configuration with one to three changes at random places."""
    config = copy.deepcopy(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 3))):
        places = list(slots(config))
        if not places:
            break
        holder, name = draw(st.sampled_from(places))
        if draw(st.integers(0, 3)):
            # A copy: the next change may be inside of it.
            holder[name] = copy.deepcopy(draw(VALUES))
        else:
            del holder[name]
    return config


# The same examples each time, so that a run of the tests says something about the change it tests.
SAME = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


@settings(SAME, max_examples=1000)
@given(mutants())
def test_refuses_whatever_the_schema_refuses(config):
    refused = refusal(config)  # nothing but ConfigError comes out of it
    if not refused:
        SCHEMA.validate(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ociVersion", "root", "path", "process", "linux", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@SAME
@given(JSON)
def test_anything_at_all_is_judged(value):
    refusal(value)


@SAME
@given(st.one_of(st.binary(max_size=50), st.text(alphabet='{}[]",:\\u0d8e1-. \n').map(str.encode)))
def test_reading_anything_at_all(data):
    try:
        value = parse(data, "config.json")
    except UsageError:
        return
    assert value == json.loads(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON at line 1, column 1"),
        (b'{\n "a": tru\n}', "not JSON at line 2, column 7"),
        (b'{"a": 1} x', "not JSON at line 1, column 10"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 1_000_000 + b"}", "a number has 1000000 digits"),
        (b'{\n"a": "\xff"}', "not UTF-8 at line 2, byte 8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a":' * 100_000, "nested deeper"),
        (b'{"a":' + b"[" * 1_000_000, "nested deeper"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested deeper"),
        (b" " * (MAX_SIZE + 1), "larger than 16 MiB"),
    ],
    ids=range(17),
)
def test_unreadable(data, why):
    with pytest.raises(UsageError) as caught:
        parse(data, "some\nname")
    assert str(caught.value).startswith("cannot read some\\nname: ")
    assert why in str(caught.value)
    assert len(str(caught.value)) < 200


def test_readable():
    deepest = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert parse(deepest, "x")
    assert parse('{"ä": [1.5, 1e3, "\\u0000"]}'.encode(), "x") == {"ä": [1.5, 1000.0, "\0"]}
    assert parse(b"{}" + b" " * (MAX_SIZE - 2), "x") == {}


def test_a_message_repeats_little_of_a_hostile_value():
    for path, value in (
        ("linux/rootfsPropagation", "x" * 10**6),
        ("linux/sysctl", {"x" * 10**6: "1"}),
        ("process/cwd", "\x1b[2J" * 10**5),
        ("process/user/uid", 10**5000),
    ):
        with pytest.raises(ConfigError) as caught:
            validate(changed(path, value))
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net/../kernel/core_pattern", ""),
        ("net.//.kernel.core_pattern", ""),
        ("/kernel/core_pattern", ""),
        (".kernel.core_pattern", ""),
        ("net.", ""),
        ("", ""),
    ],
)
def test_sysctl_path(key, path):
    assert rules.sysctl_path(key) == path


@pytest.mark.parametrize(
    "command",
    [("runc", "spec"), ("runc", "spec", "--rootless"), ("crun", "spec")],
    ids=" ".join,
)
def test_what_other_runtimes_write(command, tmp_path):
    need(f"program:{command[0]}")
    subprocess.run(command, cwd=tmp_path, check=True)
    validate(parse((tmp_path / "config.json").read_bytes(), "config.json"))


@pytest.mark.parametrize(
    ("namespaces", "change", "field"),
    [
        ((), {"hostname": "x"}, "hostname"),
        ((), {"linux": {"maskedPaths": ["/proc/kcore"]}}, "linux.maskedPaths"),
        ((), {"linux": {"uidMappings": [MAPPING]}}, "linux.uidMappings"),
        ((), {"linux": {"sysctl": {"kernel.sem": "1"}}}, 'linux.sysctl["kernel.sem"]'),
        ((), {"linux": {"sysctl": {"net.a": "1"}}}, 'linux.sysctl["net.a"]'),
        (("uts",), {"linux": {"sysctl": {"kernel.hostname": "x"}}}, "kernel.hostname"),
        (("uts",), {"linux": {"sysctl": {"kernel.core_pattern": "x"}}}, "kernel.core_pattern"),
        (("uts", "uts"), {}, "linux.namespaces["),
        (("uts",), {"linux": {"devices": [{"path": "/d", "type": "x", **NUMBER}]}}, ".type"),
        (("uts",), {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_NO"}}}, ".defaultAction"),
    ],
)
@requires("root", "program:runc")
def test_runc_refuses_it_too(namespaces, change, field, tmp_path):
    linux = {"namespaces": [{"type": name} for name in (*namespaces, "mount", "pid")]}
    if "maskedPaths" in change.get("linux", {}):
        del linux["namespaces"][0]
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"cwd": "/", "args": ["/true"], "user": {"uid": 0, "gid": 0}},
        **change,
        "linux": linux | change.get("linux", {}),
    }
    assert field in refusal(config)

    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config))
    runc = ["runc", "--root", str(tmp_path / "state")]
    name = f"firkin-test-{os.getpid()}"
    done = subprocess.run(
        [*runc, "create", "--bundle", str(tmp_path), name], capture_output=True, text=True
    )
    if done.returncode == 0:
        subprocess.run([*runc, "delete", "--force", name], check=True)
    assert done.returncode != 0
    # It was the configuration, not the missing program, that runc minded.
    assert "/true" not in done.stderr


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 0, 1)],
        [(0, 0, 2**32 - 1)],
        [(1, 0, 2**32 - 1)],
        [(0, 1, 2**32 - 1)],
        [(0, 1000, 0)],
        [(0, 1000, 10), (10, 1010, 10)],
        [(0, 1000, 10), (9, 1010, 10)],
        [(0, 1000, 10), (10, 1009, 10)],
        [(20, 1000, 10), (0, 1005, 10)],
        [(5, 2000, 1), (0, 1000, 10)],
        [(i, i, 1) for i in range(340)],
        [(i, i, 1) for i in range(341)],
    ],
)
@requires("root")
def test_the_kernel_agrees_on_id_mappings(rows):
    config = changed("linux/uidMappings", mappings(*rows))
    text = "".join(f"{inside} {outside} {size}\n" for inside, outside, size in rows)
    # A new process in a new user namespace says so and waits for the end of its input.
    program = "echo; read line"
    with subprocess.Popen(
        ["unshare", "--user", "sh", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.read(1) == b"\n"
        try:
            Path(f"/proc/{child.pid}/uid_map").write_text(text)
            taken = True
        except OSError:
            taken = False
        child.stdin.close()
    assert taken == (not refusal(config))


def test_reading_and_checking_import_little():
    """``firkin-runtime create`` pays for each module; json comes only with a file to parse."""
    program = "import sys, firkin.spec.validate; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    dear = {"json", "re", "typing", "dataclasses", "enum", "collections.abc", "jsonschema"}
    bare = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (set(done.stdout.split()) - set(bare.stdout.split())) & dear
