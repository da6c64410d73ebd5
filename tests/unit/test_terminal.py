"""``-t`` from outside: a user's terminal, our proxy in it, and a program behind a second one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firkin.errors import UsageError
from firkin.linux import pty
from firkin.runtime.terminal import Terminal, require_tty

# What firkin's loop does with a Terminal, around any program.
PROXY = textwrap.dedent(
    """
    import os, select, sys
    from firkin.linux import pty, signals
    from firkin.runtime.terminal import Terminal

    interactive, failing, command = "i" in sys.argv[1], "f" in sys.argv[1], sys.argv[2:]
    if os.isatty(0) and os.getsid(0) == os.getpid():
        pty.set_controlling(0)
    taken = (signals.SIGTERM, signals.SIGWINCH)
    signals.block(taken)
    signal_fd = signals.signalfd(taken)
    master = pty.open_ptmx("/dev/ptmx")
    slave = pty.open_slave(master)
    with Terminal(master, 0, 1, interactive) as terminal:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            pty.set_controlling(slave)
            for fd in 0, 1, 2:
                os.dup2(slave, fd)
            signals.reset_dispositions()
            signals.set_mask(0)
            os.execvp(command[0], command)
        os.close(slave)
        process = signals.pidfd_open(pid)
        ended = False
        while not ended:
            poll = select.poll()
            for fd, events in terminal.fds():
                poll.register(fd, events)
            poll.register(process, select.POLLIN)
            poll.register(signal_fd, select.POLLIN)
            for fd, events in poll.poll():
                if terminal.handle(fd, events):
                    continue
                if fd == process:
                    ended = True
                    continue
                for number, *_ in signals.read_signalfd(signal_fd):
                    if failing:
                        raise RuntimeError("as asked")
                    if number == signals.SIGWINCH:
                        terminal.resize()
                    else:
                        signals.pidfd_send_signal(process, number)
        status = os.waitpid(pid, 0)[1]
        terminal.drain(signal_fd)
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)
    """
)

Start = Callable[..., "subprocess.Popen[bytes]"]


class User:
    """A user's terminal, seen from its keyboard and screen."""

    def __init__(self) -> None:
        self.master = pty.open_ptmx("/dev/ptmx")
        self.tty = pty.open_slave(self.master)
        self.cooked = pty.get_attributes(self.tty)
        pty.set_winsize(self.master, 33, 101)
        self.seen = b""

    def type(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.master, data) :]

    def sees(self, text: bytes) -> None:
        """Wait until *text* is on the screen."""
        while text not in self.seen:
            assert select.select([self.master], [], [], 30)[0], self.seen
            self.seen += os.read(self.master, 65536)

    @property
    def modes(self) -> bytes:
        return pty.get_attributes(self.tty)


