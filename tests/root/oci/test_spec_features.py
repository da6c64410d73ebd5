"""spec and features: the documents that the runtime writes itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.command import execute
from support.oci import Runtime
from support.schemas import validator


def make(runtime: Runtime, folder: Path, *words: str) -> dict[str, Any]:
    """Let the runtime write a configuration into *folder*, and return it."""
    folder.mkdir(exist_ok=True)
    done = runtime("spec", *words, "--bundle", folder, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert os.listdir(folder) == ["config.json"]
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_spec(runtime: Runtime, tmp_path: Path) -> None:
    config = make(runtime, tmp_path / "bundle")
    validator("config-schema.json").validate(config)
    assert config["process"]["args"] == ["sh"]
    assert config["process"]["terminal"] is True
    assert config["root"] == {"path": "rootfs", "readonly": True}
    kinds = {entry["type"] for entry in config["linux"]["namespaces"]}
    assert {"pid", "network", "ipc", "uts", "mount"} <= kinds
    mode = (tmp_path / "bundle/config.json").stat().st_mode & 0o777
    assert mode in (0o644, 0o666)


def test_spec_writes_to_the_current_directory(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert runtime("spec", cwd=tmp_path / "here").returncode == 0
    assert (tmp_path / "here/config.json").exists()


def test_spec_does_not_overwrite(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    said = runtime.refuses("spec", "--bundle", tmp_path)
    assert "config.json" in said
    assert (tmp_path / "config.json").read_text() == "mine"


def test_spec_does_not_follow_a_link(runtime: Runtime, tmp_path: Path) -> None:
    runtime.only_firkin("it writes through a link that leads nowhere")
    (tmp_path / "config.json").symlink_to(tmp_path / "elsewhere")
    runtime.refuses("spec", "--bundle", tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_spec_without_a_folder(runtime: Runtime, tmp_path: Path) -> None:
    said = runtime.refuses("spec", "--bundle", tmp_path / "none")
    assert "no such file or directory" in said


@pytest.mark.parametrize("words", [[], ["--rootless"]])
def test_what_spec_writes_runs(
    runtime: Runtime, tmp_path: Path, own_root: Path, words: list[str]
) -> None:
    folder = tmp_path / "bundle"
    config = make(runtime, folder, *words)
    config["process"] |= {"terminal": False, "args": ["sh", "-c", "id -u; echo $$; hostname"]}
    (folder / "config.json").write_text(json.dumps(config))
    own_root.rename(folder / "rootfs")
    done = runtime("run", "--bundle", folder, runtime.new_id())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["0", "1", config["hostname"]]


def test_rootless_spec(runtime: Runtime, tmp_path: Path) -> None:
    """A user namespace with one's own id, and what that user has no right to left out."""
    config = make(runtime, tmp_path / "bundle", "--rootless")
    validator("config-schema.json").validate(config)
    kinds = {entry["type"] for entry in config["linux"]["namespaces"]}
    assert "user" in kinds
    assert "network" not in kinds
    for name in ("uidMappings", "gidMappings"):
        assert config["linux"][name] == [{"containerID": 0, "hostID": 0, "size": 1}]
    assert "resources" not in config["linux"]
    assert not any("gid=5" in entry.get("options", ()) for entry in config["mounts"])


# ---------------------------------------------------------------- features


@pytest.fixture(scope="module")
def known() -> dict[str, list[str]]:
    """What the other runtime has: ours must have it, too."""
    found = json.loads(execute(["runc", "features"], check=True).stdout)
    linux = found["linux"]
    return {
        "hooks": found["hooks"],
        "mountOptions": found["mountOptions"],
        "namespaces": linux["namespaces"],
        "capabilities": linux["capabilities"],
        "actions": linux["seccomp"]["actions"],
        "operators": linux["seccomp"]["operators"],
        "archs": linux["seccomp"]["archs"],
    }


def test_features(runtime: Runtime) -> None:
    done = runtime("features", check=True)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    validator("features-schema.json").validate(found)
    assert found["ociVersionMin"] == "1.0.0"
    first = [int(part) for part in found["ociVersionMax"].split("-")[0].split(".")]
    assert first >= [1, 0, 2]
    linux = found["linux"]
    for part in (found["hooks"], found["mountOptions"], linux["namespaces"]):
        assert len(set(part)) == len(part)
    assert linux["cgroup"]["v1"] is True
    assert linux["cgroup"]["v2"] is True
    assert linux["seccomp"]["enabled"] is True
    # The version is that of --version.
    version = runtime("--version", check=True).stdout
    assert found["annotations"]["io.github.seccomp.libseccomp.version"] in version


def test_features_have_all_of_runcs(runtime: Runtime, known: dict[str, list[str]]) -> None:
    """But for the options of file systems, which no runtime has to know, and foreign machines."""
    found = json.loads(runtime("features", check=True).stdout)
    linux = found["linux"]
    assert found["hooks"] == known["hooks"]
    assert set(known["mountOptions"]) - set(found["mountOptions"]) <= {"acl", "noacl"}
    assert set(known["namespaces"]) <= set(linux["namespaces"])
    assert linux["capabilities"] == known["capabilities"]
    assert set(known["actions"]) <= set(linux["seccomp"]["actions"])
    assert set(known["operators"]) <= set(linux["seccomp"]["operators"])
    assert set(known["archs"]) <= set(linux["seccomp"]["archs"])


def test_the_newest_features(runtime: Runtime) -> None:
    runtime.only_firkin("these came with runtime-spec 1.1 to 1.3")
    linux = json.loads(runtime("features", check=True).stdout)["linux"]
    assert "time" in linux["namespaces"]
    assert linux["mountExtensions"]["idmap"]["enabled"] is True
    assert set(linux) >= {"apparmor", "selinux", "intelRdt", "netDevices"}
    assert set(linux["seccomp"]["knownFlags"]) >= {
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    }
    assert set(linux["seccomp"]["supportedFlags"]) <= set(linux["seccomp"]["knownFlags"])


def test_features_needs_nothing(runtime: Runtime) -> None:
    done = runtime("features", options=("--root", "/nonexistent"), check=True)
    assert json.loads(done.stdout)
