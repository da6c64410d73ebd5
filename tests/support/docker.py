"""A real dockerd of the session's own, whose default runtime the tests choose."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import leftovers
from support.box import stop
from support.clients import SHORT, Seen, runtime_path
from support.command import environment, execute
from support.requires import cgroup_mounts, need
from support.running import wait_until
from support.user_terminal import UserTerminal, terminal_of

IMAGE = "busybox"
# Debian's, which is of an age with its dockerd: PATH may hold another.
CLIENT = "/usr/bin/docker"
# What is mounted on the host still arrives, and what is unmounted goes; nothing comes back. Inside,
# mounts are shared as on a host with systemd, without which Docker refuses rshared volumes.
OWN_MOUNTS = (
    *("unshare", "--mount", "--propagation", "slave"),
    *("sh", "-c", 'mount --make-rshared / && exec "$@"', "sh"),
)
READY = 60  # seconds that dockerd may take to start on a busy machine

_numbers = itertools.count(1)

Done = subprocess.CompletedProcess[Any]


class Docker:
    """``dockerd`` with one OCI runtime, and its client.

    Attributes:
        folder: all files of both are in here.
        runtime: the name of the runtime.
        cgroup: the cgroup of all containers, in every hierarchy.
    """

    def __init__(self, folder: Path, runtime: str, archive: Path) -> None:
        """Start dockerd, and import *archive*, a packed root, as :data:`IMAGE`."""
        need("root", "program:dockerd", "program:containerd", f"program:{CLIENT}")
        self.folder = folder
        self.runtime = runtime
        self.cgroup = f"docker-tests{folder.parent.name.rpartition('.')[2]}-{SHORT[runtime]}"
        (folder / "config").mkdir(parents=True)
        self.log = folder / "dockerd.log"
        # No network of Docker's, whose bridge and firewall rules would be the host's. And mounts in
        # a namespace of their own: they end with it, and no session beside this one sees them.
        command = [
            *OWN_MOUNTS,
            "dockerd",
            f"--data-root={folder}/data",
            f"--exec-root={folder}/exec",
            f"--pidfile={folder}/pid",
            f"--host=unix://{self.socket}",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--storage-driver=overlay2",
            f"--cgroup-parent=/{self.cgroup}",
            f"--add-runtime=tested={runtime_path(runtime)}",
            "--default-runtime=tested",
        ]
        with self.log.open("wb") as log:
            # In a session of its own: Ctrl-C at the tests' terminal is not for it.
            self.daemon = subprocess.Popen(
                command, env=self.env(), stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_until_ready()
            self.read("import", str(archive), IMAGE)
            # What dockerd makes once comes now (the host's network namespace, cgroups): what
            # comes later is a leftover.
            self.run("", "true")
            self.run("--network host", "true")
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        def answers() -> bool:
            assert self.daemon.poll() is None, self.log.read_text()[-4000:]
            return self.socket.exists() and self("version").returncode == 0

        wait_until(answers, "dockerd", READY)

    @property
    def socket(self) -> Path:
        return self.folder / "sock"

    @property
    def state(self) -> Path:
        """The folder that dockerd gives the runtime as ``--root``."""
        return self.folder / "exec/runtime-runc/moby"

    def env(self) -> dict[str, str]:
        """Return the environment of dockerd and of the client."""
        own = {
            "DOCKER_BUILDKIT": "0",
            "DOCKER_CONFIG": str(self.folder / "config"),
            "DOCKER_HOST": f"unix://{self.socket}",
        }
        return environment() | own

    def words(self, *words: str | os.PathLike[str]) -> list[str]:
        """Return the client's whole command line; containers get no network unless they ask."""
        given = [os.fspath(word) for word in words]
        if given[0] in ("run", "create") and not any(w.startswith("--network") for w in given):
            given.insert(1, "--network=none")
        return [CLIENT, *given]

    def __call__(self, *words: str | os.PathLike[str], **settings: Any) -> Done:
        """Run the client to its end; *settings* are those of :func:`execute`."""
        return execute(self.words(*words), env=self.env(), **settings)

    def read(self, *words: str | os.PathLike[str], **settings: Any) -> str:
        """Run the client, which must succeed; return its output."""
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
        """Start the client in a terminal, as its session's leader; end it on leaving."""
        with terminal_of(self.words(*words), self.env()) as terminal:
            yield terminal

    @contextlib.contextmanager
    def start(self, *words: str | os.PathLike[str]) -> Iterator[subprocess.Popen[str]]:
        """Start the client with pipes; end it on leaving."""
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
        finally:
            stop(process)

    @contextlib.contextmanager
    def container(
        self, options: str = "", *command: str, image: str = IMAGE, verb: str = "run"
    ) -> Iterator[Container]:
        """Start a container in the background; remove it on leaving.

        Args:
            options: split as a shell would.
            command: sleeps, without.
            verb: ``create`` does not start it.
        """
        name = f"box{next(_numbers)}"
        detached = ["--detach"] if verb == "run" else []
        command = command or ("sleep", "1000")
        try:
            self.read(verb, *detached, "--name", name, *shlex.split(options), image, *command)
            box = Container(self, name)
            if verb == "run" and (pid := box.state["Pid"]):
                box.await_command(pid)
            yield box
        finally:
            self("rm", "--force", "--volumes", name)

    def events(self, since: str, until: str, *filters: str) -> list[dict[str, Any]]:
        """Return what ``docker events`` tells of a time that is past, both ends in seconds."""
        options = [f"--filter={one}" for one in filters]
        said = self.read(
            "events", "--since", since, "--until", until, *options, "--format={{json .}}"
        )
        return [json.loads(line) for line in said.splitlines()]

    def left(self) -> list[str]:
        """Return what containers left: in Docker's books, in the runtime's state, cgroups."""
        found = self.read("ps", "--all", "--quiet").split()
        found += [str(path) for path in self.state.glob("*")]
        for mount in set(cgroup_mounts().values()):
            found += [str(path) for path in Path(mount, self.cgroup).glob("*/")]
        return found

    def close(self) -> None:
        """Remove the containers, stop dockerd, and remove what it leaves."""
        if self.daemon.poll() is None:
            names = self("ps", "--all", "--quiet").stdout.split()
            if names:
                self("rm", "--force", "--volumes", *names)
            self.daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.daemon.wait(30)
        if self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait(10)
        sweep(self.folder, self.cgroup)


