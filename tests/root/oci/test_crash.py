"""``firkin-runtime`` killed at each of its kernel calls, and other accidents.

strace sends SIGKILL at the N-th call that changes anything: between two of those the
state of the machine is the same. The container's own process goes on meanwhile as far
as it can. ``FIRKIN_CRASH=1`` tries each N, where otherwise a row of calls of the same
name is represented by its first and its last.
"""

# ruff: noqa: A001, A002  (id is the specification's name for it)
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import leftovers
from support.command import environment, execute
from support.oci import (
    NAMES,
    Bundle,
    Runtime,
    adopting,
    alive,
    nothing_remains,
    remains,
)
from support.running import wait_until

EVERY = bool(os.environ.get("FIRKIN_CRASH"))
ours = pytest.mark.parametrize("runtime", NAMES[:1], indirect=True)

# What changes the machine, the other process, or this one's hold on something.
CHANGING = (
    "mkdir,mkdirat,mknod,mknodat,rename,renameat,renameat2,unlink,unlinkat,rmdir,write,flock,"
    "clone,clone3,vfork,socketpair,sendmsg,recvmsg,prlimit64,pidfd_open,pidfd_send_signal,kill,"
    "poll,wait4,waitid,rt_sigprocmask,signalfd4,exit_group"
)


@pytest.fixture
def id(runtime: Runtime) -> Iterator[str]:
    name = runtime.new_id()
    yield name
    execute(runtime.command("delete", "--force", name))


@pytest.fixture(autouse=True)
def adopt() -> Iterator[None]:
    """Have as children what killed runtimes leave behind, so that it can't be overlooked."""
    with adopting():
        before = set(leftovers.children())
        yield
        left = [pid for pid in orphans() if pid not in before]
        leftovers.kill(left)
        wait_until(lambda: not set(orphans()) - before)
        assert not left


def orphans() -> list[int]:
    """Reap what has ended of this process's children; return the others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return []
    return leftovers.children()


# Runs a command, writes its status to a descriptor, and reaps all that it leaves; ends
# when nothing of that is left. A process of exec that nobody reaps holds the end of its
# container up.
SHIM = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
os.set_inheritable(int(sys.argv[1]), False)
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
try:
    while True:
        ended, status = os.wait()
        if ended == pid:
            os.write(int(sys.argv[1]), b"%d" % os.waitstatus_to_exitcode(status))
            os.close(int(sys.argv[1]))
except ChildProcessError:
    pass
"""


class Traced:
    """A command of the runtime below strace; what it starts is not traced.

    Attributes:
        status: how it ended.
        shim: lives for as long as anything that it left.
    """

    def __init__(self, runtime: Runtime, words: list[str], *options: str) -> None:
        strace = shutil.which("strace")
        assert strace
        reader, writer = os.pipe()
        command = [strace, "-qq", f"--trace={CHANGING}", *options, *runtime.command(*words)]
        null = subprocess.DEVNULL
        self.shim = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", SHIM, str(writer), *command],
            stdin=null, stdout=null, stderr=null, env=environment(), pass_fds=[writer],
        )  # fmt: skip
        os.close(writer)
        with open(reader, "rb") as file:
            self.status = int(file.read())

    def gone(self) -> bool:
        """Tell whether all that it left has ended."""
        return self.shim.poll() is not None


def calls(runtime: Runtime, words: list[str]) -> tuple[list[str], Traced]:
    """Return the names of the changing calls of a command that succeeds, and what it left."""
    log = runtime.folder / "strace"
    done = Traced(runtime, words, f"--output={log}")
    assert done.status == 0, words
    found = re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE)
    assert found[-1] == "exit_group"
    return found, done


def chosen(names: list[str]) -> list[int]:
    """Return the numbers, from 1, of the calls to kill the runtime at."""
    return [
        number
        for number, name in enumerate(names, 1)
        if EVERY or names[number - 2 : number - 1] != [name] or names[number : number + 1] != [name]
    ]


