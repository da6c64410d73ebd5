"""``--init`` as pid 1 of a pid namespace."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

INIT = textwrap.dedent(
    """
    import os, resource, sys
    from firkin.init import reaper
    from firkin.linux import signals

    option, command = sys.argv[1], sys.argv[2:]
    assert os.getpid() == 1

    def execute():
        signals.reset_dispositions()
        signals.set_mask(0)
        os.execvp(command[0], command)

    def started(pid):
        if option == "weak":
            os.setuid(65534)

    if option == "no processes":
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        os.setresuid(65534, 65534, 65534)
    try:
        reaper.run(execute, started, reaper.arguments_area())
    except OSError as error:
        print(error.strerror, flush=True)
        os._exit(99)
    """
)


def start(*command: str, option: str = "") -> subprocess.Popen[bytes]:
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return subprocess.Popen(
        [*unshare, sys.executable, "-c", INIT, option, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def run(*command: str, option: str = "", data: bytes = b"") -> tuple[int, bytes]:
    with start(*command, option=option) as process:
        output = process.communicate(data, timeout=60)[0]
    return process.returncode, output


def python(source: str) -> tuple[str, str, str]:
    return sys.executable, "-c", textwrap.dedent(source)


def test_is_pid_1_and_hands_on_the_status() -> None:
    status, output = run("sh", "-c", "cat /proc/1/comm /proc/1/cmdline; echo; echo $PPID; exit 7")
    assert output == b"firkin-init\nfirkin-init\0\n1\n"
    assert status == 7


def test_signals_from_inside_are_passed_on() -> None:
    # The kernel drops what is sent to a pid 1 that has neither a handler nor a block.
    with start("sh", "-c", "kill -USR1 1; exec cat") as process:
        assert process.wait(30) == 128 + signal.SIGUSR1


def test_the_rest_ends_with_the_command() -> None:
    # The sleeper holds our pipe: that it ends for us means that it is gone.
    status, output = run("sh", "-c", "sleep 1000 & (setsid sleep 1000 &); exit 6")
    assert (status, output) == (6, b"")


STORM = python(
    """
    import os, time
    read_end, write_end = os.pipe()
    for _ in range(500):
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os.close(write_end)
                os.read(read_end, 1)
            os._exit(0)
        os.waitpid(middle, 0)

    def processes():
        return sum(entry.isdigit() for entry in os.listdir("/proc"))

    print(processes())
    os.close(write_end)
    deadline = time.monotonic() + 30
    while processes() > 2 and time.monotonic() < deadline:
        pass
    print(processes())
    """
)


def test_storm_of_orphans_is_reaped() -> None:
    assert run(*STORM) == (0, b"502\n2\n")


def test_a_command_with_more_rights_does_not_end_it() -> None:
    # As with a set-user-ID command: init may not signal it, and must not fail for that.
    program = "trap 'echo got' USR1; kill -USR1 1; kill -WINCH 1; read x; exit 8"
    assert run("sh", "-c", program, option="weak", data=b"\n") == (8, b"")


def test_no_process_for_the_command_is_an_error() -> None:
    assert run("true", option="no processes") == (99, b"Resource temporarily unavailable\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_from_outside_are_passed_on(number: int) -> None:
    with start("sh", "-c", "echo ready; exec cat") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        with open(children) as file:
            subprocess.run(["kill", f"-{int(number)}", file.read().strip()], check=True)
        assert process.wait(30) == 128 + number
