"""Tests of namespaces that hold for root and for ordinary users alike.

``tests/root`` and ``tests/rootless`` import them. Namespaces are compared by the
inodes of ``/proc/PID/ns``, seen from the host.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import leftovers
from support.command import Firkin
from support.containers import Running, refused, running

NEW = ("mnt", "pid", "uts", "ipc", "net", "cgroup")
# Option and the file of /proc/PID/ns it is about.
SHAREABLE = {"--pid": "pid", "--net": "net", "--ipc": "ipc", "--uts": "uts", "--cgroupns": "cgroup"}
each_option = pytest.mark.parametrize("option", SHAREABLE)


def own(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{kind}")


def with_users_of(name: str) -> list[str]:
    """Return what an ordinary user must say to join *name*'s other namespaces."""
    return [] if os.geteuid() == 0 else ["--userns", f"container:{name}"]


def test_each_namespace_is_new(firkin: Firkin, busybox_root: Path) -> None:
    with running(firkin, image=busybox_root) as first, running(firkin, image=busybox_root) as other:
        for kind in NEW:
            assert len({first.namespace(kind), other.namespace(kind), own(kind)}) == 3, kind
        assert first.namespace("time") == own("time")


@each_option
def test_shared_with_the_host(firkin: Firkin, busybox_root: Path, option: str) -> None:
    with running(firkin, option, "host", image=busybox_root) as box:
        shared = [kind for kind in NEW if box.namespace(kind) == own(kind)]
    assert shared == [SHAREABLE[option]]


@each_option
@pytest.mark.parametrize("by", ["name", "path"])
def test_joined_from_a_container(firkin: Firkin, busybox_root: Path, option: str, by: str) -> None:
    kind = SHAREABLE[option]
    with running(firkin, "--name", "first", image=busybox_root) as first:
        source = "container:first" if by == "name" else f"/proc/{first.pid}/ns/{kind}"
        options = [*with_users_of("first"), option, source]
        with running(firkin, *options, image=busybox_root) as other:
            shared = [k for k in NEW if other.namespace(k) == first.namespace(k)]
        assert shared == [kind]
        # The one who joined has ended, and the other lives on.
        assert first.namespace(kind) != own(kind)


@each_option
def test_no_such_container(firkin: Firkin, busybox_root: Path, option: str) -> None:
    done = firkin("run", option, "container:nobody", busybox_root, "true")
    refused(done, "container 'nobody'", "no running container")


@each_option
@pytest.mark.parametrize(
    "what", ["file", "folder", "FIFO", "other kind", "missing", "dead process"]
)
def test_a_path_that_is_no_such_namespace(
    firkin: Firkin, busybox_root: Path, tmp_path: Path, option: str, what: str
) -> None:
    path, reason = tmp_path / "ns", "not a namespace"
    if what == "file":
        path.write_text("")
    elif what == "folder":
        path.mkdir()
    elif what == "FIFO":
        os.mkfifo(path)
    elif what == "other kind":
        path, reason = Path("/proc/self/ns/mnt"), "a namespace of another kind (CLONE_NEWNS)"
    else:
        reason = "No such file or directory"
    if what == "dead process":
        gone = subprocess.Popen(["true"])
        gone.wait()
        path = Path(f"/proc/{gone.pid}/ns/{SHAREABLE[option]}")
    refused(firkin("run", option, path, busybox_root, "true"), f"'{path}'", reason)


@pytest.mark.parametrize("option", [*SHAREABLE, "--userns"])
def test_an_unknown_mode(firkin: Firkin, busybox_root: Path, option: str) -> None:
    done = firkin("run", option, "nonsense", busybox_root, "true")
    refused(done, option, "'nonsense'", "host")


# ---------------------------------------------------------------- what is in them


def test_own_process_numbers(firkin: Firkin, busybox_root: Path) -> None:
    with running(firkin, image=busybox_root, script="echo $$; ls -d /proc/[0-9]*") as box:
        assert box.output[:2] == ["1", "/proc/1"]
        assert not set(box.output[1:]) - {"/proc/1", "/proc/2"}
        assert f"NSpid:\t{box.pid}\t1\n" in box.read("status")


def test_own_host_name(firkin: Firkin, busybox_root: Path) -> None:
    before = os.uname().nodename
    done = firkin("run", "--hostname", "barrel", busybox_root, "uname", "-n")
    assert done.stdout == "barrel\n"
    assert os.uname().nodename == before


