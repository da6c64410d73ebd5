"""``checkpoint`` and ``restore``: what is asked of CRIU, and that a failure harms nothing.

Few kernels and CRIUs go together. :func:`test_with_criu` is for those that do. What else
succeeds here does so with a stand-in (``support/standin_criu.py``), which shows that the
runtime does its part, and that the real criu's parser takes its command lines.
"""

from __future__ import annotations

import array
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import leftovers, standin_criu
from support.command import environment, execute
from support.oci import Bundle, Container, Runtime, alive, mount, nothing_remains, ours
from support.requires import REQUIREMENTS, Kind, Unmet, requires
from support.running import cgroup_of, wait_until

pytestmark = requires("program:criu")


class StandIn:
    """The stand-in, and where it writes down what it was asked.

    Attributes:
        images: the folder of the checkpoint.
        options: global ones of the runtime, for :meth:`Runtime.__call__`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.images = folder / "images"
        program = folder / "standin-criu"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I {standin_criu.__file__} "$@"\n')
        program.chmod(0o755)
        self.options = ("--criu", program)

    def env(self, fails: str = "", script: str = "exec sleep 1000") -> dict[str, str]:
        own = {"STANDIN": str(self.folder), "STANDIN_FAILS": fails, "STANDIN_SCRIPT": script}
        return environment() | own

    def more(self, fails: str = "", script: str = "exec sleep 1000") -> dict[str, Any]:
        """Return what a runtime's call needs for it."""
        return {"options": self.options, "env": self.env(fails, script)}

    def asked(self, action: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"{action}.json").read_text())
        return found

    def given(self, action: str) -> dict[str, list[str]]:
        """Return the options of the last *action*."""
        found: dict[str, list[str]] = self.asked(action)["options"]
        return found

    def checkpoint(self, *texts: str) -> None:
        """Make what a checkpoint leaves, for a restore alone."""
        self.images.mkdir(exist_ok=True)
        (self.images / "descriptors.json").write_text(json.dumps(texts or ["/dev/null"] * 3))

    def dump(self, container: Container, *words: str | Path, fails: str = "") -> None:
        done = container.runtime(
            "checkpoint", "--image-path", self.images, *words, container.id, **self.more(fails)
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def standin(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "standin")


@pytest.fixture
def own_bundle(make_bundle: Callable[..., Bundle], busybox_root: Path, tmp_path: Path) -> Bundle:
    """A bundle whose root may be changed."""
    root = tmp_path / "own root"
    shutil.copytree(busybox_root, root, symlinks=True)
    return make_bundle(root=root)


def restore(
    runtime: Runtime, standin: StandIn, bundle: Bundle, *words: str | Path, **more: Any
) -> Container:
    """Run ``restore --detach``, which has to succeed."""
    container = Container(runtime, runtime.new_id(), bundle)
    line = ("restore", "--detach", "--image-path", standin.images, "--bundle")
    with container.out.open("ab") as out, container.err.open("ab") as err:
        streams = {"stdout": out, "stderr": err}
        container.done = runtime(
            *line, bundle.write().folder, *words, container.id, **(streams | standin.more() | more)
        )
    assert container.done.returncode == 0, container.errors()
    assert container.errors() == ""
    return container


def refuses_restore(
    runtime: Runtime, standin: StandIn, bundle: Bundle, *words: str | Path, **more: Any
) -> str:
    """Check that ``restore`` fails in one line and leaves nothing; return the message."""
    name = runtime.new_id()
    line = ("restore", "--image-path", standin.images, "--bundle", bundle.write().folder)
    message = runtime.refuses(*line, *words, name, **(standin.more() | more))
    nothing_remains(runtime, name)
    return message


def externals(given: dict[str, list[str]], kind: str) -> dict[str, str]:
    """Return the mounts or namespaces that were said to be others': name to value."""
    found = {}
    for value in given["--external"]:
        if value.startswith(f"{kind}["):
            name, _, rest = value.removeprefix(f"{kind}[").partition("]")
            found[name] = rest.removeprefix(":")
    return found


# ---------------------------------------------------------------- refusals


def test_only_what_runs_is_checkpointed(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    line = ("--image-path", tmp_path / "images")
    assert "does not exist" in runtime.refuses("checkpoint", *line, runtime.new_id())
    container = runtime.create(bundle)
    assert "created state" in container.refuses("checkpoint", *line)
    assert container.status == "created"
    container.start()
    container.stop()
    assert "stopped state" in container.refuses("checkpoint", *line)


@pytest.mark.parametrize(
    "words",
    [
        ("--page-server", "nowhere"),
        ("--page-server", "here:port"),
        ("--manage-cgroups-mode", "hard"),
        ("--parent-path", "/absolute"),
        ("--parent-path", "missing"),
        ("--empty-ns", "pid"),
        ("--lazy-pages", "--status-fd", "99"),
    ],
)
def test_an_option_that_can_not_be(
    runtime: Runtime, bundle: Bundle, tmp_path: Path, words: tuple[str, ...]
) -> None:
    if "--status-fd" in words:
        runtime.only_firkin("it asks criu for lazy pages first, which fails on most kernels")
    if "--empty-ns" in words:
        runtime.only_firkin("it tries to destroy the container then, and says that it can't, too")
    container = runtime.up(bundle)
    container.refuses("checkpoint", "--image-path", tmp_path / "images", *words)
    assert container.status == "running"


@pytest.mark.parametrize("verb", ["checkpoint", "restore"])
def test_podman_finds_out_what_there_is(runtime: Runtime, verb: str) -> None:
    """It asks so before it offers checkpoints at all."""
    assert runtime(verb, "--help").returncode == 0
    if verb == "restore":
        done = runtime(verb, "--lsm-mount-context")
        assert done.returncode != 0
        assert "flag needs an argument" in done.stdout + done.stderr


@ours
def test_without_criu(runtime: Runtime, bundle: Bundle, standin: StandIn, tmp_path: Path) -> None:
    container = runtime.up(bundle)
    nowhere = environment() | {"PATH": str(tmp_path)}
    message = container.refuses("checkpoint", "--image-path", standin.images, env=nowhere)
    assert "'criu': it is not on PATH; install CRIU" in message
    missing = ("--criu", tmp_path / "criu")
    message = container.refuses("checkpoint", "--image-path", standin.images, options=missing)
    assert f"'{tmp_path}/criu': no such file or directory" in message
    assert container.status == "running"
    standin.checkpoint()
    message = refuses_restore(runtime, standin, bundle, env=nowhere, options=())
    assert "install CRIU" in message


@ours
@pytest.mark.parametrize(
    "text",
    ["", "[", "{}", "3", '"pipe:[1]"', "[1]", '["a", null]', "[" * 60000, "\xff", '["a"] []'],
)
def test_what_is_no_checkpoint(
    runtime: Runtime, bundle: Bundle, standin: StandIn, text: str
) -> None:
    standin.checkpoint()
    (standin.images / "descriptors.json").write_bytes(text.encode("latin-1"))
    assert "descriptors.json" in refuses_restore(runtime, standin, bundle)


@ours
def test_where_no_checkpoint_is(runtime: Runtime, bundle: Bundle, standin: StandIn) -> None:
    assert "no such file" in refuses_restore(runtime, standin, bundle)
    standin.images.mkdir()
    assert "descriptors.json: no such file" in refuses_restore(runtime, standin, bundle)


@ours
def test_an_id_that_is_taken(runtime: Runtime, bundle: Bundle, standin: StandIn) -> None:
    container = runtime.up(bundle)
    standin.checkpoint()
    line = ("--image-path", standin.images, "--bundle", bundle.folder)
    message = container.refuses("restore", *line, **standin.more())
    assert "already exists" in message
    assert container.status == "running"


# ---------------------------------------------------------------- the real criu


@ours
def test_the_real_criu_fails(runtime: Runtime, bundle: Bundle, standin: StandIn) -> None:
    """It says why in its log, where it can't work on this kernel."""
    why = REQUIREMENTS["criu"].lacking("")
    if not why:
        raise Unmet("criu works on this kernel", Kind.MACHINE)
    words = why.rpartition("): ")[2]
    container = runtime.up(bundle)
    message = container.refuses("checkpoint", "--image-path", standin.images)
    assert words in message
    assert f"{standin.images}/dump.log" in message
    assert not (standin.images / "descriptors.json").exists()
    assert container.status == "running"
    assert container.exec("true").returncode == 0
    (standin.images / "descriptors.json").write_text('["/dev/null", "pipe:[1]", "pipe:[2]"]')
    message = refuses_restore(runtime, standin, bundle, options=())
    assert words in message
    assert f"{standin.images}/restore.log" in message


@ours
def test_the_real_criu_refuses_its_options(
    runtime: Runtime, bundle: Bundle, standin: StandIn, tmp_path: Path
) -> None:
    """It says so on standard error, before it has a log."""
    settings = tmp_path / "criu.conf"
    settings.write_text("no-such-setting\n")
    bundle.config["annotations"] = {"org.criu.config": str(settings)}
    container = runtime.up(bundle)
    message = container.refuses("checkpoint", "--image-path", standin.images)
    assert "no-such-setting" in message
    assert container.status == "running"
    standin.checkpoint()
    assert "no-such-setting" in refuses_restore(runtime, standin, bundle, options=())


@ours
@requires("criu")
def test_with_criu(runtime: Runtime, own_bundle: Bundle, standin: StandIn) -> None:
    script = "n=0; while true; do n=$((n + 1)); echo $n > /dev/shm/n; sleep 0.1; done"
    container = runtime.up(own_bundle.shell(script))
    wait_until(lambda: int(container.exec("cat", "/dev/shm/n").stdout or 0) > 5)
    line = ("--image-path", standin.images)
    runtime("checkpoint", *line, container.id, check=True)
    again = restore(runtime, standin, own_bundle, options=())
    assert int(again.exec("cat", "/dev/shm/n").stdout) > 5
    again.stop()
    again.delete()


# ---------------------------------------------------------------- checkpoint, with the stand-in


@ours
def test_a_checkpointed_container_is_gone(
    runtime: Runtime, bundle: Bundle, standin: StandIn, tmp_path: Path
) -> None:
    """As with runc, which containerd relies on; its poststop hooks have run."""
    told = tmp_path / "told"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"cat > {told}"]}
    bundle.config["hooks"] = {"poststop": [hook]}
    container = runtime.up(bundle)
    pid, freezer = container.pid, container.cgroup("freezer")
    standin.dump(container)
    given = standin.given("dump")
    assert given["--tree"] == [str(pid)]
    assert given["--root"] == [bundle.config["root"]["path"]]
    assert given["--images-dir"] == given["--work-dir"] == [str(standin.images)]
    assert given["--freeze-cgroup"] == [str(freezer)]
    assert given["--manage-cgroups"] == ["soft"]
    assert given["--empty-ns"] == ["net"]
    assert not {"--leave-running", "--track-mem", "--shell-job"} & set(given)
    assert standin.asked("dump")["blocked"] == []
    container.wait(pid)
    assert "does not exist" in container.refuses("state")
    nothing_remains(runtime, container.id)
    assert json.loads(told.read_text())["status"] == "stopped"
    descriptors = json.loads((standin.images / "descriptors.json").read_text())
    assert descriptors == ["/dev/null", str(container.out), str(container.err)]


