"""``firkin run -t``: the command's terminal. The same cases for root and for an ordinary user."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest

from support import leftovers
from support.box import Box, eventually, first_process, gone, status
from support.cases_process import need_ids
from support.user_terminal import UserTerminal, in_terminal

BOTH = pytest.mark.parametrize("init", ["", "--init"])


@BOTH
def test_terminal_of_its_own(box: Box, init: str) -> None:
    """All three standard files are /dev/pts/0 of a devpts that has no other."""
    script = """
    test -t 0 && test -t 1 && test -t 2 && tty
    ls -1 /dev/pts
    stat -c %t:%T /dev/pts/0 /dev/console
    stat -c %d /dev/pts/0 /dev/console
    echo shown >/dev/console
    grep -c ' /dev/console ' /proc/self/mountinfo
    """
    lines = box.read(f"-t {init}", "sh", "-c", script).split("\n")
    assert lines[:3] == ["/dev/pts/0", "0", "ptmx"]
    assert lines[3] == lines[4] == "88:0"
    assert lines[5] == lines[6]
    assert int(lines[5]) != os.stat("/dev/pts").st_dev
    assert lines[7:] == ["shown", "1", ""]


def test_without_the_option_there_is_none(box: Box) -> None:
    with in_terminal(box, "", "sh", "-c", "test -t 0 && echo in; tty; ls /dev/pts") as terminal:
        shown = terminal.finish().split()
        assert terminal.process.returncode == 0
    assert shown == [b"not", b"a", b"tty", b"ptmx"]


@BOTH
def test_terminal_controls_the_session(box: Box, init: str) -> None:
    script = "exec </dev/tty && cut -d' ' -f5-8 /proc/$$/stat; echo $$"
    with in_terminal(box, f"-it {init}", "sh", "-c", script) as terminal:
        group, session, device, foreground, pid = (int(n) for n in terminal.finish().split())
    assert group == session == pid
    assert os.major(device) == 136
    # The foreground is whom ctrl-C is for: here cut, of the same group.
    assert foreground == group


def test_terminal_belongs_to_the_user(box: Box) -> None:
    need_ids("-u")
    script = "stat -c %u /dev/pts/0; echo a >/dev/tty; echo b >/proc/self/fd/1; echo c >$(tty)"
    for init in ("", "--init"):
        output = box.read(f"-t -u alice {init}", "sh", "-c", script)
        assert output.split() == ["1000", "a", "b", "c"]


def test_term_is_set(box: Box) -> None:
    assert box.read("-t", "sh", "-c", "echo $TERM") == "xterm\n"
    with in_terminal(box, "-t", "sh", "-c", "echo $TERM", env={"TERM": "vt100"}) as terminal:
        assert terminal.finish().split() == [b"vt100"]


@pytest.mark.parametrize("input", [None, "from a pipe"])
def test_interactive_needs_a_terminal(box: Box, input: str | None) -> None:  # noqa: A002
    """As docker says it."""
    done = box("-it", "true", input=input)
    assert (done.returncode, done.stdout) == (125, "")
    assert "the input device is not a TTY" in done.stderr


def test_without_interactive_nothing_is_typed(box: Box) -> None:
    """And the user's terminal stays as it is."""
    with in_terminal(box, "-t", "sh", "-c", "echo ready; read -t 1 x; echo got:$x") as terminal:
        terminal.send(b"secret\n")
        terminal.expect(b"ready\r")
        assert terminal.modes() == terminal.before
        assert b"got:\r" in terminal.finish()


# ---------------------------------------------------------------- raw mode


