"""What reviews of the OCI runtime have found, one test each; runc checks those that it can."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.command import execute
from support.oci import Bundle, Runtime, alive, ours
from support.running import wait_until

# ---------------------------------------------------------------- descriptors


@ours
def test_no_folder_of_the_host_is_open_in_the_waiting_process(
    runtime: Runtime, bundle: Bundle
) -> None:
    """``..`` leads from any of them to the host's root (CVE-2024-21626)."""
    pid = runtime.create(bundle).pid
    found = {
        os.readlink(f"/proc/{pid}/fd/{fd}"): stat.S_IFMT(os.stat(f"/proc/{pid}/fd/{fd}").st_mode)
        for fd in os.listdir(f"/proc/{pid}/fd")
    }
    assert len(found) >= 3
    assert stat.S_IFDIR not in found.values(), found


def test_the_user_can_open_its_standard_streams(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    script = "cat /dev/stdin >/dev/stdout; echo err >/dev/stderr"
    done = runtime.run(bundle.shell(script), input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "err\n")

    container = runtime.up(bundle.args("sleep", "1000"))
    done = container.exec("sh", "-c", script, input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "err\n")


@ours
def test_no_device_of_the_host_changes_its_owner(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    for device in ("/dev/null", "/dev/zero"):
        with open(device, "r+b", buffering=0) as stream:
            before = os.fstat(stream.fileno()).st_uid
            done = runtime.run(bundle.args("true"), stdin=stream, stdout=stream, stderr=stream)
            assert done.returncode == 0
            assert os.fstat(stream.fileno()).st_uid == before == 0


def test_standard_streams_that_were_closed_are_open(runtime: Runtime, bundle: Bundle) -> None:
    """Or the first file that the command opens would become its standard output."""
    bundle.shell("test -e /proc/$$/fd/0 -a -e /proc/$$/fd/1 -a -e /proc/$$/fd/2").write()
    line = runtime.command("run", "--bundle", bundle.folder, runtime.new_id())
    done = execute(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *line])
    assert done.returncode == 0


# ---------------------------------------------------------------- exec


def test_exec_keeps_the_groups_that_it_is_not_told_of(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5, 6]}
    container = runtime.up(bundle)
    for options, expected in {
        ("--user", "1001"): "1001 1000 1000 5 6",
        ("--user", "1001:7"): "1001 7 7 5 6",
        ("--additional-gids", "8"): "1000 1000 1000 5 6 8",
    }.items():
        done = container.exec(*options, "sh", "-c", "echo $(id -u) $(id -g) $(id -G)")
        assert done.stdout.strip() == expected, options


def test_what_a_process_file_leaves_out_is_the_containers(
    runtime: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    bundle.process["oomScoreAdj"] = 500
    container = runtime.up(bundle)
    process: dict[str, Any] = {
        "args": ["sh", "-c", "grep CapEff /proc/self/status; cat /proc/self/oom_score_adj"],
        "cwd": "/",
        "env": bundle.process["env"],
        "user": {"uid": 0, "gid": 0},
    }
    path = tmp_path / "process.json"
    path.write_text(json.dumps(process))
    done = container.exec("--process", path)
    held = sum(1 << number for number in (5, 10, 29))
    assert done.stdout.split() == ["CapEff:", f"{held:016x}", "500"]

    none: dict[str, list[str]] = {name: [] for name in ("bounding", "effective", "permitted")}
    path.write_text(json.dumps(process | {"capabilities": none}))
    assert container.exec("--process", path).stdout.split()[1] == f"{0:016x}"


def test_home_of_a_passwd_that_is_a_link(runtime: Runtime, bundle: Bundle, own_root: Path) -> None:
    passwd = own_root / "etc/passwd"
    passwd.rename(own_root / "etc/passwd.real")
    passwd.symlink_to("/etc/passwd.real")
    bundle.config["root"]["path"] = str(own_root)
    assert runtime.shell(bundle, "echo $HOME") == "/root"


@ours
def test_home_is_not_read_from_a_magic_link(
    runtime: Runtime, bundle: Bundle, own_root: Path, tmp_path: Path
) -> None:
    """The file is opened by a process of ours, whose descriptors are the host's."""
    (tmp_path / "outside").write_text("root:x:0:0::/outside:/bin/sh\n")
    passwd = own_root / "etc/passwd"
    passwd.unlink()
    passwd.symlink_to("/proc/self/fd/0")
    bundle.config["root"]["path"] = str(own_root)
    with (tmp_path / "outside").open() as stream:
        assert runtime.shell(bundle, "echo $HOME", stdin=stream) == "/"


# ---------------------------------------------------------------- lifecycle


def test_force_deletes_a_container_whose_start_hangs(
    runtime: Runtime, bundle: Bundle, own_root: Path
) -> None:
    bundle.config["root"] = {"path": str(own_root), "readonly": False}
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "echo > /hangs; exec sleep 1000"]}
    bundle.config["hooks"] = {"startContainer": [hook]}
    container = runtime.create(bundle)
    pid = container.pid
    with subprocess.Popen(runtime.command("start", container.id)) as starting:
        wait_until((own_root / "hangs").exists, "the hook")
        container.delete("--force")
        starting.wait(30)
    assert not alive(pid)
    assert runtime.ids() == []