def test_shared_host_name(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", "--uts", "host", busybox_root, "uname", "-n")
    assert done.stdout.strip() == os.uname().nodename


CONNECT = """
import socket
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.create_server((address, 0), family=family)
    client = socket.create_connection(server.getsockname()[:2], timeout=5)
    server.accept()[0].send(b"hello")
    print(client.recv(5).decode(), socket.if_nameindex())
"""


def test_localhost_works_and_nothing_else_is_there(firkin: Firkin) -> None:
    done = firkin("run", "--net", "none", "host", "python3", "-c", CONNECT)
    assert done.stdout == "hello [(1, 'lo')]\n" * 2, done.stderr


def test_localhost_answers(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", busybox_root, "ping", "-c", "1", "-W", "5", "127.0.0.1")
    assert " 0% packet loss" in done.stdout, done.stdout + done.stderr


def test_shared_network(firkin: Firkin) -> None:
    code = "import socket; print(socket.if_nameindex())"
    inside = firkin("run", "--net", "host", "host", "python3", "-c", code).stdout
    assert inside == subprocess.run(["python3", "-c", code], capture_output=True, text=True).stdout


def test_message_queues_are_shared_with_who_joins(firkin: Firkin, busybox_root: Path) -> None:
    make = "touch /dev/mqueue/letter"
    look = "ls /dev/mqueue"
    with running(firkin, "--name", "first", image=busybox_root, script=make):
        join = [*with_users_of("first"), "--ipc", "container:first"]
        assert firkin("run", *join, busybox_root, "sh", "-c", look).stdout == "letter\n"
        assert firkin("run", busybox_root, "sh", "-c", look).stdout == ""


def test_clocks_are_shifted(firkin: Firkin, busybox_root: Path) -> None:
    offsets = ["--time-offset", "boottime=864000", "--time-offset", "monotonic=5000.5"]
    with running(firkin, *offsets, image=busybox_root, script="cat /proc/uptime") as box:
        assert box.namespace("time") != own("time")
        outside = float(Path("/proc/uptime").read_text().split()[0])
        assert 0 <= outside + 864000 - float(box.output[0].split()[0]) < 60
        told = box.read("timens_offsets").split()
        assert told == ["monotonic", "5000", "500000000", "boottime", "864000", "0"]


# ---------------------------------------------------------------- the end of all processes

# Daemons as programs make them: sessions of their own, parents that end, signals ignored.
DAEMONS = """
for i in 1 2 3; do setsid sh -c 'trap "" TERM HUP; sleep 9999 & exec sleep 9999' & done
setsid sh -c 'setsid sleep 9999 & setsid sleep 9999 &' &
wait $!
"""


def members(kind: str, name: str) -> set[int]:
    """Return the living processes in a namespace."""
    found = set()
    for pid in leftovers.parents():
        try:
            if os.readlink(f"/proc/{pid}/ns/{kind}") == name:
                found.add(pid)
        except OSError:
            continue
    return found


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@pytest.mark.parametrize("mode", ["private", "host"])
def test_no_process_outlives_the_command(firkin: Firkin, busybox_root: Path, mode: str) -> None:
    with running(firkin, "--pid", mode, image=busybox_root, script=DAEMONS) as box:
        check_end(box)


def test_no_process_outlives_the_command_among_those_of_another(
    firkin: Firkin, busybox_root: Path
) -> None:
    with running(firkin, "--name", "first", image=busybox_root) as first:
        options = [*with_users_of("first"), "--pid", "container:first"]
        with running(firkin, *options, image=busybox_root, script=DAEMONS) as box:
            check_end(box)
        assert os.path.exists(f"/proc/{first.pid}")


def test_the_next_start_ends_what_a_killed_firkin_left_among_the_host_s(
    firkin: Firkin, busybox_root: Path
) -> None:
    with running(firkin, "--pid", "host", image=busybox_root, script=DAEMONS) as box:
        mine = box.namespace("net")
        until(lambda: len(members("net", mine)) == 9)
        box.process.kill()
        box.process.wait()
        assert firkin("run", busybox_root, "true").returncode == 0
        until(lambda: members("net", mine) == set())
        box.process.communicate()


def check_end(box: Running) -> None:
    """Let *box* end, with its daemons running, and see that they end, too."""
    # The network namespace is its own, however the PID namespace came to be.
    mine = box.namespace("net")
    until(lambda: len(members("net", mine)) == 9)
    status, _ = box.finish()
    assert status == 0
    assert members("net", mine) == set()
