"""Signals: masks, descriptors, dispositions after execve, names."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

from firkin.errors import UsageError
from firkin.linux import signals

# What the executed program finds in its own status, with everything that could be wrong made wrong.
EXECUTE = """
import ctypes, os, platform, sys
from firkin.linux import signals
# glibc's own signal 32 can be ignored only behind its back; struct sigaction begins with SIG_IGN.
number = {"aarch64": 134}.get(platform.machine(), 13)
ctypes.CDLL(None).syscall(number, 32, (1).to_bytes(32, "little"), None, ctypes.c_long(8))
signals.block((signals.SIGTERM, signals.SIGRTMIN))
if "reset" in sys.argv:
    signals.block(signals.ALL)
    signals.reset_dispositions()
    signals.set_mask(0)
os.execv("/bin/cat", ["cat", "/proc/self/status"])
"""


def executed(*argv: str, ignored: tuple[int, ...] = ()) -> dict[str, int]:
    """Return the signal masks of a program executed by a Python that *ignored* signals."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        text = subprocess.run(
            [sys.executable, "-c", EXECUTE, *argv],
            capture_output=True,
            text=True,
            check=True,
            restore_signals=False,
        ).stdout
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return {name: int(fields[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")}


INHERITED = (signal.SIGHUP, signal.SIGCHLD, signal.SIGTSTP, signal.SIGRTMIN + 3)


def test_executed_program_has_default_dispositions() -> None:
    assert executed("reset", ignored=INHERITED) == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}


def test_without_reset_they_would_be_inherited() -> None:
    found = executed(ignored=INHERITED)
    assert found["SigIgn"] & signals.mask_of(INHERITED) == signals.mask_of(INHERITED)
    own = signals.mask_of((signals.SIGPIPE, signals.SIGXFSZ, 32))
    assert found["SigIgn"] & own == own
    assert found["SigBlk"] == signals.mask_of((signals.SIGTERM, signals.SIGRTMIN))


def test_numbers_are_the_systems() -> None:
    for name, number in signals.NAMES.items():
        assert number == getattr(signal, "SIG" + name)
    assert signals.SIGRTMAX == signal.SIGRTMAX


def test_block_returns_the_mask_before() -> None:
    before = signals.block((signals.SIGUSR1,))
    try:
        assert signals.block((signals.SIGUSR2,)) == before | signals.mask_of((signals.SIGUSR1,))
        now = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert {signal.SIGUSR1, signal.SIGUSR2} <= now
    finally:
        after = signals.set_mask(before)
    assert after & signals.mask_of((signals.SIGUSR1, signals.SIGUSR2))
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_signalfd_reads_who_sent_what() -> None:
    wanted = (signals.SIGUSR1, signals.SIGRTMIN + 3, signals.SIGCHLD)
    before = signals.block(wanted)
    fd = signals.signalfd(wanted, signals.SFD_CLOEXEC | signals.SFD_NONBLOCK)
    try:
        assert signals.read_signalfd(fd) == []
        assert not os.get_inheritable(fd)
        os.kill(os.getpid(), signals.SIGUSR1)
        os.kill(os.getpid(), signals.SIGRTMIN + 3)
        me = (os.getpid(), os.getuid())
        assert signals.read_signalfd(fd) == [(10, 0, *me, 0), (37, 0, *me, 0)]

        child = os.fork()
        if child == 0:
            os._exit(42)
        assert select.select([fd], [], [], 10)[0] == [fd]
        cld_exited = 1
        assert signals.read_signalfd(fd) == [(signals.SIGCHLD, cld_exited, child, os.getuid(), 42)]
        os.waitpid(child, 0)
    finally:
        os.close(fd)
        signals.set_mask(before)


def test_pidfd_signals_the_process_and_no_later_one() -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        fd = signals.pidfd_open(process.pid)
        try:
            assert not os.get_inheritable(fd)
            signals.pidfd_send_signal(fd, signals.SIGTERM)
            assert process.wait(10) == -signals.SIGTERM
            with pytest.raises(ProcessLookupError):
                signals.pidfd_send_signal(fd, signals.SIGTERM)
        finally:
            os.close(fd)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15),
        ("SIGTERM", 15),
        ("sigterm", 15),
        ("15", 15),
        ("64", 64),
        ("CLD", 17),
        ("RTMIN", 34),
        ("RTMIN+3", 37),
        ("SIGRTMIN+30", 64),
        ("RTMAX", 64),
        ("RTMAX-30", 34),
    ],
)
def test_parse(text: str, number: int) -> None:
    assert signals.parse(text) == number


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "65", "-1", "+9", "1_5", "²", "٩", "015", "TERM ", "SIGSIGTERM", "ALL", "RT"),
        *("RTMIN+31", "RTMIN-1", "RTMIN+", "RTMIN+x", "RTMAX+1", "RTMAX-31", "RTMAX-", "9" * 5000),
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError, match=r"^cannot use signal '.*': no such signal; give a name"):
        signals.parse(text)


def test_names_parse_back() -> None:
    assert signals.name_of(15) == "SIGTERM"
    assert signals.name_of(17) == "SIGCHLD"
    assert signals.name_of(37) == "SIGRTMIN+3"
    for number in signals.ALL:
        assert signals.parse(signals.name_of(number)) == number
