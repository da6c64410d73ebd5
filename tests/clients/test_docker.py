"""The life of Docker's containers with ``firkin-runtime`` in runc's place: from run to rm."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from support import leftovers
from support.box import status
from support.clients import runtime_path
from support.command import execute
from support.docker import IMAGE, Docker
from support.requires import requires
from support.running import wait_until

pytestmark = requires("root")

# Its end is the answer to SIGTERM.
POLITE = ["sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done"]


# ---------------------------------------------------------------- run


@pytest.mark.parametrize("code", [0, 7, 255])
def test_status_of_the_command(docker: Docker, code: int) -> None:
    done = docker("run", "--rm", IMAGE, "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(
    ("options", "command", "code", "says"),
    [
        ("", "nosuch", 127, "nosuch.*executable file not found"),
        ("", "/nonexistent", 127, "/nonexistent.*no such file or directory"),
        ("", "/etc/passwd", 126, "/etc/passwd.*permission denied"),
        ("", "/etc", 126, "/etc.*permission denied"),
        ("--user 1000", "/root/x", 126, "/root/x.*permission denied"),
        ("--sysctl net.ipv4.ip_forward=no", "true", 125, "ip_forward.*invalid argument"),
        ("--sysctl net.nosuch=1", "true", 127, "net[/.]nosuch.*no such file or directory"),
        ("--volume /etc/passwd:/etc", "true", 125, "/etc.*not a directory: .*Are you trying"),
    ],
)
def test_status_of_what_cannot_start(
    docker: Docker, tmp_path: Path, options: str, command: str, code: int, says: str
) -> None:
    """dockerd reads the runtime's log, and takes the status from the error's words."""
    secret = tmp_path / "root"
    secret.mkdir(mode=0o700)
    (secret / "x").touch(0o755)
    words = [*options.split(), "--volume", f"{secret}:/root"]
    done = docker("run", "--rm", *words, IMAGE, command)
    assert done.returncode == code, done.stderr
    failed = [line for line in done.stderr.splitlines() if "OCI runtime create failed" in line]
    assert len(failed) == 1, done.stderr
    assert re.search(says, failed[0], re.IGNORECASE), failed


def test_a_file_that_no_interpreter_takes(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("neither a script nor a program")
    (tmp_path / "x").chmod(0o755)
    done = docker("run", "--rm", "--volume", f"{tmp_path}:/x", IMAGE, "/x/x")
    assert done.returncode != 0
    assert "exec format error" in done.stderr.lower()


def test_input_and_output(docker: Docker) -> None:
    data = "".join(f"line {i}\n" for i in range(20000))
    script = "cat; echo aside >&2"
    done = docker("run", "--rm", "--interactive", IMAGE, "sh", "-c", script, input=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, "aside\n")


def test_the_runtime_tells_what_docker_tells(docker: Docker) -> None:
    """It is the tested runtime that runs the container, and its own books are right."""
    words = [str(runtime_path(docker.runtime)), "--root", str(docker.state)]
    with docker.container() as box:
        assert box.inspect()["HostConfig"]["Runtime"] == "tested"
        number = box.inspect()["Id"]
        state = json.loads(execute([*words, "state", number], check=True).stdout)
        assert (state["id"], state["pid"], state["status"]) == (number, box.pid, "running")
        assert execute([*words, "list", "--quiet"], check=True).stdout == f"{number}\n"
        assert (docker.state / number).is_dir()
    assert not (docker.state / number).exists()


def test_the_shim_is_the_parent(docker: Docker) -> None:
    """It learns of the container's end as a parent does, so nothing of ours may stand between."""
    with docker.container() as box:
        shim = int(box.status()["PPid"])
        assert status(shim)["Name"] == "containerd-shim"
        assert [pid for pid, parent in leftovers.parents().items() if parent == shim] == [box.pid]


@pytest.mark.parametrize("round", range(2))
def test_many_at_once(docker: Docker, round: int) -> None:  # noqa: A002
    def one(number: int) -> str:
        return docker.run("", "sh", "-c", f"echo {number} {round}")

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, range(6))) == [f"{number} {round}\n" for number in range(6)]