def sweep(folder: Path, cgroup: str) -> None:
    """End what an engine left behind that kept its files in *folder* and its cgroups in *cgroup*.

    After an orderly end there is nothing but empty cgroups.
    """
    own = {os.getpid(), os.getppid()}
    pids = {pid for pid in leftovers.parents() if leftovers.mentions(pid, str(folder))}
    groups = [Path(mount, cgroup) for mount in set(cgroup_mounts().values())]
    below = [Path(path) for group in groups for path, _, _ in os.walk(group, topdown=False)]
    for path in below:
        pids.update(int(pid) for pid in (path / "cgroup.procs").read_text().split())
    leftovers.kill([*(pids - own)])
    for path in below:
        for file, word in {"freezer.state": "THAWED", "cgroup.freeze": "0"}.items():
            if (path / file).exists():
                (path / file).write_text(word)
    leftovers.unmount_all(str(folder))
    for path in below:
        wait_until(lambda path=path: empty(path), f"the end of what is in {path}")
        path.rmdir()
    shutil.rmtree(folder, ignore_errors=True)


def empty(cgroup: Path) -> bool:
    """Tell whether no process is in a cgroup."""
    return not (cgroup / "cgroup.procs").read_text()


class Container(Seen):
    """A container of Docker's, as ``docker inspect`` and the kernel show it."""

    def __init__(self, docker: Docker, name: str) -> None:
        self.docker = docker
        self.name = name

    def __call__(self, verb: str, *words: str, **settings: Any) -> Done:
        """Run ``docker VERB NAME WORDS``; *verb* may hold options, as a shell has them."""
        return self.docker(*shlex.split(verb), self.name, *words, **settings)

    def read(self, verb: str, *words: str, **settings: Any) -> str:
        """The same, which must succeed; return its output."""
        return self.docker.read(*shlex.split(verb), self.name, *words, **settings)

    def inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read("container inspect"))[0]
        return found

    @property
    def state(self) -> dict[str, Any]:
        """What Docker says of its state: Status, Pid, ExitCode, OOMKilled …"""
        found: dict[str, Any] = self.inspect()["State"]
        return found

    @property
    def pid(self) -> int:
        """The host's number of its first process."""
        pid = self.state["Pid"]
        assert pid > 0, "it does not run"
        return int(pid)

    def wait(self) -> int:
        """Wait for its end; return its status."""
        return int(self.read("wait"))