def kill_at_each(
    runtime: Runtime,
    id: str,
    words: list[str],
    prepare: Callable[[], None],
) -> None:
    """Kill the command *words* at each call; afterwards nothing may hinder, nor be left.

    Args:
        prepare: makes what the command needs; it is another container each time, of the
            same id.
    """
    prepare()
    names, first = calls(runtime, words)
    assert runtime("delete", "--force", id).returncode == 0
    wait_until(first.gone)
    killed = 0

    for number in chosen(names):
        prepare()
        name = names[number - 1]
        # strace counts the calls of each name.
        inject = f"--inject={name}:signal=SIGKILL:when={names[:number].count(name)}"
        done = Traced(runtime, words, "--output=/dev/null", inject)
        # A call more or less, where something had to be waited for.
        killed += done.status == -signal.SIGKILL
        where = f"{words[0]} at call {number}, {name}"
        check_answers(runtime, id, done, where)
        deleted = runtime("delete", "--force", id)
        assert (deleted.returncode, deleted.stdout, deleted.stderr) == (0, "", ""), where
        assert runtime.ids() == [], where
        wait_until(done.gone, f"the end of what {where} left", patience=5)
        wait_until(lambda: not orphans(), f"the end of what {where} left", patience=5)
        assert remains(runtime, id) == [], where
    assert killed >= len(chosen(names)) - 2
    # And the id is free.
    assert runtime("delete", "--force", id).returncode == 0


def check_answers(runtime: Runtime, id: str, done: Traced, where: str) -> None:
    """``state`` and ``list`` tell of the container, or that there is none."""
    told = runtime("state", id)
    listed = runtime("list", "--quiet")
    assert (listed.returncode, listed.stderr) == (0, ""), where
    if told.returncode:
        assert "does not exist" in runtime.refused(told), where
        assert listed.stdout == "", where
        return
    state = json.loads(told.stdout)
    assert listed.stdout.split() == [id], where
    if state["pid"] and not alive(state["pid"]):
        # It was just dying.
        assert runtime.state(id)["status"] == "stopped", where
    elif state["pid"]:
        assert state["status"] in ("creating", "created", "running", "paused"), where
    else:
        assert state["status"] in ("creating", "stopped"), where
        # Nobody that the record does not name lives on: those that were ours to make
        # are dying with their maker.
        wait_until(done.gone, f"the end of what {where} left", patience=5)


# ---------------------------------------------------------------- killed at each call


# A container would hold the pipes for as long as it lives.
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def made(runtime: Runtime, bundle: Bundle, id: str, *then: str) -> Callable[[], None]:
    """Return what creates the container, and carries out the verbs *then* on it."""

    def make() -> None:
        done = runtime("create", "--bundle", str(bundle.write().folder), id, **QUIET)
        assert done.returncode == 0
        for verb in then:
            assert runtime(verb, id).returncode == 0

    return make


def nothing() -> None:
    return


VERBS = {
    "start": [],
    "pause": ["start"],
    "resume": ["start", "pause"],
    "update": ["start"],
    "delete": [],
    "delete --force": ["start"],
    "kill": ["start"],
}
ARGUMENTS = {"update": ["--pids-limit", "50", "--memory", "64m"], "kill": ["KILL"]}

pytestmark = [ours, pytest.mark.requires("program:strace")]


@pytest.mark.parametrize("kind", ["plain", "joined", "hooks"])
def test_create(runtime: Runtime, bundle: Bundle, id: str, kind: str) -> None:
    if kind == "joined":
        # The process that joins forks another one, which is the container's.
        bundle.without_namespace("network")
        bundle.namespaces.append({"type": "network", "path": "/proc/self/ns/net"})
    if kind == "hooks":
        hook = [{"path": "/bin/true"}]
        bundle.config["hooks"] = dict.fromkeys(("createRuntime", "createContainer"), hook)
    words = ["create", "--bundle", str(bundle.write().folder), id]
    kill_at_each(runtime, id, words, nothing)
    assert runtime(*words, **QUIET).returncode == 0
    assert runtime("delete", "--force", id).returncode == 0