def test_create_and_start_again(docker: Docker) -> None:
    with docker.container("", "sh", "-c", "echo x >> /count; wc -l < /count", verb="create") as box:
        assert box.state["Status"] == "created"
        assert [box.read("start --attach") for _ in range(3)] == ["1\n", "2\n", "3\n"]
        assert box.state["Status"] == "exited"


def test_detached_and_logs(docker: Docker) -> None:
    script = "echo out; echo err >&2; sleep 1000"
    with docker.container("", "sh", "-c", script) as box:
        wait_until(lambda: len("".join(both(docker, box.name))) == 8, "both lines")
        assert both(docker, box.name) == ("out\n", "err\n")
        assert box.state["Status"] == "running"


def both(docker: Docker, name: str) -> tuple[str, str]:
    done = docker("logs", name)
    return done.stdout, done.stderr


# ---------------------------------------------------------------- terminals

SIZES = """
until [ "$(stty size)" = "24 80" ]; do sleep 0.05; done; echo small
until [ "$(stty size)" = "40 100" ]; do sleep 0.05; done; echo large
trap 'echo interrupted; exit 5' INT
echo armed; while :; do sleep 0.05; done
"""


def test_terminal(docker: Docker) -> None:
    words = ["run", "--rm", "-it", IMAGE, "sh", "-c", f"tty; {SIZES}"]
    with docker.terminal(*words) as terminal:
        terminal.expect(b"small")
        terminal.resize(40, 100)
        terminal.expect(b"large")
        terminal.expect(b"armed")
        assert terminal.is_raw()
        terminal.send(b"\x03")
        terminal.expect(b"interrupted")
        terminal.finish()
        assert terminal.process.returncode == 5
        assert terminal.modes() == terminal.before


def test_terminal_as_the_kernel_has_it(docker: Docker) -> None:
    with docker.container("-it", "sh", "-c", "tty; exec cat") as box:
        wait_until(lambda: box.read("logs"), "the terminal's name")
        assert box.read("logs") == "/dev/pts/0\n"
        assert {os.readlink(f"/proc/{box.pid}/fd/{fd}") for fd in range(3)} == {"/dev/pts/0"}
        fields = box.proc("stat").rpartition(")")[2].split()
        # proc_pid_stat(5): session, tty_nr, tpgid.
        session, terminal, foreground = (int(field) for field in fields[3:6])
        assert (session, foreground) == (box.pid, box.pid)
        assert terminal != 0
        # Where programs look for the console: a bind of that terminal.
        assert box.mount("/dev/console")[1] == "devpts"


def test_attach_and_detach(docker: Docker) -> None:
    script = "echo up; while read line; do echo got $line; done"
    with docker.container("-it", "sh", "-c", script) as box:
        with docker.terminal("attach", box.name) as terminal:
            terminal.send(b"hello\n")
            terminal.expect(b"got hello")
            terminal.send(b"\x10\x11")  # Ctrl-P Ctrl-Q
            terminal.finish()
        assert box.state["Status"] == "running"
        with docker.terminal("attach", box.name) as terminal:
            terminal.send(b"again\n")
            terminal.expect(b"got again")
            terminal.send(b"\x04")  # the end of input
            terminal.finish()
        assert box.wait() == 0


# ---------------------------------------------------------------- exec


def test_exec(docker: Docker) -> None:
    with docker.container("--workdir /home --env A=1") as box:
        assert box.read("exec", "sh", "-c", "pwd; echo $A; id -u") == "/home\n1\n0\n"
        assert box("exec", "sh", "-c", "exit 5").returncode == 5
        assert box("exec", "sh", "-c", "kill -9 $$").returncode == 137
        seen = box.read("exec -u alice -w /tmp -e A=2", "sh", "-c", "id -un; id -Gn; pwd; echo $A")
        assert seen == "alice\nalice staff\n/tmp\n2\n"
        done = box("exec -i", "sh", "-c", "cat; echo aside >&2", input="in\n")
        assert (done.stdout, done.stderr) == ("in\n", "aside\n")
        # Nothing of it stays behind.
        assert box.read("exec", "sh", "-c", "set -- /proc/[0-9]*; echo $#") == "2\n"


