"""Terminals: over a console socket, in the foreground, and the ways in which they cannot be."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.box import stop
from support.command import environment
from support.oci import Bundle, Container, Runtime, adopting, nothing_remains
from support.running import PATIENCE
from support.user_terminal import UserTerminal


class Console:
    """A console socket, and the terminal that comes through it.

    Attributes:
        path: of the socket.
        name: the text that came along with the descriptor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = b""
        self.output = b""
        self.master = -1
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(PATIENCE)

    def receive(self) -> Console:
        """Take the terminal's master, as SCM_RIGHTS of unix(7)."""
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            self.name, fds, _, _ = socket.recv_fds(connection, 4096, 4)
            assert len(fds) == 1
            self.master = fds[0]
            assert connection.recv(1) == b""
        return self

    def pending(self) -> bool:
        """Tell whether somebody connected."""
        return bool(select.select([self._listener], [], [], 0)[0])

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def expect(self, text: bytes) -> bytes:
        """Wait until *text* is shown; return what came before it."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.output:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self.output!r}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    self.output += os.read(self.master, 65536)
                except OSError as error:  # EIO: closed on the other side
                    raise AssertionError(f"no {text!r} in {self.output!r}") from error
        before, _, self.output = self.output.partition(text)
        return before

    def size(self) -> tuple[int, int]:
        """Return rows and columns."""
        found = fcntl.ioctl(self.master, termios.TIOCGWINSZ, bytes(8))
        rows, columns, _, _ = struct.unpack("HHHH", found)
        return rows, columns

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        self._listener.close()
        if self.master >= 0:
            os.close(self.master)


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    made = Console(tmp_path / "console.sock")
    yield made
    made.close()


@pytest.fixture
def bundle(bundle: Bundle) -> Bundle:
    """With a terminal."""
    bundle.process["terminal"] = True
    bundle.process["env"].append("TERM=xterm")
    return bundle


# A shell that prompts for nothing.
SHELL = 'stty -echo; echo ready; while read -r line; do eval "$line"; done'


def up(runtime: Runtime, bundle: Bundle, console: Console, script: str = SHELL) -> Container:
    container = runtime.create(bundle.shell(script), "--console-socket", console.path)
    console.receive()
    container.start()
    return container


# ---------------------------------------------------------------- create and run


def test_the_master_comes_over_the_socket(
    runtime: Runtime, bundle: Bundle, console: Console
) -> None:
    container = up(runtime, bundle, console)
    assert console.name == b"/dev/ptmx"
    assert os.isatty(console.master)
    console.expect(b"ready\r\n")
    console.send(b"tty; for fd in 0 1 2; do readlink /proc/self/fd/$fd; done\n")
    assert console.expect(b"/dev/pts/0\r\n") == b""
    for _ in range(3):
        assert console.expect(b"/dev/pts/0\r\n") == b""
    console.send(b"cat\n")
    console.send(b"a line\n")
    console.expect(b"a line\r\n")
    console.send(b"\x04")  # the end of input
    console.send(b"exit 5\n")
    container.wait()
    assert container.status == "stopped"
    container.delete()
    nothing_remains(runtime, container.id)


def test_run_detached(runtime: Runtime, bundle: Bundle, console: Console) -> None:
    container = runtime.up(bundle.shell(SHELL), "--console-socket", console.path)
    console.receive()
    console.expect(b"ready\r\n")
    assert container.status == "running"


def test_it_is_the_controlling_terminal(runtime: Runtime, bundle: Bundle, console: Console) -> None:
    container = up(runtime, bundle, console, 'trap "echo got INT" INT; echo ready; while :; do '
                   "sleep 0.05; done")  # fmt: skip
    console.expect(b"ready\r\n")
    # Session and foreground group are its own; the numbers are those of its namespace.
    fields = container.proc("stat").rpartition(")")[2].split()
    assert int(fields[3]) == int(fields[2]) == container.pid
    assert int(fields[4]) != 0
    console.send(b"\x03")
    console.expect(b"got INT")


def test_its_size(runtime: Runtime, bundle: Bundle, console: Console) -> None:
    bundle.process["consoleSize"] = {"height": 33, "width": 111}
    container = runtime.create(bundle.shell(SHELL), "--console-socket", console.path)
    console.receive()
    assert console.size() == (33, 111)
    container.start()
    console.expect(b"ready\r\n")
    console.send(b"stty size\n")
    console.expect(b"33 111\r\n")
    console.send(b'trap "echo changed" WINCH; stty size\n')
    console.expect(b"33 111\r\n")
    console.resize(20, 40)
    # Not before: a shell that is interrupted by the trap can lose what it was reading.
    console.expect(b"changed\r\n")
    console.send(b"stty size\n")
    console.expect(b"20 40\r\n")


def test_dev_console(runtime: Runtime, bundle: Bundle, console: Console) -> None:
    container = up(runtime, bundle, console)
    console.expect(b"ready\r\n")
    console.send(b"stat -c %t:%T /dev/console /dev/pts/0; echo to the console > /dev/console\n")
    assert console.expect(b"to the console\r\n").split() == [b"88:0", b"88:0"]
    points = [line.split()[4] for line in container.proc("mountinfo").splitlines()]
    assert points.count("/dev/console") == 1


def test_the_terminal_belongs_to_the_user(
    runtime: Runtime, bundle: Bundle, console: Console
) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 50}
    up(runtime, bundle, console)
    console.expect(b"ready\r\n")
    console.send(b"stat -c %u:%a /dev/pts/0; echo done > /dev/tty\n")
    console.expect(b"1000:620\r\n")
    console.expect(b"done\r\n")


def test_nothing_but_the_terminal_is_open(
    runtime: Runtime, bundle: Bundle, console: Console
) -> None:
    container = up(runtime, bundle, console)
    console.expect(b"ready\r\n")
    fds = {int(name) for name in os.listdir(f"/proc/{container.pid}/fd")}
    assert fds - {10} == {0, 1, 2}  # 10 is how a shell keeps the terminal


def test_the_host_sees_it_not_at_all(runtime: Runtime, bundle: Bundle, console: Console) -> None:
    """The terminal is of the container's own devpts."""
    before = set(os.listdir("/dev/pts"))
    up(runtime, bundle, console)
    console.expect(b"ready\r\n")
    assert set(os.listdir("/dev/pts")) - before == set()