@ours
def test_every_option(runtime: Runtime, bundle: Bundle, standin: StandIn, tmp_path: Path) -> None:
    """The stand-in has the real criu's parser look at each."""
    container = runtime.up(bundle)
    reader, writer = os.pipe()
    (standin.images / "before").mkdir(parents=True)
    words = [
        *("--work-path", tmp_path / "work", "--parent-path", "before", "--leave-running"),
        *("--tcp-established", "--tcp-skip-in-flight", "--link-remap", "--ext-unix-sk"),
        *("--shell-job", "--lazy-pages", "--status-fd", str(writer), "--file-locks"),
        *("--page-server", "[::1]:1234", "--manage-cgroups-mode", "full", "--auto-dedup"),
        *("--empty-ns", "network"),
    ]
    try:
        line = ("checkpoint", "--image-path", standin.images, *words, container.id)
        runtime(*line, check=True, pass_fds=(writer,), **standin.more())
    finally:
        os.close(reader)
        os.close(writer)
    given = standin.given("dump")
    assert given["--work-dir"] == [str(tmp_path / "work")]
    assert given["--prev-images-dir"] == ["before"]
    assert given["--address"] + given["--port"] == ["::1", "1234"]
    assert given["--manage-cgroups"] == ["full"]
    assert given["--status-fd"] == [str(writer)]
    assert standin.asked("dump")["fds"][str(writer)].startswith("pipe:")
    flags = ("--leave-running", "--tcp-established", "--skip-in-flight", "--link-remap")
    more = ("--ext-unix-sk", "--shell-job", "--lazy-pages", "--file-locks", "--auto-dedup")
    assert set(given) >= {*flags, *more, "--track-mem", "--page-server"}
    assert container.status == "running"


