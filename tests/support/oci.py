"""OCI runtimes as a client drives them: bundles, one state folder a test, containers by id.

``Runtime`` runs the command line that ``firkin-runtime`` and runc share; the fixture
``runtime`` of ``tests/root/oci`` is one of them after the other, and runc checks the test.
"""

# ruff: noqa: A002  (id is the specification's name for it)
from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import leftovers
from support.command import execute
from support.requires import Kind, Unmet, cgroup_mounts
from support.running import cgroup_of, wait_until

# Two runtimes, by the names of their commands. The one beside this Python is ours.
NAMES = ("firkin-runtime", "runc")
PATHS = {"firkin-runtime": str(Path(sys.executable).with_name("firkin-runtime")), "runc": "runc"}

# For tests of what runc, as Debian has it, does not know: with our runtime only.
ours = pytest.mark.parametrize("runtime", NAMES[:1], indirect=True)

# Ids become names of cgroups, which are the whole machine's.
_numbers = itertools.count(1)

Words = str | os.PathLike[str]
Done = subprocess.CompletedProcess[Any]


@functools.cache
def version_of(path: str) -> str:
    """Return the number that ``PATH --version`` tells in its first line."""
    return str(execute([path, "--version"], check=True).stdout.splitlines()[0].split()[-1])


def make_below(folder: Path, name: str = "below") -> Path:
    """Make a cgroup below *folder* that takes processes: on v1 its cpuset begins empty."""
    made = folder / name
    made.mkdir(exist_ok=True)
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (folder / file).exists() and not (folder / "cgroup.controllers").exists():
            (made / file).write_text((folder / file).read_text())
    return made


