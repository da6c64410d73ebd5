"""Wrong, odd and hostile configurations: a container as it was asked for, or one clean error.

``FIRKIN_FUZZ=10`` tries ten times as many, other ones each time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from firkin.linux import caps
from support import fuzz, leftovers
from support.command import environment
from support.fuzz import Config, World
from support.oci import NAMES, PATHS, adopting, alive
from support.running import wait_until

MANY = int(os.environ.get("FIRKIN_FUZZ", "0"))
EXAMPLES = 200 * max(1, MANY)
PATIENCE = 30.0  # seconds, for one command

_numbers = itertools.count(1)


class Arena:
    """A world, and a runtime in it whose every trace can be told from others'.

    This process adopts what the runtime leaves behind: any child that is not expected
    is a leftover.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        bundle = folder / "bundle"
        bundle.mkdir()
        # Without "firkin": other sessions would take the cgroup for a leftover of theirs.
        self.tag = f"fuzz-{os.getpid()}-{next(_numbers)}"
        unshare = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--cgroup", "--user"]
        self.holding = subprocess.Popen(
            [*unshare, "--map-root-user", "--fork", "--kill-child", "sleep", "1000"]
        )
        (holder,) = wait_until(lambda: leftovers.descendants(self.holding.pid), "the holder")
        self.world = World(root, bundle, self.tag, holder)
        self.state = folder / "state"
        self.log = folder / "log"
        self.hostname = socket.gethostname()
        self.mounts = self.own_mounts()
        self.used = self.occupy()

    def own_mounts(self) -> list[str]:
        return [line for line in leftovers.mountinfo() if str(self.folder.parent) in line]

    def occupy(self) -> list[Path]:
        """Make a cgroup that is in use, and one that is not, in the hierarchy of pids."""
        for line in leftovers.mountinfo():
            if line.endswith(",pids") or ",pids," in line.rpartition(" ")[2]:
                top = Path(line.split()[4]) / self.tag
                break
        else:
            return []
        for name in ("used", "empty"):
            (top / name).mkdir(parents=True)
        (top / "used/cgroup.procs").write_text(str(self.holding.pid))
        return [top]

    def close(self) -> None:
        self.holding.kill()
        self.holding.wait()
        self.reap()
        for path in self.cgroups():
            os.rmdir(path)

    def cgroups(self) -> list[str]:
        """Return the cgroups with our tag in their path, the innermost first."""
        top = Path("/sys/fs/cgroup")
        return [
            folder
            for ours in (*top.glob(f"{self.tag}*"), *top.glob(f"*/*{self.tag}*"))
            for folder, _, _ in os.walk(ours, topdown=False)
        ]

    def call(self, *words: str) -> tuple[int, str]:
        """Run a command of the runtime; return its status and its standard error."""
        command = [PATHS[NAMES[0]], "--root", str(self.state), "--log", str(self.log)]
        self.log.unlink(missing_ok=True)
        # A new one each time: the container writes to that of create.
        (self.folder / "err").unlink(missing_ok=True)
        with (self.folder / "err").open("w+b") as err:
            done = subprocess.run(
                [*command, "--log-format", "json", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                timeout=PATIENCE,
                env=environment(),
                check=False,
            )
            err.seek(0)
            return done.returncode, err.read().decode(errors="surrogateescape")

    def refused(self, status: int, said: str) -> None:
        """Check that an error is one: a line, the status, the same in the log."""
        assert status == 1, (status, said)
        assert said.startswith("firkin-runtime: "), said
        assert said.endswith("\n"), said
        line = said[:-1].removeprefix("firkin-runtime: ")
        assert line.isprintable(), said
        assert not any(word in line for word in ("Traceback", "Error [", "object at 0x")), said
        assert ": " in line, said
        *_, last = self.log.read_text().splitlines()
        entry = json.loads(last)
        assert (entry["level"], entry["msg"]) == ("error", line)

    def reap(self) -> list[int]:
        """Reap what has ended of our children; return the others."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        return [pid for pid in leftovers.children() if pid != self.holding.pid]

    def nothing_left(self, name: str) -> None:
        assert os.listdir(self.state) == [] if self.state.exists() else True
        deadline = time.monotonic() + 5
        while left := self.reap():
            assert time.monotonic() < deadline, leftovers.describe(left)
            time.sleep(0.002)
        found = [path for path in self.cgroups() if path.endswith(("/a", name, "podman", "docker"))]
        assert not found
        # Those above a container's stay, as with runc; hundreds of levels make us slow.
        for path in self.cgroups():
            if Path(path).name not in (self.tag, "used", "empty"):
                os.rmdir(path)
        assert self.holding.poll() is None
        assert alive(self.world.holder)
        assert self.own_mounts() == self.mounts
        assert socket.gethostname() == self.hostname

    def try_one(self, text: bytes, config: Config | None) -> bool:
        """Create a container of *text*; return whether it could be. Nothing is left of it.

        Args:
            config: what *text* says; None where it must be refused.
        """
        name = f"{self.tag}-{next(_numbers)}"
        (self.world.bundle / "config.json").write_bytes(text)
        with adopting():
            try:
                return self._try(name, config)
            finally:
                left = [name] if self.state.exists() and name in os.listdir(self.state) else []
                for one in left:
                    self.call("delete", "--force", one)
                leftovers.kill(self.reap())
                wait_until(lambda: not self.reap())

    def _try(self, name: str, config: Config | None) -> bool:
        words = ("create", "--bundle", str(self.world.bundle), name)
        status, said = self.call(*words)
        if status or config is None:
            self.refused(status, said)
            self.nothing_left(name)
            return False
        assert said == ""
        pid = json.loads((self.state / name / "state.json").read_text())["pid"]
        assert alive(pid)
        status, said = self.call("start", name)
        if status:
            self.refused(status, said)
        else:
            assert said == ""
            try:
                matches(self.world, config, pid, name)
            except (AssertionError, OSError):
                # It may end right after its execve, by a limit or a filter.
                if alive(pid) and not Path(f"/proc/{pid}/cmdline").read_bytes() == b"":
                    raise
        status, said = self.call("delete", "--force", name)
        assert (status, said) == (0, "")
        self.nothing_left(name)
        return True


# ---------------------------------------------------------------- what a container must be

FILES = {"network": "net", "mount": "mnt"}
KINDS = ("pid", "network", "ipc", "uts", "mount", "cgroup", "user", "time")


def matches(world: World, config: Config, pid: int, name: str) -> None:
    """Check from outside that the process *pid* is what *config* asks for."""
    process, linux = config["process"], config.get("linux") or {}
    kinds = check_namespaces(linux, pid)
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    uids, gids = ids(linux, kinds, "uid"), ids(linux, kinds, "gid")
    user = process.get("user") or {}
    if uids is not None and gids is not None:
        assert set(map(int, status["Uid"].split())) == {uids(user.get("uid", 0))}
        assert set(map(int, status["Gid"].split())) == {gids(user.get("gid", 0))}
        groups = {gids(gid) for gid in user.get("additionalGids") or ()}
        assert set(map(int, status["Groups"].split())) <= groups | {gids(user.get("gid", 0))}
        assert groups <= set(map(int, status["Groups"].split()))
    if "umask" in user:
        assert int(status["Umask"], 8) == user["umask"] & 0o777
    assert status["NoNewPrivs"] == str(int(process.get("noNewPrivileges") or False))
    assert status["Seccomp"] == ("2" if linux.get("seccomp") else "0")
    check_capabilities(process, status, user_namespace="user" in kinds)
    limits = limits_of(pid)
    for limit in process.get("rlimits") or ():
        assert limits[NAMES_OF_LIMITS[limit["type"]]] == (limit["soft"], limit["hard"]), limit
    if process.get("oomScoreAdj") is not None:
        adjusted = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        assert adjusted == process["oomScoreAdj"]
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape")
    assert words.split("\0")[:-1] == process["args"]
    environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    last = {entry.partition("=")[0]: entry for entry in process.get("env") or ()}
    assert {entry for variable, entry in last.items() if variable != "HOME"} <= set(environ)
    check_cgroup(world, linux, pid, name)
    if not any(ns["type"] == "mount" and ns.get("path") for ns in linux["namespaces"]):
        check_mounts(config, pid)
    if "uts" in kinds and config.get("hostname"):
        found = subprocess.run(
            ["nsenter", "--target", str(pid), "--uts", "hostname"],
            capture_output=True, check=True, text=True,
        )  # fmt: skip
        assert found.stdout.strip() == config["hostname"]


# As /proc/PID/limits has them.
NAMES_OF_LIMITS = {
    "RLIMIT_AS": "address space",
    "RLIMIT_CORE": "core file size",
    "RLIMIT_CPU": "cpu time",
    "RLIMIT_DATA": "data size",
    "RLIMIT_FSIZE": "file size",
    "RLIMIT_LOCKS": "file locks",
    "RLIMIT_MEMLOCK": "locked memory",
    "RLIMIT_NOFILE": "open files",
    "RLIMIT_NPROC": "processes",
    "RLIMIT_STACK": "stack size",
}


def limits_of(pid: int) -> dict[str, tuple[int, int]]:
    """Return soft and hard limits, by the names of proc_pid_limits(5)."""
    found = {}
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]:
        soft, hard = (
            2**64 - 1 if text == "unlimited" else int(text) for text in line[26:].split()[:2]
        )
        found[line[4:26].strip()] = soft, hard
    return found


def check_namespaces(linux: Config, pid: int) -> set[str]:
    """Check which namespaces are new, joined and shared; return the kinds that aren't ours."""
    wanted = {entry["type"]: entry.get("path") for entry in linux.get("namespaces") or ()}
    for kind in KINDS:
        file = FILES.get(kind, kind)
        theirs, ours = os.readlink(f"/proc/{pid}/ns/{file}"), os.readlink(f"/proc/self/ns/{file}")
        if kind not in wanted:
            assert theirs == ours, kind
        elif wanted[kind]:
            assert theirs == os.readlink(str(wanted[kind])), kind
        else:
            assert theirs != ours, kind
    return set(wanted)


def ids(linux: Config, kinds: set[str], kind: str) -> Any:
    """Return what makes the host's id of a container's, or None where that takes too much."""
    if "user" not in kinds:
        return lambda number: number
    mappings = linux.get(f"{kind}Mappings")
    if not mappings:
        return None

    def outside(number: int) -> int:
        for entry in mappings:
            if 0 <= number - entry["containerID"] < entry["size"]:
                return int(entry["hostID"] + number - entry["containerID"])
        return -1

    return outside


def check_capabilities(process: Config, status: Config, *, user_namespace: bool) -> None:
    held = caps.get_caps()[1]
    sets = process.get("capabilities") or {}

    def wanted(kind: str) -> int:
        known = [name for name in sets.get(kind) or () if name in caps.NAMES]
        return caps.mask(known) if user_namespace else caps.mask(known) & held

    found = {name: int(status[f"Cap{name}"], 16) for name in ("Bnd", "Inh", "Prm", "Eff", "Amb")}
    assert found["Bnd"] == wanted("bounding")
    assert found["Inh"] == wanted("inheritable") & wanted("bounding")
    assert found["Prm"] & ~found["Bnd"] == 0
    assert found["Eff"] & ~found["Prm"] == 0
    assert found["Amb"] == wanted("ambient") & wanted("permitted") & found["Inh"]
    if (process.get("user") or {}).get("uid"):
        assert found["Eff"] == found["Amb"]


def check_cgroup(world: World, linux: Config, pid: int, name: str) -> None:
    if "cgroup" in {entry["type"] for entry in linux["namespaces"] if entry.get("path")}:
        return
    path = linux.get("cgroupsPath") or f"firkin-runtime-{name}"
    parts = [part for part in path.split("/") if part not in ("", ".")]
    lines = Path(f"/proc/{pid}/cgroup").read_text(errors="replace").splitlines()
    assert lines
    for line in lines:
        number, controllers, where = line.split(":", 2)
        # v2's directory on a hybrid machine is not always ours to make.
        if number != "0" or len(lines) == 1:
            assert where.endswith("/" + "/".join(parts)), (controllers, where)
    limit = ((linux.get("resources") or {}).get("pids") or {}).get("limit", 0)
    for line in lines:
        if ":pids:" in line and limit:
            folder = leftovers.Path("/sys/fs/cgroup/pids" + line.split(":", 2)[2])
            text = (folder / "pids.max").read_text().strip()
            assert text in ("max" if limit < 0 else str(limit), "max" if limit > 2**22 else "")


def check_mounts(config: Config, pid: int) -> None:
    lines = [line.split() for line in leftovers.mountinfo(pid)]
    points = [leftovers.unescape(fields[4]) for fields in lines]
    top = max(number for number, point in enumerate(points) if point == "/")
    readonly = bool((config.get("root") or {}).get("readonly"))
    covered = {
        *(config["linux"].get("readonlyPaths") or ()),
        *(config["linux"].get("maskedPaths") or ()),
        *(entry["destination"] for entry in mounts(config)),
    }
    names = {"/" + os.path.normpath(f"/{path}").lstrip("/") for path in covered}
    # The root itself, by whatever name: then the mount that covers it is seen.
    if not names & {"/", "/lnk", "/proc/1/root", "/proc/self/root"}:
        assert ("ro" in lines[top][5].split(",")) == readonly
    for entry in mounts(config):
        where = "/" + os.path.normpath(f"/{entry['destination']}").lstrip("/")
        options = set(entry.get("options") or ())
        changed = options & {"remount", "copy-symlink"} or entry.get("type") == "cgroup"
        if (
            not changed
            and where not in ("/", "/lnk/x", "/proc/self", "/self")
            and "/proc/" not in where
        ):
            assert where in points, entry
    assert any(line[points.index("/")] for line in lines)


def mounts(config: Config) -> list[Config]:
    return config.get("mounts") or []


# ---------------------------------------------------------------- the tests


@pytest.fixture
def arena(tmp_path: Path, busybox_root: Path) -> Iterator[Arena]:
    root = shutil.copytree(busybox_root, tmp_path / "root", symlinks=True)
    (tmp_path / "fuzz").mkdir()
    made = Arena(tmp_path / "fuzz", Path(root))
    try:
        yield made
    finally:
        signal.alarm(0)
        made.close()


def test_good_ones(arena: Arena) -> None:
    """The control: what is changed below can be carried out as it is."""
    for kind in ("spec", "podman", "docker"):
        config = fuzz.base(arena.world, kind)
        assert arena.try_one(fuzz.spell(config), config), kind


@pytest.mark.parametrize("part", range(8))
def test_one_field(arena: Arena, part: int) -> None:
    """Each entry of the table by itself."""
    made, wrong = 0, []
    chosen = fuzz.SINGLE[part :: 8 if MANY else 32]
    for number, one in enumerate(chosen):
        config = fuzz.base(arena.world, ("spec", "podman", "docker")[number % 3])
        fuzz.change(arena.world, config, *one)
        try:
            made += arena.try_one(fuzz.spell(config), config)
        except Exception as error:
            wrong.append(f"{fuzz.name_of(one)}: {type(error).__name__} {error}")
    assert not wrong, "\n\n".join(wrong)
    # Both ends are reached, or the table says nothing.
    assert len(chosen) / 10 < made < len(chosen) * 0.9


def test_combinations(arena: Arena) -> None:
    signal.alarm(0)

    @settings(
        max_examples=EXAMPLES,
        derandomize=not MANY,
        database=None,
        deadline=None,
        # A smaller example would cost minutes of containers.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        config = data.draw(fuzz.configurations(arena.world))
        arena.try_one(fuzz.spell(config), config)

    check()


UTS = {"type": "uts", "path": "/proc/self/ns/uts"}
# What was found, and whether it can be carried out.
FOUND = (
    # (uid_t) -1 leaves setresuid(2) where it is: at root.
    ("process.user", {"uid": 2**32 - 1, "gid": 0}, False),
    ("process.user", {"uid": 0, "gid": 2**32 - 1}, False),
    ("process.user", {"uid": 1000, "gid": 0, "additionalGids": [2**32 - 1]}, False),
    # The host's own namespace by its path, and a host name: the host had another one then.
    ("linux.namespaces=", UTS, False),
    ("linux.namespaces+", {"type": "user"}, False),
    # Another spelling of the root, which only the first mount may cover.
    ("mounts+", fuzz.mount(".", "tmpfs", "tmpfs"), False),
    ("mounts+", fuzz.mount("../x", "tmpfs", "tmpfs"), True),
    ("process.rlimits", [{"type": "RLIMIT_NOFILE", "soft": 3, "hard": 3}], True),
    ("process.rlimits", [{"type": "RLIMIT_FSIZE", "soft": 0, "hard": 0}], True),
    ("hooks", {"createRuntime": [{"path": "/bin/true", "timeout": 10**18}]}, True),
    # Members that the specification does not know are ignored, whatever they hold.
    ("process.capabilities", {"bounding": [], "uid": 0, "x": None}, True),
)


def test_members_that_nobody_knows(arena: Arena) -> None:
    config = fuzz.base(arena.world, "spec")
    fuzz.change(arena.world, config, "linux.namespaces+", {"type": "time"})
    config["linux"]["timeOffsets"] = {"boottime": {"secs": 5}, "nosuch": 7}
    for inner in (config, config["process"], config["linux"], config["linux"]["resources"]):
        inner |= {"nosuch": 7, "": None, "unknown": [{"a": {}}]}
    assert arena.try_one(fuzz.spell(config), config)


def test_what_was_found(arena: Arena) -> None:
    for field, value, good in FOUND:
        config = fuzz.base(arena.world, "spec")
        fuzz.change(arena.world, config, field, value)
        assert arena.try_one(fuzz.spell(config), config) == good, (field, value)


@pytest.mark.parametrize(
    "profile",
    [
        # All calls "succeed" and do nothing: neither side may wait for the other.
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 0},
        {"names": ["poll"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
        {"names": ["poll"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["rt_sigprocmask"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["sendmsg"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
    ],
)
def test_filters_that_hit_our_own_calls(arena: Arena, profile: Config) -> None:
    """Without noNewPrivileges the filter is loaded before the wait for start."""
    config = fuzz.base(arena.world, "podman")
    rules = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [profile]}
    config["linux"]["seccomp"] = profile if "defaultAction" in profile else rules
    assert not arena.try_one(fuzz.spell(config), config)


GARBAGE = {
    "nothing": b"",
    "blank": b" \n",
    "truncated": b'{"ociVersion": "1.0.2", "process": {"args": ["sl',
    "brace": b"{",
    "no object": b"[]",
    "null": b"null",
    "string": b'"x"',
    "two": b"{}{}",
    "comma": b'{"a": 1,}',
    "quotes": b"{'a': 1}",
    "NaN": b'{"ociVersion": NaN}',
    "huge": b'{"ociVersion": 1e999}',
    "digits": b'{"ociVersion": ' + b"9" * 100_000 + b"}",
    "twice": b'{"root": {}, "root": {}}',
    "deep array": b'{"a":' + b"[" * 100_000,
    "deep": b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "BOM": b"\xef\xbb\xbf{}",
    "UTF-16": '{"ociVersion": "1.0.2"}'.encode("utf-16"),
    "latin-1": b'{"hostname": "\xe4"}',
    "surrogate": b'{"hostname": "\xed\xa0\x80"}',
    "control": b'{"hostname": "a\x01b"}',
    "NUL": b"\0" * 1000,
    "escape": rb'{"hostname": "\x41"}',
    "half": rb'{"ociVersion": "\ud800"}',
    "large": b"{" + b" " * (17 << 20) + b"}",
    "program": Path("/bin/true").read_bytes(),
}


def test_garbage(arena: Arena) -> None:
    for name, text in GARBAGE.items():
        try:
            assert not arena.try_one(text, None)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