@ours
@pytest.mark.parametrize("word", ["--leave-running", "--pre-dump"])
def test_a_container_may_go_on(
    runtime: Runtime, bundle: Bundle, standin: StandIn, word: str
) -> None:
    container = runtime.up(bundle)
    standin.dump(container, word)
    assert container.status == "running"
    if word == "--pre-dump":
        given = standin.given("pre-dump")
        assert "--track-mem" in given
        assert "--external" not in given
        assert not (standin.images / "descriptors.json").exists()
    container.exec("true", check=True)


@ours
@pytest.mark.parametrize("fails", ["plain", "frozen", "killed"])
@pytest.mark.parametrize("paused", [False, True])
def test_a_failed_checkpoint_harms_nothing(
    runtime: Runtime, bundle: Bundle, standin: StandIn, fails: str, paused: bool
) -> None:
    container = runtime.up(bundle)
    pid = container.pid
    if paused:
        container.verb("pause")
    line = ("--image-path", standin.images)
    message = container.refuses("checkpoint", *line, **standin.more(fails))
    assert ("ended with signal 9" if fails == "killed" else "it was told to fail") in message
    assert "FAILED" not in message
    assert container.state()["status"] == ("paused" if paused else "running")
    assert container.state()["pid"] == pid
    if not paused:
        assert container.exec("echo", "well").stdout == "well\n"