def alive(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


PR_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Become the parent of processes that lose theirs, as containerd's shim and conmon are."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        assert libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


# ---------------------------------------------------------------- bundles


def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    """Return an entry of ``mounts``."""
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def configuration(root: Path, *args: str) -> dict[str, Any]:
    """Return what ``runc spec`` writes, but for the terminal, with *root* and *args*."""
    held = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    quiet = ("nosuid", "noexec", "nodev")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                kind: list(held) for kind in ("bounding", "effective", "permitted", "ambient")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "cask",
        "mounts": [
            mount("/proc", "proc", "proc"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount(
                "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance",
                "ptmxmode=0666", "mode=0620", "gid=5",
            ),
            mount("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", "size=65536k"),
            mount("/dev/mqueue", "mqueue", "mqueue", *quiet),
            mount("/sys", "sysfs", "sysfs", *quiet, "ro"),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", *quiet, "relatime", "ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [
                {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    }  # fmt: skip


class Bundle:
    """A bundle: change :attr:`config`, and the runtime that gets the bundle writes it first.

    Attributes:
        folder: of ``config.json``.
        config: the configuration; None leaves the file alone.
    """

    def __init__(self, folder: Path, root: Path, *args: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.config: Any = configuration(root, *(args or ("sleep", "1000")))

    @property
    def file(self) -> Path:
        return self.folder / "config.json"

    @property
    def process(self) -> dict[str, Any]:
        return self.config["process"]

    @property
    def linux(self) -> dict[str, Any]:
        return self.config["linux"]

    @property
    def namespaces(self) -> list[dict[str, str]]:
        return self.config["linux"]["namespaces"]

    def args(self, *words: str) -> Bundle:
        """Set the command."""
        self.process["args"] = list(words)
        return self

    def shell(self, script: str) -> Bundle:
        """Set the command to the container's shell with *script*."""
        return self.args("sh", "-c", script)

    def without_namespace(self, kind: str) -> Bundle:
        """Let the container share the host's namespace of this kind."""
        self.linux["namespaces"] = [one for one in self.namespaces if one["type"] != kind]
        return self

    def write(self) -> Bundle:
        if self.config is not None:
            self.file.write_text(json.dumps(self.config))
        return self


# ---------------------------------------------------------------- runtimes


class Runtime:
    """An OCI runtime with a state folder of its own.

    Attributes:
        name: ``firkin-runtime`` or ``runc``.
        path: of its command.
        root: its state folder, ``--root``.
        folder: where containers' output goes.
    """

    def __init__(self, path: str, root: Path) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self.root = root
        self.folder = root.parent
        self.started: dict[str, Container] = {}

    @property
    def is_runc(self) -> bool:
        return self.name == "runc"

    def only_firkin(self, why: str) -> None:
        """Skip the test with runc, which cannot check it because of *why*."""
        if self.is_runc:
            raise Unmet(f"runc {version_of(self.path)}: {why}", Kind.MACHINE)

    def new_id(self) -> str:
        """Return an id that nobody else on this machine has."""
        return f"firkin-{os.getpid()}-{next(_numbers)}"

    def command(self, *words: Words, options: tuple[Words, ...] = ()) -> list[str]:
        """Return a command line; *options* are global ones, in front of the verb."""
        line = [self.path, "--root", self.root, *options, *words]
        return [os.fspath(word) for word in line]

    def __call__(self, *words: Words, options: tuple[Words, ...] = (), **more: Any) -> Done:
        """Run ``RUNTIME --root ROOT OPTIONS WORDS`` to its end.

        Not for what leaves a container behind that holds the pipes: see :meth:`create`
        and :meth:`up`.

        Args:
            more: for :func:`support.command.execute`; ``check=True`` fails the test
                unless the status is 0.
        """
        return execute(self.command(*words, options=options), **more)

    # ------------------------------------------------------------ what starts containers

    def create(
        self,
        bundle: Bundle,
        *words: Words,
        id: str = "",
        check: bool = True,
        **more: Any,
    ) -> Container:
        """Run ``create``; the container's output goes to files, see :meth:`Container.output`.

        Args:
            words: options of the verb.
            check: whether a failure fails the test; else see :attr:`Container.done`.
            more: as for :meth:`__call__`; ``stdin``, ``pass_fds`` and so on.
        """
        return self._leave("create", bundle, id, words, check=check, **more)

    def up(
        self,
        bundle: Bundle,
        *words: Words,
        id: str = "",
        check: bool = True,
        **more: Any,
    ) -> Container:
        """Run ``run --detach``; as :meth:`create`."""
        return self._leave("run", bundle, id, ("--detach", *words), check=check, **more)

    def _leave(
        self,
        verb: str,
        bundle: Bundle,
        id: str,
        words: tuple[Words, ...],
        *,
        check: bool,
        **more: Any,
    ) -> Container:
        container = Container(self, id or self.new_id(), bundle)
        line = [verb, "--bundle", bundle.write().folder, *words, container.id]
        with container.out.open("ab") as out, container.err.open("ab") as err:
            before = err.tell()
            done = self(*line, **({"stdout": out, "stderr": err} | more))
        if done.stderr is None:
            with container.err.open("rb") as file:
                file.seek(before)
                done.stderr = file.read().decode(errors="backslashreplace")
        if check and done.returncode:
            pytest.fail(f"{done.args}: status {done.returncode}\n{done.stderr}", pytrace=False)
        container.done = done
        return container

    def run(self, bundle: Bundle, *words: Words, id: str = "", **more: Any) -> Done:
        """Run a container in the foreground to its end, and return what it wrote.

        Args:
            words: options of ``run``.
            more: as for :meth:`__call__`: ``input``, ``check``, ``options`` and so on.
        """
        container = Container(self, id or self.new_id(), bundle)
        return self("run", "--bundle", bundle.write().folder, *words, container.id, **more)

    def shell(self, bundle: Bundle, script: str, **more: Any) -> str:
        """Return what *script* prints in a container, in which it has to succeed silently."""
        done = self.run(bundle.shell(script), **more)
        assert (done.returncode, done.stderr) == (0, ""), (done.stdout, done.stderr)
        return str(done.stdout).strip()

    # ------------------------------------------------------------ the other verbs

    def start(self, id: str, **more: Any) -> Done:
        return self("start", id, **more)

    def state(self, id: str) -> dict[str, Any]:
        """Return what ``state`` prints; the test fails where it does."""
        found = json.loads(self("state", id, check=True).stdout)
        assert isinstance(found, dict)
        return found

    def kill(self, id: str, *words: Words, **more: Any) -> Done:
        return self("kill", *words_around(id, words), **more)

    def delete(self, id: str, *words: Words, **more: Any) -> Done:
        return self("delete", *words, id, **more)

    def exec(self, id: str, *words: Words, **more: Any) -> Done:
        """Run ``exec OPTIONS ID COMMAND``, of which *words* are options and command.

        The options end at the first word that neither begins with a dash nor follows
        an option of :data:`WITH_VALUE`.
        """
        options, command = split(words)
        return self("exec", *options, id, *command, **more)

    def refuses(self, *words: Words, status: int = 1, **more: Any) -> str:
        """Check that a verb fails as every verb does: in one line; return its message."""
        done = self(*words, **more)
        return self.refused(done, status)

    def refused(self, done: Done, status: int = 1) -> str:
        """Check that *done* failed in one line of standard error; return the message."""
        assert done.returncode == status, (done.args, done.returncode, done.stdout, done.stderr)
        assert not done.stdout, done.stdout
        return self.message(done.stderr)

    def message(self, text: str) -> str:
        """Return the message of one line of standard error, without what comes before it."""
        assert text.endswith("\n"), repr(text)
        if self.is_runc:
            lines = text.splitlines(True)
            text = "".join(line for line in lines if " level=warning " not in line)
        assert text.count("\n") == 1, text
        if self.is_runc:
            # logrus, where standard error is no terminal; or plain, beside a log file.
            found = re.fullmatch(r'time=".*?" level=error msg="(.*)"\n', text)
            return found[1].replace('\\"', '"') if found else text.strip()
        assert text.startswith("firkin-runtime: "), text
        return text.strip().removeprefix("firkin-runtime: ")

    def ids(self) -> list[str]:
        """Return what has a folder in the state folder."""
        return sorted(os.listdir(self.root)) if self.root.exists() else []

    def close(self) -> None:
        """Delete everything by force, and kill what that left."""
        for container in self.started.values():
            container.close()


# Options of exec that take a value in the next word.
WITH_VALUE = frozenset(
    (
        *("--console-socket", "--cwd", "--env", "-e", "--user", "-u", "--additional-gids", "-g"),
        *("--process", "-p", "--pid-file", "--process-label", "--apparmor", "--cap", "-c"),
        *("--preserve-fds", "--cgroup"),
    )
)


def words_around(id: str, words: tuple[Words, ...]) -> list[Words]:
    """Put *id* between options and arguments."""
    options = [word for word in words if os.fspath(word).startswith("-")]
    return [*options, id, *(word for word in words if word not in options)]


def split(words: tuple[Words, ...]) -> tuple[list[Words], list[Words]]:
    """Split the words of ``exec`` into options and command."""
    at = 0
    while at < len(words) and os.fspath(words[at]).startswith("-"):
        at += 2 if words[at] in WITH_VALUE else 1
    return list(words[:at]), list(words[at:])


# ---------------------------------------------------------------- containers


class Container:
    """A container that a test made; deleted by force when the test ends.

    Attributes:
        id: its name.
        out: the file that got its standard output; ``err`` the other.
        done: how ``create`` or ``run --detach`` ended.
    """

    done: Done

    def __init__(self, runtime: Runtime, id: str, bundle: Bundle) -> None:
        self.runtime = runtime
        self.id = id
        self.bundle = bundle
        name = f"{next(_numbers)}"
        self.out = runtime.folder / f"{name}.out"
        self.err = runtime.folder / f"{name}.err"
        self._pid = 0
        self._adopted: list[int] = []
        self._ended: dict[int, int] = {}
        runtime.started[id] = self

    def __repr__(self) -> str:
        return f"<{self.runtime.name} {self.id}>"

    @property
    def pid(self) -> int:
        """The first process, by the number that the host knows."""
        if not self._pid:
            self._pid = int(self.state()["pid"])
        return self._pid

    def state(self) -> dict[str, Any]:
        return self.runtime.state(self.id)

    @property
    def status(self) -> str:
        return str(self.state()["status"])

    def _forgotten(self) -> None:
        """Remove the cgroup that runc forgets.

        Without a PID namespace of the container's own, and on v2, it does not wait for the
        kernel to take the killed out of it.
        """
        folder = Path(cgroup_mounts().get("unified", "/nonexistent"), self.id)
        if self.runtime.is_runc and folder.exists() and not (self.runtime.root / self.id).exists():
            folder.rmdir()

    def verb(self, name: str, *words: Words, **more: Any) -> Done:
        """Run a verb with the options *words* that has to succeed."""
        return self.runtime(name, *words, self.id, check=True, **more)

    def start(self) -> None:
        assert self.verb("start").stderr == ""

    def kill(self, *words: Words) -> None:
        assert self.runtime.kill(self.id, *words, check=True).stderr == ""

    def delete(self, *words: Words) -> None:
        done = self.verb("delete", *words)
        self._forgotten()
        # runc says so when the kernel needs a moment to empty the cgroup of the killed.
        busy = self.runtime.is_runc and "device or resource busy" in done.stderr
        assert done.stderr == "" or busy, done.stderr

    def exec(self, *words: Words, **more: Any) -> Done:
        """As :meth:`Runtime.exec`."""
        return self.runtime.exec(self.id, *words, **more)

    def refuses(self, verb: str, *words: Words, **more: Any) -> str:
        """Check that *verb* fails in one line; return the message."""
        return self.runtime.refuses(verb, *words, self.id, **more)

    def exec_detached(self, *options: Words, command: tuple[str, ...] = ()) -> int:
        """Start a process by ``exec --detach``; return its number on the host.

        This process becomes its parent: else the end of the container would wait until
        the machine's first process has the time to reap it.

        Args:
            options: of the verb.
            command: ``sleep 1000`` without, unless *options* name a process file.
        """
        pid_file = self.runtime.folder / f"{next(_numbers)}.pid"
        words = [*options, self.id]
        if not {"--process", "-p"} & set(options):
            words += command or ("sleep", "1000")
        with self.out.open("ab") as out, self.err.open("ab") as err, adopting():
            line = self.runtime.command("exec", "--detach", "--pid-file", pid_file, *words)
            done = execute(line, stdout=out, stderr=err)
        assert done.returncode == 0, (done.args, self.errors())
        pid = int(pid_file.read_text())
        self.adopt(pid)
        return pid

    def adopt(self, pid: int) -> None:
        """Take a child of this process for one that :meth:`close` has to end."""
        self._adopted.append(pid)

    def wait_adopted(self, pid: int) -> int:
        """Wait for the end of one of :meth:`exec_detached`; return its exit status."""
        wait_until(lambda: pid in self._reap(), f"the end of process {pid}")
        return self._ended[pid]

    def _reap(self) -> dict[int, int]:
        """Reap what ended of :meth:`exec_detached`; return the statuses of all that did."""
        for pid in [pid for pid in self._adopted if pid not in self._ended]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._ended[pid] = os.waitstatus_to_exitcode(status)
        return self._ended

    def stop(self) -> None:
        """Kill the first process and wait for its end."""
        pid = self.pid
        self.kill("KILL")
        self.wait(pid)

    def alive(self) -> bool:
        """Tell whether the first process lives."""
        return alive(self.pid) if self._pid or self.status != "stopped" else False

    def wait(self, pid: int = 0) -> None:
        """Wait for the end of the first process, or of another."""
        # The first process of a PID namespace ends after all others there were reaped.
        wait_until(lambda: self._reap() is None or not alive(pid or self.pid), f"end of {self}")

    def output(self, until: str = "") -> str:
        """Return what the container wrote so far; wait for *until* to be among it."""
        if until:
            wait_until(lambda: until in self.out.read_text(), f"{until!r} from {self}")
        return self.out.read_text(errors="backslashreplace")

    def errors(self) -> str:
        return self.err.read_text(errors="backslashreplace")

    def hierarchies(self) -> list[Path]:
        """Return its folder in each cgroup hierarchy that is mounted here."""
        found = []
        for line in self.proc("cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            point = cgroup_mounts().get(controllers.split(",")[0] or "unified")
            if point and self.id in path:
                found.append(Path(point + path))
        return found

    def proc(self, name: str) -> str:
        """Return the text of ``/proc/PID/NAME``."""
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def namespace(self, kind: str) -> str:
        """Return the name of a namespace, as ``net:[4026531840]``."""
        return os.readlink(f"/proc/{self.pid}/ns/{kind}")

    def cgroup(self, controller: str) -> Path:
        """Return the folder of the cgroup that has *controller*."""
        return cgroup_of(self.pid, controller)

    def close(self) -> None:
        """Delete it by force, whatever became of it."""
        exists = (self.runtime.root / self.id).exists()
        left = set(self._adopted) - set(self._reap())
        if left and exists:
            execute(self.runtime.command("resume", self.id))  # frozen ones do not die
        leftovers.kill(list(left))
        for pid in left:
            self.wait_adopted(pid)
        if exists:
            execute(self.runtime.command("delete", "--force", self.id))
        self._forgotten()
        if self._pid:
            self.wait()


# ---------------------------------------------------------------- what is left


def remains(runtime: Runtime, id: str) -> list[str]:
    """Return what of a container is still there: state, cgroups, mounts, processes.

    Only what carries the id: the search for leftovers after each test sees the rest.
    """
    found = [str(path) for path in runtime.root.rglob("*") if id in path.name]
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        found += [os.path.join(folder, name) for name in names if name == id]
    found += [line for line in leftovers.mountinfo() if id in line]
    for pid in leftovers.parents():
        try:
            if f"/{id}\n" in Path(f"/proc/{pid}/cgroup").read_text():
                found.append(leftovers.describe([pid]))
        except OSError:
            continue
    return found


def nothing_remains(runtime: Runtime, id: str) -> None:
    """Fail the test if anything of a container is still there."""
    deadline = time.monotonic() + 5
    while found := remains(runtime, id):
        assert time.monotonic() < deadline, "\n".join(found)
        time.sleep(0.02)
