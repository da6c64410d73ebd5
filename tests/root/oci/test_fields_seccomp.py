"""linux.seccomp: what the filter does, and who is asked where it asks: ``listenerPath``.

What each action and operator means to the kernel is in ``tests/root/test_seccomp.py``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.oci import Bundle, Runtime, nothing_remains, ours

# linux/seccomp.h: SECCOMP_IOCTL_NOTIF_RECV and _SEND, and their structures.
NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
REQUEST = struct.Struct("=QIIiIQ6Q")
ANSWER = struct.Struct("=QqiI")
CONTINUE = 1

MKDIR = ["mkdir", "mkdirat"]
REFUSED = "mkdir: can't create directory '/tmp/x': No medium found"


def parsed(data: bytes) -> Any:
    """Return what JSON text says, or None where it is not whole yet."""
    try:
        return json.loads(data)
    except ValueError:
        return None


class Agent:
    """A seccomp agent: takes listeners, and refuses what it is asked for with ENOMEDIUM.

    Attributes:
        states: the container process states that it got.
        refuse: whether it refuses; else calls go on.
        seen: how many calls it was asked about.
    """

    def __init__(self, path: Path, refuse: bool = True) -> None:
        self.states: list[dict[str, Any]] = []
        self.seen = 0
        self.refuse = refuse
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen()
        self._stop, self._end = os.pipe()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        listeners: list[int] = []
        while True:
            poller = select.poll()
            for fd in (self._server.fileno(), self._stop, *listeners):
                poller.register(fd, select.POLLIN)
            for fd, events in poller.poll():
                if fd == self._stop:
                    for listener in listeners:
                        os.close(listener)
                    return
                if fd == self._server.fileno():
                    listeners.append(self._accept())
                elif events & select.POLLIN:
                    self._answer(fd)
                else:
                    listeners.remove(fd)
                    os.close(fd)

    def _accept(self) -> int:
        connection, _ = self._server.accept()
        with connection:
            data, fds, _, _ = socket.recv_fds(connection, 65536, 4)
            # Not up to its end: runc 1.1.5 leaves it open.
            while (state := parsed(data)) is None:
                data += connection.recv(65536)
        assert state["fds"] == ["seccompFd"]
        (fd,) = fds
        self.states.append(state)
        return fd

    def _answer(self, listener: int) -> None:
        buffer = bytearray(REQUEST.size)
        try:
            fcntl.ioctl(listener, NOTIF_RECV, buffer)
            number = REQUEST.unpack(buffer)[0]
            self.seen += 1
            answer = (
                ANSWER.pack(number, 0, -errno.ENOMEDIUM, 0)
                if self.refuse
                else ANSWER.pack(number, 0, 0, CONTINUE)
            )
            fcntl.ioctl(listener, NOTIF_SEND, answer)
        except FileNotFoundError:
            return  # the caller has gone

    def close(self) -> None:
        os.write(self._end, b"x")
        self._thread.join()
        for fd in (self._stop, self._end):
            os.close(fd)
        self._server.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path / "agent")
    yield made
    made.close()


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Agent]:
    """An agent that lets every call go on."""
    made = Agent(tmp_path / "agent", refuse=False)
    yield made
    made.close()


def notify(bundle: Bundle, path: Path, names: list[str] | None = None, **more: Any) -> None:
    """Have an agent at *path* be asked about calls; mkdir without *names*."""
    rule = {"names": names or MKDIR, "action": "SCMP_ACT_NOTIFY"}
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule],
        "listenerPath": str(path),
    } | more
    bundle.config["mounts"].append(
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": []}
    )


# ---------------------------------------------------------------- listenerPath


@pytest.mark.parametrize("privileges", [True, False], ids=["no_new_privs", ""])
def test_an_agent_is_asked(
    runtime: Runtime, bundle: Bundle, agent: Agent, tmp_path: Path, privileges: bool
) -> None:
    notify(bundle, tmp_path / "agent", listenerMetadata="mkdir=no;x")
    bundle.config["annotations"] = {"com.example": "yes"}
    bundle.process["noNewPrivileges"] = privileges
    bundle.process["capabilities"] = {}
    container = runtime.create(bundle.shell("mkdir /tmp/x; echo $?; sleep 1000"))
    # The agent has it before the start, for nobody would be there to send it then.
    (state,) = agent.states
    pid = container.pid
    assert state["pid"] == pid
    assert state["metadata"] == "mkdir=no;x"
    assert state["ociVersion"]
    assert state["state"] == {
        "ociVersion": state["state"]["ociVersion"],
        "id": container.id,
        "pid": pid,
        "status": "creating",
        "bundle": str(bundle.folder),
        "annotations": {"com.example": "yes"},
    }
    container.start()
    assert container.output(until="\n") == "1\n"
    assert container.errors().strip() == REFUSED
    assert agent.seen == 1
    if not runtime.is_runc:
        assert "pipe" not in (targets := fds(pid)), targets


def fds(pid: int) -> str:
    """Return what a process's descriptors from 3 on are open on."""
    folder = Path(f"/proc/{pid}/fd")
    return " ".join(os.readlink(fd) for fd in folder.iterdir() if int(fd.name) > 2)


