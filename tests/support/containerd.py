"""A real containerd of the session's own, driven by ``ctr`` and through its CRI plugin."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import os
import platform
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.clients import SHORT, Seen, runtime_path
from support.command import environment, execute
from support.cri import Cri
from support.docker import OWN_MOUNTS, READY, sweep
from support.requires import need
from support.running import wait_until
from support.user_terminal import UserTerminal, terminal_of

IMAGE = "tests.invalid/busybox:1"
PLUGINS = Path("/usr/lib/cni")  # Debian's containernetworking-plugins

# What docs/kubernetes.md shows, but for the places; the rest keeps containerd off the host's.
CONFIGURATION = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{folder}/sock"
[ttrpc]
  address = "{folder}/ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  # Lowering oom_score_adj takes CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/cni"
  # The default, which containerd insists on once there is a table of runtimes.
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.tested]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.tested.options]
      BinaryName = "{runtime}"
      Root = "{folder}/runtime"
"""
NETWORK = """\
{{"cniVersion": "0.4.0", "name": "tests", "plugins": [
  {{"type": "bridge", "bridge": "pods", "isGateway": true,
    "ipam": {{"type": "host-local", "subnet": "10.88.0.0/24", "dataDir": "{folder}/addresses"}}}}
]}}
"""

_numbers = itertools.count(1)

Done = subprocess.CompletedProcess[Any]