@pytest.fixture
def user() -> Iterator[User]:
    user = User()
    yield user
    os.close(user.master)
    os.close(user.tty)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the proxy around a command; a :class:`User` as stdin makes it their foreground."""
    started: list[subprocess.Popen[bytes]] = []

    def run(options: str, *command: str, stdin: User | int, stdout: User | int) -> object:
        process = subprocess.Popen(
            [sys.executable, "-c", PROXY, options, *command],
            stdin=stdin.tty if isinstance(stdin, User) else stdin,
            stdout=stdout.tty if isinstance(stdout, User) else stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


def python(source: str) -> tuple[str, str, str]:
    return sys.executable, "-c", textwrap.dedent(source)


# ---------------------------------------------------------------- modes and sizes


def test_raw_while_it_runs_and_restored_after(user: User, start: Start) -> None:
    process = start("i", "sh", "-c", "echo ready; read x; exit 7", stdin=user, stdout=user)
    user.sees(b"ready")
    assert user.modes == pty.make_raw(user.cooked)
    user.type(b"\r")  # the Enter key, which the container's terminal makes a newline
    assert process.wait(30) == 7
    assert user.modes == user.cooked


def test_control_keys_are_the_programs(user: User, start: Start) -> None:
    process = start("i", "sh", "-c", "echo ready; exec cat", stdin=user, stdout=user)
    user.sees(b"ready")
    user.type(b"\x03")
    assert process.wait(30) == 130
    assert user.modes == user.cooked


def test_restored_after_an_exception(user: User, start: Start) -> None:
    process = start("if", "sh", "-c", "echo ready; exec cat", stdin=user, stdout=user)
    user.sees(b"ready")
    process.terminate()
    assert b"as asked" in process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert user.modes == user.cooked


def test_restored_after_sigterm(user: User, start: Start) -> None:
    process = start("i", "sh", "-c", "echo ready; exec cat", stdin=user, stdout=user)
    user.sees(b"ready")
    process.terminate()
    assert process.wait(30) == 143
    assert user.modes == user.cooked


def test_not_raw_without_interactive(user: User, start: Start) -> None:
    process = start("", "sh", "-c", "echo ready; exec cat", stdin=user, stdout=user)
    user.sees(b"ready")
    assert user.modes == user.cooked
    process.terminate()
    assert process.wait(30) == 143


def test_size_is_there_from_the_start(user: User, start: Start) -> None:
    start("i", "stty", "size", stdin=user, stdout=user)
    user.sees(b"33 101\r\n")


def test_size_is_taken_from_stdin_if_output_is_piped(user: User, start: Start) -> None:
    process = start("i", "stty", "size", stdin=user, stdout=subprocess.PIPE)
    assert process.communicate(timeout=30)[0] == b"33 101\r\n"


RESIZED = python(
    """
    import os, signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
    print("ready", flush=True)
    signal.sigwait([signal.SIGWINCH])
    print(os.get_terminal_size())
    """
)


def test_resizing_reaches_the_program(user: User, start: Start) -> None:
    process = start("i", *RESIZED, stdin=user, stdout=user)
    user.sees(b"ready")
    pty.set_winsize(user.master, 50, 132)
    user.sees(b"columns=132, lines=50")
    assert process.wait(30) == 0


# ---------------------------------------------------------------- data

DATA = bytes(range(256)) * 6000  # 1.5 MiB, with every control character

ECHO = ("sh", "-c", f"stty raw -echo; printf ready; exec head -c {len(DATA)}")


def test_large_data_both_ways_through_the_users_terminal(user: User, start: Start) -> None:
    process = start("i", *ECHO, stdin=user, stdout=user)
    user.sees(b"ready")
    writer = threading.Thread(target=user.type, args=(DATA,))
    writer.start()
    while len(user.seen) < len(b"ready" + DATA):
        user.seen += os.read(user.master, 65536)
    writer.join()
    assert user.seen == b"ready" + DATA
    assert process.wait(30) == 0


def test_large_data_both_ways_through_pipes(start: Start) -> None:
    process = start("i", *ECHO, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(5) == b"ready"
    assert process.communicate(DATA, timeout=60)[0] == DATA
    assert process.returncode == 0


LINES = b"".join(b"%d\r\n" % n for n in range(1, 1_000_001))


class Told:
    """A FIFO through which a program tells how far it is."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.fd = os.open(path, os.O_RDWR)

    def hears(self, text: bytes) -> None:
        assert select.select([self.fd], [], [], 30)[0], "nothing was told"
        assert os.read(self.fd, 100) == text


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path / "told")
    yield told
    os.close(told.fd)


def read_all(fd: int) -> bytes:
    """Read and close *fd*."""
    output = b""
    with open(fd, "rb", buffering=0) as file:
        while select.select([fd], [], [], 30)[0] and (data := file.read(65536)):
            output += data
    return output


def test_slow_reader_loses_nothing_and_delays_no_signal(start: Start, told: Told) -> None:
    program = f"trap 'kill $!; echo TERM > {told.path}; exit 3' TERM; seq 1000000 & wait"
    read_end, write_end = os.pipe()
    process = start("", "sh", "-c", program, stdin=subprocess.DEVNULL, stdout=write_end)
    while select.select([], [write_end], [], 0)[1]:  # until our output is stuck
        assert process.poll() is None
    os.close(write_end)
    process.terminate()
    told.hears(b"TERM\n")
    output = read_all(read_end)
    assert process.wait(30) == 3
    assert len(output) > 32768
    assert LINES.startswith(output)


def test_output_is_complete_though_read_only_after_the_end(start: Start, told: Told) -> None:
    # More than our pipe holds, less than the terminal and our buffer hold as well: the
    # program ends while nobody has read a byte.
    read_end, write_end = os.pipe()
    program = f"seq 20000; echo ended > {told.path}"
    process = start("", "sh", "-c", program, stdin=subprocess.DEVNULL, stdout=write_end)
    os.close(write_end)
    told.hears(b"ended\n")
    assert read_all(read_end) == LINES[: LINES.index(b"20001\r")]
    assert process.wait(30) == 0


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_drain_is_bounded_and_can_be_taken_up_again(kind: str) -> None:
    master = pty.open_ptmx("/dev/ptmx")
    slave = pty.open_slave(master)
    if kind == "pipe":
        read_end, write_end = os.pipe()
    else:
        read_end, write_end = (end.detach() for end in socket.socketpair())
    os.set_blocking(write_end, False)
    filling = os.write(write_end, bytes(1 << 22))
    os.set_blocking(write_end, True)
    with Terminal(master, read_end, write_end, interactive=False) as terminal:
        os.write(slave, b"last words")
        os.close(slave)
        assert not terminal.drain(seconds=0.01)
        readable, other = os.pipe()
        os.write(other, b"a signal")
        assert not terminal.drain(interrupt=readable)
        os.close(readable)
        os.close(other)
        while filling:
            filling -= len(os.read(read_end, filling))
        assert terminal.drain()
        assert terminal.fds() == []
    assert os.read(read_end, 100) == b"last words"
    os.close(read_end)
    os.close(write_end)


