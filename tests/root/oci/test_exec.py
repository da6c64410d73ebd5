"""exec: another process in a container: who it is, where it lies, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.oci import Bundle, Container, Runtime, alive, make_below
from support.requires import requires
from support.running import PATIENCE, cgroup_of, wait_until

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture
def container(runtime: Runtime, bundle: Bundle) -> Container:
    """A container that runs."""
    bundle.process["env"].append("FROM=config")
    return runtime.up(bundle)


def shell(container: Container, script: str, *options: Any, **more: Any) -> str:
    """Return what *script* prints, run by exec; it has to succeed silently."""
    done = container.exec(*options, "sh", "-c", script, **more)
    assert (done.returncode, done.stderr) == (0, ""), (done.stdout, done.stderr)
    return str(done.stdout).strip()


def refused(container: Container, *words: Any, **more: Any) -> str:
    """Check that exec fails in one line; return the message."""
    return container.runtime.refused(container.exec(*words, **more), status=255)


# ---------------------------------------------------------------- how it ends


STATUSES = {"exit 0": 0, "exit 3": 3, "exit 255": 255, "kill -KILL $$": 137, "kill $$": 143}


def test_status(container: Container) -> None:
    for script, status in STATUSES.items():
        done = container.exec("sh", "-c", f"echo out; echo err >&2; {script}")
        assert (done.returncode, done.stdout, done.stderr) == (status, "out\n", "err\n"), script


# What Docker and podman search the text for, to end with 127 or 126.
NOT_THERE = {
    "nosuch": "executable file not found in $PATH",
    "": "executable file not found in $PATH",
    "/nosuch": "no such file or directory",
    "/etc/passwd": "permission denied",
    "/etc": "permission denied",
}


@pytest.mark.parametrize("options", [(), ("--detach",)])
def test_no_such_command(container: Container, options: tuple[str, ...]) -> None:
    for command, says in NOT_THERE.items():
        said = refused(container, *options, command)
        assert says in said
        assert command in said


def test_no_command(container: Container) -> None:
    assert "args" in refused(container)


def test_an_error_is_logged(container: Container, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    said = refused(container, "nosuch", options=("--log", log, "--log-format", "json"))
    line = json.loads(log.read_text().splitlines()[-1])
    assert (line["level"], line["msg"]) == ("error", said)


def test_input_and_output_pass(container: Container) -> None:
    done = container.exec("sh", "-c", "cat; echo e >&2", input="a\0b\n" * 50_000)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\0b\n" * 50_000, "e\n")


def test_signals_are_passed_on(container: Container) -> None:
    script = 'trap "echo got; exit 9" TERM; echo up; while :; do sleep 0.05; done'
    words = container.runtime.command("exec", container.id, "sh", "-c", script)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout
        assert client.stdout.readline() == "up\n"
        client.send_signal(signal.SIGTERM)
        assert client.stdout.read() == "got\n"
    assert client.returncode == 9


def test_the_end_of_the_container_ends_it(container: Container) -> None:
    words = container.runtime.command("exec", container.id, "sh", "-c", "echo up; sleep 1000")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout
        assert client.stdout.readline() == "up\n"
        container.stop()
    assert client.returncode == 137


def test_in_a_created_container(runtime: Runtime, bundle: Bundle) -> None:
    """runc allows it: the process lies in the container, its command has not begun."""
    container = runtime.create(bundle)
    assert shell(container, "echo $$; hostname").split("\n")[1] == "cask"
    assert container.status == "created"
    container.start()
    assert container.status == "running"


# ---------------------------------------------------------------- where it lies


def test_namespaces_and_cgroups(container: Container) -> None:
    pid = container.exec_detached()
    for kind in ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == container.namespace(kind), kind
    assert Path(f"/proc/{pid}/cgroup").read_text() == container.proc("cgroup")
    assert os.readlink(f"/proc/{pid}/root") == "/"
    assert Path(f"/proc/{pid}/root/etc/hostname").read_text() == "busybox\n"


def test_a_user_namespace(runtime: Runtime, bundle: Bundle, own_root: Path) -> None:
    mapping = [{"containerID": 0, "hostID": 200_000, "size": 2000}]
    bundle.linux.update(uidMappings=mapping, gidMappings=mapping)
    bundle.namespaces.append({"type": "user"})
    bundle.config["root"]["path"] = str(own_root)
    container = runtime.up(bundle)
    assert shell(container, "id -u; cat /proc/self/uid_map").split() == ["0", "0", "200000", "2000"]
    pid = container.exec_detached("--user", "1000:50")
    assert os.readlink(f"/proc/{pid}/ns/user") == container.namespace("user")
    assert os.stat(f"/proc/{pid}").st_uid == 201_000


def test_shared_namespaces(runtime: Runtime, bundle: Bundle) -> None:
    for kind in ("pid", "network", "ipc", "uts"):
        bundle.without_namespace(kind)
    del bundle.config["hostname"]
    container = runtime.up(bundle)
    pid = container.exec_detached()
    for kind in ("pid", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")
    assert os.readlink(f"/proc/{pid}/ns/mnt") == container.namespace("mnt")


def test_a_detached_process(container: Container) -> None:
    """The runtime is gone, its parent is the client, and the pid file is true."""
    pid = container.exec_detached(command=("sh", "-c", "read x; exit 7"))
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(rf"^PPid:\t{os.getpid()}$", status, re.M)
    assert container.wait_adopted(pid) == 7


def test_the_pid_file(container: Container, tmp_path: Path) -> None:
    done = container.exec("--pid-file", tmp_path / "pid", "sh", "-c", "readlink /proc/self; :")
    assert done.returncode == 0
    assert int((tmp_path / "pid").read_text()) > 1


def test_a_pid_file_that_cannot_be_written(container: Container, tmp_path: Path) -> None:
    said = refused(container, "--pid-file", tmp_path / "none/pid", "sleep", "1000")
    assert "no such file or directory" in said
    wait_until(lambda: container.exec("ps").stdout.count("sleep 1000") == 1, "its end")


# ---------------------------------------------------------------- who it is


def test_it_is_as_the_containers_process(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 50, "additionalGids": [7]}
    bundle.process["cwd"] = "/tmp"
    bundle.process["env"] = [f"PATH={PATH}", "A=b c"]
    bundle.process["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 33, "hard": 44}]
    bundle.process["oomScoreAdj"] = 77
    container = runtime.up(bundle)
    pid = container.exec_detached()
    for name in ("limits", "oom_score_adj"):
        assert Path(f"/proc/{pid}/{name}").read_text() == container.proc(name)
    fields = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapBnd", "CapPrm")
    own, first = (
        dict(line.split(":\t", 1) for line in text.splitlines())
        for text in (Path(f"/proc/{pid}/status").read_text(), container.proc("status"))
    )
    assert {name: own[name] for name in fields} == {name: first[name] for name in fields}
    assert shell(container, "pwd; echo $A").split("\n") == ["/tmp", "b c"]


def test_user(container: Container) -> None:
    """Without a group it is the configuration's, here 0; nothing is looked up."""
    for user, expected in {"1000": "1000 0 0", "1000:50": "1000 50 50", "0:7": "0 7 7"}.items():
        found = shell(container, "echo $(id -u) $(id -g) $(id -G)", "--user", user)
        assert found == expected
    assert shell(container, "id -u", "-u", "7") == "7"