def test_run_detached(runtime: Runtime, bundle: Bundle, id: str) -> None:
    words = ["run", "--detach", "--bundle", str(bundle.write().folder), id]
    kill_at_each(runtime, id, words, nothing)


@pytest.mark.parametrize("verb", VERBS)
def test_verb(runtime: Runtime, bundle: Bundle, id: str, verb: str) -> None:
    name, *options = verb.split()
    words = [name, *options, *ARGUMENTS.get(name, [])[: -1 if name == "kill" else None], id]
    words += ARGUMENTS[name] if name == "kill" else []
    kill_at_each(runtime, id, words, made(runtime, bundle, id, *VERBS[verb]))


def test_exec_detached(runtime: Runtime, bundle: Bundle, id: str) -> None:
    words = ["exec", "--detach", id, "sleep", "1000"]
    kill_at_each(runtime, id, words, made(runtime, bundle, id, "start"))


def test_another_container_in_the_cgroup_of_a_crashed_one(
    runtime: Runtime, bundle: Bundle, id: str
) -> None:
    """What was killed before it had a process has nobody to kill."""
    bundle.linux["cgroupsPath"] = f"/fuzz-{id}"
    words = ["create", "--bundle", str(bundle.write().folder), id]
    kill = "--inject=socketpair:signal=SIGKILL:when=1"
    wait_until(Traced(runtime, words, "--output=/dev/null", kill).gone)
    assert runtime.state(id)["status"] == "stopped"
    other = runtime.up(bundle)
    assert runtime.delete(id, "--force").returncode == 0
    assert runtime.ids() == [other.id]
    assert other.alive()
    assert other.status == "running"
    other.delete("--force")
    assert not other.alive()


# ---------------------------------------------------------------- other accidents