def test_exec_of_what_cannot_start(docker: Docker) -> None:
    with docker.container() as box:
        for command, says in {"nosuch": "not found", "/etc/passwd": "permission denied"}.items():
            done = box("exec", command)
            assert done.returncode == 126
            said = done.stdout + done.stderr
            assert "OCI runtime exec failed: " in said
            assert re.search(f'"?{command}"?.*{says}', said), said
        assert box("exec", "true").returncode == 0


def test_exec_as_the_kernel_has_it(docker: Docker) -> None:
    """What runs beside the first process has its namespaces, cgroups, and rights."""
    with docker.container("--cap-drop NET_RAW --security-opt no-new-privileges") as box:
        box.read("exec -d", "sleep", "999")
        other = wait_until(lambda: pid_of(box.pid, "sleep 999"), "the process")
        for kind in os.listdir("/proc/self/ns"):
            if not kind.endswith("_for_children"):
                assert os.readlink(f"/proc/{other}/ns/{kind}") == box.namespace(kind), kind
        assert Path(f"/proc/{other}/cgroup").read_text() == box.proc("cgroup")
        for field in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb", "Seccomp", "NoNewPrivs"):
            assert status(other)[field] == box.status()[field], field
        assert Path(f"/proc/{other}/root").stat() == Path(f"/proc/{box.pid}/root").stat()
        assert status(status(other)["PPid"])["Name"] == "containerd-shim"
        # Its end is seen, too.
        os.kill(other, signal.SIGKILL)
        wait_until(lambda: not pid_of(box.pid, "sleep 999"), "its end")
        assert box.state["Status"] == "running"


def pid_of(first: int, command: str) -> int:
    """Return the process with a command line in the PID namespace of another; 0 if none."""
    wanted = command.replace(" ", "\0").encode() + b"\0"
    namespace = os.readlink(f"/proc/{first}/ns/pid")
    for pid in leftovers.parents():
        try:
            if (
                Path(f"/proc/{pid}/cmdline").read_bytes() == wanted
                and os.readlink(f"/proc/{pid}/ns/pid") == namespace
            ):
                return pid
        except OSError:
            continue
    return 0


def test_exec_in_a_terminal(docker: Docker) -> None:
    with docker.container() as box:
        words = ["exec", "-it", box.name, "sh", "-c", f"tty; {SIZES}"]
        with docker.terminal(*words) as terminal:
            terminal.expect(b"/dev/pts/")
            terminal.expect(b"small")
            terminal.resize(40, 100)
            terminal.expect(b"large")
            terminal.expect(b"armed")
            terminal.send(b"\x03")
            terminal.expect(b"interrupted")
            terminal.finish()
            assert terminal.process.returncode == 5


# ---------------------------------------------------------------- stop, kill, pause


def ready(docker: Docker, name: str) -> None:
    wait_until(lambda: "up" in docker("logs", name).stdout, "the container's word")


def test_stop_of_what_listens(docker: Docker) -> None:
    with docker.container("", *POLITE) as box:
        ready(docker, box.name)
        box.read("stop --time 30")
        assert box.wait() == 3
        assert box.state["Status"] == "exited"


def test_stop_of_what_does_not(docker: Docker) -> None:
    """Signals without a handler do not reach the first process of a PID namespace."""
    with docker.container() as box:
        pid = box.pid
        box.read("stop --time 1")
        assert box.wait() == 137
        assert not Path(f"/proc/{pid}").exists()


def test_stop_signal_of_the_container(docker: Docker) -> None:
    script = "trap 'exit 9' USR1; trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done"
    with docker.container("--stop-signal USR1", "sh", "-c", script) as box:
        ready(docker, box.name)
        box.read("stop --time 30")
        assert box.wait() == 9


def test_kill(docker: Docker) -> None:
    script = "trap 'echo usr1' USR1; trap 'echo 12' USR2; echo up; while :; do sleep 0.05; done"
    with docker.container("", "sh", "-c", script) as box:
        ready(docker, box.name)
        box.read("kill --signal USR1")
        wait_until(lambda: box.read("logs") == "up\nusr1\n", "a signal by name")
        box.read("kill --signal 12")
        wait_until(lambda: box.read("logs") == "up\nusr1\n12\n", "a signal by number")
        box.read("kill")
        assert box.wait() == 137
        done = box("kill")
        assert done.returncode == 1
        assert "is not running" in done.stderr