def test_bad_users(container: Container) -> None:
    users = ["alice", "1000:staff", ":", "1.5"]
    if not container.runtime.is_runc:
        users += ["-1", "1:2:3"]  # runc takes the id -1, and 1:2:3 as 1
    for user in users:
        refused(container, f"--user={user}", "true")


def test_additional_groups(container: Container) -> None:
    script = "grep ^Groups: /proc/self/status"
    for option in ("--additional-gids", "-g"):
        found = shell(container, script, "--user", "1000:50", option, "7", option, "8")
        assert found.split() == ["Groups:", "7", "8"]


def test_cwd(container: Container) -> None:
    assert shell(container, "pwd; pwd -P", "--cwd", "/var/tmp").split() == ["/var/tmp"] * 2
    assert "bsolute" in refused(container, "--cwd", "var", "true")
    assert "/nonexistent" in refused(container, "--cwd", "/nonexistent", "true")
    assert "not a directory" in refused(container, "--cwd", "/etc/passwd", "true")


def test_env(container: Container) -> None:
    found = shell(
        container, "env", "--env", "A=b c", "--env", "A=d", "--env", "PATH=/bin", "--env", "E="
    )
    assert shell(container, "echo $A", "-e", "A=1", "-e", "B=2") == "1"
    lines = set(found.splitlines())
    assert {"A=d", "FROM=config", "PATH=/bin", "E=", "HOME=/root"} <= lines
    assert not any(line.startswith("XDG") or "FIRKIN" in line for line in lines)