# ---------------------------------------------------------------- exec


def exec_console(container: Container, console: Console, *words: str, **more: Any) -> int:
    pid_file = container.runtime.folder / "exec.pid"
    line = container.runtime.command(
        "exec", "--detach", "--console-socket", console.path, "--pid-file", pid_file, *words
    )
    with container.out.open("ab") as out, adopting():
        subprocess.run(line, check=True, timeout=PATIENCE, stdout=out, stderr=out, **more)
    console.receive()
    pid = int(pid_file.read_text())
    container.adopt(pid)
    return pid


@pytest.mark.parametrize("option", ["--tty", "-t"])
def test_exec(runtime: Runtime, bundle: Bundle, console: Console, option: str) -> None:
    bundle.process["terminal"] = False
    container = runtime.up(bundle)
    script = "stty -echo; echo ready; read line; echo =$line=; tty; test -e /dev/console; exit 6"
    pid = exec_console(container, console, option, container.id, "sh", "-c", script)
    console.expect(b"ready\r\n")
    console.send(b"typed\n")
    console.expect(b"=typed=\r\n")
    console.expect(b"/dev/pts/0\r\n")
    assert container.wait_adopted(pid) == 6


def test_exec_of_a_process_file(
    runtime: Runtime, bundle: Bundle, console: Console, tmp_path: Path
) -> None:
    """As containerd does it: terminal and consoleSize are the file's."""
    bundle.process["terminal"] = False
    container = runtime.up(bundle)
    process = {
        "terminal": True,
        "consoleSize": {"height": 7, "width": 77},
        "args": ["sh", "-c", "stty size; tty"],
        "env": bundle.process["env"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
    }
    (tmp_path / "process.json").write_text(json.dumps(process))
    pid = exec_console(
        container, console, "--process", str(tmp_path / "process.json"), container.id
    )
    if not runtime.is_runc:  # takes the size for the first process only
        console.expect(b"7 77\r\n")
    console.expect(b"/dev/pts/0\r\n")
    container.wait_adopted(pid)


def test_exec_beside_a_terminal(runtime: Runtime, bundle: Bundle, console: Console) -> None:
    """A second terminal is another one; without --tty it has none, though the container has."""
    container = up(runtime, bundle, console)
    console.expect(b"ready\r\n")
    assert container.exec("tty").stdout == "not a tty\n"
    second = Console(console.path.with_name("second.sock"))
    with contextlib.closing(second):
        exec_console(container, second, "-t", container.id, "sh", "-c", "tty; exec sleep 1000")
        second.expect(b"/dev/pts/1\r\n")


# ---------------------------------------------------------------- in the foreground


def interactive(words: list[str]) -> Any:
    """Return a context with a terminal in which *words* run as the session's leader."""

    @contextlib.contextmanager
    def running() -> Iterator[UserTerminal]:
        terminal = UserTerminal()
        try:
            terminal.process = subprocess.Popen(
                ["setsid", "--ctty", *words], env=environment() | {"TERM": "xterm"},
                stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave,
            )  # fmt: skip
            try:
                yield terminal
            finally:
                stop(terminal.process)
        finally:
            terminal.close()

    return running()


def test_run_in_a_terminal(runtime: Runtime, bundle: Bundle) -> None:
    bundle.shell("echo ready; stty size; tty; read a; echo =$a=; read b; stty size; exit 4").write()
    words = runtime.command("run", "--bundle", bundle.folder, runtime.new_id())
    with interactive(words) as terminal:
        terminal.expect(b"ready\r\n")
        assert terminal.expect(b"/dev/pts/0\r\n") == b"24 80\r\n"
        assert terminal.is_raw()
        terminal.send(b"typed\r")
        terminal.expect(b"=typed=\r\n")
        terminal.resize(30, 100)
        os.kill(terminal.process.pid, 28)  # SIGWINCH, which the kernel sends the foreground group
        time.sleep(0.2)
        terminal.send(b"\r")
        terminal.expect(b"30 100\r\n")
        terminal.finish()
        assert terminal.process.wait() == 4
        # Its modes are as they were.
        assert not terminal.is_raw()
        assert terminal.modes() == terminal.before
    assert runtime.ids() == []


def test_exec_in_a_terminal(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["terminal"] = False
    container = runtime.up(bundle)
    script = 'trap "echo got INT; exit 7" INT; echo ready; while :; do sleep 0.05; done'
    words = runtime.command("exec", "-t", container.id, "sh", "-c", script)
    with interactive(words) as terminal:
        terminal.expect(b"ready\r\n")
        terminal.send(b"\x03")
        terminal.expect(b"got INT")
        terminal.finish()
        assert terminal.process.wait() == 7
        assert terminal.modes() == terminal.before


# ---------------------------------------------------------------- what cannot be


def test_a_terminal_without_a_socket(runtime: Runtime, bundle: Bundle) -> None:
    for verb in ("create", "run --detach"):
        name = runtime.new_id()
        said = runtime.refuses(*verb.split(), "--bundle", bundle.write().folder, name)
        assert "console" in said
        nothing_remains(runtime, name)


def test_a_socket_without_a_terminal(runtime: Runtime, bundle: Bundle, console: Console) -> None:
    bundle.process["terminal"] = False
    options = ["--console-socket", console.path]
    for verb in ("create", "run --detach", "run"):
        name = runtime.new_id()
        said = runtime.refuses(*verb.split(), *options, "--bundle", bundle.write().folder, name)
        assert "console" in said
        nothing_remains(runtime, name)
    assert not console.pending()


def test_exec_that_cannot_be(runtime: Runtime, bundle: Bundle, console: Console) -> None:
    bundle.process["terminal"] = False
    container = runtime.up(bundle)
    options = ["--console-socket", str(console.path)]
    for words in (["--detach", "--tty"], options, [*options, "--tty"], [*options, "--detach"]):
        said = runtime.refused(container.exec(*words, "sleep", "1000"), status=255)
        assert "console" in said or "tty" in said
    assert not console.pending()
    assert json.loads(container.verb("ps", "--format", "json").stdout) == [container.pid]


@pytest.mark.parametrize("kind", ["missing", "deaf", "file"])
def test_sockets_that_nobody_serves(
    runtime: Runtime, bundle: Bundle, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "other.sock"
    if kind == "deaf":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif kind == "file":
        path.write_text("")
    container = runtime.create(bundle, "--console-socket", path, check=False)
    said = runtime.refused(container.done)
    assert str(path) in said
    nothing_remains(runtime, container.id)


def test_a_failure_after_the_terminal(runtime: Runtime, bundle: Bundle, console: Console) -> None:
    container = runtime.create(bundle.args("nosuch"), "--console-socket", console.path, check=False)
    assert "executable file not found in $PATH" in runtime.refused(container.done)
    nothing_remains(runtime, container.id)
