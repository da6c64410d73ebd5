"""``firkin-runtime`` killed at each of its kernel calls, and other accidents.

strace sends SIGKILL at the N-th call that changes anything: between two of those the
state of the machine is the same. The container's own process goes on meanwhile as far
as it can. ``FIRKIN_CRASH=1`` tries each N, where otherwise a row of calls of the same
name is represented by its first and its last.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import leftovers
from support.command import environment, execute
from support.oci import (
    NAMES,
    PATHS,
    Bundle,
    Container,
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
def id(runtime: Runtime) -> str:
    return runtime.new_id()


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


def strace(runtime: Runtime, words: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the runtime below strace; what it starts is not traced."""
    command = ["strace", "-qq", f"--trace={CHANGING}", *options, *runtime.command(*words)]
    null = subprocess.DEVNULL
    return subprocess.run(
        command, stdin=null, stdout=null, stderr=null, env=environment(), timeout=60, check=False,
        text=True,
    )  # fmt: skip


def calls(runtime: Runtime, words: list[str]) -> list[str]:
    """Return the names of the changing calls of a command that succeeds."""
    log = runtime.folder / "strace"
    done = strace(runtime, words, f"--output={log}")
    assert done.returncode == 0, words
    found = re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE)
    # The interpreter's own, before it comes to us, are not worth a thousand tries.
    assert found[-1] == "exit_group"
    return found


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
    clear: Callable[[], None] = lambda: None,
) -> None:
    """Kill the command *words* at each call; afterwards nothing may hinder, nor be left.

    Args:
        prepare: makes what the command needs; it is another container each time, of the
            same id.
        clear: called before ``delete --force``.
    """
    prepare()
    names = calls(runtime, words)
    clear()
    assert runtime("delete", "--force", id).returncode == 0
    killed = 0
    import time
    for number in chosen(names):
        prepare()
        name = names[number - 1]
        # strace counts the calls of each name.
        inject = f"--inject={name}:signal=SIGKILL:when={names[:number].count(name)}"
        done = strace(runtime, words, "--output=/dev/null", inject)
        # A call more or less, where something had to be waited for.
        killed += done.returncode == -signal.SIGKILL
        where = f"{words[0]} at call {number}, {name}"
        t0 = time.time()
        check_answers(runtime, id, where)
        print(where, time.time() - t0)
        clear()
        deleted = runtime("delete", "--force", id)
        print("  deleted", time.time() - t0)
        assert (deleted.returncode, deleted.stdout, deleted.stderr) == (0, "", ""), where
        assert runtime.ids() == [], where
        wait_until(lambda: not orphans(), f"the end of what {where} left", patience=5)
        assert remains(runtime, id) == [], where
    assert killed >= len(chosen(names)) - 2
    # And the id is free.
    assert runtime("delete", "--force", id).returncode == 0


def check_answers(runtime: Runtime, id: str, where: str) -> None:
    """``state`` and ``list`` tell of the container, or that there is none."""
    done = runtime("state", id)
    listed = runtime("list", "--quiet")
    assert (listed.returncode, listed.stderr) == (0, ""), where
    if done.returncode:
        assert "does not exist" in runtime.refused(done), where
        assert listed.stdout == "", where
        return
    state = json.loads(done.stdout)
    assert listed.stdout.split() == [id], where
    if state["pid"]:
        assert alive(state["pid"]), where
        assert state["status"] in ("creating", "created", "running", "paused"), where
    else:
        assert state["status"] in ("creating", "stopped"), where
        # Nobody that the record does not name lives on: those that were ours to make
        # are dying with their maker.
        wait_until(lambda: not orphans(), f"the end of what {where} left", patience=5)


# ---------------------------------------------------------------- killed at each call


def made(runtime: Runtime, bundle: Bundle, id: str, *then: str) -> Callable[[], None]:
    """Return what creates the container, and carries out the verbs *then* on it."""

    def make() -> None:
        done = runtime(
            "create", "--bundle", str(bundle.write().folder), id, stdout=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
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
    assert runtime(*words, stdout=subprocess.DEVNULL).returncode == 0
    assert runtime("delete", "--force", id).returncode == 0


def test_run_detached(runtime: Runtime, bundle: Bundle, id: str) -> None:
    words = ["run", "--detach", "--bundle", str(bundle.write().folder), id]
    kill_at_each(runtime, id, words, nothing)


@pytest.mark.parametrize("verb", VERBS)
def test_verb(runtime: Runtime, bundle: Bundle, id: str, verb: str) -> None:
    name, *options = verb.split()
    words = [name, *options, *ARGUMENTS.get(name, [])[:-1 if name == "kill" else None], id]
    words += ARGUMENTS[name] if name == "kill" else []
    kill_at_each(runtime, id, words, made(runtime, bundle, id, *VERBS[verb]))


def test_exec_detached(runtime: Runtime, bundle: Bundle, id: str) -> None:
    words = ["exec", "--detach", id, "sleep", "1000"]
    kill_at_each(runtime, id, words, made(runtime, bundle, id, "start"))
