"""The options before the verb, those of create that no other file tests, help and version."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.attack import PRELUDE
from support.command import execute
from support.oci import Bundle, Container, Runtime, nothing_remains
from support.requires import Kind, Unmet, need

VERBS = (
    *("checkpoint", "create", "delete", "events", "exec", "features", "kill", "list", "pause"),
    *("ps", "restore", "resume", "run", "spec", "start", "state", "update"),
)
# What runc 1.1 documents for each, and firkin-runtime's own.
OPTIONS = {
    "create": "bundle console-socket pid-file no-pivot no-new-keyring preserve-fds",
    "run": "bundle console-socket detach keep pid-file no-pivot no-new-keyring preserve-fds",
    "exec": "console-socket cwd env tty user additional-gids process detach pid-file process-label"
    " apparmor no-new-privs cap preserve-fds cgroup ignore-paused",
    "delete": "force",
    "kill": "all",
    "list": "format quiet",
    "ps": "format",
    "events": "interval stats",
    "spec": "bundle rootless",
    "update": "resources blkio-weight cpu-period cpu-quota cpu-share cpu-rt-period cpu-rt-runtime"
    " cpuset-cpus cpuset-mems memory memory-reservation memory-swap pids-limit l3-cache-schema"
    " mem-bw-schema",
    "checkpoint": "image-path work-path leave-running tcp-established ext-unix-sk shell-job"
    " file-locks",
    "restore": "console-socket image-path work-path tcp-established bundle detach pid-file",
}


# ---------------------------------------------------------------- help and version


def test_help_of_each_verb(runtime: Runtime) -> None:
    for verb in VERBS:
        done = runtime(verb, "--help" if len(verb) % 2 else "-h", check=True)
        assert verb in done.stdout
        assert done.stderr == ""
        for name in OPTIONS.get(verb, "").split():
            assert f"--{name}" in done.stdout, (verb, name)
    assert runtime.ids() == []


def test_help(runtime: Runtime) -> None:
    for words in (["--help"], ["-h"], ["help"], []):
        done = runtime(*words, check=True)
        assert done.stderr == ""
        for verb in VERBS:
            assert re.search(rf"^ +{verb} ", done.stdout, re.M), verb
        for name in ("root", "log", "log-format", "debug", "systemd-cgroup", "rootless", "criu"):
            assert f"--{name}" in done.stdout


@pytest.mark.parametrize("option", ["--version", "-v"])
def test_version(runtime: Runtime, option: str) -> None:
    """dockerd reads the lines: NAME version VERSION, then KEY: VALUE."""
    done = runtime(option, check=True)
    assert done.stderr == ""
    first, *rest = done.stdout.splitlines()
    assert re.fullmatch(rf"{runtime.name} version \d+\.\d+\S*", first)
    members = dict(line.split(": ", 1) for line in rest)
    assert re.fullmatch(r"1\.\d+\.\d+(-dev)?", members["spec"])
    assert re.fullmatch(r"2\.\d+\.\d+", members["libseccomp"])
    if shutil.which("runc"):
        runcs = execute(["runc", "--version"]).stdout.splitlines()
        assert f"libseccomp: {members['libseccomp']}" in runcs


def test_under_another_name(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """ctr looks for "runc" on its PATH: a link of that name must do."""
    path = shutil.which(runtime.path)
    assert path
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/runc").symlink_to(path)
    other = Runtime(str(tmp_path / "bin/runc"), runtime.root)
    other.started = runtime.started
    container = other.up(bundle)
    assert runtime.state(container.id)["status"] == "running"


def test_no_environment(runtime: Runtime, bundle: Bundle) -> None:
    container = Container(runtime, runtime.new_id(), bundle)
    path = shutil.which(runtime.path)
    assert path
    words = runtime.command("run", "--bundle", bundle.args("env").write().folder, container.id)
    done = execute([path, *words[1:]], env={})
    assert (done.returncode, done.stderr) == (0, "")
    assert "PATH=" in done.stdout


# ---------------------------------------------------------------- usage


WRONG = [
    ["state"],
    ["state", "a", "b"],
    ["create"],
    ["create", "a", "b"],
    ["start"],
    ["delete"],
    ["kill"],
    ["kill", "a", "KILL", "c"],
    ["pause"],
    ["resume", "a", "b"],
    ["list", "a"],
    ["run"],
    ["update"],
    ["events"],
    ["ps"],
    ["exec"],
    ["spec", "a"],
    ["features", "a"],
    ["state", "--nosuch", "a"],
    ["create", "--bundle"],
    ["create", "--preserve-fds", "x", "a"],
    ["delete", "--force=maybe", "a"],
    ["--nosuch"],
    ["--root"],
    ["--log-format", "yaml", "list"],
    ["--log", "/nonexistent/log", "list"],
]


def test_wrong_usage(runtime: Runtime) -> None:
    """Status 1 and one line of error; runc prints the help to standard output, too."""
    for words in WRONG:
        done = execute([runtime.path, "--root", str(runtime.root), *words])
        expected = (1, 255) if words[0] == "exec" else (1,)
        assert done.returncode in expected, (words, done.stderr)
        assert runtime.message(done.stderr)
    assert runtime.ids() == []


def test_an_unknown_verb(runtime: Runtime) -> None:
    done = runtime("nosuch")
    assert done.returncode == (3 if runtime.is_runc else 1)
    assert "nosuch" in done.stderr


def test_options_may_be_flags_of_go(runtime: Runtime, bundle: Bundle) -> None:
    """One dash or two, with "=" or without; flags may say true or false."""
    container = runtime.create(bundle)
    for words in (["--quiet"], ["-quiet"], ["-q"], ["--quiet=true"], ["-q=1"]):
        assert runtime("list", *words, check=True).stdout == f"{container.id}\n"
    assert runtime("list", "--quiet=false", check=True).stdout != f"{container.id}\n"
    for options in (
        ("-root", runtime.root),
        (f"--root={runtime.root}",),
        (f"-root={runtime.root}",),
    ):
        done = execute([runtime.path, *map(str, options), "list", "-q"], check=True)
        assert done.stdout == f"{container.id}\n"


# ---------------------------------------------------------------- logs


def failing(runtime: Runtime, *options: str) -> subprocess.CompletedProcess[str]:
    return runtime("start", "firkin-unknown", options=options)


def test_the_log_as_json(runtime: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for _ in range(2):  # a log that is there is added to
        done = failing(runtime, "--log", str(log), "--log-format", "json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0] | {"time": ""} == lines[1] | {"time": ""}
    assert set(lines[0]) == {"level", "msg", "time"}
    assert lines[0]["level"] == "error"
    assert lines[0]["msg"] == runtime.refused(done)
    moment = datetime.datetime.fromisoformat(lines[0]["time"])
    assert moment.tzinfo
    assert abs(moment.timestamp() - datetime.datetime.now().timestamp()) < 60
    assert re.fullmatch(
        r'\{"level":"error","msg":".*","time":"[^"]*"\}', log.read_text().split("\n")[0]
    )


def test_the_log_as_text(runtime: Runtime, tmp_path: Path) -> None:
    done = failing(runtime, "--log", str(tmp_path / "log"))
    line = (tmp_path / "log").read_text()
    found = re.fullmatch(r'time="([^"]*)" level=error msg="(.*)"\n', line)
    assert found
    assert found[2].replace('\\"', '"') == runtime.refused(done)
    assert datetime.datetime.fromisoformat(found[1]).tzinfo
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o644


def test_a_message_with_anything_in_it(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """Whatever a configuration holds: one line that parses."""
    log = tmp_path / "log"
    name = 'no"such\\\n\x1b[2Jé\t\u2028'
    container = runtime.create(
        bundle.args(f"/{name}"), check=False, options=("--log", str(log), "--log-format", "json")
    )
    assert container.done.returncode == 1
    lines = log.read_text().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line)["level"] for line in lines][-1] == "error"
    assert "no such file or directory" in json.loads(lines[-1])["msg"]
    if not runtime.is_runc:
        assert container.done.stderr.count("\n") == 1
        assert "\x1b" not in container.done.stderr


def test_nothing_is_logged_of_success(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    container = runtime.create(bundle, options=("--log", str(log), "--log-format", "json"))
    options = ("--log", str(log), "--log-format", "json")
    for verb in ("start", "state", "pause", "resume"):
        runtime(verb, container.id, options=options, check=True)
    assert not log.exists() or log.read_text() == ""


def test_debug(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ("--debug", "--log", str(log), "--log-format", "json")
    done = runtime.run(bundle.args("echo", "ran"), options=options)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    levels = {json.loads(line)["level"] for line in log.read_text().splitlines()}
    assert "debug" in levels
    assert "error" not in levels


def test_log_level(runtime: Runtime, tmp_path: Path) -> None:
    runtime.only_firkin("--log-level is crun's")
    for level in ("debug", "info", "warning", "warn", "error", "fatal"):
        log = tmp_path / level
        runtime.refused(failing(runtime, "--log", str(log), "--log-level", level))
        text = log.read_text() if log.exists() else ""
        assert ("level=debug" in text) == (level == "debug")
        assert ("level=error" in text) == (level != "fatal")


def test_an_unknown_log_level(runtime: Runtime) -> None:
    runtime.only_firkin("--log-level is crun's")
    assert "loud" in runtime.refused(failing(runtime, "--log-level", "loud"))


# ---------------------------------------------------------------- cgroups and root


def test_rootless(runtime: Runtime, bundle: Bundle) -> None:
    """root has its cgroups whatever it says."""
    for given in ("true", "false", "auto"):
        container = runtime.create(bundle, options=("--rootless", given))
        assert container.id in str(container.cgroup("pids"))


def test_systemd_where_there_is_none(runtime: Runtime, bundle: Bundle) -> None:
    if os.path.isdir("/run/systemd/system"):
        raise Unmet("systemd runs here", Kind.MACHINE)
    bundle.linux["cgroupsPath"] = "user.slice:firkin:x"
    for options in (("--systemd-cgroup",), ("--cgroup-manager", "systemd")):
        if runtime.is_runc and options[0] == "--cgroup-manager":
            continue  # crun's option
        container = runtime.create(bundle, options=options, check=False)
        assert "systemd" in runtime.refused(container.done)
        nothing_remains(runtime, container.id)


@pytest.mark.parametrize("manager", ["cgroupfs", "disabled"])
def test_cgroup_manager(runtime: Runtime, bundle: Bundle, manager: str) -> None:
    runtime.only_firkin("--cgroup-manager is crun's")
    del bundle.linux["resources"]
    container = runtime.up(bundle, options=("--cgroup-manager", manager))
    assert (container.id in container.proc("cgroup")) == (manager == "cgroupfs")
    container.stop()
    container.delete()
    nothing_remains(runtime, container.id)


def test_an_unknown_cgroup_manager(runtime: Runtime) -> None:
    runtime.only_firkin("--cgroup-manager is crun's")
    assert "nosuch" in runtime.refuses("list", options=("--cgroup-manager", "nosuch"))


@pytest.mark.parametrize("kind", ["absolute", "relative", "deep"])
def test_cgroups_path(runtime: Runtime, bundle: Bundle, kind: str) -> None:
    name = runtime.new_id()
    path = {"absolute": f"/{name}", "relative": name, "deep": f"/{name}.parent/{name}"}[kind]
    bundle.linux["cgroupsPath"] = path
    container = runtime.create(bundle, id=name)
    assert str(container.cgroup("pids")).endswith(path)
    if kind != "relative":
        assert container.cgroup("pids") == Path("/sys/fs/cgroup/pids" + path) or (
            container.cgroup("pids") == Path("/sys/fs/cgroup" + path)
        )
    parent = container.cgroup("pids").parent
    container.delete()
    nothing_remains(runtime, name)
    if kind == "deep":  # the parent is somebody else's to remove
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if " - cgroup" in line:
                folder = Path(line.split()[4], parent.name)
                if folder.exists():
                    folder.rmdir()


def test_cgroups_path_stays_below_the_hierarchy(runtime: Runtime, bundle: Bundle) -> None:
    name = runtime.new_id()
    bundle.linux["cgroupsPath"] = f"/../../../../{name}"
    container = runtime.create(bundle, id=name, check=False)
    if container.done.returncode:
        assert runtime.refused(container.done)
    else:
        assert str(container.cgroup("pids")).startswith("/sys/fs/cgroup/")
        assert "/.." not in container.proc("cgroup")
    assert not Path(f"/{name}").exists()
    assert not Path(f"/sys/{name}").exists()


# ---------------------------------------------------------------- options of create


def test_another_configuration(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    runtime.only_firkin("--config is crun's")
    bundle.args("echo", "of the bundle").write()
    other = bundle.config | {"process": bundle.process | {"args": ["echo", "other"]}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    for option in ("--config", "-f"):
        done = runtime.run(bundle, option, tmp_path / "other.json")
        assert (done.returncode, done.stdout, done.stderr) == (0, "other\n", "")
    said = runtime.refused(runtime.run(bundle, "--config", tmp_path / "none.json"))
    assert "none.json" in said


def test_no_pivot(runtime: Runtime, bundle: Bundle, busybox_root: Path) -> None:
    """For a host on a ramfs: the root is moved; there is no way back all the same."""
    script = "cat /etc/hostname; ls -d /proc/1/root/.. ../../../../../../etc/hostname; mount"
    bundle.linux["maskedPaths"] = []
    done = runtime.run(bundle.shell(script), "--no-pivot")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("busybox\n")
    assert str(busybox_root) not in done.stdout
    assert " on / type " in done.stdout


KEY = "firkin-test-key"
# A key that only its possessor sees: whoever has the session keyring.
HOLDER = (
    PRELUDE
    + f"""