@ours
def test_what_is_the_hosts_is_named(
    runtime: Runtime, own_bundle: Bundle, standin: StandIn, tmp_path: Path
) -> None:
    """Volumes, also behind links of the image, masked files, and joined namespaces."""
    bundle = own_bundle
    volume, file = tmp_path / "volume", tmp_path / "file"
    volume.mkdir()
    file.write_text("x")
    root = Path(bundle.config["root"]["path"])
    (root / "link").symlink_to("/home/alice")
    bundle.config["mounts"] += [
        mount("/link/volume", "bind", str(volume), "rbind"),
        mount("/etc/hosts", "", str(file), "bind", "ro"),
    ]
    bundle.linux["maskedPaths"].append("/etc/passwd")
    other = runtime.up(bundle)
    for entry in bundle.namespaces:
        if entry["type"] == "network":
            entry["path"] = f"/proc/{other.pid}/ns/net"
    container = runtime.up(bundle)
    number = os.stat(f"/proc/{container.pid}/ns/net").st_ino
    standin.dump(container)
    found = externals(standin.given("dump"), "mnt")
    assert found["/home/alice/volume"] == "/link/volume"
    assert found["/etc/hosts"] == "/etc/hosts"
    assert found["/etc/passwd"] == found["/proc/keys"] == "/dev/null"
    # Masked folders have file systems of their own, and nobody else's is named.
    assert not {"/sys/firmware", "/proc", "/dev", "/"} & set(found)
    assert externals(standin.given("dump"), "net") == {str(number): "extRootNetNS"}

    again = restore(runtime, standin, bundle)
    given = standin.given("restore")
    found = externals(given, "mnt")
    assert found["/link/volume"] == str(volume)
    assert found["/etc/hosts"] == str(file)
    assert found["/dev/null"] == "/dev/null"
    (inherited,) = [value for value in given["--inherit-fd"] if "extRootNetNS" in value]
    fd = inherited.partition("]")[0].removeprefix("fd[")
    assert standin.asked("restore")["fds"][fd] == f"net:[{number}]"
    again.stop()


