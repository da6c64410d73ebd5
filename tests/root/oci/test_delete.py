"""delete: in which states, with and without --force, and what it leaves: nothing."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from support.oci import Bundle, Runtime, nothing_remains
from support.requires import cgroup_mounts

STATES = ("created", "running", "paused", "stopped", "died")


def bring(runtime: Runtime, bundle: Bundle, state: str):
    container = runtime.create(bundle)
    if state != "created":
        container.start()
    if state == "paused":
        container.verb("pause")
    if state == "stopped":
        container.stop()
    if state == "died":
        os.kill(container.pid, signal.SIGKILL)
        container.wait()
    return container


@pytest.mark.parametrize("state", STATES)
def test_delete(runtime: Runtime, bundle: Bundle, state: str) -> None:
    container = bring(runtime, bundle, state)
    pid = container.pid if state != "stopped" else 0
    if state in ("running", "paused"):
        said = container.refuses("delete")
        assert container.id in said
        assert container.status == state
        return
    # A created one is deleted, process and all: runc's and crun's way.
    container.delete()
    if pid:
        container.wait(pid)
    assert runtime.ids() == []
    nothing_remains(runtime, container.id)


@pytest.mark.parametrize("state", STATES)
def test_force(runtime: Runtime, bundle: Bundle, state: str) -> None:
    container = bring(runtime, bundle, state)
    pid = container.pid if state != "stopped" else 0
    container.delete("--force")
    if pid:
        container.wait(pid)
    assert runtime.ids() == []
    nothing_remains(runtime, container.id)
    # And once more: exit 0 and silence, which containerd's shim counts on.
    done = runtime.delete(container.id, "-f")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "does not exist" in container.refuses("delete")


def test_force_of_an_unknown_container(runtime: Runtime) -> None:
    done = runtime.delete(runtime.new_id(), "--force")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert runtime.ids() == []


def test_force_of_a_container_with_processes_of_exec(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle.without_namespace("pid"))
    pid = container.exec_detached()
    container.delete("--force")
    assert container.wait_adopted(pid) == -signal.SIGKILL
    nothing_remains(runtime, container.id)


@pytest.mark.parametrize("what", ["bundle", "root file system"])
def test_after_it_was_removed(runtime: Runtime, bundle: Bundle, own_root: Path, what: str) -> None:
    bundle.config["root"]["path"] = str(own_root)
    container = runtime.up(bundle)
    container.stop()
    shutil.rmtree(bundle.folder if what == "bundle" else own_root)
    assert container.status == "stopped"
    container.delete()
    nothing_remains(runtime, container.id)


def test_cgroups_that_were_made_below_it(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    for controller in ("pids", "memory"):
        (container.cgroup(controller) / "a/b/c").mkdir(parents=True, exist_ok=True)
        (container.cgroup(controller) / "a/d").mkdir(exist_ok=True)
    container.stop()
    container.delete()
    nothing_remains(runtime, container.id)


def test_a_process_in_a_cgroup_below(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    below = container.cgroup("pids") / "below"
    below.mkdir()
    (below / "cgroup.procs").write_text(str(container.pid))
    container.delete("--force")
    nothing_remains(runtime, container.id)


def test_a_cgroup_that_is_gone_already(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    folder = container.cgroup("pids")
    container.stop()
    assert str(folder).startswith(cgroup_mounts()["pids"])
    folder.rmdir()
    assert container.status == "stopped"
    container.delete()
    nothing_remains(runtime, container.id)


@pytest.mark.parametrize("torn", [False, True])
def test_force_clears_a_broken_folder(runtime: Runtime, torn: bool) -> None:
    """What a crash in the middle of create leaves: no state file yet, or a torn one."""
    if torn:
        runtime.only_firkin("it refuses to delete what has a state file that it cannot read")
    for content in ("", "{", "[]", "null", '{"id": 3}', "\xff") if torn else (None,):
        name = runtime.new_id()
        (runtime.root / name).mkdir(parents=True)
        if content is not None:
            (runtime.root / name / "state.json").write_text(content, encoding="latin-1")
        assert runtime.refuses("state", name)
        done = runtime.delete(name, "--force")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), content
        assert runtime.ids() == []


def test_only_the_named_one(runtime: Runtime, bundle: Bundle) -> None:
    first = runtime.up(bundle, id=f"{runtime.new_id()}")
    second = runtime.up(bundle, id=f"{first.id}0")
    first.delete("--force")
    assert second.status == "running"
    assert second.exec("true").returncode == 0
    assert runtime.ids() == [second.id]


def test_the_root_is_not_touched(runtime: Runtime, bundle: Bundle, own_root: Path) -> None:
    """A recursive removal must stop at what is mounted or bound, and at the state folder."""
    (own_root / "keep").mkdir()
    (own_root / "keep/file").write_text("kept")
    bundle.config["root"]["path"] = str(own_root)
    container = runtime.up(bundle)
    container.delete("--force")
    assert (own_root / "keep/file").read_text() == "kept"
    assert bundle.file.exists()