@ours
def test_an_init_of_ours_outlives_its_maker(runtime: Runtime, bundle: Bundle) -> None:
    bundle.config["annotations"] = {"org.firkin.init": "true"}
    container = runtime.create(bundle.shell("echo up; sleep 1000"))
    assert container.status == "created"
    container.start()
    container.output(until="up\n")
    assert container.status == "running"
    # Nothing of the host's paths.
    assert Path(f"/proc/{container.pid}/cmdline").read_bytes().rstrip(b"\0") == b"firkin-init"
    container.stop()
    container.delete()

    waiting = runtime.create(bundle)
    waiting.kill("TERM")
    waiting.wait()
    waiting.delete()


@ours
def test_a_detached_run_is_not_ended_half_way(
    runtime: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "kill -TERM $PPID"]}
    bundle.config["hooks"] = {"createRuntime": [hook]}
    container = runtime.up(bundle, check=False)
    assert container.done.returncode == -signal.SIGTERM
    assert container.status == "running"


def test_run_reaps_what_the_container_leaves_to_it(runtime: Runtime, bundle: Bundle) -> None:
    """In a PID namespace that is shared, orphans become children of ``run``."""
    bundle.without_namespace("pid").shell(
        "for i in 1 2 3 4; do sh -c 'sleep 0.01 &'; done; sleep 0.2; echo up; exec sleep 1000"
    )
    line = runtime.command("run", "--bundle", bundle.write().folder, runtime.new_id())
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"

        def children() -> list[str]:
            text = execute(["ps", "-o", "stat=", "--ppid", str(running.pid)]).stdout
            return [line.strip()[:1] for line in text.splitlines()]

        wait_until(lambda: "Z" not in children(), "the end of all zombies")
        assert children() == ["S"]
        running.terminate()
        assert running.wait(30) == 128 + signal.SIGTERM


# ---------------------------------------------------------------- words


DIGITS = "1" * 5000


@ours
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("exec", "--user", DIGITS, "ID", "true"), 255),
        (("exec", "--additional-gids", DIGITS, "ID", "true"), 255),
        (("events", "--interval", f"{DIGITS}s", "ID"), 1),
    ],
)
def test_numbers_beyond_all_measure(
    runtime: Runtime, bundle: Bundle, words: tuple[str, ...], status: int
) -> None:
    container = runtime.up(bundle)
    runtime.refuses(*(container.id if word == "ID" else word for word in words), status=status)


@ours
def test_descriptors_beyond_all_measure(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    if execute(["sh", "-c", "command -v criu"]).returncode == 0:
        container.refuses("checkpoint", "--lazy-pages", "--status-fd", "99999999999")
    script = f'export LISTEN_PID=$$ LISTEN_FDS={DIGITS}; exec "$@"'
    line = runtime.command("run", "--bundle", bundle.args("true").write().folder)
    done = execute(["sh", "-c", script, "sh", *line, runtime.new_id()])
    assert (done.returncode, done.stderr) == (0, "")


@ours
def test_events_of_a_long_interval(runtime: Runtime, bundle: Bundle) -> None:
    """Longer than one poll(2) can wait."""
    container = runtime.up(bundle)
    line = runtime.command("events", "--interval", "2000h", container.id)
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as following:
        wait_until(
            lambda: any("pidfd" in os.readlink(fd) for fd in links(following.pid)), "the wait"
        )
        container.stop()
        assert following.communicate(timeout=30)[1] == ""
        assert following.returncode == 0


def links(pid: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    return [f"{folder}/{name}" for name in os.listdir(folder)]


@ours
def test_a_list_of_bundles_with_any_names(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/a\xff\nb"
    os.mkdir(folder)
    bundle.write()
    os.symlink(bundle.file, folder + b"/config.json")
    container = runtime.up(bundle)
    line = [os.fsencode(word) for word in runtime.command("create", "--bundle")]
    second = runtime.new_id()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*line, folder, second.encode()], check=True, **quiet)
    try:
        # As in a language whose letters are UTF-8 and nothing else.
        environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
        done = runtime("list", env=environment, check=True)
    finally:
        runtime.delete(second, "--force", check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert {line.split()[0] for line in lines[1:]} == {container.id, second}
    assert r"a\udcff\nb" in done.stdout