# ---------------------------------------------------------------- restore, with the stand-in


@ours
def test_restored(runtime: Runtime, own_bundle: Bundle, standin: StandIn, tmp_path: Path) -> None:
    bundle = own_bundle
    volume = tmp_path / "volume"
    volume.mkdir()
    told = tmp_path / "told"
    bundle.config["mounts"] += [
        mount("/new/place", "bind", str(volume), "rbind"),
        mount("/new/place/within", "tmpfs", "tmpfs"),
    ]
    bundle.config["hooks"] = {
        "poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {told}"]}]
    }
    bundle.linux["resources"]["pids"] = {"limit": 77}
    standin.checkpoint()
    pid_file = tmp_path / "pid"
    container = restore(runtime, standin, bundle, "--pid-file", pid_file)
    asked = standin.asked("restore")
    given = asked["options"]

    # The process, as everybody sees it.
    assert container.status == "running"
    assert pid_file.read_text() == str(container.pid)
    assert Path(f"/proc/{container.pid}/comm").read_text() == "sleep\n"
    pids = cgroup_of(container.pid, "pids")
    assert (pids / "pids.max").read_text() == "77\n"
    # Where criu was, the container is: below its root is where it was told to restore.
    roots = dict(value.split(":") for value in given["--cgroup-root"] if ":" in value)
    lines = dict(line.split(":", 2)[1:] for line in asked["cgroup"].splitlines())
    assert {name: lines[name] for name in roots} == roots
    assert roots["pids"] == "/" + str(pids.relative_to("/sys/fs/cgroup/pids"))
    assert {"--restore-detached", "--restore-sibling", "--evasive-devices"} <= set(given)

    # The root: a mount point, with the mount points in it, and only in criu's namespace.
    points = [line.split()[4] for line in asked["mountinfo"].splitlines()]
    (root,) = given["--root"]
    assert points.count(root) == 1
    assert {"new/place", "etc/passwd", "proc", "sys"} <= set(asked["root"])
    assert (volume / "within").is_dir()
    assert asked["mnt"] != os.readlink("/proc/self/ns/mnt")
    assert not [line for line in leftovers.mountinfo() if container.id in line]
    assert not os.path.lexists(root)

    container.stop()
    assert container.status == "stopped"
    container.delete()
    nothing_remains(runtime, container.id)
    assert json.loads(told.read_text())["id"] == container.id


@ours
def test_mounts_of_a_restore_do_not_travel(
    runtime: Runtime, own_bundle: Bundle, standin: StandIn
) -> None:
    """Not even from where the host's mounts are shared, as systemd has them."""
    standin.checkpoint()
    runtime.root.mkdir()
    execute(["mount", "--bind", str(runtime.root), str(runtime.root)], check=True)
    try:
        execute(["mount", "--make-shared", str(runtime.root)], check=True)
        container = restore(runtime, standin, own_bundle)
        assert not [line for line in leftovers.mountinfo() if container.id in line]
        container.stop()
        container.delete()
    finally:
        execute(["umount", "--lazy", str(runtime.root)], check=True)


