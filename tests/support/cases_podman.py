"""podman's verbs, with a runtime: what root and an ordinary user do alike.

Each case looks from inside the container and from the host.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support import leftovers
from support.box import PATIENCE, eventually, gone, status
from support.podman import DEFAULT_CAPABILITIES, IMAGE, Podman, everything

# ---------------------------------------------------------------- run, and its status


def test_output_and_status(podman: Podman) -> None:
    done = podman("run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


@pytest.mark.parametrize("log", ["json", "text"])
@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--no-such-option", IMAGE, "true"], 125, "unknown flag"),
        ([IMAGE, "/etc/passwd"], 126, "permission denied"),
        ([IMAGE, "/no/such"], 127, "no such file or directory"),
        ([IMAGE, "no-such"], 127, "executable file not found in $PATH"),
        (["--sysctl", "kernel.msgmax=many", IMAGE, "true"], 126, "invalid argument"),
    ],
)
def test_status_of_a_failed_start(
    podman: Podman, words: list[str], code: int, text: str, log: str
) -> None:
    """podman tells them apart by the runtime's text, from its log file or its standard error."""
    done = podman("run", *words, log=log)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
    if code == 125:
        return
    # The container is there still, created and never started; it can be removed.
    (name,) = podman.containers()
    assert podman.read("inspect", "--format={{.State.Status}}", name) in ("created\n", "exited\n")
    podman.read("rm", name)