def test_run_asks_an_agent(runtime: Runtime, bundle: Bundle, agent: Agent, tmp_path: Path) -> None:
    notify(bundle, tmp_path / "agent")
    done = runtime.run(bundle.shell("mkdir /tmp/x; mkdir /tmp/x"))
    assert done.stderr.splitlines() == [REFUSED, REFUSED]
    assert "metadata" not in agent.states[0] or not agent.states[0]["metadata"]


def test_exec_asks_an_agent(runtime: Runtime, bundle: Bundle, agent: Agent, tmp_path: Path) -> None:
    notify(bundle, tmp_path / "agent")
    container = runtime.up(bundle)
    done = container.exec("mkdir", "/tmp/x")
    assert done.stderr.strip() == REFUSED
    first, second = agent.states
    assert second["pid"] not in (0, first["pid"])
    assert (second["state"]["pid"], second["state"]["status"]) == (first["pid"], "running")


@ours  # runc has no such flag
def test_flags_of_a_listener(
    runtime: Runtime, bundle: Bundle, agent: Agent, tmp_path: Path
) -> None:
    flags = ["TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"]
    notify(bundle, tmp_path / "agent", flags=[f"SECCOMP_FILTER_FLAG_{flag}" for flag in flags])
    assert runtime.run(bundle.shell("mkdir /tmp/x")).stderr.strip() == REFUSED


@ours  # runc's own start waits for its agent then
@pytest.mark.parametrize("privileges", [True, False], ids=["no_new_privs", ""])
@pytest.mark.parametrize(
    "names",
    [["sendmsg"], ["write"], ["recvmsg", "openat", "read", "close", "execve"]],
    ids=["sendmsg", "write", "others"],
)
def test_calls_of_our_own_start(
    runtime: Runtime,
    bundle: Bundle,
    patient: Agent,
    tmp_path: Path,
    names: list[str],
    privileges: bool,
) -> None:
    notify(bundle, tmp_path / "agent", names)
    bundle.process["noNewPrivileges"] = privileges
    assert runtime.shell(bundle, "echo runs") == "runs"
    assert patient.seen


@ours  # runc knows only its own way
def test_a_listener_that_nobody_could_hand_over(runtime: Runtime, bundle: Bundle) -> None:
    notify(bundle, Path("/nosuch"), ["sendmsg", "write"])
    assert "linux.seccomp: nobody could hand its listener over" in runtime.refused(
        runtime.run(bundle)
    )


def test_no_agent(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    notify(bundle, tmp_path / "agent")
    container = runtime.create(bundle, check=False)
    assert container.done.returncode == 1
    assert str(tmp_path / "agent") in container.done.stderr
    nothing_remains(runtime, container.id)


def test_a_listener_without_a_rule_is_no_listener(runtime: Runtime, bundle: Bundle) -> None:
    """``If the SCMP_ACT_NOTIFY action is not used this value is ignored``."""
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": "/nosuch/agent",
        "syscalls": [{"names": MKDIR, "action": "SCMP_ACT_ERRNO", "errnoRet": 123}],
    }
    done = runtime.run(bundle.shell("mkdir /tmp/x"))
    assert done.stderr.strip() == REFUSED


@pytest.mark.parametrize(
    "change",
    [
        {"listenerPath": ""},
        {"defaultAction": "SCMP_ACT_NOTIFY"},
    ],
    ids=["no path", "default"],
)
def test_a_listener_that_cannot_be(
    runtime: Runtime, bundle: Bundle, tmp_path: Path, change: dict[str, Any]
) -> None:
    notify(bundle, tmp_path / "agent", **change)
    assert runtime.run(bundle).returncode == 1


@ours  # runc takes it
def test_metadata_without_a_listener(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}
    assert "linux.seccomp.listenerMetadata" in runtime.refused(runtime.run(bundle))


# ---------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("action", "more", "status", "says"),
    [
        ("SCMP_ACT_ERRNO", {}, 1, "Operation not permitted"),
        ("SCMP_ACT_ERRNO", {"errnoRet": errno.ENOMEDIUM}, 1, "No medium found"),
        ("SCMP_ACT_KILL_PROCESS", {}, 128 + 31, ""),
        ("SCMP_ACT_KILL", {}, 128 + 31, ""),
        ("SCMP_ACT_TRAP", {}, 128 + 31, ""),
        ("SCMP_ACT_TRACE", {}, 1, "Function not implemented"),
        ("SCMP_ACT_LOG", {}, 0, ""),
        ("SCMP_ACT_ALLOW", {}, 0, ""),
    ],
)
def test_actions(
    runtime: Runtime, bundle: Bundle, action: str, more: dict[str, int], status: int, says: str
) -> None:
    rule = {"names": MKDIR, "action": action} | more
    notify(bundle, Path("/nosuch"), syscalls=[rule])
    done = runtime.run(bundle.args("mkdir", "/tmp/x"))
    assert done.returncode == status
    assert says in done.stderr


def test_the_filter_is_there(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
    container = runtime.up(bundle)
    assert "Seccomp:\t2\n" in container.proc("status")
    script = "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status"
    assert container.exec("sh", "-c", script).stdout == "NoNewPrivs:\t1\nSeccomp:\t2\n"


def test_no_filter(runtime: Runtime, bundle: Bundle) -> None:
    assert "Seccomp:\t0\n" in runtime.up(bundle).proc("status")
