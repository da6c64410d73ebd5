"""OCI bundles as root; what an ordinary user's share is in ``support/cases_bundle.py``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from support.cases_bundle import SUITE, Bundle, Cases, bundle, linux, process
from support.command import Firkin, execute
from support.requires import requires
from support.running import Running, cgroup_of

__all__ = ["bundle"]  # the fixture


class TestBundle(Cases):
    """As :class:`Cases`."""


GOOD = sorted(path.stem for path in (SUITE / "good").iterdir())


@pytest.mark.parametrize("name", GOOD)
def test_the_suites_good_files_are_valid(name: str) -> None:
    from firkin.spec import validate

    path = SUITE / f"good/{name}.json"
    validate.validate(validate.parse(path.read_bytes(), str(path)))


def test_the_user(bundle: Bundle) -> None:
    bundle.config["process"]["user"] = {"uid": 1000, "gid": 50, "additionalGids": [7, 8]}
    assert bundle.shell("id -u; id -g; id -G") == "1000\n50\n50 7 8"


def test_a_network_sysctl_and_a_device(bundle: Bundle) -> None:
    linux(
        sysctl={"net.ipv4.ip_forward": "1", "net/ipv4/conf/lo/forwarding": "0"},
        devices=[{"path": "/dev/nowt", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640}],
    )(bundle.config)
    script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/lo/forwarding"
    assert bundle.shell(script + "; stat -c '%t:%T %a' /dev/nowt") == "1\n0\n1:3 640"


def test_resources(bundle: Bundle) -> None:
    resources = {"pids": {"limit": 33}, "memory": {"limit": 64 << 20}}
    linux(resources=resources, cgroupsPath=f"/firkin-{bundle.folder.name}")(bundle.config)
    process(args=["sh", "-c", "echo up; read x"])(bundle.config)
    (bundle.folder / "config.json").write_text(json.dumps(bundle.config))
    command = [bundle.firkin.command(), "run", "-i", "--bundle", str(bundle.folder)]
    with Running.of(command, env=bundle.firkin.env()) as box:
        assert box.cgroup("pids").name == f"firkin-{bundle.folder.name}"
        assert (box.cgroup("pids") / "pids.max").read_text() == "33\n"
        assert box.cgroup("pids") != cgroup_of(os.getpid(), "pids")


def test_a_namespace_with_a_path(bundle: Bundle) -> None:
    for entry in bundle.config["linux"]["namespaces"]:
        if entry["type"] == "ipc":
            entry["path"] = "/proc/self/ns/ipc"
    assert bundle.shell("readlink /proc/self/ns/ipc") == os.readlink("/proc/self/ns/ipc")


def test_id_mappings(bundle: Bundle) -> None:
    linux(
        uidMappings=[{"containerID": 0, "hostID": 200000, "size": 1000}],
        gidMappings=[{"containerID": 0, "hostID": 300000, "size": 1000}],
    )(bundle.config)
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    found = bundle.shell("cat /proc/self/uid_map /proc/self/gid_map").split()
    assert found == ["0", "200000", "1000", "0", "300000", "1000"]


@pytest.mark.parametrize(
    ("propagation", "field"), [("shared", "shared:"), ("slave", "master:"), ("private", " / / ")]
)
def test_the_roots_propagation(bundle: Bundle, propagation: str, field: str) -> None:
    linux(rootfsPropagation=f"r{propagation}")(bundle.config)
    lines = bundle.shell("cat /proc/self/mountinfo").splitlines()
    root = next(line for line in lines if line.split()[4] == "/")
    assert ("shared:" in root) == (propagation == "shared"), (root, field)


@requires("program:runc")
def test_runc_runs_what_spec_prints(firkin: Firkin, own_root: Path, tmp_path: Path) -> None:
    script = "id; hostname; env | sort; grep -E 'Cap|NoNew' /proc/self/status"
    command = ["--hostname", "same", own_root, "sh", "-c", script]
    printed = firkin("spec", *command, check=True).stdout
    (tmp_path / "config.json").write_text(printed)
    runc = ["runc", "--root", str(tmp_path / "state"), "run", "-b", str(tmp_path)]
    theirs = execute([*runc, f"firkin-{tmp_path.name}"])
    assert (theirs.returncode, theirs.stderr) == (0, "")
    assert theirs.stdout == firkin("run", *command).stdout