@BOTH
def test_raw_while_it_runs(box: Box, init: str) -> None:
    with in_terminal(box, f"-it {init}", "sh", "-c", "echo ready; read x; exit 3") as terminal:
        terminal.expect(b"ready\r\n")
        assert terminal.is_raw()
        terminal.send(b"go\r")
        terminal.finish()
        assert terminal.process.returncode == 3
        assert terminal.modes() == terminal.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_restored_after_a_signal(box: Box, number: signal.Signals) -> None:
    with in_terminal(box, "-it --init", "sh", "-c", "echo ready; exec sleep 1000") as terminal:
        terminal.expect(b"ready\r\n")
        assert terminal.is_raw()
        terminal.process.send_signal(number)
        terminal.finish()
        assert terminal.process.returncode == 128 + number
        assert terminal.modes() == terminal.before


def test_restored_after_the_container_is_killed(box: Box) -> None:
    with in_terminal(box, "-it", "sh", "-c", "echo ready; exec sleep 1000") as terminal:
        terminal.expect(b"ready\r\n")
        assert terminal.is_raw()
        os.kill(first_process(terminal.process.pid), signal.SIGKILL)
        terminal.finish()
        assert terminal.process.returncode == 137
        assert terminal.modes() == terminal.before


@BOTH
@pytest.mark.parametrize(
    ("options", "command", "code"),
    [("", "/no/such", 127), ("", "/etc/passwd", 126), ("-w /etc/passwd", "true", 125)],
)
def test_restored_after_a_failed_start(
    box: Box, options: str, command: str, code: int, init: str
) -> None:
    """Before the message, whose line would else be shown as stairs."""
    with in_terminal(box, f"-it {init} {options}", command) as terminal:
        shown = terminal.finish()
        assert terminal.process.returncode == code
        assert terminal.modes() == terminal.before
        assert shown.startswith(b"firkin: ")
        assert shown.endswith(b"\r\n")
        assert shown.count(b"\n") == 1


def test_restored_after_the_time_limit(box: Box) -> None:
    with in_terminal(box, "-it --timeout 0.3", "sleep", "1000") as terminal:
        shown = terminal.finish()
        assert terminal.process.returncode == 137
        assert terminal.modes() == terminal.before
        assert shown.endswith(b"\r\n")


@pytest.mark.parametrize("user", ["", "-u alice"])
def test_hang_up_ends_the_command(box: Box, user: str) -> None:
    """Nothing spins or stays when the user's window is closed."""
    need_ids(user)
    with in_terminal(box, f"-it --init {user}", "sh", "-c", "echo on; sleep 1000") as terminal:
        terminal.expect(b"on\r\n")
        pid = first_process(terminal.process.pid)
        terminal.hang_up()
        assert terminal.process.wait(20) == 129
        assert gone(pid)


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("option", ["-t", "-it", "-it --init"])
def test_size(box: Box, option: str) -> None:
    """The user's at the start, and after each change, of which the command is told."""
    script = "stty size; trap 'stty size' WINCH; sleep 1000 & echo ready; while :; do wait; done"
    with in_terminal(box, option, "sh", "-c", script) as terminal:
        assert terminal.expect(b"ready\r").split() == [b"24", b"80"]
        for rows, columns in ((50, 132), (2, 3), (30, 90)):
            terminal.resize(rows, columns)
            terminal.expect(b"%d %d\r" % (rows, columns))
        pid = first_process(terminal.process.pid)
        os.kill(pid, signal.SIGKILL)
        terminal.finish()
        assert terminal.process.returncode == 137


# ---------------------------------------------------------------- keys


@BOTH
def test_interrupt_key_is_for_the_container_alone(box: Box, init: str) -> None:
    script = "trap 'echo caught' INT QUIT; echo ready; while ! read x; do :; done; exit 5"
    with in_terminal(box, f"-it {init}", "sh", "-c", script) as terminal:
        terminal.expect(b"ready\r\n")
        for key in (b"\x03", b"\x1c"):
            terminal.send(key)
            terminal.expect(b"caught\r\n")
        terminal.send(b"a\r")
        terminal.finish()
        assert terminal.process.returncode == 5


def test_interrupt_key_ends_a_command(box: Box) -> None:
    with in_terminal(box, "-it --init", "sh", "-c", "echo ready; exec sleep 1000") as terminal:
        terminal.expect(b"ready\r\n")
        terminal.send(b"\x03")
        terminal.finish()
        assert terminal.process.returncode == 130