def pack_image(root: Path, name: str, archive: Path) -> Path:
    """Make an OCI image layout in a tar file, as ``ctr image import`` takes it.

    Args:
        root: the only layer, a ``.tar.gz``.
        name: the image's.
        archive: to write.
    """
    layer = root.read_bytes()
    blobs: dict[str, bytes] = {}

    def blob(kind: str, data: bytes | dict[str, Any]) -> dict[str, Any]:
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        media = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    diff = hashlib.sha256(gzip.decompress(layer)).hexdigest()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    configuration = {
        "architecture": architecture,
        "os": "linux",
        # As a pause image it has to stay; whoever runs something says what.
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "1000000"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff}"]},
    }
    manifest = blob(
        "manifest.v1+json",
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob("config.v1+json", configuration),
            "layers": [blob("layer.v1.tar+gzip", layer)],
        },
    )
    manifest["annotations"] = {"io.containerd.image.name": name}
    files = {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    with tarfile.open(archive, "w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive


def lingering(script: str) -> tuple[str, str, str]:
    """Return the command that runs a script of the shell, and ends a little later.

    ctr 1.6 cancels its FIFOs when a container has ended, and loses what one wrote whose FIFOs it
    has not come to open: with any runtime, on a busy machine.
    """
    return "sh", "-c", f"({script})\nstatus=$?; sleep 0.3; exit $status"


class Containerd:
    """``containerd`` with one OCI runtime.

    It has a network namespace of its own: the bridge and the addresses that its plug-ins make
    are not the host's.

    Attributes:
        folder: all files of it are in here.
        runtime: the name of the runtime.
        namespace: containerd's namespace for ``ctr``, which is the cgroup of its containers, too.
        called: the command lines of a runtime that was found on PATH as ``runc``.
    """

    def __init__(self, folder: Path, runtime: str, archive: Path) -> None:
        """Start containerd, and import *archive*, a packed root, as :data:`IMAGE`."""
        need("root", "program:containerd", "program:ctr", f"program:{PLUGINS}/bridge")
        self.folder = folder
        self.runtime = runtime
        self.namespace = f"ctr-tests{folder.parent.name.rpartition('.')[2]}-{SHORT[runtime]}"
        self.log = folder / "containerd.log"
        self.called = folder / "called"
        self._write()
        command = [
            *("unshare", "--net", *OWN_MOUNTS),
            *("sh", "-c", 'ip link set lo up && exec "$@"', "sh"),
            *("containerd", f"--config={folder}/config.toml"),
        ]
        with self.log.open("wb") as log:
            self.daemon = subprocess.Popen(
                command, env=self.env(), stdout=log, stderr=log, start_new_session=True
            )
        self.cri = Cri(folder / "sock")
        try:
            self._wait_until_ready()
            image = pack_image(archive, IMAGE, folder / "image.tar")
            for namespace in (self.namespace, "k8s.io"):
                self.read(f"--namespace={namespace}", "image", "import", str(image))
            # What is made once comes now; what comes later is a leftover.
            self.run("", "true")
            self.cri("Version")
        except BaseException:
            self.close()
            raise

    def _write(self) -> None:
        """Write the configuration, and the ``runc`` that is found on PATH."""
        for name in ("bin", "cni", "opt", "pods"):
            (self.folder / name).mkdir(parents=True)
        places = {"folder": self.folder, "image": IMAGE, "plugins": PLUGINS}
        text = CONFIGURATION.format(runtime=runtime_path(self.runtime), **places)
        (self.folder / "config.toml").write_text(text)
        (self.folder / "cni/10-tests.conflist").write_text(NETWORK.format(folder=self.folder))
        command = self.folder / "bin/runc"
        record = f'echo "$@" >> {self.called}'
        command.write_text(f'#!/bin/sh\n{record}\nexec {runtime_path(self.runtime)} "$@"\n')
        command.chmod(0o755)

    def _wait_until_ready(self) -> None:
        def answers() -> bool:
            assert self.daemon.poll() is None, self.log.read_text()[-4000:]
            return (self.folder / "sock").exists() and self("version").returncode == 0

        wait_until(answers, "containerd", READY)

    @property
    def state(self) -> Path:
        """The folder that the runtime gets as ``--root``."""
        return self.folder / "runtime"

    def env(self) -> dict[str, str]:
        """Return the environment of containerd and of ctr."""
        own = environment()
        return own | {
            "PATH": f"{self.folder}/bin:{own['PATH']}",
            "CONTAINERD_ADDRESS": f"{self.folder}/sock",
            "CONTAINERD_NAMESPACE": self.namespace,
        }

    def words(self, *words: str | os.PathLike[str]) -> list[str]:
        """Return the whole command line of ``ctr``."""
        given = [os.fspath(word) for word in words]
        if given[0] == "run":
            runtime = f"--runc-binary={runtime_path(self.runtime)}"
            given[1:1] = [runtime, f"--runc-root={self.state}", self.fifos]
        if given[0] == "task" and given[1] in ("exec", "start"):
            given.insert(2, self.fifos)
        # In the mount namespace of containerd: it is the client that mounts, for snapshots.
        enter = ["nsenter", "--mount", f"--target={self.daemon.pid}"]
        return [*enter, "ctr", *given]

    @property
    def fifos(self) -> str:
        return f"--fifo-dir={self.folder}/fifos"

    def __call__(self, *words: str | os.PathLike[str], **settings: Any) -> Done:
        """Run ``ctr`` to its end; *settings* are those of :func:`execute`."""
        return execute(self.words(*words), env=self.env(), **settings)

    def read(self, *words: str | os.PathLike[str], **settings: Any) -> str:
        """Run ``ctr``, which must succeed; return its output."""
        done = self(*words, **settings)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def run(self, options: str, *command: str, **settings: Any) -> str:
        """Run a container that must succeed, and is gone then; return its output.

        Args:
            options: split as a shell would.
        """
        done = self.done(options, *command, **settings)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def done(self, options: str, *command: str, **settings: Any) -> Done:
        """Run a container that is gone then, whatever becomes of it."""
        name = f"box{next(_numbers)}"
        return self("run", "--rm", *shlex.split(options), IMAGE, name, *command, **settings)

    @contextlib.contextmanager
    def terminal(self, *words: str | os.PathLike[str]) -> Iterator[UserTerminal]:
        """Start ``ctr`` in a terminal, as its session's leader; end it on leaving."""
        with terminal_of(self.words(*words), self.env()) as terminal:
            yield terminal

    @contextlib.contextmanager
    def container(self, options: str = "", *command: str) -> Iterator[Task]:
        """Start a container in the background; remove it on leaving.

        Args:
            options: split as a shell would.
            command: sleeps, without.
        """
        name = f"box{next(_numbers)}"
        command = command or ("sleep", "1000")
        try:
            self.read("run", "--detach", *shlex.split(options), IMAGE, name, *command)
            task = Task(self, name)
            task.await_command(task.pid)
            yield task
        finally:
            self("task", "rm", "--force", name)
            self("container", "rm", name)

    def tasks(self) -> dict[str, tuple[int, str]]:
        """Return each task's number on the host and status, by ``ctr task ls``."""
        lines = self.read("task", "ls").splitlines()[1:]
        return {name: (int(pid), status) for name, pid, status in map(str.split, lines)}

    def left(self) -> list[str]:
        """Return what containers left: in containerd's books and the runtime's state."""
        found = self.read("container", "ls", "--quiet").split()
        found += self.read("--namespace=k8s.io", "container", "ls", "--quiet").split()
        found += [str(path) for path in self.state.glob("*/*")]
        found += [str(path) for path in (self.folder / "state").glob("*v2.task/*/*")]
        return found

    def close(self) -> None:
        """Remove the containers, stop containerd, and remove what it leaves."""
        if self.daemon.poll() is None:
            for name in self("task", "ls", "--quiet").stdout.split():
                self("task", "rm", "--force", name)
        self.cri.close()
        if self.daemon.poll() is None:
            self.daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.daemon.wait(30)
        if self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait(10)
        sweep(self.folder, self.namespace)
        # Where the state of a runtime is that nobody named, with `ctr run --no-pivot`, say. The
        # machine's own containerd may have something there.
        for name in (self.namespace, "k8s.io", ""):
            with contextlib.suppress(OSError):
                Path("/run/containerd/runc", name).rmdir()


class Task(Seen):
    """A container of ``ctr``'s with its process, as containerd and the kernel show it."""

    def __init__(self, containerd: Containerd, name: str) -> None:
        self.containerd = containerd
        self.name = name

    def __call__(self, verb: str, *words: str, **settings: Any) -> Done:
        """Run ``ctr task VERB NAME WORDS``; *verb* may hold options, as a shell has them."""
        return self.containerd("task", *shlex.split(verb), self.name, *words, **settings)

    def read(self, verb: str, *words: str, **settings: Any) -> str:
        """The same, which must succeed; return its output."""
        return self.containerd.read("task", *shlex.split(verb), self.name, *words, **settings)

    def exec(self, options: str, *command: str, **settings: Any) -> Done:
        """Run a further command in the container."""
        verb = f"exec --exec-id exec{next(_numbers)} {options}"
        return self(verb, *command, **settings)

    @property
    def status_name(self) -> str:
        """What containerd says: RUNNING, PAUSED, STOPPED …"""
        return self.containerd.tasks()[self.name][1]

    @property
    def pid(self) -> int:
        """The host's number of its first process."""
        return self.containerd.tasks()[self.name][0]
