"""The real podman, with storage of the session's own and a runtime that the tests choose."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import leftovers
from support.box import eventually, gone, status
from support.clients import RUNTIMES, Seen, with_state_in
from support.command import environment, execute
from support.requires import cgroup_mounts, need
from support.user_terminal import UserTerminal, terminal_of

IMAGE = "localhost/busybox"
# For --init: static, for BusyBox's root has no libraries. Debian's docker.io brings it.
INIT = "/usr/bin/tini-static"

# It stands for all other files of its kind, so that each machine gives the same: the capabilities
# and the sysctl are Debian's. Without a network of podman's, whose plug-ins and firewall rules are
# not under test. The limits that podman asks for by itself (1048576 files) need CAP_SYS_RESOURCE.
CONFIGURATION = """\
[containers]
netns = "none"
default_capabilities = [{capabilities}]
default_sysctls = ["net.ipv4.ping_group_range=0 0"]
default_ulimits = [{ulimits}]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
init_path = "{init}"
infra_image = "{image}"
runtime_supports_json = [{json}]
runtime_supports_nocgroup = ["firkin-runtime"]
[engine.runtimes]
{name} = ["{command}"]
"""

# Names and numbers of capabilities(7).
CAPABILITIES = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7,
    "SETPCAP": 8, "NET_BIND_SERVICE": 10, "SYS_CHROOT": 18, "SETFCAP": 31,
}  # fmt: skip

# `tools/setup` gives root's --userns=auto these ids.
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
[storage.options]
root-auto-userns-user = "firkin"
"""

DEFAULT_CAPABILITIES = sum(1 << number for number in CAPABILITIES.values())

_numbers = itertools.count(1)

Done = subprocess.CompletedProcess[Any]


def wanted_ulimits() -> dict[str, int]:
    """Return limits that this process may give away, and that a container can live with."""
    limits = {"nofile": (resource.RLIMIT_NOFILE, 20000), "nproc": (resource.RLIMIT_NPROC, 4096)}
    found = {}
    for name, (number, value) in limits.items():
        hard = resource.getrlimit(number)[1]
        found[name] = value if hard == resource.RLIM_INFINITY else min(value, hard)
    return found


