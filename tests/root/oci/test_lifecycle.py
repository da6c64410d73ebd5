"""A container's life: create, start, state, delete, run; what each verb refuses, and leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.command import execute
from support.oci import Bundle, Container, Runtime, alive, mount, nothing_remains
from support.running import wait_until

MakeBundle = Callable[..., Bundle]
Change = Callable[[dict[str, Any]], object]


# ---------------------------------------------------------------- the straight way


def test_from_create_to_delete(runtime: Runtime, bundle: Bundle) -> None:
    bundle.shell("echo started; exec sleep 1000")
    container = runtime.create(bundle)
    assert (container.done.stderr, container.status) == ("", "created")
    pid = container.pid
    assert alive(pid)
    assert container.output() == ""

    container.start()
    assert container.output(until="started") == "started\n"
    assert (container.status, container.pid) == ("running", pid)
    wait_until(lambda: container.proc("cmdline") == "sleep\0001000\0", "execve")

    container.kill("KILL")
    container.wait()
    assert container.status == "stopped"
    assert container.state()["pid"] == 0

    container.delete()
    assert "container does not exist" in runtime.refuses("state", container.id)
    assert runtime.ids() == []
    nothing_remains(runtime, container.id)


def test_the_command_is_not_executed_before_start(runtime: Runtime, bundle: Bundle) -> None:
    """But all else is done: the process lies in the container already."""
    container = runtime.create(bundle.shell("echo $$ $(hostname); exec sleep 1000"))
    root = Path(f"/proc/{container.pid}/root")
    assert (root / "etc/hostname").read_text() == "busybox\n"
    assert not (root / "var/cache").exists()
    for kind in ("mnt", "pid", "net", "ipc", "uts"):
        assert container.namespace(kind) != os.readlink(f"/proc/self/ns/{kind}")
    assert container.id in container.cgroup("pids").name
    assert "sleep" not in container.proc("cmdline")
    container.start()
    assert container.output(until="\n") == "1 cask\n"


def test_the_configuration_is_read_once(runtime: Runtime, bundle: Bundle) -> None:
    """What becomes of the file after create is nothing to the container (runtime.md)."""
    container = runtime.create(bundle.shell("echo first; exec sleep 1000"))
    bundle.shell("echo second; exec sleep 1000").write()
    container.start()
    assert container.output(until="\n") == "first\n"
    bundle.file.unlink()
    assert container.status == "running"
    container.stop()
    container.delete()


def test_start_again_after_the_same_id_was_deleted(runtime: Runtime, bundle: Bundle) -> None:
    for _ in range(2):
        container = runtime.create(bundle, id="firkin-again")
        container.start()
        container.stop()
        container.delete()
    nothing_remains(runtime, "firkin-again")


def test_a_container_without_a_pid_namespace(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.create(bundle.without_namespace("pid"))
    assert container.namespace("pid") == os.readlink("/proc/self/ns/pid")
    container.start()
    container.stop()
    assert container.status == "stopped"
    container.delete()
    nothing_remains(runtime, container.id)


def test_create_leaves_no_process_between(runtime: Runtime, bundle: Bundle) -> None:
    """A client that is a subreaper must become the parent of the first process, to wait for it."""
    container = runtime.create(bundle)
    parent = re.search(r"^PPid:\t(\d+)", container.proc("status"), re.M)
    assert parent
    ours = {container.pid, os.getpid()}
    assert int(parent[1]) not in ours
    # Whoever that is, it is not the runtime: nobody else has the container's id among its words.
    assert container.id not in Path(f"/proc/{parent[1]}/cmdline").read_text()
    kept = {os.readlink(path) for path in Path(f"/proc/{container.pid}/fd").iterdir()}
    assert str(container.out) in kept


# ---------------------------------------------------------------- state


def test_state_has_the_fields_of_the_specification_and_of_runc(
    runtime: Runtime, bundle: Bundle, busybox_root: Path
) -> None:
    bundle.config["annotations"] = {"org.example.colour": "red", "org.example.empty": ""}
    container = runtime.create(bundle)
    found = container.state()
    created, version = found.pop("created"), found.pop("ociVersion")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", created)
    assert re.match(r"1\.\d+\.\d+", version)
    assert found == {
        "id": container.id,
        "pid": container.pid,
        "status": "created",
        "bundle": str(bundle.folder),
        "rootfs": str(busybox_root),
        "annotations": bundle.config["annotations"],
        "owner": "",
    }
    assert container.state() == found | {"created": created, "ociVersion": version}


def test_state_without_annotations(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.create(bundle)
    text = container.verb("state").stdout
    assert "annotations" not in json.loads(text)
    assert text.startswith('{\n  "ociVersion": "')


def test_state_of_a_relative_bundle_is_absolute(runtime: Runtime, bundle: Bundle) -> None:
    container = Container(runtime, runtime.new_id(), bundle)
    bundle.write()
    with container.out.open("w") as out:
        words = runtime.command("create", "--bundle", bundle.folder.name, container.id)
        done = execute(words, cwd=bundle.folder.parent, stdout=out, stderr=out)
    assert done.returncode == 0, container.output()
    assert container.state()["bundle"] == str(bundle.folder)


def test_the_bundle_is_the_current_directory(runtime: Runtime, bundle: Bundle) -> None:
    bundle.args("echo", "here").write()
    done = runtime("run", runtime.new_id(), cwd=bundle.folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\n", "")


def test_spellings_of_the_bundle(runtime: Runtime, bundle: Bundle) -> None:
    """Go's flag package takes one dash or two, and an equals sign."""
    bundle.args("echo", "ran").write()
    for spelling in ("--bundle {}", "-b {}", "--bundle={}", "-b={}", "-bundle {}"):
        words = spelling.format(bundle.folder).split(" ")
        assert runtime("run", *words, runtime.new_id(), check=True).stdout == "ran\n", spelling