@ours
def test_every_option_of_restore(
    runtime: Runtime, own_bundle: Bundle, standin: StandIn, tmp_path: Path
) -> None:
    standin.checkpoint()
    words = [
        *("--work-path", tmp_path / "work", "--tcp-established", "--ext-unix-sk", "--shell-job"),
        *("--file-locks", "--manage-cgroups-mode", "ignore", "--empty-ns", "network"),
        *("--auto-dedup", "--lazy-pages", "--lsm-profile", "apparmor:other", "--no-pivot"),
        *("--lsm-mount-context", "system_u:object_r:x:s0:c1,c2", "--no-subreaper"),
    ]
    restore(runtime, standin, own_bundle, *words)
    given = standin.given("restore")
    assert given["--work-dir"] == [str(tmp_path / "work")]
    assert given["--manage-cgroups"] == ["ignore"]
    assert given["--lsm-profile"] == ["apparmor:other"]
    assert given["--lsm-mount-context"] == ["system_u:object_r:x:s0:c1,c2"]
    flags = ("--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks", "--auto-dedup")
    assert set(given) >= {*flags, "--lazy-pages"}


@ours
def test_restored_in_the_foreground(runtime: Runtime, own_bundle: Bundle, standin: StandIn) -> None:
    """It takes the status of the process, and is deleted then; its pipes are ours."""
    standin.checkpoint("/dev/null", "pipe:[1]", "pipe:[2]")
    name = runtime.new_id()
    script = "echo out; echo err >&2; exit 7"
    line = ("restore", "--image-path", standin.images, "--bundle", own_bundle.write().folder)
    done = runtime(*line, name, **standin.more(script=script))
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    nothing_remains(runtime, name)


@ours
def test_what_ends_at_once(runtime: Runtime, own_bundle: Bundle, standin: StandIn) -> None:
    standin.checkpoint()
    name = runtime.new_id()
    line = ("restore", "--image-path", standin.images, "--bundle", own_bundle.write().folder)
    assert runtime(*line, name, **standin.more("dead")).returncode == 137
    nothing_remains(runtime, name)


@ours
@pytest.mark.parametrize(
    ("fails", "why"),
    [
        ("plain", "it was told to fail"),
        ("killed", "signal 9"),
        ("silent", "did not say the number"),
    ],
)
def test_a_failed_restore_leaves_nothing(
    runtime: Runtime, own_bundle: Bundle, standin: StandIn, fails: str, why: str
) -> None:
    standin.checkpoint()
    script = f"exec sleep {os.getpid()}.5"
    message = refuses_restore(runtime, standin, own_bundle, **standin.more(fails, script))
    assert why in message
    assert not leftover_commands(f"sleep {os.getpid()}.5")


@ours
def test_killed_half_way(runtime: Runtime, own_bundle: Bundle, standin: StandIn) -> None:
    """``delete --force`` finds criu and all that it made."""
    standin.checkpoint()
    name = runtime.new_id()
    line = ("restore", "--image-path", standin.images, "--bundle", own_bundle.write().folder)
    words = runtime.command(*line, name, options=standin.options)
    null = subprocess.DEVNULL
    with subprocess.Popen(words, env=standin.env("hangs"), stdout=null, stderr=null) as process:
        wait_until((standin.folder / "restore.json").exists, "the stand-in")
        (hanging,) = [pid for pid, parent in leftovers.parents().items() if parent == process.pid]
        process.kill()
    assert runtime.state(name)["status"] in ("creating", "stopped")
    runtime("delete", "--force", name, check=True)
    wait_until(lambda: not alive(hanging), "the end of the stand-in")
    nothing_remains(runtime, name)


def leftover_commands(line: str) -> list[int]:
    """Return the processes with this command line."""
    found = []
    for pid in leftovers.parents():
        try:
            text = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if text.replace(b"\0", b" ").strip() == line.encode():
            found.append(pid)
    return found


@ours
def test_a_pid_file_that_can_not_be_written(
    runtime: Runtime, own_bundle: Bundle, standin: StandIn, tmp_path: Path
) -> None:
    standin.checkpoint()
    script = f"exec sleep {os.getpid()}.25"
    words = ("--detach", "--pid-file", tmp_path / "no/pid")
    refuses_restore(runtime, standin, own_bundle, *words, **standin.more(script=script))
    assert not leftover_commands(f"sleep {os.getpid()}.25")