def test_home_is_the_users(container: Container) -> None:
    assert shell(container, "echo $HOME", "--user", "1000") == "/home/alice"
    assert shell(container, "echo $HOME", "--user", "4321") == "/"
    assert shell(container, "echo $HOME", "--env", "HOME=/x", "--user", "1000") == "/x"


def caps(container: Container, *options: Any) -> dict[str, int]:
    found = shell(container, "grep ^Cap /proc/self/status", *options)
    return {line[3:6]: int(line.split()[1], 16) for line in found.splitlines()}


CHOWN, NET_ADMIN = 1 << 0, 1 << 12
GIVEN = 1 << 5 | 1 << 10 | 1 << 29  # support.oci.configuration's


def test_capabilities(container: Container) -> None:
    # The sets of the configuration have no inheritable one, so nothing is ambient.
    plain = {"Inh": 0, "Prm": GIVEN, "Eff": GIVEN, "Bnd": GIVEN, "Amb": 0}
    assert caps(container) == plain
    more = GIVEN | NET_ADMIN | CHOWN
    found = caps(container, "--cap", "CAP_NET_ADMIN", "--cap", "CAP_CHOWN")
    assert found["Bnd"] == found["Prm"] == found["Eff"] == more
    # The configuration's own are as before.
    assert caps(container) == plain
    found = caps(container, "--cap", "CAP_NET_ADMIN", "--user", "1000")
    assert (found["Bnd"], found["Eff"]) == (GIVEN | NET_ADMIN, 0)


