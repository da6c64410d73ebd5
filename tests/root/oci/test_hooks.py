"""The six hooks: when, where and with what they run, and what becomes of one that fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.oci import Bundle, Container, Runtime, mount, nothing_remains
from support.running import wait_until
from support.schemas import validator

STATE = validator("state-schema.json")

BEFORE_PIVOT = ("prestart", "createRuntime", "createContainer")
KINDS = (*BEFORE_PIVOT, "startContainer", "poststart", "poststop")
# Where each runs: config.md, "POSIX-platform Hooks".
IN_CONTAINER = ("createContainer", "startContainer")
EARLY_POSTSTART = "it runs poststart hooks at create, not after the start of the command"


class Hooks:
    """Puts hooks into a bundle that write what they see into a folder.

    Attributes:
        records: that folder; in the container, once its root is entered, ``/records``.
    """

    def __init__(self, bundle: Bundle, root: Path, records: Path) -> None:
        records.mkdir()
        (root / "records").mkdir()
        self.bundle = bundle
        self.records = records
        bundle.config["root"]["path"] = str(root)
        bundle.config["mounts"].append(mount("/records", "bind", str(records), "bind", "rw"))

    def add(self, kind: str, script: str, **fields: Any) -> None:
        """Add a hook whose shell runs *script* with ``$R``, the folder of records."""
        folder = "/records" if kind == "startContainer" else str(self.records)
        # As BusyBox's it finds its applet by the name that it is called by.
        hook = {"path": "/bin/sh", "args": ["sh", "-c", f"R={folder}\n{script}"]} | fields
        self.bundle.config.setdefault("hooks", {}).setdefault(kind, []).append(hook)

    def record(self, kind: str, name: str = "") -> None:
        """Add one that records its place in the order, its state, namespaces and so on."""
        name = name or kind
        look = "; ".join(
            f"readlink /proc/self/ns/{ns} > $R/{name}.{ns}" for ns in ("mnt", "pid", "net", "uts")
        )
        self.add(
            kind,
            f"cat > $R/{name}.json; {look}; pwd > $R/{name}.cwd; env > $R/{name}.env\n"
            f"for fd in /proc/self/fd/*; do readlink $fd; done > $R/{name}.fds 2>/dev/null\n"
            f"test -e /records && echo in > $R/{name}.root; echo {name} >> $R/order",
            env=["A=b c", "PATH=/bin:/usr/bin"],
        )

    def order(self) -> list[str]:
        path = self.records / "order"
        return path.read_text().split() if path.exists() else []

    def read(self, name: str) -> str:
        return (self.records / name).read_text().strip()

    def state(self, name: str) -> Any:
        return json.loads(self.read(f"{name}.json"))


@pytest.fixture
def hooks(bundle: Bundle, own_root: Path, tmp_path: Path) -> Hooks:
    return Hooks(bundle, own_root, tmp_path / "records")


def without_poststart(runtime: Runtime, names: list[str]) -> list[str]:
    """Leave out what runc of this version does too early; see EARLY_POSTSTART."""
    return [name for name in names if not (runtime.is_runc and name == "poststart")]


def test_order(runtime: Runtime, hooks: Hooks) -> None:
    for kind in reversed(KINDS):  # the order of the file is nothing
        for number in (1, 2):
            hooks.add(kind, f"echo {kind} >> $R/order; test {number}")
    hooks.bundle.shell("echo command >> /records/order; exec sleep 1000")
    create = [name for name in BEFORE_PIVOT for _ in (1, 2)]
    container = runtime.create(hooks.bundle)
    assert without_poststart(runtime, hooks.order()) == create

    container.start()
    wait_until(lambda: "command" in hooks.order(), "the command")
    # The command runs at the same time as the poststart hooks.
    started = [name for name in hooks.order() if name != "poststart"][len(create) :]
    assert started == ["startContainer", "startContainer", "command"]
    if not runtime.is_runc:
        wait_until(lambda: hooks.order().count("poststart") == 2, "the poststart hooks")

    before = hooks.order()
    container.stop()
    assert hooks.order() == before
    container.delete()
    assert hooks.order() == [*before, "poststop", "poststop"]


def test_hooks_of_run(runtime: Runtime, hooks: Hooks) -> None:
    for kind in KINDS:
        hooks.add(kind, f"echo {kind} >> $R/order")
    done = runtime.run(hooks.bundle.shell("echo command >> /records/order; sleep 0.2; exit 4"))
    assert (done.returncode, done.stderr) == (4, "")
    # The command runs at the same time as the poststart hooks.
    order = [name for name in hooks.order() if name != "poststart"]
    assert order == [*KINDS[:4], "command", "poststop"]
    assert hooks.order().count("poststart") == 1


STATUS = {
    "prestart": "creating",
    "createRuntime": "creating",
    "createContainer": "creating",
    "startContainer": "created",
    "poststart": "running",
    "poststop": "stopped",
}


def lifetime(runtime: Runtime, hooks: Hooks) -> tuple[Container, dict[str, str]]:
    """Let a container live with a hook of each kind; return its namespaces, too."""
    for kind in KINDS:
        hooks.record(kind)
    container = runtime.create(hooks.bundle)
    namespaces = {ns: container.namespace(ns) for ns in ("mnt", "pid", "net", "uts")}
    container.start()
    container.stop()
    container.delete()
    return container, namespaces


def test_the_state_that_a_hook_reads(runtime: Runtime, hooks: Hooks) -> None:
    hooks.bundle.config["annotations"] = {"org.example.colour": "red"}
    container, _ = lifetime(runtime, hooks)
    for kind in without_poststart(runtime, list(KINDS)):
        found = hooks.state(kind)
        STATE.validate(found)
        assert found["id"] == container.id
        assert found["status"] == STATUS[kind], kind
        assert found["bundle"] == str(hooks.bundle.folder)
        assert found["annotations"] == {"org.example.colour": "red"}
        if kind in IN_CONTAINER:
            assert found["pid"] in (1, container.pid)  # runc's inside see themselves
        elif kind == "poststop":
            assert not found.get("pid")
        else:
            assert found["pid"] == container.pid


def test_where_a_hook_runs(runtime: Runtime, hooks: Hooks) -> None:
    _, namespaces = lifetime(runtime, hooks)
    for kind in KINDS:
        for ns, inside in namespaces.items():
            host = os.readlink(f"/proc/self/ns/{ns}")
            assert hooks.read(f"{kind}.{ns}") == (inside if kind in IN_CONTAINER else host), kind
        # Only startContainer's comes after pivot_root, and is looked up in the container.
        assert (hooks.records / f"{kind}.root").exists() == (kind == "startContainer")


def test_environment_and_descriptors(runtime: Runtime, hooks: Hooks) -> None:
    lifetime(runtime, hooks)
    for kind in KINDS:
        env = set(hooks.read(f"{kind}.env").splitlines())
        assert {"A=b c", "PATH=/bin:/usr/bin"} <= env
        names = {line.split("=")[0] for line in env}
        assert names <= {"A", "PATH", "PWD", "SHLVL", "_", "R", "OLDPWD"}, kind
        if runtime.is_runc and kind == "createContainer":
            continue  # inherits the descriptors of the init
        # The state on 0, pipes or null on 1 and 2; the loop's own folder is gone by then.
        opened = hooks.read(f"{kind}.fds").splitlines()
        assert not any("firkin" in line or "state" in line for line in opened[3:]), opened
        assert not any(line.startswith(("socket:", "anon_inode:")) for line in opened[3:]), opened


def test_args_and_path(runtime: Runtime, hooks: Hooks) -> None:
    """args[0] is argv[0], as of execv(3); without args it is the path."""
    script = hooks.records.parent / "hook"
    script.write_text(f'#!/bin/sh\necho "$#:$*" >> {hooks.records}/order\n')
    script.chmod(0o755)
    hooks.bundle.config["hooks"] = {
        "createRuntime": [
            {"path": str(script)},
            {"path": str(script), "args": []},
            {"path": str(script), "args": ["zero", "one", "t wo"]},
        ]
    }
    container = runtime.create(hooks.bundle)
    assert (hooks.records / "order").read_text() == "0:\n0:\n2:one t wo\n"
    container.delete()


def test_no_environment_of_ours(runtime: Runtime, hooks: Hooks) -> None:
    """Without env the hook's environment is empty (config.md), not the runtime's."""
    runtime.only_firkin("it hands its own environment down to a hook without one")
    hooks.add("createRuntime", "/usr/bin/env > $R/env")
    container = runtime.create(hooks.bundle)
    names = {line.split("=")[0] for line in hooks.read("env").splitlines()}
    assert names <= {"PWD", "SHLVL", "_", "OLDPWD", "R"}
    container.delete()


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_does_not_read_its_input(runtime: Runtime, hooks: Hooks, kind: str) -> None:
    """A broken pipe is nothing to the runtime, nor a signal of it to the container."""
    hooks.bundle.config["annotations"] = {"long": 200_000 * "x"}  # more than a pipe holds
    hooks.bundle.config["hooks"] = {kind: [{"path": "/bin/true", "args": ["true"]}]}
    container = runtime.create(hooks.bundle)
    container.start()
    wait_until(lambda: "sleep" in container.proc("cmdline"), "execve")
    container.stop()
    container.delete()


def test_a_hook_sees_the_containers_network(runtime: Runtime, hooks: Hooks) -> None:
    """What network plug-ins do: prestart and createRuntime reach the namespaces by the pid."""
    find = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/' $R/state)"
    hooks.add("createRuntime", f"cat > $R/state; {find}; readlink /proc/$pid/ns/net > $R/net")
    container = runtime.create(hooks.bundle)
    assert hooks.read("net") == container.namespace("net")
    container.delete()


# ---------------------------------------------------------------- failures


FATAL = ("prestart", "createRuntime", "createContainer", "startContainer")


@pytest.mark.parametrize("kind", FATAL)
def test_a_failing_hook_ends_the_container(runtime: Runtime, hooks: Hooks, kind: str) -> None:
    """Nothing after it runs, and the error is the runtime's (config.md, "prestart" and so on)."""
    hooks.add(kind, "echo complaint >&2; exit 3")
    hooks.add(kind, "echo second >> $R/order")
    hooks.add("poststop", "echo poststop >> $R/order")
    hooks.bundle.shell("echo command >> /records/order; exec sleep 1000")
    container = runtime.create(hooks.bundle, check=False)
    if kind != "startContainer":
        said = runtime.refused(container.done)
        assert "hook" in said
        assert "complaint" in said or "3" in said
        assert runtime.ids() == []
        nothing_remains(runtime, container.id)
    else:
        assert container.done.returncode == 0
        done = runtime.start(container.id)
        if not runtime.is_runc:  # which does not wait for it
            assert "hook" in runtime.refused(done)
        wait_until(lambda: not container.alive(), "the end of the first process")
        assert runtime.delete(container.id, "--force").returncode == 0
        nothing_remains(runtime, container.id)
    assert {"command", "second"} & set(hooks.order()) == set()