def test_the_process_dies_before_start(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.create(bundle)
    os.kill(container.pid, signal.SIGKILL)
    container.wait()
    assert container.status == "stopped"
    assert "it has stopped already" in container.refuses("start")
    for verb in ("pause", "resume", "kill"):
        container.refuses(verb)
    container.delete()
    nothing_remains(runtime, container.id)


def test_the_creator_of_it_all_is_gone(runtime: Runtime, bundle: Bundle, id: str) -> None:
    """As when conmon or a shim is killed: the container has neither parent nor reader."""
    words = runtime.command("create", "--bundle", str(bundle.write().folder), id)
    script = '"$@" | true; exit 7'
    done = execute(["sh", "-c", script, "sh", *words], stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 7
    state = runtime.state(id)
    assert state["status"] == "created"
    assert runtime.start(id).returncode == 0
    assert runtime.state(id)["status"] == "running"
    assert runtime.delete(id, "--force").returncode == 0
    wait_until(lambda: not alive(state["pid"]))
    nothing_remains(runtime, id)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make a tmpfs with options: a small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(options: str) -> Path:
        action = ["-o", f"remount,{options}"] if os.path.ismount(folder) else ["-o", options]
        execute(["mount", "-t", "tmpfs", *action, "disk", str(folder)], check=True)
        return folder

    yield make
    if os.path.ismount(folder):
        execute(["umount", str(folder)], check=True)


FULL = [f"size=64k,nr_inodes={number}" for number in range(2, 10)] + ["size=4k,nr_inodes=99"]


@pytest.mark.parametrize("options", FULL)
def test_a_full_disk(
    runtime: Runtime, bundle: Bundle, id: str, disk: Callable[[str], Path], options: str
) -> None:
    runtime.root = disk(f"mode=711,{options}")
    if options.startswith("size=4k"):
        (runtime.root / "filler").write_bytes(b"x" * 4096)
    done = runtime.create(bundle, id=id, check=False).done
    if done.returncode == 0:
        assert options.endswith(("8", "9")), "it fits into that?"
        runtime.delete(id, "--force", check=True)
        return
    assert "no space left on device" in runtime.refused(done)
    assert set(os.listdir(runtime.root)) <= {"filler"}
    nothing_remains(runtime, id)
    disk("size=1m,nr_inodes=99")
    runtime.create(bundle, id=id)
    assert runtime.delete(id, "--force").returncode == 0
    assert set(os.listdir(runtime.root)) <= {"filler"}


def roots(tmp_path: Path, disk: Callable[[str], Path]) -> dict[str, Path]:
    """Return folders that containers can't be kept in, or had better not."""
    file = tmp_path / "file"
    file.touch()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, 1000, 1000)
    writable = tmp_path / "writable"
    writable.mkdir()
    writable.chmod(0o777)
    link = tmp_path / "link to foreign"
    link.symlink_to(foreign)
    return {
        "a file": file,
        "below a file": file / "x",
        "another user's": foreign,
        "everybody's": writable,
        "a link": link,
        "procfs": Path("/proc/firkin"),
        "read-only": disk("mode=711,ro"),
    }


def test_roots_that_are_refused(
    runtime: Runtime, bundle: Bundle, id: str, tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    for what, root in roots(tmp_path, disk).items():
        runtime.root = root
        said = runtime.refuses("create", "--bundle", str(bundle.write().folder), id)
        assert str(root) in said, what
        assert not root.is_dir() or os.listdir(root) == []
        assert runtime("delete", "--force", id).stdout == ""
        nothing_remains(runtime, id)
    runtime.root = tmp_path / "state"


@pytest.mark.parametrize("name", ["a b", "a\nb", "ä ö", "x" * 200, "-", "a/../b", "link"])
def test_roots_with_odd_names(runtime: Runtime, bundle: Bundle, tmp_path: Path, name: str) -> None:
    if name == "link":
        (tmp_path / "target").mkdir(mode=0o711)
        (tmp_path / name).symlink_to("target")
    runtime.root = tmp_path / name
    container = runtime.create(bundle)
    container.start()
    assert container.exec("true").returncode == 0
    container.delete("--force")
    assert runtime.ids() == []


PID_FILES = ("/nowhere/pid", "/proc/pid", "{tmp}", "{tmp}/file/pid", "{tmp}/" + "x" * 254)


@pytest.mark.parametrize("path", PID_FILES)
def test_a_pid_file_that_can_not_be_written(
    runtime: Runtime, bundle: Bundle, id: str, tmp_path: Path, path: str
) -> None:
    folder = tmp_path / "pids"
    (folder / "below").mkdir(parents=True)
    (folder / "file").touch()
    path = path.replace("{tmp}", str(folder))
    before = sorted(tmp_path.rglob("*"))
    where = ["--bundle", str(bundle.write().folder)]
    for verb in (["create"], ["run"], ["run", "--detach"]):
        said = runtime.refuses(*verb, *where, "--pid-file", path, id)
        assert path in said
        nothing_remains(runtime, id)
    left = {one for one in tmp_path.rglob("*") if runtime.root not in (one, *one.parents)}
    assert left <= {*before, bundle.file}
    container = runtime.up(bundle)
    done = container.exec("--pid-file", path, "sleep", "1000")
    assert path in runtime.refused(done, 255)
    left = set(folder.rglob("*"))
    assert left <= set(before)


def test_a_log_on_a_full_disk(runtime: Runtime, bundle: Bundle, id: str) -> None:
    options = ("--log", "/dev/full")
    done = runtime("state", id, options=options)
    first, last = done.stderr.splitlines()
    assert (done.returncode, "cannot write the log" in first) == (1, True)
    assert "does not exist" in last
    bundle.process["capabilities"]["bounding"].append("CAP_NOSUCH")
    container = runtime.create(bundle, options=options)
    container.delete()


def test_a_log_that_can_not_be_opened(runtime: Runtime, bundle: Bundle, id: str) -> None:
    where = ["--bundle", str(bundle.write().folder)]
    for path in ("/nowhere/log", "/proc/log", "/"):
        said = runtime.refuses("create", *where, id, options=("--log", path))
        assert path in said
        assert runtime.ids() == []
