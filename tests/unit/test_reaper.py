"""``--init`` from outside, as a child subreaper: for orphans that is what pid 1 is, for anyone.

As pid 1 of a namespace: ``tests/root/test_reaper_pid1.py``.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firkin.linux import pty

INIT = textwrap.dedent(
    """
    import ctypes, os, signal, sys
    from firkin.init import reaper
    from firkin.linux import pty, signals

    option, pipe, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(pipe, False)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    if option in ("terminal", "member"):
        pty.set_controlling(0)
    if option == "member" and (pid := os.fork()):
        os.close(pipe)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    if option == "ignoring":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def execute():
        signals.reset_dispositions()
        signals.set_mask(0)
        os.execvp(command[0], command)

    def started(pid):
        os.write(pipe, b"%d" % pid)

    try:
        reaper.run(execute, started, reaper.arguments_area())
    except FileNotFoundError:
        os._exit(127)
    """
)


class Init:
    """Our init and the command below it."""

    def __init__(self, *command: str, option: str = "", tty: int = -1) -> None:
        read_end, write_end = os.pipe()
        stdin, output = (tty, tty) if tty >= 0 else (subprocess.PIPE, subprocess.PIPE)
        self.process = subprocess.Popen(
            [sys.executable, "-c", INIT, option, str(write_end), *command],
            stdin=stdin,
            stdout=output,
            pass_fds=[write_end],
            bufsize=0,
            start_new_session=True,
        )
        os.close(write_end)
        self.command = int(os.read(read_end, 100))
        # Its end: init has closed what it had, and the command was executed.
        assert os.read(read_end, 1) == b""
        os.close(read_end)

    def reads(self, text: bytes) -> None:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 30)[0], f"no {text!r}"
        assert self.process.stdout.readline() == text

    def ends(self, status: int) -> None:
        assert self.process.wait(30) == status


@pytest.fixture
def start() -> Iterator[Callable[..., Init]]:
    started: list[Init] = []

    def run(*command: str, option: str = "", tty: int = -1) -> Init:
        started.append(Init(*command, option=option, tty=tty))
        return started[-1]

    yield run
    for init in started:
        if init.process.poll() is None:
            # An init that failed leaves its command, which isn't in a namespace here.
            os.kill(init.command, signal.SIGKILL)
            init.process.kill()
        with init.process:
            pass


Start = Callable[..., Init]


def python(source: str) -> tuple[str, str, str]:
    return sys.executable, "-c", textwrap.dedent(source)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


# ---------------------------------------------------------------- status


@pytest.mark.parametrize(
    ("program", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("exit 255", 255)]
)
def test_status_is_the_commands(program: str, status: int, start: Start) -> None:
    start("sh", "-c", program).ends(status)


def test_failure_to_execute_comes_out_in_the_new_process(start: Start) -> None:
    start("/nonexistent").ends(127)


def test_callers_that_ignore_sigchld_do_not_matter(start: Start) -> None:
    start("sh", "-c", "exit 7", option="ignoring").ends(7)


def test_other_children_do_not_end_it(start: Start) -> None:
    # The background subshell is orphaned, ends with 9, and is reaped before the command ends.
    init = start("sh", "-c", "(sh -c 'echo orphan; exit 9' &); read x; exit 3")
    init.reads(b"orphan\n")
    init.process.communicate(b"\n", timeout=30)
    init.ends(3)


# ---------------------------------------------------------------- orphans

STORM = python(
    """
    import os, time
    init = os.getppid()
    read_end, write_end = os.pipe()
    for _ in range(500):
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os.close(write_end)
                os.read(read_end, 1)  # until all end at once
            os._exit(0)
        os.waitpid(middle, 0)

    def orphans():
        found = 0
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = file.read().rpartition(")")[2].split()[1]
            except OSError:
                continue
            found += int(parent) == init and int(entry) != os.getpid()
        return found

    print(orphans())
    os.close(write_end)
    deadline = time.monotonic() + 30
    while orphans() and time.monotonic() < deadline:
        pass
    print(orphans())
    """
)


def test_storm_of_orphans_is_reaped(start: Start) -> None:
    init = start(*STORM)
    assert init.process.communicate(timeout=90)[0] == b"500\n0\n"
    init.ends(0)


# ---------------------------------------------------------------- signals

WAITER = python(
    """
    import signal
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    print("ready", flush=True)
    while True:
        number = int(signal.sigwait(range(1, 65)))
        print(number, flush=True)
        if number == signal.SIGTERM:
            break
    """
)


def test_signals_are_passed_on(start: Start) -> None:
    init = start(*WAITER)
    init.reads(b"ready\n")
    # SIGCONT before SIGTSTP: each of them discards the other where it is pending.
    for name in ("HUP", "INT", "QUIT", "ABRT", "USR1", "USR2", "ALRM", "PIPE", "WINCH", "CONT"):
        number = getattr(signal, "SIG" + name)
        init.process.send_signal(number)
        init.reads(b"%d\n" % number)
    for number in (signal.SIGTSTP, signal.SIGRTMIN + 3, signal.SIGTERM):
        init.process.send_signal(number)
        init.reads(b"%d\n" % number)
    init.ends(0)


def test_its_own_signals_are_not_passed_on(start: Start) -> None:
    init = start(*WAITER)
    init.reads(b"ready\n")
    # The highest last: of several that wait, the kernel hands out the lowest first.
    for number in (signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU, signal.SIGRTMIN):
        init.process.send_signal(number)
    init.reads(b"34\n")
    init.process.terminate()
    init.ends(0)


def test_killed_by_a_signal_passed_on(start: Start) -> None:
    init = start("cat")
    init.process.terminate()
    init.ends(143)


def test_stopped_is_not_ended(start: Start) -> None:
    init = start("sh", "-c", "kill -STOP $$; exit 5")
    while state(init.command) != "T":
        pass
    # It handles signals in order: when the second has arrived, SIGCHLD was dealt with.
    assert init.process.poll() is None
    init.process.send_signal(signal.SIGCONT)
    init.ends(5)


def test_command_finds_default_signals(start: Start) -> None:
    init = start("cat", "/proc/self/status", option="ignoring")
    lines = init.process.communicate(timeout=30)[0].decode().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    assert [int(fields[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")] == [0, 0, 0]


# ---------------------------------------------------------------- what it keeps and shows


def test_readers_see_the_end_of_the_commands_output(start: Start) -> None:
    init = start("sh", "-c", "echo all; exec >&-; read x; exit 3")
    assert init.process.stdout is not None
    assert init.process.stdout.read() == b"all\n"
    assert init.process.poll() is None
    init.process.communicate(b"\n", timeout=30)
    init.ends(3)


def settled(init: Init) -> Path:
    """Wait until *init* has done its last step before it waits for signals; its ``/proc/PID``."""
    process = Path(f"/proc/{init.process.pid}")
    deadline = time.monotonic() + 30
    while (shown := (process / "cmdline").read_bytes()) != b"firkin-init\0":
        assert time.monotonic() < deadline, shown
    return process


def test_keeps_one_descriptor(start: Start) -> None:
    init = start("cat")
    folder = settled(init) / "fd"
    assert [os.readlink(entry) for entry in folder.iterdir()] == ["anon_inode:[signalfd]"]


def test_shows_its_name_and_nothing_of_the_hosts(start: Start) -> None:
    init = start("cat", "-")
    assert (settled(init) / "comm").read_text() == "firkin-init\n"


# ---------------------------------------------------------------- terminal


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master = pty.open_ptmx("/dev/ptmx")
    slave = pty.open_slave(master)
    yield master, slave
    os.close(master)
    os.close(slave)


def sees(master: int, text: bytes) -> None:
    seen = b""
    while text not in seen:
        assert select.select([master], [], [], 30)[0], seen
        seen += os.read(master, 4096)


def test_interrupt_key_is_for_the_command(terminal: tuple[int, int], start: Start) -> None:
    master, slave = terminal
    # A SIGHUP that came of handing over the terminal would end the command before.
    program = ": </dev/tty && echo ready; exec cat"
    init = start("sh", "-c", program, tty=slave, option="terminal")
    sees(master, b"ready")
    os.write(master, b"\x03")
    init.ends(130)


def test_suspend_key_cannot_stop_the_command_for_ever(
    terminal: tuple[int, int], start: Start
) -> None:
    master, slave = terminal
    init = start("sh", "-c", "echo ready; read x; exit 4", tty=slave, option="terminal")
    sees(master, b"ready")
    os.write(master, b"\x1a\n")
    init.ends(4)


@pytest.mark.parametrize("option", ["", "member"])
def test_terminal_of_another_session_is_left_alone(
    option: str, terminal: tuple[int, int], start: Start
) -> None:
    master, slave = terminal
    program = "test -t 0 && (: </dev/tty) 2>&1 || echo none"
    init = start("sh", "-c", program, tty=slave, option=option)
    sees(master, b"none")
    init.ends(0)