def test_removal_of_what_runs(docker: Docker) -> None:
    with docker.container("", "sh", "-c", "sleep 1000 & sleep 1001") as box:
        wait_until(lambda: pid_of(box.pid, "sleep 1001"), "the command")
        pids = [box.pid, pid_of(box.pid, "sleep 1000")]
        folder = box.cgroup("pids")
        box.read("rm --force")
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "their end")
        wait_until(lambda: not folder.exists(), "the cgroup's end")


def test_pause(docker: Docker) -> None:
    script = "while :; do echo x >> /count; sleep 0.01; done"
    with docker.container("", "sh", "-c", script) as box:
        file = Path(f"/proc/{box.pid}/root/count")
        wait_until(file.exists, "the first line")
        assert not box.is_frozen()
        box.read("pause")
        assert box.is_frozen()
        assert box.state["Status"] == "paused"
        size = file.stat().st_size
        assert box("exec", "true").returncode == 1
        assert box("pause").returncode == 1
        assert file.stat().st_size == size
        box.read("unpause")
        assert not box.is_frozen()
        assert box.state["Status"] == "running"
        wait_until(lambda: file.stat().st_size > size, "a further line")
        assert box("unpause").returncode == 1


def test_removal_of_what_is_paused(docker: Docker) -> None:
    with docker.container() as box:
        pid = box.pid
        box.read("pause")
        assert box.is_frozen()
        box.read("rm --force")
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its end")


# ---------------------------------------------------------------- what Docker tells


def test_stats(docker: Docker) -> None:
    with docker.container(
        "--memory 64m --pids-limit 30", "sh", "-c", "sleep 1000 & sleep 999"
    ) as box:
        stats = json.loads(box.read("stats --no-stream --format '{{json .}}'"))
        assert stats["PIDs"] == (box.cgroup("pids") / "pids.current").read_text().strip()
        used, most = stats["MemUsage"].split(" / ")
        assert most == "64MiB"
        assert re.fullmatch(r"[\d.]+[KM]iB", used)
        assert re.fullmatch(r"[\d.]+%", stats["CPUPerc"])


def test_top(docker: Docker) -> None:
    with docker.container("--user 1000", "sh", "-c", "sleep 999 & sleep 998") as box:
        wait_until(lambda: pid_of(box.pid, "sleep 999"), "the command")
        _, *lines = box.read("top", "-o", "pid,ruid,args").splitlines()
        found = {
            int(pid): (uid, args) for pid, uid, args in (line.split(None, 2) for line in lines)
        }
        for command in ("sleep 999", "sleep 998"):
            assert found[pid_of(box.pid, command)] == ("1000", command)
        assert len(found) == len((box.cgroup("pids") / "cgroup.procs").read_text().split())


def test_events(docker: Docker) -> None:
    since = f"{time.time():.9f}"
    with docker.container("", *POLITE) as box:
        box.read("exec", "true")
        box.read("pause")
        box.read("unpause")
        box.read("kill --signal TERM")
        assert box.wait() == 3
        box.read("rm")
        events = docker.events(since, f"{time.time():.9f}", f"container={box.name}")
    names = [event["Action"].partition(":")[0] for event in events]
    wanted = ["create", "start", "exec_create", "exec_start", "exec_die", "pause", "unpause"]
    assert [name for name in names if name in wanted] == wanted
    ends = [name for name in names if name in ("kill", "die", "destroy")]
    assert ends == ["kill", "die", "destroy"]
    died = next(event for event in events if event["Action"] == "die")
    assert died["Actor"]["Attributes"]["exitCode"] == "3"