call("syscall", 250, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING
key = call("syscall", 248, b"user", b"{KEY}", b"x", 1, -3)
assert key > 0
call("syscall", 250, 5, key, 0x3f000000)  # KEYCTL_SETPERM
os.execvp(sys.argv[1], sys.argv[1:])
"""
)


@pytest.mark.parametrize("inherit", [True, False])
@pytest.mark.parametrize("verb", ["run", "create"])
def test_the_session_keyring(runtime: Runtime, bundle: Bundle, inherit: bool, verb: str) -> None:
    need("architecture:x86_64")  # the numbers of HOLDER
    bundle.linux["maskedPaths"] = []
    bundle.shell(f"grep -c {KEY} /proc/keys; exec sleep 1000" if verb == "create" else
                 f"grep -c {KEY} /proc/keys; :")  # fmt: skip
    options = ["--no-new-keyring"] if inherit else []
    container = Container(runtime, runtime.new_id(), bundle)
    words = runtime.command(verb, "-b", bundle.write().folder, *options, container.id)
    with container.out.open("w") as out, container.err.open("w") as err:
        line = ["/usr/bin/python3", "-c", HOLDER, *words]
        done = execute(line, stdout=out, stderr=err)
    assert done.returncode == 0, container.errors()
    if verb == "create":
        container.start()
    assert container.output(until="\n") == ("1\n" if inherit else "0\n")