@pytest.mark.parametrize("kind", FATAL)
def test_a_failing_hook_of_run(runtime: Runtime, hooks: Hooks, kind: str) -> None:
    hooks.add(kind, "exit 3")
    hooks.bundle.shell("echo command >> /records/order")
    name = runtime.new_id()
    done = runtime.run(hooks.bundle, id=name)
    assert done.returncode == 1
    assert "hook" in done.stderr
    assert hooks.order() == []
    nothing_remains(runtime, name)


def test_a_poststart_hook_that_fails(runtime: Runtime, hooks: Hooks) -> None:
    """The runtime must tell of it; since 1.2.1 the container is stopped, too (runtime.md)."""
    runtime.only_firkin(EARLY_POSTSTART)
    hooks.add("poststart", "exit 3")
    container = runtime.create(hooks.bundle)
    done = runtime.start(container.id)
    assert "hook" in runtime.message(done.stderr)
    assert done.returncode == 1
    wait_until(lambda: not container.alive(), "the end of the first process")
    assert container.status == "stopped"
    container.delete()
    nothing_remains(runtime, container.id)


@pytest.mark.parametrize("script", ["exit 3", "kill -9 $$"])
def test_a_poststop_hook_that_fails(runtime: Runtime, hooks: Hooks, script: str) -> None:
    """A warning; the others run, and the container is deleted."""
    hooks.add("poststop", f"echo first >> $R/order; {script}")
    hooks.add("poststop", "echo second >> $R/order")
    container = runtime.create(hooks.bundle)
    container.start()
    container.stop()
    done = runtime.delete(container.id)
    assert done.returncode == 0
    assert "hook" in done.stderr
    if runtime.is_runc:
        assert hooks.order() == ["first"]  # against runtime.md: "the remaining hooks"
    else:
        assert hooks.order() == ["first", "second"]
    nothing_remains(runtime, container.id)