def test_a_container_whose_command_ended(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle.args("true"))
    wait_until(lambda: container.status == "stopped", "the end")
    container.delete()
    nothing_remains(runtime, container.id)


def test_a_reused_process_number_is_not_the_container(runtime: Runtime, bundle: Bundle) -> None:
    """The state names a process by its number and the time of its start."""
    container = runtime.create(bundle)
    container.start()
    container.stop()
    file = runtime.root / container.id / "state.json"
    text = file.read_text()
    if str(container.pid) not in text:
        pytest.fail(f"the state file does not tell the process: {text}")
    file.write_text(re.sub(rf"\b{container.pid}\b", str(os.getpid()), text))
    assert container.status == "stopped"
    assert "not running" in container.refuses("kill")
    container.delete()


# ---------------------------------------------------------------- the wrong state

# The verb, its words after the id, the states that refuse it, and what the message says.
STATES = ("created", "running", "paused", "stopped")


def bring(runtime: Runtime, bundle: Bundle, state: str) -> Container:
    """Return a container that is in *state*."""
    container = runtime.create(bundle)
    if state != "created":
        container.start()
    if state == "paused":
        container.verb("pause")
    if state == "stopped":
        container.stop()
    assert container.status == state
    return container


# Clients search the text of kill's and delete's for "container not running", "not exist";
# the others are for people.
REFUSED = {
    ("start", "running"): "already",
    ("start", "paused"): "paused",
    ("start", "stopped"): "stopped",
    ("kill", "stopped"): "container not running",
    ("delete", "running"): "running",
    ("delete", "paused"): "paused",
    ("pause", "paused"): "",
    ("pause", "stopped"): "not running",
    ("resume", "created"): "not paused",
    ("resume", "running"): "not paused",
    ("resume", "stopped"): "not paused",
    ("update", "stopped"): "not running",
    ("events", "stopped"): "not running",
}
WORDS = {"update": ("--pids-limit", "9"), "events": ("--stats",)}


@pytest.mark.parametrize("state", STATES)
def test_what_each_state_refuses(runtime: Runtime, bundle: Bundle, state: str) -> None:
    container = bring(runtime, bundle, state)
    for (verb, when), says in REFUSED.items():
        if when == state:
            assert says in container.refuses(verb, *WORDS.get(verb, ()))
    assert container.status == state
    assert "exist" in runtime.refuses("create", "-b", bundle.folder, container.id)
    assert container.status == state