@ours
def test_hooks_run_when_the_namespaces_are_there(
    runtime: Runtime, own_bundle: Bundle, standin: StandIn, tmp_path: Path
) -> None:
    """The network's owner sets it up in them, before any process is restored."""
    order = tmp_path / "order"
    script = f"cat >> {order}; echo >> {order}; readlink /proc/self/ns/mnt >> {order}"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}
    own_bundle.config["hooks"] = {"prestart": [hook], "createRuntime": [hook]}
    standin.checkpoint()
    container = restore(runtime, standin, own_bundle)
    states = [json.loads(line) for line in order.read_text().splitlines()[::2]]
    assert [state["pid"] for state in states] == [container.pid] * 2
    assert [state["status"] for state in states] == ["creating"] * 2
    # On the host: what they mount is to stay.
    assert set(order.read_text().splitlines()[1::2]) == {os.readlink("/proc/self/ns/mnt")}


@ours
def test_a_hook_that_fails(runtime: Runtime, own_bundle: Bundle, standin: StandIn) -> None:
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "echo no network; exit 3"]}
    own_bundle.config["hooks"] = {"createRuntime": [hook]}
    standin.checkpoint()
    script = f"exec sleep {os.getpid()}.75"
    message = refuses_restore(runtime, standin, own_bundle, **standin.more(script=script))
    assert "createRuntime hook 0: exit status 3, it said: no network" in message
    assert not leftover_commands(f"sleep {os.getpid()}.75")
    # CRIU was told to give up, too.
    assert "setup-namespaces failed" in (standin.images / "restore.log").read_text()


@ours
def test_a_terminal(runtime: Runtime, own_bundle: Bundle, standin: StandIn, tmp_path: Path) -> None:
    """Its master was the engine's; a new one is handed over by the socket."""
    own_bundle.process["terminal"] = True
    path = tmp_path / "console"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        first = runtime.up(own_bundle, "--console-socket", path)
        master = receive(server)
        slave = os.stat(f"/proc/{first.pid}/fd/0")
        name = f"tty[{slave.st_rdev:x}:{slave.st_dev:x}]"
        standin.dump(first)
        os.close(master)
        given = standin.given("dump")
        assert name in given["--external"]
        assert externals(given, "mnt")["/dev/console"] == "/dev/console"
        again = restore(
            runtime, standin, own_bundle, "--console-socket", path,
            **standin.more(script="echo hello; exec sleep 1000"),
        )  # fmt: skip
        master = receive(server)
    try:
        assert os.read(master, 100) == b"hello\r\n"
        point = externals(standin.given("restore"), "mnt")["/dev/console"]
        assert os.readlink(f"/proc/{again.pid}/fd/1") == point
    finally:
        again.stop()
        os.close(master)
    without = ("--detach", "--bundle", own_bundle.folder, "--image-path", standin.images)
    assert "--console-socket" in runtime.refuses(
        "restore", *without, runtime.new_id(), **standin.more()
    )


def receive(server: socket.socket) -> int:
    """Take the terminal's master from who connects."""
    server.settimeout(20)
    connection, _ = server.accept()
    with connection:
        size = socket.CMSG_LEN(array.array("i").itemsize)
        _, rights, _, _ = connection.recvmsg(100, size)
    ((_, _, data),) = rights
    return int.from_bytes(data[:4], sys.byteorder)


@ours
def test_a_namespace_that_can_not_be_restored_into(
    runtime: Runtime, own_bundle: Bundle, standin: StandIn
) -> None:
    other = runtime.up(own_bundle)
    own_bundle.namespaces.append({"type": "cgroup", "path": f"/proc/{other.pid}/ns/cgroup"})
    standin.checkpoint()
    assert "CLONE_NEWCGROUP" in refuses_restore(runtime, standin, own_bundle)