@pytest.mark.parametrize("kind", ["createRuntime", "createContainer"])
def test_timeout(runtime: Runtime, hooks: Hooks, kind: str) -> None:
    hooks.add(kind, "exec sleep 1000", timeout=1)
    container = runtime.create(hooks.bundle, check=False)
    said = runtime.refused(container.done)
    assert "hook" in said
    nothing_remains(runtime, container.id)


def test_a_hook_within_its_time(runtime: Runtime, hooks: Hooks) -> None:
    hooks.add("createRuntime", "echo ran >> $R/order", timeout=20)
    container = runtime.create(hooks.bundle)
    assert hooks.order() == ["ran"]
    container.delete()


def test_hooks_that_cannot_run(runtime: Runtime, bundle: Bundle) -> None:
    for path in ("/nonexistent/hook", "/etc/passwd", "/etc"):
        bundle.config["hooks"] = {"createRuntime": [{"path": path}]}
        container = runtime.create(bundle, check=False)
        said = runtime.refused(container.done)
        assert "hook" in said
        assert path in said
        nothing_remains(runtime, container.id)


INVALID: dict[str, Any] = {
    "relative": {"path": "bin/true"},
    "no path": {"args": ["x"]},
    "timeout 0": {"path": "/bin/true", "timeout": 0},
    "negative timeout": {"path": "/bin/true", "timeout": -1},
    "env": {"path": "/bin/true", "env": [1]},
}


def test_invalid_hooks(runtime: Runtime, bundle: Bundle) -> None:
    for name, hook in INVALID.items():
        if runtime.is_runc and "timeout" in name:
            continue  # runc does not check it
        bundle.config["hooks"] = {"createRuntime": [hook]}
        container = runtime.create(bundle, check=False)
        assert runtime.refused(container.done), name
        nothing_remains(runtime, container.id)


def test_poststop_hooks_of_force_and_of_a_dead_container(runtime: Runtime, hooks: Hooks) -> None:
    hooks.add("poststop", "echo poststop >> $R/order")
    container: Container = runtime.create(hooks.bundle)
    container.delete("--force")
    assert hooks.order() == ["poststop"]
    # Nothing is left to run them a second time.
    runtime.delete(container.id, "--force", check=True)
    assert hooks.order() == ["poststop"]