def test_an_unknown_capability_is_only_warned_of(container: Container) -> None:
    """As runtime-spec says since 1.1: config.md, capabilities."""
    done = container.exec("--cap", "CAP_NOSUCH", "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "CAP_NOSUCH" in done.stderr


def test_no_new_privileges(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["noNewPrivileges"] = False
    container = runtime.up(bundle)
    script = "grep ^NoNewPrivs /proc/self/status"
    assert shell(container, script).split()[1] == "0"
    assert shell(container, script, "--no-new-privs").split()[1] == "1"


def no_lsm() -> bool:
    """Tell whether the kernel has neither AppArmor nor SELinux."""
    try:
        text = Path("/sys/kernel/security/lsm").read_text()
    except OSError:
        return not Path("/sys/fs/selinux/enforce").exists()
    return "apparmor" not in text and "selinux" not in text


def test_labels_that_the_kernel_lacks(container: Container) -> None:
    """Where the kernel has the module there is no such profile or label."""
    for option, module in {"--apparmor": "apparmor", "--process-label": "selinux"}.items():
        said = refused(container, option, "firkin-no-such-label", "true")
        if no_lsm():
            assert module in said.lower()


# ---------------------------------------------------------------- descriptors


@pytest.fixture
def three(tmp_path: Path) -> Any:
    """Descriptors 3 to 5 for a child: a shell is executed that opens them first."""
    for number in (3, 4, 5):
        (tmp_path / f"file{number}").write_text(f"content {number}\n")
    opened = " ".join(f"{number}<{tmp_path}/file{number}" for number in (3, 4, 5))

    def words(command: list[str], before: str = "") -> list[str]:
        return ["sh", "-c", f'{before} exec "$@" {opened}', "sh", *command]

    return words


SEEN = "for n in 3 4 5; do cat <&$n || echo none; done 2>/dev/null"


@pytest.mark.parametrize("count", [0, 2])
def test_preserved_descriptors(container: Container, three: Any, count: int) -> None:
    options = ["--preserve-fds", str(count)] if count else []
    line = container.runtime.command("exec", *options, container.id, "sh", "-c", SEEN)
    done = subprocess.run(three(line), capture_output=True, text=True, check=True)
    expected = [f"content {n}" if n < 3 + count else "none" for n in (3, 4, 5)]
    assert done.stdout.splitlines() == expected


def test_descriptors_that_are_not_there(container: Container) -> None:
    refused(container, "--preserve-fds", "500", "true")


@pytest.mark.parametrize("count", [0, 2])
def test_create_preserves_descriptors(
    runtime: Runtime, bundle: Bundle, three: Any, count: int
) -> None:
    bundle.shell(SEEN).write()
    line = ["run", "--bundle", bundle.folder, "--preserve-fds", str(count), runtime.new_id()]
    done = subprocess.run(three(runtime.command(*line)), capture_output=True, text=True, check=True)
    expected = [f"content {n}" if n < 3 + count else "none" for n in (3, 4, 5)]
    assert done.stdout.splitlines() == expected


def test_socket_activation(runtime: Runtime, bundle: Bundle, three: Any) -> None:
    """sd_listen_fds(3): LISTEN_FDS passes as many descriptors, and pid 1 is told."""
    bundle.shell(f"{SEEN}; echo $LISTEN_FDS $LISTEN_PID").write()
    line = runtime.command("run", "--bundle", bundle.folder, runtime.new_id())
    before = "export LISTEN_FDS=2 LISTEN_PID=$$;"
    done = subprocess.run(three(line, before), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["content 3", "content 4", "none", "2 1"]


def test_socket_activation_of_another_process(runtime: Runtime, bundle: Bundle, three: Any) -> None:
    bundle.shell(f"{SEEN}; echo =$LISTEN_FDS=").write()
    line = runtime.command("run", "--bundle", bundle.folder, runtime.new_id())
    before = "export LISTEN_FDS=2 LISTEN_PID=1;"
    done = subprocess.run(three(line, before), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["none", "none", "none", "=="]


def test_preserved_descriptors_follow_the_sockets(
    runtime: Runtime, bundle: Bundle, three: Any
) -> None:
    bundle.shell(SEEN).write()
    options = ["--preserve-fds", "1"]
    line = runtime.command("run", "--bundle", bundle.folder, *options, runtime.new_id())
    before = "export LISTEN_FDS=2 LISTEN_PID=$$;"
    done = subprocess.run(three(line, before), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["content 3", "content 4", "content 5"]


def test_nothing_else_of_the_runtime_is_open(container: Container) -> None:
    names = shell(container, "ls /proc/self/fd").split()
    assert names == ["0", "1", "2", "3"]  # 3 is that of ls
    pid = container.exec_detached()
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
    assert sorted(os.listdir(f"/proc/{container.pid}/fd")) == ["0", "1", "2"]


# ---------------------------------------------------------------- --process


def write_process(tmp_path: Path, **fields: Any) -> Path:
    """Write a process of the specification, and return its path."""
    process = {
        "args": ["sleep", "1000"],
        "cwd": "/tmp",
        "env": [f"PATH={PATH}", "X=y"],
        "user": {"uid": 5, "gid": 6},
    }
    (tmp_path / "process.json").write_text(json.dumps(process | fields))
    return tmp_path / "process.json"


def test_a_process_file(container: Container, tmp_path: Path) -> None:
    script = "id -u; id -g; pwd; echo =$FROM=$X; grep -E 'CapBnd|CapEff' /proc/self/status"
    path = write_process(
        tmp_path,
        args=["sh", "-c", script],
        capabilities={"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": [], "permitted": []},
    )
    for option in ("--process", "-p"):
        done = container.exec(option, path)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.split("\n")
        # Nothing of the configuration's process is added.
        assert lines[:4] == ["5", "6", "/tmp", "==y"]
        assert [int(line.split()[1], 16) for line in lines[4:6]] == [0, 1 << 5 | 1 << 0]


def test_a_process_file_as_docker_writes_it(container: Container, tmp_path: Path) -> None:
    names = ["CAP_CHOWN", "CAP_KILL"]
    path = write_process(
        tmp_path,
        user={"uid": 0, "gid": 0, "additionalGids": [0, 10]},
        capabilities=dict.fromkeys(("bounding", "effective", "permitted"), names),
        rlimits=[{"type": "RLIMIT_CORE", "soft": 7, "hard": 8}],
    )
    pid = container.exec_detached("--process", path)
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert status["CapEff"] == status["CapBnd"] == f"{1 << 5 | 1:016x}"
    assert status["Groups"].split() == ["0", "10"]
    assert status["NoNewPrivs"] == "0"
    assert re.search(r"Max core file size +7 +8 ", Path(f"/proc/{pid}/limits").read_text())


BAD_PROCESSES: list[tuple[dict[str, Any], str]] = [
    ({"args": []}, "args"),
    ({"cwd": ""}, "wd"),
    ({"cwd": "tmp"}, "wd"),
    ({"args": ["nosuch"]}, "executable file not found in $PATH"),
    ({"env": ["PATH=/sys"], "args": ["sleep", "1"]}, "executable file not found in $PATH"),
    ({"rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}, "RLIMIT_X"),
    ({"terminal": True}, ""),
    ({"selinuxLabel": "firkin-no-such-label"}, ""),
]


def test_bad_process_files(container: Container, tmp_path: Path) -> None:
    for fields, says in BAD_PROCESSES:
        said = refused(container, "--detach", "--process", write_process(tmp_path, **fields))
        assert says in said, fields


def test_process_files_that_are_none(container: Container, tmp_path: Path) -> None:
    for text in ("", "{", "[]", "null", "1"):
        (tmp_path / "p.json").write_text(text)
        refused(container, "--process", tmp_path / "p.json")


def test_no_process_file(container: Container, tmp_path: Path) -> None:
    said = refused(container, "--process", tmp_path / "none.json")
    assert "none.json" in said
    assert "no such file or directory" in said


# ---------------------------------------------------------------- cgroups and the freezer


@requires("cgroup v1")
def test_a_cgroup_of_one_controller(container: Container) -> None:
    below = container.cgroup("pids") / "below"
    below.mkdir()
    for word in ("pids:below", "pids:/below"):
        pid = container.exec_detached("--cgroup", word)
        assert cgroup_of(pid, "pids") == below
        assert cgroup_of(pid, "memory") == container.cgroup("memory")


def test_a_cgroup_of_all(container: Container) -> None:
    """A path without a controller is for all hierarchies."""
    pid = container.exec_detached("--cgroup", "/")
    assert Path(f"/proc/{pid}/cgroup").read_text() == container.proc("cgroup")
    refused(container, "--cgroup", "below", "true")
    for folder in container.hierarchies():
        make_below(folder)
    pid = container.exec_detached("--cgroup", "below")
    for controller in ("memory", "pids"):
        assert cgroup_of(pid, controller) == container.cgroup(controller) / "below"


def test_cgroups_outside_are_refused(container: Container) -> None:
    for path in ("..", "pids:../", "pids:below/../..", "bogus:x", "a/../../.."):
        refused(container, "--cgroup", path, "true")


def test_exec_ignores_the_pause_when_told(container: Container) -> None:
    """The process is made, and frozen with the others: it runs when they do."""
    container.verb("pause")
    words = container.runtime.command("exec", "--ignore-paused", container.id, "echo", "ran")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as client:
        folder = container.cgroup("pids")
        wait_until(
            lambda: len((folder / "cgroup.procs").read_text().split()) > 1, "a second process"
        )
        container.verb("resume")
        assert client.stdout
        assert client.stdout.read() == "ran\n"
    assert client.returncode == 0


def test_many_at_once(container: Container) -> None:
    words = container.runtime.command("exec", container.id, "sh", "-c", "echo $$")
    clients = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    numbers = {client.communicate(timeout=PATIENCE)[0] for client in clients}
    assert [client.returncode for client in clients] == [0] * 6
    assert len(numbers) == 6
    assert alive(container.pid)