@pytest.mark.parametrize("state", ["paused", "stopped"])
def test_where_exec_is_refused(runtime: Runtime, bundle: Bundle, state: str) -> None:
    container = bring(runtime, bundle, state)
    said = runtime.refused(container.exec("true"), status=255)
    assert {"paused": "paused", "stopped": "container"}[state] in said


UNKNOWN = ["state", "start", "kill", "delete", "pause", "resume", "ps", "update", "events"]


def test_an_unknown_container(runtime: Runtime) -> None:
    for verb in UNKNOWN:
        said = runtime.refuses(verb, *WORDS.get(verb, ()), runtime.new_id())
        assert "container does not exist" in said, verb
        assert runtime.ids() == []


def test_exec_in_an_unknown_container(runtime: Runtime) -> None:
    said = runtime.refused(runtime.exec("unknown", "true"), status=255)
    assert "container does not exist" in said


# ---------------------------------------------------------------- ids


def test_good_ids(runtime: Runtime, bundle: Bundle) -> None:
    for form in ("{}.a_b+c-D.0", "{}" + 100 * "x", "_{}", "+{}"):
        container = runtime.create(bundle, id=form.format(runtime.new_id()))
        assert container.state()["id"] == container.id
        container.delete()
        nothing_remains(runtime, container.id)


def test_an_id_that_looks_like_an_option(runtime: Runtime, bundle: Bundle) -> None:
    bundle.args("true").write()
    done = runtime("run", "-b", bundle.folder, "--", f"-{runtime.new_id()}")
    assert (done.returncode, done.stderr) == (0, "")


BAD_IDS = ["", ".", "..", "../x", "a/b", "/", "/x", "a b", "a\nb", "é", "a:b", "a@b", "~", "a\\b"]