def test_stop_key_does_not_stop_firkin(box: Box) -> None:
    with in_terminal(box, "-it", "sh", "-c", "echo ready; read x; echo $x") as terminal:
        terminal.expect(b"ready\r\n")
        terminal.send(b"\x1a")
        terminal.expect(b"^Z")
        assert status(terminal.process.pid)["State"][0] in "SR"
        terminal.send(b"typed\r")
        terminal.finish()
        assert terminal.process.returncode == 0


@BOTH
def test_end_of_file_key(box: Box, init: str) -> None:
    with in_terminal(box, f"-it {init}", "sh", "-c", "echo ready; cat; echo end") as terminal:
        terminal.expect(b"ready\r\n")
        terminal.send(b"line\r")
        terminal.expect(b"line\r\nline\r\n")  # its echo, and cat's
        terminal.send(b"\x04")
        assert terminal.finish() == b"end\r\n"
        assert terminal.process.returncode == 0


@BOTH
def test_job_control(box: Box, init: str) -> None:
    """A shell stops, lists, continues and interrupts a job; firkin notices nothing of it."""
    with in_terminal(box, f"-it {init} -e PS1=%", "sh") as terminal:
        shown = terminal.expect(b"%")
        terminal.send(b"sleep 1000\r")
        terminal.expect(b"sleep 1000\r\n")

        eventually(lambda: in_foreground(terminal, "sleep"), "the job runs")
        terminal.send(b"\x1a")
        shown += terminal.expect(b"Stopped")
        terminal.expect(b"%")
        terminal.send(b"jobs\r")
        shown += terminal.expect(b"Stopped")
        terminal.expect(b"%")
        terminal.send(b"fg\r")
        eventually(lambda: in_foreground(terminal, "sleep"), "the job runs again")
        terminal.send(b"\x03")
        shown += terminal.expect(b"%")
        terminal.send(b"exit 9\r")
        shown += terminal.finish()
        assert terminal.process.returncode == 9
    assert b"can't access tty" not in shown
    assert b"job control" not in shown


def in_foreground(terminal: UserTerminal, name: str) -> bool:
    """Tell whether a process of this name waits in the foreground of the container's terminal."""
    for pid in leftovers.descendants(terminal.process.pid):
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")
        state, _, group, _, _, foreground = tail.split()[:6]
        if head.endswith(f"({name}") and state == "S" and group == foreground:
            return True
    return False


# ---------------------------------------------------------------- output


@pytest.mark.parametrize("option", ["-t", "-t --init"])
def test_large_output_arrives_whole(box: Box, option: str) -> None:
    """What the command wrote last, too: it has ended by the time that is read."""
    output = box.read(option, "seq", "100000", text=True, errors="strict")
    assert output.split() == [str(n) for n in range(1, 100001)]


def test_large_output_to_a_terminal(box: Box) -> None:
    with in_terminal(box, "-it", "sh", "-c", "seq 20000; exit 3") as terminal:
        assert terminal.finish() == b"".join(b"%d\r\n" % n for n in range(1, 20001))
        assert terminal.process.returncode == 3


def test_large_input_from_a_terminal(box: Box) -> None:
    """More than a terminal's buffer holds, in raw mode as an editor has it."""
    script = "stty raw -echo; echo ready; head -c 200000 | md5sum"
    data = os.urandom(200_000)
    with in_terminal(box, "-it", "sh", "-c", script) as terminal:
        terminal.expect(b"ready\n")
        for start in range(0, len(data), 2000):
            terminal.send(data[start : start + 2000])
        assert hashlib.md5(data).hexdigest().encode() in terminal.finish()


def test_output_of_a_terminal_may_be_piped(box: Box) -> None:
    """Both outputs in one, and with the line ends of a terminal."""
    done = box("-t", "sh", "-c", "echo out; echo err >&2", text=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\r\nerr\r\n", b"")