def test_out_of_memory(docker: Docker) -> None:
    since = f"{time.time():.9f}"
    script = "tail /dev/zero; echo status $?; sleep 1000"
    with docker.container("--memory 16m --memory-swap 16m", "sh", "-c", script) as box:
        wait_until(lambda: "status" in box.read("logs"), "the end of the hog")
        assert "status 137" in box.read("logs")

        def told() -> bool:
            until = f"{time.time():.9f}"
            filters = (f"container={box.name}", "event=oom")
            return bool(docker.events(since, until, *filters))

        wait_until(told, "the event")
        box.read("kill")
        assert box.wait() == 137
        assert box.state["OOMKilled"] is True


def test_out_of_memory_of_the_first_process(docker: Docker) -> None:
    done = docker("run", "--rm", "--memory=16m", "--memory-swap=16m", IMAGE, "tail", "/dev/zero")
    assert done.returncode == 137


def test_copies(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("text")
    with docker.container() as box:
        docker.read("cp", tmp_path / "in", f"{box.name}:/home/file")
        assert box.read("exec", "cat", "/home/file") == "text"
        box.read("exec", "sh", "-c", "echo more >> /home/file")
        docker.read("cp", f"{box.name}:/home/file", tmp_path / "out")
        assert (tmp_path / "out").read_text() == "textmore\n"
        assert box.read("diff").split() == ["C", "/home", "A", "/home/file"]


# ---------------------------------------------------------------- update, restart


def test_update(docker: Docker) -> None:
    with docker.container("--memory 128m --memory-swap 128m") as box:
        box.read("update --memory 64m --memory-swap 64m --cpus 0.5 --pids-limit 50")
        assert box.limit("memory") == str(64 << 20)
        assert box.limit("pids") == "50"
        assert box.cpus() == 0.5
        box.read("update --cpuset-cpus 0")
        assert box.limit("cpuset") == "0"
        # What is not named stays.
        assert (box.limit("memory"), box.cpus()) == (str(64 << 20), 0.5)
        assert box.proc("status").partition("Cpus_allowed_list:")[2].split()[0] == "0"


@requires("cgroup v1")
def test_an_update_that_the_kernel_refuses(docker: Docker) -> None:
    """What fills a tmpfs can't be reclaimed without swap; v2 would kill instead."""
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null; echo up; sleep 1000"
    with docker.container("--memory 64m --memory-swap 64m", "sh", "-c", script) as box:
        ready(docker, box.name)
        done = box("update --memory 8m --memory-swap 8m")
        assert done.returncode == 1
        assert "did not terminate successfully: exit status 1: " in done.stderr
        assert str(8 << 20) in done.stderr
        assert box.limit("memory") == str(64 << 20)
        assert box.state["Status"] == "running"


def test_restart_policy(docker: Docker) -> None:
    with docker.container("--restart on-failure:2", "sh", "-c", "echo again; exit 4") as box:
        wait_until(
            lambda: box.inspect()["RestartCount"] == 2 and box.state["Status"] == "exited",
            "the last attempt",
        )
        assert box.read("logs") == "again\n" * 3
        assert box.state["ExitCode"] == 4
    with docker.container("--restart on-failure:2", "true") as box:
        assert box.wait() == 0
        assert box.inspect()["RestartCount"] == 0


def test_restart(docker: Docker) -> None:
    with docker.container("", *POLITE) as box:
        ready(docker, box.name)
        before = box.pid
        box.read("restart --time 20")
        assert box.pid != before
        wait_until(lambda: box.read("logs") == "up\n" * 2, "the second start")


# ---------------------------------------------------------------- build


def test_build(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"""\
FROM {IMAGE}
RUN echo made > /made && ln -s made /link
WORKDIR /home/alice
USER alice
ENV WORD=green
RUN echo "$(id -un) $(pwd) $WORD" > file
CMD ["cat", "/made", "/link", "file"]
""")
    try:
        docker.read("build", "--network=none", "--tag=built", tmp_path)
        assert docker.read("run", "--rm", "built") == "made\nmade\nalice /home/alice green\n"
    finally:
        docker("image", "rm", "--force", "built")


def test_build_whose_step_fails(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN echo before; exit 33\n")
    done = docker("build", "--network=none", "--force-rm", tmp_path)
    assert done.returncode == 33
    assert "before" in done.stdout
    assert "returned a non-zero code: 33" in done.stderr