def test_program_goes_on_when_nobody_reads_any_more(start: Start, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    file = tmp_path / "done"
    program = f"seq 300000; echo done > {file}"
    process = start("", "sh", "-c", program, stdin=subprocess.DEVNULL, stdout=write_end)
    os.close(write_end)
    os.close(read_end)
    assert process.wait(60) == 0
    assert file.read_text() == "done\n"


def test_output_to_a_file_is_appended(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"before\n")
    with file.open("ab") as log:
        process = start("", "seq", "1000000", stdin=subprocess.DEVNULL, stdout=log.fileno())
        assert process.wait(60) == 0
        assert file.read_bytes() == b"before\n" + LINES


REOPENING = python(
    """
    import os, signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
    print("ready", flush=True)
    os.closerange(0, 3)
    signal.sigwait([signal.SIGWINCH])  # by then the proxy has seen that we closed all
    os.write(os.open("/dev/tty", os.O_RDWR), b"again")
    """
)


def test_program_may_close_its_terminal_and_open_it_again(user: User, start: Start) -> None:
    process = start("i", *REOPENING, stdin=user, stdout=user)
    user.sees(b"ready")
    pty.set_winsize(user.master, 50, 132)
    user.sees(b"again")
    assert process.wait(30) == 0


# ---------------------------------------------------------------- end of input


@pytest.mark.parametrize("data", [b"", b"abc\n", b"abc", b"abc\ndef", b"\x04"])
def test_end_of_input_is_read_once(data: bytes, start: Start) -> None:
    program = "stty -echo; echo ready; cat; echo end"
    process = start("i", "sh", "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\r\n"
    output = process.communicate(data, timeout=30)[0]
    assert output == data.replace(b"\x04", b"").replace(b"\n", b"\r\n") + b"end\r\n"
    assert process.returncode == 0


def test_it_with_a_pipe_is_refused_as_docker_does() -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(UsageError, match="the input device is not a TTY"):
            require_tty(read_end)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_it_with_a_terminal_is_fine(user: User) -> None:
    require_tty(user.tty)


# ---------------------------------------------------------------- the user's descriptors


def test_users_terminal_never_becomes_nonblocking(user: User, start: Start) -> None:
    process = start("i", "sh", "-c", "echo ready; read x", stdin=user, stdout=user)
    user.sees(b"ready")
    assert os.get_blocking(user.tty)
    user.type(b"\r")
    assert process.wait(30) == 0
    assert os.get_blocking(user.tty)


def test_socket_blocks_again_afterwards(start: Start) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = start("i", "cat", stdin=theirs.fileno(), stdout=theirs.fileno())
        ours.sendall(b"hello\n")
        ours.shutdown(socket.SHUT_WR)
        assert process.wait(30) == 0
        assert os.get_blocking(theirs.fileno())
        assert ours.recv(100) == b"hello\r\nhello\r\n"


# ---------------------------------------------------------------- job control

SHELL = textwrap.dedent(
    """
    import fcntl, os, signal, sys, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    start_in_background = sys.argv[1] == "background"

    def foreground(group):
        os.tcsetpgrp(0, group)

    def wait(wanted):
        status = os.waitpid(job, os.WUNTRACED)[1]
        name = "stopped" if os.WIFSTOPPED(status) else "exited"
        print("job", name, flush=True)
        assert name == wanted

    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        if not start_in_background:
            foreground(os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
    if start_in_background:
        wait("stopped")
        input()
        foreground(job)
        os.kill(job, signal.SIGCONT)
    else:
        signal.sigwait({signal.SIGUSR1})
        foreground(os.getpgrp())
        os.kill(job, signal.SIGTERM)
    wait("exited")
    """
)


@contextlib.contextmanager
def running_shell(user: User, where: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    mask = {signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, mask)
    try:
        shell = subprocess.Popen(
            [sys.executable, "-c", SHELL, where, "-c", PROXY, "i", *command],
            stdin=user.tty,
            stdout=user.tty,
            stderr=user.tty,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, mask)
    try:
        yield shell
    finally:
        shell.kill()  # which hangs up on its job
        shell.wait()


def test_restored_from_the_background_without_stopping(user: User) -> None:
    with running_shell(user, "foreground", "sh", "-c", "echo ready; exec cat") as shell:
        user.sees(b"ready")
        assert user.modes == pty.make_raw(user.cooked)
        shell.send_signal(signal.SIGUSR1)
        user.sees(b"job ")
        user.sees(b"exited")
        assert shell.wait(30) == 0
    assert user.modes == user.cooked


def test_started_in_the_background_waits_for_the_foreground(user: User) -> None:
    with running_shell(user, "background", "sh", "-c", "echo ready; read x") as shell:
        user.sees(b"job stopped")
        assert user.modes == user.cooked
        user.type(b"\n")
        user.sees(b"ready")
        assert user.modes == pty.make_raw(user.cooked)
        user.type(b"\r")
        user.sees(b"job exited")
        assert shell.wait(30) == 0
    assert user.modes == user.cooked
