"""What clients of an OCI runtime write for its cgroups: systemd's names, odd values, devices."""

from __future__ import annotations

import os
from typing import Any

import pytest

from firkin.errors import ConfigError, Unsupported
from firkin.runtime.cgroups import v1, v2
from firkin.runtime.cgroups.limits import Limits
from firkin.runtime.cgroups.systemd import systemd_path, unit_path

MIB = 1 << 20

# ---------------------------------------------------------------- systemd


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("system.slice:docker:1234", "/system.slice/docker-1234.scope"),
        (":libpod:x", "/system.slice/libpod-x.scope"),
        ("machine.slice:libpod:ab", "/machine.slice/libpod-ab.scope"),
        (
            "kubepods-burstable-pod12_3.slice:cri-containerd:9f",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_3.slice"
            "/cri-containerd-9f.scope",
        ),
        ("-.slice:runc:a", "/runc-a.scope"),
        ("a.slice::b", "/a.slice/b.scope"),
        ("a.slice:p:b.slice", "/a.slice/b.slice"),
        ("", "/system.slice/runc-the-id.scope"),
    ],
)
def test_the_path_of_a_unit(given: str, path: str) -> None:
    assert unit_path(given, "the-id") == path


@pytest.mark.parametrize(
    "given",
    [
        *("/docker/1234", "name", "a.slice:b", "a.slice:b:c:d", "a.slice:b:", "a:b:c"),
        *("-a.slice:b:c", "a-.slice:b:c", "a--b.slice:b:c", ".slice:b:c", "a/b.slice:b:c"),
        *("../a.slice:b:c", "a.slice:../b:c", "a.slice:b:../c", "a.slice:b:c/d", "a.slice:b:c\n"),
        "a.slice:b:" + "c" * 300,
    ],
)
def test_what_names_no_unit_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"linux\.cgroupsPath"):
        unit_path(given, "the-id")


def test_no_name_and_no_id() -> None:
    with pytest.raises(ConfigError, match="expected slice:prefix:name"):
        unit_path("")


def test_it_takes_a_systemd_that_runs() -> None:
    if os.path.isdir("/run/systemd/system"):
        assert systemd_path("system.slice:runc:a") == "/system.slice/runc-a.scope"
        return
    with pytest.raises(Unsupported, match="systemd is not running here; leave --systemd-cgroup"):
        systemd_path("system.slice:runc:a")


# ---------------------------------------------------------------- values


def written(limits: Limits) -> set[str]:
    """The fields that would be written, on either version."""
    sections = [*v1.SECTIONS.values(), *v2.SECTIONS.values()]
    return {setting.field for section in sections for setting in section(limits)}


@pytest.mark.parametrize(
    "resources",
    [
        # The specification's own example: the kernel is to judge it.
        {"memory": {"limit": 100_000, "reservation": 200_000}},
        {
            "memory": {
                "limit": 512 * MIB,
                "reservation": 512 * MIB,
                "swap": 512 * MIB,
                "kernel": -1,
                "kernelTCP": -1,
                "swappiness": 0,
                "disableOOMKiller": False,
            }
        },
        {"cpu": {"burst": 1000}},
        {"cpu": {"burst": 1000, "quota": -1}},
        {"unified": {"cgroup.max.depth": "2", "cgroup.pressure": "0", "misc.max": "x 1"}},
    ],
)
def test_what_the_specification_allows_is_taken(resources: Any) -> None:
    Limits(resources, strict=False)


def test_no_limit_on_kernel_memory_is_no_limit_on_v2() -> None:
    v2.refuse(Limits({"memory": {"kernel": -1, "kernelTCP": -1}}))
    for field in ("kernel", "kernelTCP"):
        with pytest.raises(Unsupported, match=f"memory.{field}: cgroup v2 has no such setting"):
            v2.refuse(Limits({"memory": {field: MIB}}))


@pytest.mark.parametrize("value", [(1 << 64) - 1, -1])
def test_a_swappiness_of_docker_that_is_none(value: int) -> None:
    assert Limits({"memory": {"swappiness": value}}).swappiness is None


@pytest.mark.parametrize("file", ["procs", "threads", "type", "kill", "freeze", "subtree_control"])
def test_unified_sets_limits_only(file: str) -> None:
    with pytest.raises(ConfigError, match="it is not a limit"):
        Limits({"unified": {f"cgroup.{file}": "1"}}, strict=False)


@pytest.mark.parametrize(
    ("resources", "fields"),
    [
        ({}, set()),
        ({"memory": {"limit": MIB}}, set()),  # written by itself
        ({"memory": {"swap": MIB}}, set()),
        ({"cpu": {"burst": 5000}}, {"cpu.burst"}),
        ({"pids": {"limit": 5}}, {"pids.limit"}),
        # dockerd's `update --cpu-shares 300`: zero is "not given".
        (
            {
                "memory": {"limit": 0, "reservation": 0, "kernel": 0},
                "cpu": {"shares": 300, "quota": 0, "period": 0},
                "blockIO": {"weight": 0},
            },
            {"cpu.shares"},
        ),
    ],
)
def test_a_change_of_limits_is_no_contradiction_to_what_is_not_given(
    resources: Any, fields: set[str]
) -> None:
    limits = Limits(resources, strict=False, partial=True)
    assert written(limits) == fields


@pytest.mark.parametrize(
    "resources",
    [
        {"memory": {"limit": 2 * MIB, "swap": MIB}},
        {"memory": {"limit": -1, "swap": MIB}},
        {"cpu": {"quota": 5000, "burst": 6000}},
    ],
)
def test_one_to_itself_is(resources: Any) -> None:
    with pytest.raises(ConfigError):
        Limits(resources, strict=False, partial=True)