def everything() -> int:
    """Return all capabilities that podman can give, as an ordinary user in its own namespace."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return int(status("self")["CapBnd"], 16) if os.geteuid() == 0 else (2 << last) - 1


class Podman:
    """``podman``, as this user, with one OCI runtime.

    Attributes:
        folder: all files of it, and of the runtime's state, are in here.
        cgroup: the cgroup of all its containers, in every hierarchy; as root only.
        runtime: the name of the runtime.
    """

    def __init__(self, folder: Path, runtime: str, archive: Path) -> None:
        """Use *folder*, which :meth:`set_up` fills, with the image of *archive*, a packed root."""
        need("program:podman", "program:tini-static")
        self.archive = archive
        self.folder = folder
        self.runtime = runtime
        # Not "firkin" in it: sessions that run beside this one would take it for a leftover.
        self.cgroup = f"{folder.name}-tests-{folder.parent.name.rpartition('.')[2]}"

    def set_up(self) -> None:
        """Make the storage, with the image :data:`IMAGE`."""
        command = with_state_in(self.folder, self.runtime)
        for name in ("xdg", "home"):
            (self.folder / name).mkdir(mode=0o700)
        (self.folder / "storage.conf").write_text(STORAGE.format(folder=self.folder))
        self.configure(command)
        self.configure(command, "text")
        # The command is for containers that are given none, such as a pod's own.
        change = '--change=CMD ["sleep", "1000"]'
        self("import", change, self.archive, IMAGE, check=True)
        # podman's lasting things are made by its first run: mounts, cgroups, as an ordinary user
        # a process that holds the namespaces. What comes later is a leftover.
        self("run", "--rm", IMAGE, "true", check=True)

    def configure(self, command: Path, log: str = "json") -> None:
        """Write ``LOG.conf``: podman asks for a log in JSON of the runtimes named in it only."""
        (self.folder / f"{log}.conf").write_text(
            CONFIGURATION.format(
                capabilities=", ".join(f'"{name}"' for name in CAPABILITIES),
                ulimits=", ".join(f'"{k}={v}:{v}"' for k, v in wanted_ulimits().items()),
                init=INIT,
                image=IMAGE,
                json=f'"{self.runtime}"' if log == "json" else "",
                name=self.runtime,
                command=command,
            )
        )

    @property
    def state(self) -> Path:
        """The folder of the runtime's state."""
        return self.folder / "state"

    def env(self, log: str = "json") -> dict[str, str]:
        """Return the environment of podman."""
        return environment() | {
            "CONTAINERS_CONF": str(self.folder / f"{log}.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "HOME": str(self.folder / "home"),
            "XDG_RUNTIME_DIR": str(self.folder / "xdg"),
            "TMPDIR": "/tmp",  # conmon's sockets: their paths may have 107 bytes
        }

    def words(self, *words: str | os.PathLike[str]) -> list[str]:
        """Return the whole command line."""
        given = [os.fspath(word) for word in words]
        # Options of podman itself, each one word, come before the verb.
        start = next(n for n, word in enumerate(given) if not word.startswith("-"))
        end = start + (2 if given[start] == "pod" else 1)
        makes = given[start:end] in (["run"], ["create"], ["pod", "create"])
        if makes and os.geteuid() == 0 and "--cgroups=disabled" not in given:
            given[end:end] = ["--cgroup-parent", f"/{self.cgroup}"]
        places = {"root": "storage", "runroot": "run", "tmpdir": "tmp"}
        options = [f"--{option}={self.folder / name}" for option, name in places.items()]
        # Else a mount comes and goes with the first and the last container.
        driver = ["--storage-driver=overlay", "--storage-opt=overlay.skip_mount_home=true"]
        return ["podman", *options, *driver, f"--runtime={self.runtime}", *given]

    def __call__(self, *words: str | os.PathLike[str], log: str = "json", **settings: Any) -> Done:
        """Run podman to its end; *settings* are those of :func:`execute`."""
        return execute(self.words(*words), env=self.env(log), **settings)

    def read(self, *words: str | os.PathLike[str], **settings: Any) -> str:
        """Run podman, which must succeed; return its output."""
        done = self(*words, **settings)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def run(self, options: str, *command: str, **settings: Any) -> str:
        """Run a container that must succeed, and is gone then; return its output.

        Args:
            options: split as a shell would.
        """
        return self.read("run", "--rm", *shlex.split(options), IMAGE, *command, **settings)

    @contextlib.contextmanager
    def terminal(self, *words: str | os.PathLike[str]) -> Iterator[UserTerminal]:
        """Start podman in a terminal, as its session's leader; end it on leaving."""
        with terminal_of(self.words(*words), self.env()) as terminal:
            yield terminal

    @contextlib.contextmanager
    def start(self, *words: str | os.PathLike[str]) -> Iterator[subprocess.Popen[str]]:
        """Start podman with pipes; on leaving it must have ended by itself."""
        process = subprocess.Popen(
            self.words(*words),
            env=self.env(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
            process.communicate(timeout=20)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()

    @contextlib.contextmanager
    def container(self, options: str = "", *command: str, verb: str = "run") -> Iterator[Container]:
        """Start a container in the background; remove it on leaving.

        Args:
            options: split as a shell would.
            command: the image's, which sleeps, without.
            verb: ``create`` does not start it.
        """
        name = f"box{next(_numbers)}"
        detached = ["--detach"] if verb == "run" else []
        try:
            words = [*detached, "--name", name, *shlex.split(options), IMAGE, *command]
            yield Container(self, name, self.read(verb, *words).strip())
        finally:
            self("rm", "--force", "--ignore", "--time=0", name)

    def containers(self) -> list[str]:
        """Return the ids of all containers in the storage; faster than ``podman ps`` is."""
        path = self.folder / "storage/overlay-containers/containers.json"
        return [one["id"] for one in json.loads(path.read_text())] if path.exists() else []

    def left(self) -> list[str]:
        """Return what containers left: in podman's books, in the runtime's state, cgroups."""
        found = self.containers()
        found += [str(path) for path in self.state.glob("*")]
        for mount in set(cgroup_mounts().values()):
            found += [str(path) for path in Path(mount, self.cgroup).glob("libpod*")]
        return found

    def close(self) -> None:
        """Remove everything."""
        self("rm", "--all", "--force", "--time=0")
        self("pod", "rm", "--all", "--force", "--time=0")
        with contextlib.suppress(OSError, ValueError):
            # The process that holds an ordinary user's namespaces.
            pid = int((self.folder / "tmp/pause.pid").read_text())
            if leftovers.mentions(pid, str(self.folder)):
                os.kill(pid, signal.SIGKILL)
                eventually(lambda: gone(pid), "podman's pause process ends")
        leftovers.unmount_all(str(self.folder))
        remove_cgroup(self.cgroup)


class Container(Seen):
    """A container of podman's, as ``podman inspect`` and the kernel show it."""

    def __init__(self, podman: Podman, name: str, number: str) -> None:
        self.podman = podman
        self.name = name
        self.id = number
        self._awaited = 0

    def __call__(self, verb: str, *words: str, **settings: Any) -> Done:
        """Run ``podman VERB NAME WORDS``; options are in *verb*, as a shell has them."""
        return self.podman(*shlex.split(verb), self.name, *words, **settings)

    def read(self, verb: str, *words: str, **settings: Any) -> str:
        """The same, which must succeed; return its output."""
        return self.podman.read(*shlex.split(verb), self.name, *words, **settings)

    def inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read("container inspect"))[0]
        return found

    @property
    def state(self) -> dict[str, Any]:
        """What podman says of its state: Status, Pid, ExitCode, OOMKilled …"""
        found: dict[str, Any] = self.inspect()["State"]
        return found

    @property
    def pid(self) -> int:
        """The host's number of its first process, which has executed the command.

        From the file that the runtime wrote: to ask podman takes longer than a test.
        """
        folder = self.podman.folder / "run/overlay-containers" / self.id / "userdata"
        pid = int((folder / "pidfile").read_text())
        if pid != self._awaited:
            self.await_command(pid)
            self._awaited = pid
        assert not gone(pid), "it does not run"
        return pid

    def wait(self) -> int:
        """Wait for its end; return its status."""
        return int(self.read("wait"))


def remove_cgroup(name: str) -> None:
    """Remove a cgroup from all hierarchies, with those below it and what a failed test left there.

    podman itself leaves the cgroups of pods in hierarchies that it does not know.
    """
    tops = [Path(mount, name) for mount in set(cgroup_mounts().values())]
    folders = [Path(one) for top in tops for one, _, _ in os.walk(top, topdown=False)]
    for state in (folder / "freezer.state" for folder in folders):
        if state.exists():
            state.write_text("THAWED")  # what is frozen does not die
    pids = {pid for folder in folders for pid in (folder / "cgroup.procs").read_text().split()}
    leftovers.kill([int(pid) for pid in pids])
    for pid in pids:
        eventually(lambda pid=pid: gone(int(pid)), "what was killed ends")
    for folder in folders:
        folder.rmdir()


def session(runtime: str, folder: Path, archive: Path) -> Iterator[Podman]:
    """Yield podman for the tests of one file, and remove all of it in the end."""
    # podman wants a runroot of at most 50 characters.
    podman = Podman(folder / f"podman{RUNTIMES.index(runtime)}", runtime, archive)
    try:
        podman.set_up()
        yield podman
    finally:
        podman.close()


def use(podman: Podman) -> Iterator[Podman]:
    """Yield *podman* for one test, which must leave no container."""
    before = podman.left()
    yield podman
    left = podman.left()
    for name in podman.containers():
        podman("rm", "--force", "--time=0", name)
    assert [one for one in left if one not in before] == []