def test_bad_ids(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write()
    (tmp_path / "x").mkdir()  # state/../x
    (tmp_path / "x/state.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    tried = [("create", bad) for bad in BAD_IDS]
    for verb in ("state", "delete", "delete --force", "exec", "kill"):
        tried += [(verb, bad) for bad in ("", "..", "../x", "/x")]
    for verb, bad in tried:
        words = {"create": ["--bundle", bundle.folder]}.get(verb, [])
        after = {"exec": ["true"]}.get(verb, [])
        done = runtime(*verb.split(), *words, "--", bad, *after)
        said = runtime.refused(done, status=255 if verb == "exec" else 1)
        assert re.search("container id", said, re.I), (verb, bad, said)
    now = sorted(tmp_path.rglob("*"))
    assert [path for path in now if path != runtime.root] == before


def test_an_id_that_no_file_system_takes(runtime: Runtime, bundle: Bundle) -> None:
    bundle.write()
    runtime.refuses("create", "--bundle", bundle.folder, 300 * "x")
    assert runtime.ids() == []


# ---------------------------------------------------------------- create fails


def process(**fields: Any) -> Change:
    return lambda config: config["process"].update(fields)


def linux(**fields: Any) -> Change:
    return lambda config: config["linux"].update(fields)


def namespace(kind: str, **fields: str) -> Change:
    return lambda config: config["linux"]["namespaces"].append({"type": kind, **fields})


def without(name: str) -> Change:
    return lambda config: config.pop(name)


def mounted(*words: str) -> Change:
    return lambda config: config["mounts"].append(mount(*words))


# Each is a configuration that cannot be: what is changed, and what the message must name.
BAD: dict[str, tuple[Change, str]] = {
    "command not found": (process(args=["nosuch"]), "executable file not found in $PATH"),
    "command not found, empty": (process(args=[""]), "executable file not found in $PATH"),
    "no such file": (process(args=["/nosuch"]), "no such file or directory"),
    "not executable": (process(args=["/etc/passwd"]), "permission denied"),
    "a directory": (process(args=["/etc"]), "permission denied"),
    "not in this PATH": (
        process(args=["sh"], env=["PATH=/sys"]),
        "executable file not found in $PATH",
    ),
    "no args": (process(args=[]), "args"),
    "relative cwd": (process(cwd="x"), "wd"),
    "cwd is a file": (process(cwd="/etc/passwd"), "not a directory"),
    "no rootfs": (lambda config: config["root"].update(path="/nonexistent"), "/nonexistent"),
    "rootfs is a file": (lambda config: config["root"].update(path="/etc/passwd"), "not a "),
    "no root": (without("root"), "root"),
    "no process": (without("process"), "process"),
    "bind source": (mounted("/mnt", "bind", "/nonexistent", "bind"), "/nonexistent"),
    "unknown file system": (mounted("/tmp", "nosuchfs", "x"), "/tmp"),
    "unknown namespace": (namespace("bogus"), "bogus"),
    "namespace twice": (namespace("pid"), "pid"),
    "namespace path": (
        lambda config: config["linux"]["namespaces"][1].update(path="/nonexistent"),
        "/nonexistent",
    ),
    "the host's sysctl": (linux(sysctl={"kernel.panic": "1"}), "kernel.panic"),
    "unknown sysctl": (linux(sysctl={"net.nosuch": "1"}), "nosuch"),
    "rlimit": (process(rlimits=[{"type": "RLIMIT_X", "hard": 1, "soft": 1}]), "RLIMIT_X"),
    "seccomp action": (linux(seccomp={"defaultAction": "SCMP_ACT_X"}), "SCMP_ACT_X"),
    "terminal": (process(terminal=True), "console"),
    "memory limit": (linux(resources={"memory": {"limit": 1}}), "memory"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_failed_create_leaves_nothing(
    runtime: Runtime, bundle: Bundle, tmp_path: Path, case: str
) -> None:
    change, says = BAD[case]
    change(bundle.config)
    pid_file = tmp_path / "pid"
    log = tmp_path / "log.json"
    options = ("--log", str(log), "--log-format", "json")
    container = runtime.create(
        bundle, "--pid-file", pid_file, id=f"{runtime.new_id()}x", check=False, options=options
    )
    said = runtime.refused(container.done)
    assert says in said
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    errors = [line for line in lines if line["level"] == "error"]
    # What containerd takes is the last one.
    assert errors[-1]["msg"] == said
    assert not pid_file.exists()
    assert container.output() == ""
    assert runtime.ids() == []
    nothing_remains(runtime, container.id)


def test_bad_files(runtime: Runtime, bundle: Bundle) -> None:
    bundle.config = None
    for text in ("", "{", '{"a": 1} x', "[]", "null", '"x"', "{}", "\0", "\xff"):
        if text == "null" and runtime.is_runc:
            continue  # it panics (nil pointer dereference in loadSpec)
        bundle.file.write_text(text, encoding="latin-1")
        container = runtime.create(bundle, check=False)
        runtime.refused(container.done)
        assert runtime.ids() == [], text
        nothing_remains(runtime, container.id)


def test_no_bundle(runtime: Runtime, tmp_path: Path) -> None:
    for verb in ("create", "run"):
        said = runtime.refuses(verb, "--bundle", tmp_path / "none", runtime.new_id())
        assert "none" in said
        assert "no such file or directory" in said
        said = runtime.refuses(verb, "--bundle", tmp_path, runtime.new_id())
        assert "config.json" in said
        assert runtime.ids() == []


def test_run_that_fails_leaves_nothing(runtime: Runtime, bundle: Bundle) -> None:
    name = runtime.new_id()
    said = runtime.refused(runtime.run(bundle.args("nosuch"), id=name))
    assert "executable file not found in $PATH" in said
    assert runtime.ids() == []
    nothing_remains(runtime, name)


def test_what_fails_at_execve_is_seen_after_start(
    runtime: Runtime, bundle: Bundle, own_root: Path
) -> None:
    """A file that is executable but no program: nobody can know before."""
    (own_root / "garbage").write_bytes(b"\0garbage")
    (own_root / "garbage").chmod(0o755)
    bundle.config["root"]["path"] = str(own_root)
    container = runtime.create(bundle.args("/garbage"))
    done = runtime.start(container.id)
    container.wait()
    if runtime.is_runc:  # does not wait for it: the container itself tells
        assert "exec format error" in container.errors()
    else:
        assert "exec format error" in runtime.refused(done)
    assert container.status == "stopped"
    container.delete()


# ---------------------------------------------------------------- run


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_run_ends_with_the_commands_status(
    runtime: Runtime, bundle: Bundle, script: str, status: int
) -> None:
    # In a PID namespace nothing inside can kill the first process.
    bundle.without_namespace("pid").shell(f"echo out; echo err >&2; {script}")
    name = runtime.new_id()
    done = runtime.run(bundle, id=name)
    assert (done.returncode, done.stdout, done.stderr) == (status, "out\n", "err\n")
    assert runtime.ids() == []
    nothing_remains(runtime, name)


def test_run_passes_input(runtime: Runtime, bundle: Bundle) -> None:
    done = runtime.run(bundle.args("wc", "-c"), input=100_000 * "x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "100000\n", "")


def test_run_detached(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    container = runtime.up(bundle, "--pid-file", tmp_path / "pid")
    assert container.status == "running"
    # Without a newline, as runc writes it.
    assert (tmp_path / "pid").read_text() == str(container.pid)
    assert [path.name for path in tmp_path.iterdir() if "pid" in path.name] == ["pid"]
    container.stop()
    assert container.status == "stopped"
    container.delete()


def test_create_writes_the_pid_file(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    container = runtime.create(bundle, "--pid-file", tmp_path / "pid")
    assert (tmp_path / "pid").read_text() == str(container.pid)
    container.delete()


def test_a_pid_file_that_cannot_be_written(
    runtime: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    container = runtime.create(bundle, "--pid-file", tmp_path / "none/pid", check=False)
    said = runtime.refused(container.done)
    assert "no such file or directory" in said
    assert runtime.ids() == []
    nothing_remains(runtime, container.id)


def test_run_keep(runtime: Runtime, bundle: Bundle) -> None:
    container = Container(runtime, runtime.new_id(), bundle)
    done = runtime.run(bundle.shell("exit 5"), "--keep", id=container.id)
    assert (done.returncode, done.stderr) == (5, "")
    assert container.status == "stopped"
    container.delete()
    nothing_remains(runtime, container.id)


def test_run_forwards_signals(runtime: Runtime, bundle: Bundle) -> None:
    """A run in the foreground passes on what it is sent."""
    bundle.shell('trap "echo got; exit 9" TERM; echo up; while :; do sleep 0.05; done').write()
    words = runtime.command("run", "--bundle", bundle.folder, runtime.new_id())
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout
        assert client.stdout.readline() == "up\n"
        client.send_signal(signal.SIGTERM)
        assert client.stdout.read() == "got\n"
    assert client.returncode == 9
    assert runtime.ids() == []


# ---------------------------------------------------------------- a root of its own


def test_the_root_is_made_and_closed(runtime: Runtime, bundle: Bundle) -> None:
    runtime.root = runtime.root / "made/for/it"
    container = runtime.create(bundle)
    folder = runtime.root / container.id
    assert folder.stat().st_mode & 0o077 in (0, 0o011)
    for path in folder.iterdir():
        # A fifo is opened by whoever starts; the state may hold environment and arguments.
        assert path.is_fifo() or not path.stat().st_mode & 0o022
    container.delete()


def test_two_roots_do_not_know_each_other(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    container = runtime.create(bundle)
    other = Runtime(runtime.path, tmp_path / "other")
    assert "container does not exist" in other.refuses("state", container.id)
    assert json.loads(other("list", "--format", "json", check=True).stdout) in (None, [])


def test_relative_root(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    container = runtime.create(bundle)
    words = [runtime.path, "--root", runtime.root.name, "state", container.id]
    assert json.loads(execute(words, cwd=tmp_path, check=True).stdout)["id"] == container.id
