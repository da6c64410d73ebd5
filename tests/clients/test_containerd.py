"""containerd's containers by ``ctr``, with ``firkin-runtime`` in runc's place."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from support.box import status
from support.clients import on_v1, runtime_path
from support.command import execute
from support.containerd import IMAGE, Containerd, lingering
from support.requires import requires
from support.running import wait_until

pytestmark = requires("root")

M = 1 << 20


# ---------------------------------------------------------------- run


@pytest.mark.parametrize("code", [0, 7, 255])
def test_status_of_the_command(containerd: Containerd, code: int) -> None:
    done = containerd.done("", *lingering(f"echo out; echo err >&2; exit {code}"))
    assert (done.returncode, done.stdout) == (code, "out\n")
    assert done.stderr.startswith("err\n")


@pytest.mark.parametrize(
    ("options", "command", "says"),
    [
        ("", "nosuch", "nosuch.*executable file not found"),
        ("", "/etc/passwd", "/etc/passwd.*permission denied"),
        ("--mount type=bind,src=/nosuch,dst=/x,options=rbind", "true", "/nosuch.*no such file"),
        ("--cwd /etc/passwd", "true", "/etc/passwd.*not a directory"),
    ],
)
def test_what_cannot_start(containerd: Containerd, options: str, command: str, says: str) -> None:
    done = containerd.done(options, command)
    assert done.returncode == 1
    assert "OCI runtime create failed: " in done.stderr
    assert re.search(says, done.stderr, re.IGNORECASE), done.stderr


def test_the_runtime_tells_what_containerd_tells(containerd: Containerd) -> None:
    """It is the tested runtime that runs the container, and its own books are right."""
    root = containerd.state / containerd.namespace
    words = [str(runtime_path(containerd.runtime)), "--root", str(root)]
    with containerd.container() as box:
        state = json.loads(execute([*words, "state", box.name], check=True).stdout)
        assert (state["id"], state["pid"], state["status"]) == (box.name, box.pid, "running")
        assert state["bundle"].endswith(f"io.containerd.runtime.v2.task/{root.name}/{box.name}")
        assert execute([*words, "list", "--quiet"], check=True).stdout == f"{box.name}\n"
        assert status(box.status()["PPid"])["Name"] == "containerd-shim"
        assert f"/{containerd.namespace}/{box.name}" in box.proc("cgroup")
    assert os.listdir(root) == []


def test_name_of_the_runtime_type(containerd: Containerd) -> None:
    assert containerd.run("--runtime io.containerd.runc.v2", *lingering("echo ran")) == "ran\n"


def test_without_pivot_root(containerd: Containerd) -> None:
    """ctr forgets the other options of the runtime then: ``runc`` is looked for on PATH."""
    containerd.called.unlink(missing_ok=True)
    script = "grep -c . /proc/self/mountinfo; ls -d /proc/1/root/etc; cat /etc/hostname"
    out = containerd.run("--no-pivot", *lingering(script)).splitlines()
    assert int(out[0]) < 40
    assert out[1:] == ["/proc/1/root/etc", "busybox"]
    called = containerd.called.read_text().splitlines()
    assert [line for line in called if " create " in line and " --no-pivot " in line]


def test_without_pivot_root_the_host_stays_out_of_sight(containerd: Containerd) -> None:
    script = "ls /../../..; ls /proc/1/root/../../.."
    out = containerd.run("--no-pivot", *lingering(script)).split()
    inside = containerd.run("", *lingering("ls")).split()
    assert out == inside * 2


def test_user_namespace(containerd: Containerd) -> None:
    """ctr chowns the snapshot, and looks for ``runc`` on PATH as before."""
    mapping = "0:100000:65536"
    containerd.called.unlink(missing_ok=True)
    words = f"--uidmap {mapping} --gidmap {mapping}"
    out = containerd.run(words, *lingering("id -u; cat /proc/self/uid_map; stat -c %u /etc"))
    assert out.split() == ["0", "0", "100000", "65536", "0"]
    assert " create " in containerd.called.read_text()


def test_options(containerd: Containerd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text\n")
    mount = f"--mount type=bind,src={tmp_path},dst=/volume,options=rbind:ro"
    words = f"{mount} --read-only --env A=1 --cwd /home --seccomp"
    drop = "--cap-drop CAP_CHOWN --memory-limit 67108864 --cpus 0.5"
    with containerd.container(f"{words} {drop}") as box:
        assert box.exec("", *lingering("cat /volume/file")).stdout == "text\n"
        assert "ro" in box.mount("/volume")[0] & box.mount("/")[0]
        assert box.exec("", *lingering("pwd; echo $A")).stdout == "/home\n1\n"
        assert box.limit("memory") == str(64 * M)
        assert box.cpus() == 0.5
        assert not int(box.status()["CapEff"], 16) & 1
        assert (box.status()["Seccomp"], box.status()["NoNewPrivs"]) == ("2", "1")


def test_terminal(containerd: Containerd) -> None:
    script = """
    until [ "$(stty size)" = "24 80" ]; do sleep 0.05; done; tty
    until [ "$(stty size)" = "40 100" ]; do sleep 0.05; done; echo large
    trap 'echo interrupted; exit 5' INT
    echo armed; while :; do sleep 0.05; done
    """
    words = ["run", "--rm", "--tty", IMAGE, "boxtty", "sh", "-c", script]
    with containerd.terminal(*words) as terminal:
        terminal.expect(b"/dev/pts/0")
        terminal.resize(40, 100)
        terminal.expect(b"large")
        terminal.expect(b"armed")
        terminal.send(b"\x03")
        terminal.expect(b"interrupted")
        terminal.finish()
        assert terminal.process.returncode == 5


# ---------------------------------------------------------------- tasks


def test_exec(containerd: Containerd) -> None:
    with containerd.container() as box:
        done = box.exec("--user 1000 --cwd /tmp", *lingering("id -u; pwd; exit 5"))
        assert (done.returncode, done.stdout) == (5, "1000\n/tmp\n")
        done = box.exec("", "nosuch")
        assert done.returncode == 1
        assert "OCI runtime exec failed: " in done.stderr
        assert "not found" in done.stderr
        words = ["task", "exec", "--exec-id=tty", "--tty", box.name, "tty"]
        with containerd.terminal(*words) as terminal:
            terminal.expect(b"/dev/pts/")
            terminal.finish()
            assert terminal.process.returncode == 0


def test_exec_in_the_background(containerd: Containerd) -> None:
    with containerd.container() as box:
        first = box.pid
        containerd.read("task", "exec", "--exec-id=other", "--detach", box.name, "sleep", "999")
        listed = {int(line.split()[0]): line for line in box.read("ps").splitlines()[1:]}
        assert len(listed) == 2
        other = next(pid for pid in listed if pid != first)
        assert "ExecID:other" in listed[other]
        assert Path(f"/proc/{other}/cmdline").read_text() == "sleep\x00999\x00"
        for kind in ("cgroup", "ipc", "mnt", "net", "pid", "uts"):
            assert os.readlink(f"/proc/{other}/ns/{kind}") == box.namespace(kind)
        assert Path(f"/proc/{other}/cgroup").read_text() == box.proc("cgroup")
        box.read("kill --exec-id other --signal KILL")
        wait_until(lambda: not Path(f"/proc/{other}").exists(), "its end")
        assert box.status_name == "RUNNING"


def test_kill(containerd: Containerd) -> None:
    script = "trap 'touch /usr1' USR1; trap 'exit 3' TERM; touch /up; while :; do sleep 0.05; done"
    with containerd.container("", "sh", "-c", script) as box:
        root = Path(f"/proc/{box.pid}/root")
        wait_until((root / "up").exists, "the start")
        box.read("kill --signal SIGUSR1")
        wait_until((root / "usr1").exists, "the signal")
        box.read("kill")
        wait_until(lambda: box.status_name == "STOPPED", "its end")
        assert box("kill").returncode == 1
        done = box("delete")
        assert "exit with non-zero exit code 3" in done.stderr


def test_kill_all(containerd: Containerd) -> None:
    """``--all`` reaches every process of the container, not only the first."""
    second = "(trap 'touch /b; exit' TERM; touch /a; while :; do sleep 0.05; done) &"
    first = "trap : TERM; until [ -e /b ]; do sleep 0.05; done; exit 6"
    with containerd.container("", "sh", "-c", f"{second} {first}") as box:
        wait_until(Path(f"/proc/{box.pid}/root/a").exists, "the start")
        box.read("kill --all --signal SIGTERM")
        wait_until(lambda: box.status_name == "STOPPED", "its end")
        assert "exit code 6" in box("delete").stderr


def test_delete(containerd: Containerd) -> None:
    with containerd.container() as box:
        pid = box.pid
        done = box("delete")
        assert done.returncode == 1
        assert "must be stopped before deletion" in done.stderr
        assert "exit code 137" in box("delete --force").stderr
        assert not Path(f"/proc/{pid}").exists()
        assert box.name not in containerd.tasks()


def test_start_after_the_end(containerd: Containerd) -> None:
    with containerd.container("", *lingering("echo x >> /count; wc -l < /count")) as box:
        wait_until(lambda: box.status_name == "STOPPED", "its end")
        box.read("delete")
        assert box.read("start") == "2\n"


def test_death_by_another_hand(containerd: Containerd) -> None:
    with containerd.container() as box:
        os.kill(box.pid, signal.SIGKILL)
        wait_until(lambda: box.status_name == "STOPPED", "its end")
        assert "exit code 137" in box("delete").stderr


def test_pause(containerd: Containerd) -> None:
    script = "while :; do echo x >> /count; sleep 0.01; done"
    with containerd.container("", "sh", "-c", script) as box:
        file = Path(f"/proc/{box.pid}/root/count")
        wait_until(file.exists, "the first line")
        box.read("pause")
        assert box.is_frozen()
        assert box.status_name == "PAUSED"
        size = file.stat().st_size
        assert box.exec("", "true").returncode == 1
        assert file.stat().st_size == size
        box.read("resume")
        assert not box.is_frozen()
        assert box.status_name == "RUNNING"
        wait_until(lambda: file.stat().st_size > size, "a further line")


def test_metrics(containerd: Containerd) -> None:
    with containerd.container("--memory-limit 67108864") as box:
        metrics = json.loads(box.read("metrics --format json"))
        assert metrics["pids"]["current"] == 1
        assert metrics["memory"]["usage"]["limit" if on_v1("memory") else "usage"]
        if on_v1("memory"):
            assert metrics["memory"]["usage"]["limit"] == 64 * M
            assert metrics["memory"]["usage"]["usage"] > 0
        assert "pids.current" in box.read("metrics")


def test_out_of_memory(containerd: Containerd) -> None:
    done = containerd.done("--memory-limit 16777216", *lingering("tail /dev/zero; echo $?"))
    assert (done.returncode, done.stdout) == (0, "137\n")


# ---------------------------------------------------------------- checkpoint


def test_checkpoint_that_fails(containerd: Containerd, tmp_path: Path) -> None:
    """One clear error, and the container goes on."""
    with containerd.container() as box:
        (tmp_path / "file").touch()
        done = box(f"checkpoint --image-path {tmp_path}/file")
        assert done.returncode == 1
        assert "did not terminate successfully: exit status 1: " in done.stderr
        assert "criu" in done.stderr.lower() or "not a directory" in done.stderr
        assert box.status_name == "RUNNING"
        assert not box.is_frozen()
        assert box.exec("", "true").returncode == 0


@requires("criu")
def test_checkpoint(containerd: Containerd, tmp_path: Path) -> None:
    with containerd.container() as box:
        box.read(f"checkpoint --image-path {tmp_path}/image")
        assert list((tmp_path / "image").glob("core-*.img"))
        assert box.status_name == "RUNNING"
        box.read(f"checkpoint --exit --image-path {tmp_path}/last")
        wait_until(lambda: box.status_name == "STOPPED", "its end")