def test_standard_input(podman: Podman) -> None:
    data = os.urandom(300_000)
    done = podman("run", "--rm", "-i", IMAGE, "cat", input=data, text=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_killed_by_a_signal(podman: Podman) -> None:
    with podman.container() as box:
        os.kill(box.pid, signal.SIGKILL)
        assert box.wait() == 137


def test_signals_are_passed_on(podman: Podman) -> None:
    script = "trap 'echo window' WINCH; trap 'exit 5' TERM; while :; do sleep 0.01; done"
    with podman.start("run", "--rm", IMAGE, "sh", "-c", script) as process:
        # An ordinary user's podman goes on as its own child, in the user namespace.
        pid = process.pid if os.geteuid() == 0 else eventually(
            lambda: leftovers.descendants(process.pid), "podman is in its namespace"
        )[0]  # fmt: skip

        def passes() -> bool:
            # Harmless until podman listens, which is after the command's start.
            os.kill(pid, signal.SIGWINCH)
            return bool(select.select([process.stdout], [], [], 0.05)[0])

        eventually(passes, "podman passes signals on")
        os.kill(pid, signal.SIGTERM)
        process.wait(PATIENCE)
    assert process.returncode == 5


def test_descriptors_are_passed_on(podman: Podman) -> None:
    read, write = os.pipe()
    with os.fdopen(read), os.fdopen(write, "w"):
        # podman passes on the descriptors from 3 on.
        shell = ["bash", "-c", f'exec 3>&{write}; exec "$@"', "bash"]
        words = podman.words("run", "--rm", "--preserve-fds=1", IMAGE, "sh", "-c", "echo hi >&3")
        subprocess.run([*shell, *words], env=podman.env(), pass_fds=[write], check=True)
        assert os.read(read, 100) == b"hi\n"


def test_many_at_once(podman: Podman) -> None:
    words = [podman.words("run", "--rm", IMAGE, "sh", "-c", f"exit {n}") for n in range(1, 7)]
    processes = [subprocess.Popen(one, env=podman.env()) for one in words]
    assert [process.wait(PATIENCE) for process in processes] == [1, 2, 3, 4, 5, 6]


# ---------------------------------------------------------------- a terminal


def test_terminal(podman: Podman) -> None:
    script = """
    trap 'echo caught' INT; trap 'stty size' WINCH; trap 'exit 9' QUIT
    tty; sleep 1000 & echo ready; while :; do wait; done
    """
    name = "terminal"
    with podman.terminal("run", "--rm", "-it", "--name", name, IMAGE, "sh", "-c", script) as term:
        assert term.expect(b"ready\r").split()[-1] == b"/dev/pts/0"
        pid = int(podman.read("inspect", "--format={{.State.Pid}}", name))
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/pts/0"
        assert status(pid)["NSsid"].split()[-1] == "1"
        # Its own devpts, not the host's.
        assert os.stat(f"/proc/{pid}/root/dev/pts").st_dev != os.stat("/dev/pts").st_dev
        assert term.is_raw()
        for rows, columns in ((50, 132), (24, 80)):
            term.resize(rows, columns)
            term.expect(b"%d %d\r" % (rows, columns))
        term.send(b"\x03")
        term.expect(b"caught\r")
        term.send(b"\x1c")
        term.finish()
        assert term.process.returncode == 9
        assert term.modes() == term.before


def test_size_of_the_terminal_at_the_start(podman: Podman) -> None:
    # podman tells it when the command may run already.
    script = 'until [ "$(stty size)" = "24 80" ]; do sleep 0.01; done; read x; echo got:$x'
    with podman.terminal("run", "--rm", "-it", IMAGE, "sh", "-c", script) as terminal:
        terminal.send(b"typed\r")
        terminal.expect(b"got:typed\r\n")
        terminal.finish()
        assert terminal.process.returncode == 0


def test_attach_and_detach(podman: Podman) -> None:
    script = "while read x; do echo got:$x; done; exit 4"
    with podman.container("-it", "sh", "-c", script) as box:
        # podman knows keys only that arrive one by one: so a single one, without the race.
        with podman.terminal("attach", "--detach-keys=ctrl-x", box.name) as terminal:
            terminal.send(b"one\r")
            terminal.expect(b"got:one\r\n")
            terminal.send(b"\x18")
            terminal.finish()
            assert terminal.process.returncode == 0
        assert box.state["Status"] == "running"
        with podman.terminal("attach", box.name) as terminal:
            terminal.send(b"two\r")
            terminal.expect(b"got:two\r\n")
            terminal.send(b"\x04")
            terminal.finish()
        assert box.wait() == 4


def test_attach_without_a_terminal(podman: Podman) -> None:
    with podman.container("-i", "sh", "-c", "read x; echo got:$x; echo err >&2; exit 6") as box:
        done = box("attach", input="line\n")
        assert (done.stdout.strip(), done.stderr) == ("got:line", "err\n")
        assert box.wait() == 6


# ---------------------------------------------------------------- in the background


def test_detached(podman: Podman) -> None:
    with podman.container("", "sh", "-c", "sleep 1000; true") as box:
        assert box.pid == box.state["Pid"]
        assert Path(f"/proc/{box.pid}/comm").read_text() == "sh\n"
        for kind in ("mnt", "pid", "ipc", "uts", "net"):
            assert box.namespace(kind) != os.readlink(f"/proc/self/ns/{kind}")
        listed = podman.read("ps", "--format={{.Names}} {{.Status}}")
        assert listed.startswith(f"{box.name} Up ")
        # The runtime's own word for it.
        (state,) = podman.state.iterdir()
        assert state.name == box.id == box.inspect()["Id"]


def test_logs(podman: Podman) -> None:
    with podman.container("-i", "sh", "-c", "echo a; echo b >&2; read x; echo c") as box:
        eventually(lambda: box.read("logs").split() == ["a"], "the first line is logged")
        with podman.start("logs", "--follow", box.name) as follower:
            box.read("attach", input="\n")
            assert box.wait() == 0
            out, err = follower.communicate(timeout=PATIENCE)
        assert (out, err) == ("a\nc\n", "b\n")


def test_stop(podman: Podman) -> None:
    script = "trap 'exit 5' TERM; trap 'exit 6' USR1; echo up; while :; do sleep 0.01; done"
    for options, code in (("", 5), ("--stop-signal=USR1", 6)):
        with podman.container(options, "sh", "-c", script) as box:
            eventually(lambda box=box: box.read("logs"), "it runs")
            pid = box.pid
            box.read("stop")
            assert box.state["ExitCode"] == code
            assert gone(pid)


def test_stop_ends_what_does_not_listen(podman: Podman) -> None:
    """The first process of a PID namespace gets no signal that it does not handle, but SIGKILL."""
    with podman.container() as box:
        pid = box.pid
        started = time.monotonic()
        box.read("stop --time=1")
        assert time.monotonic() - started >= 1
        assert box.state["ExitCode"] == 137
        assert gone(pid)


def test_kill(podman: Podman) -> None:
    script = "trap 'echo one' USR1; trap 'exit 3' HUP; echo up; while :; do sleep 0.01; done"
    with podman.container("", "sh", "-c", script) as box:
        eventually(lambda: box.read("logs"), "it runs")
        box.read("kill --signal=USR1")
        eventually(lambda: box.read("logs") == "up\none\n", "the signal arrives")
        box.read("kill --signal=1")
        assert box.wait() == 3
        done = box("kill")
        assert done.returncode == 125
        assert "can only kill running containers" in done.stderr


def test_kill_without_a_signal(podman: Podman) -> None:
    with podman.container() as box:
        box.read("kill")
        assert box.wait() == 137


def test_start_again(podman: Podman) -> None:
    """A stopped container keeps its files; each start is a new one for the runtime."""
    with podman.container("", "sh", "-c", "echo x >>/file; exec sleep 1000") as box:
        pids = {box.pid}
        box.read("kill")
        box.wait()
        box.read("start")
        pids.add(box.pid)
        box.read("restart --time=0")
        pids.add(box.pid)
        assert len(pids) == 3
        eventually(lambda: box.read("exec", "cat", "/file") == "x\nx\nx\n", "three starts")
        assert box.state["Status"] == "running"


def test_created_then_started(podman: Podman) -> None:
    with podman.container("", "sh", "-c", "echo ran; exit 8", verb="create") as box:
        assert box.state["Status"] == "created"
        box.read("init")
        # Between the runtime's create and start: a process that has not executed the command.
        state = box.state
        assert state["Status"] == "initialized"
        assert not os.readlink(f"/proc/{state['Pid']}/exe").endswith("busybox")
        assert box.read("logs") == ""
        done = box("start --attach")
        assert (done.returncode, done.stdout) == (8, "ran\n")


def test_created_then_removed(podman: Podman) -> None:
    with podman.container(verb="create") as box:
        box.read("init")
        pid = box.state["Pid"]
        box.read("rm --force --time=0")
        eventually(lambda: gone(pid), "its process ends")


def test_remove(podman: Podman) -> None:
    with podman.container() as box:
        pid = box.pid
        done = box("rm")
        assert done.returncode == 2
        assert "cannot remove container" in done.stderr
        assert box.state["Status"] == "running"
        box.read("rm --force --time=0")
        assert gone(pid)
        assert box("inspect").returncode == 125


def test_restart_policy(podman: Podman, tmp_path: Path) -> None:
    command = ["sh", "-c", "echo x >>/v/starts; exit 3"]
    with podman.container(f"--restart=on-failure:2 -v {tmp_path}:/v", *command) as box:

        def ended() -> bool:
            found = box.inspect()
            return bool(found["State"]["Status"] == "exited" and found["RestartCount"] == 2)

        eventually(ended, "it has been started twice again")
        assert box.state["ExitCode"] == 3
        assert (tmp_path / "starts").read_text() == "x\n" * 3


# ---------------------------------------------------------------- exec


def test_exec(podman: Podman) -> None:
    with podman.container("-e A=1 -w /var --hostname=name") as box:
        done = box("exec", "sh", "-c", "echo out; echo err >&2; exit 9")
        assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")
        script = "id -u; id -g; echo $A $B; pwd; hostname; umask"
        assert box.read("exec", "sh", "-c", script).split("\n")[:5] == [
            "0", "0", "1", "/var", "name",
        ]  # fmt: skip
        options = "exec --user=1000:50 --env=B=2 --workdir=/tmp"
        assert box.read(options, "sh", "-c", script).split("\n")[:5] == [
            "1000", "50", "1 2", "/tmp", "name",
        ]  # fmt: skip
        assert box.read("exec -i", "cat", input="x" * 100_000) == "x" * 100_000
        names = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
        script = "for name; do readlink /proc/self/ns/$name; done"
        links = box.read("exec", "sh", "-c", script, "sh", *names)
        assert links.split() == [box.namespace(name) for name in names]
        own, first = (box.read("exec", "cat", f"/proc/{who}/cgroup") for who in ("self", "1"))
        assert own == first


def test_exec_has_the_privileges_of_the_container(podman: Podman) -> None:
    fields = ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb", "Seccomp", "NoNewPrivs")
    with podman.container("--security-opt=no-new-privileges --cap-drop=chown") as box:
        text = box.read("exec", "cat", "/proc/self/status")
        found = {line.split(":")[0]: line.split(":")[1].strip() for line in text.splitlines()}
        first = box.status()
        assert {key: found[key] for key in fields} == {key: first[key] for key in fields}
        assert found["NoNewPrivs"] == "1"
        assert int(found["CapEff"], 16) == DEFAULT_CAPABILITIES & ~1
        text = box.read("exec --privileged", "cat", "/proc/self/status")
        assert f"CapEff:\t{everything():016x}\n" in text


def test_exec_in_a_terminal(podman: Podman) -> None:
    script = "trap 'echo caught' INT; trap 'exit 9' QUIT; tty; sleep 99 & while :; do wait; done"
    with (
        podman.container() as box,
        podman.terminal("exec", "-it", box.name, "sh", "-c", script) as terminal,
    ):
        terminal.expect(b"/dev/pts/0\r")
        terminal.send(b"\x03")
        terminal.expect(b"caught\r")
        terminal.send(b"\x1c")
        terminal.finish()
        assert terminal.process.returncode == 9
        assert terminal.modes() == terminal.before


def test_exec_in_the_background(podman: Podman) -> None:
    with podman.container() as box:
        box.read("exec --detach", "sh", "-c", "echo $$ >/started; exec sleep 999")
        path = Path(f"/proc/{box.pid}/root/started")
        eventually(lambda: path.exists() and path.read_text(), "it runs")
        number = path.read_text().strip()
        assert box.read("exec", "cat", f"/proc/{number}/cmdline") == "sleep\x00999\x00"


@pytest.mark.parametrize("log", ["json", "text"])
def test_exec_that_fails(podman: Podman, log: str) -> None:
    with podman.container() as box:
        for command, code, text in (
            ("/no/such", 127, "no such file or directory"),
            ("no-such", 127, "executable file not found in $PATH"),
            ("/etc/passwd", 126, "permission denied"),
        ):
            done = box("exec", command, log=log)
            assert (done.returncode, done.stdout) == (code, "")
            assert text in done.stderr
        done = box("exec", "sh", "-c", "kill -9 $$", log=log)
        assert done.returncode == 137
        # None of that did it any harm.
        assert box.state["Status"] == "running"
        box.read("kill")
        box.wait()
        assert box("exec", "true", log=log).returncode == 255


def test_top(podman: Podman) -> None:
    with podman.container("-u 1000") as box:
        lines = box.read("top", "pid", "user", "hpid", "args").splitlines()
        assert lines[1].split() == ["1", "alice", str(box.pid), "sleep", "1000"]
        # By ps, which podman runs in the container.
        assert "sleep 1000" in box.read("top", "-o", "args")


def test_healthcheck(podman: Podman) -> None:
    with podman.container("--health-cmd='test -e /healthy' --health-interval=disable") as box:
        done = podman("healthcheck", "run", box.name)
        assert done.returncode == 1
        box.read("exec", "touch", "/healthy")
        podman.read("healthcheck", "run", box.name)
        assert box.state["Health"]["Status"] == "healthy"
