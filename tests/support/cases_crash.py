"""What a SIGKILL leaves, at each step of a run, and what the next start makes of it.

Run as root by ``tests/root/test_crash.py`` and as an ordinary user by
``tests/rootless/test_crash.py``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, STDOUT, CompletedProcess, Popen

import pytest

from firkin.engine.request import Request
from support import crash, leftovers
from support.command import Firkin
from support.crash import Home

MIB = 1 << 20
ROOT = os.geteuid() == 0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def request(root: Path, what: str, **options: object) -> Request:
    """Return a request for ``/bin/true``, with all the limits that the caller may have."""
    limits = {"memory": 64 * MIB, "pids_limit": 64} if ROOT else {}
    given = {"image": str(root), "command": ["/bin/true"], "name": crash.new_name(what)}
    return Request(**{**given, **limits, **options})


def assert_ended_well(run: crash.Stopped) -> None:
    status, message = run.wait()
    assert (status, message) == (0, ""), f"status {status}: {message}"


def sweep(root: Path, home: Home) -> None:
    """Start firkin once more; this is what has to clean up."""
    with crash.start(request(root, "next"), home.env) as run:
        assert_ended_well(run)


def count_steps(root: Path, home: Home, who: str, **options: object) -> int:
    """Return how many steps a run has, once the store is set up."""
    sweep(root, home)
    with crash.start(request(root, "count", **options), home.env, who) as run:
        assert_ended_well(run)
        return run.count


def each_step(
    root: Path,
    home: Home,
    who: str,
    check: Callable[[crash.Stopped, str], str],
    stride: int,
    **options: object,
) -> int:
    """Stop a run of its own at each step, and *check* it; return how many steps there were.

    Args:
        check: given the run and its container's id, returns what is wrong.
        stride: 1 for each step, 2 for every other, and so on.
    """
    last = count_steps(root, home, who, **options)
    wrong, unreached = [], 0
    for number in range(1, last + 1, stride):
        asked = request(root, f"step{number}", **options)
        with crash.start(asked, home.env, who, number) as run:
            if not run.pid:
                # A cgroup that was still busy takes another call or two to remove.
                unreached += 1
                assert_ended_well(run)
                continue
            found = check(run, str(asked.name))
            if found:
                wrong.append(f"step {number}, {run.step}: {found}")
    assert not wrong, "\n".join(wrong)
    assert unreached <= 4
    return last


def nothing_after_the_next_start(root: Path, home: Home) -> Callable[[crash.Stopped, str], str]:
    """Return a check that kills firkin, starts another one, and looks what is left."""

    def check(run: crash.Stopped, container_id: str) -> str:
        run.kill()
        sweep(root, home)
        left = home.left(container_id)
        if not run.gone():
            left.append("a process")
        return ", ".join(left)

    return check


KINDS = {
    "plain": {},
    "init": {"init": True},
    "terminal": {"tty": True},
    "host pids": {"pid": ("host", "")},
    "joined": {"network": ("path", "/proc/self/ns/net")},
}


def check_kill_firkin_at_its_own_steps(root: Path, home: Home, stride: int) -> None:
    check = nothing_after_the_next_start(root, home)
    last = each_step(root, home, "firkin", check, stride)
    # Folders and files below 20, kernel calls another 40 as root; far fewer would mean
    # that the steps are not seen any more.
    assert last > 40


def check_kill_firkin_at_the_childs_steps(
    root: Path, home: Home, stride: int, kind: str = "plain"
) -> None:
    check = nothing_after_the_next_start(root, home)
    last = each_step(root, home, "child", check, stride, **KINDS[kind])
    assert last > 100


def check_kill_the_child(root: Path, home: Home, stride: int) -> None:
    """One clear error, and firkin itself has cleaned up."""

    def check(run: crash.Stopped, container_id: str) -> str:
        os.kill(run.pid, 9)
        status, message = run.wait()
        wrong = home.left(container_id)
        if not run.gone():
            wrong.append("a process is left")
        # After the execve nobody can tell any more: it is the command that is killed.
        expected = "cannot start the container: its first process ended with signal 9"
        if status != 125 or not message.startswith(expected) or "\n" in message:
            wrong.append(f"status {status}, {message!r}")
        return ", ".join(wrong)

    last = each_step(root, home, "child", check, stride)
    assert last > 100


# ---------------------------------------------------------------- through the command


class Command:
    """The ``firkin`` command with a store and a state directory of a test's own."""

    def __init__(self, firkin: Firkin, home: Home) -> None:
        self.firkin, self.home = firkin, home

    def run(self, *arguments: str | Path) -> CompletedProcess[str]:
        return self.firkin("run", *arguments, env=self.home.env)

    def start(self, *arguments: str | Path) -> Popen[str]:
        """Start a container whose command says ``up``, and wait until it has."""
        process = self.firkin.start(
            "run", *arguments, env=self.home.env, stdin=PIPE, stderr=STDOUT, bufsize=1
        )
        assert process.stdout
        said = process.stdout.readline()
        assert said.strip() == "up", said + process.stdout.read()
        return process


@pytest.fixture
def command(firkin: Firkin, home: Home) -> Command:
    return Command(firkin, home)


def identities(pids: list[int]) -> set[str]:
    """Return what tells living processes apart, even where a number comes again."""
    return {name for pid in pids if (name := leftovers.name_of(pid))}


def wait_until_gone(processes: set[str]) -> set[str]:
    """Return those of *processes* that are still there after a while."""
    deadline = time.monotonic() + crash.PATIENCE
    while left := processes & identities([int(line.split()[0]) for line in processes]):
        zombies = {line for line in left if is_zombie(line)}
        if not left - zombies or time.monotonic() > deadline:
            return left - zombies
        time.sleep(0.005)
    return set()


def is_zombie(line: str) -> bool:
    """Tell whether a process is dead, and only its parent has not asked yet."""
    try:
        stat = Path(f"/proc/{line.split()[0]}/stat").read_text(errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def finish(process: Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def kill_and_start_another(process: Popen[str], command: Command, root: Path) -> None:
    """Kill firkin; after the next start nothing of the container may be there."""
    container = identities(leftovers.descendants(process.pid))
    assert container
    finish(process)
    assert command.run(root, "/bin/true").returncode == 0
    assert not wait_until_gone(container)
    assert not command.home.left()


# The command and something that it leaves to itself.
FAMILY = ["sh", "-c", "setsid sleep 1000 & echo up; sleep 1000; :"]


def check_kill_a_running_container(command: Command, root: Path, options: list[str]) -> None:
    process = command.start(*options, root, *FAMILY)
    kill_and_start_another(process, command, root)


def check_a_program_that_does_not_die_with_firkin(command: Command, root: Path) -> None:
    """Only the next start can end it."""
    program = (
        "import ctypes, time; ctypes.CDLL(None).prctl(1, 0); print('up', flush=True);"
        "time.sleep(1000)"
    )
    process = command.start("host", "python3", "-c", program)
    container = identities(leftovers.descendants(process.pid))
    finish(process)
    # The kernel has sent the signal, if there is one, before we could wait for firkin.
    time.sleep(0.05)
    alive = {line for line in container if not is_zombie(line)}
    assert alive, "it was to survive"
    assert command.run(root, "/bin/true").returncode == 0
    assert not wait_until_gone(container)
    assert not command.home.left()


def check_a_crash_while_unpacking(archive: Path, tmp_path: Path) -> None:
    """The next start takes the half of a tree away and unpacks it anew."""
    with crash.start(request(archive, "count"), Home(tmp_path / "count").env, "firkin") as run:
        assert_ended_well(run)
        last = run.count
    for number in range(20, last, max(1, last // 12)):
        home = Home(tmp_path / f"at{number}")
        with crash.start(request(archive, "unpack"), home.env, "firkin", number) as run:
            if not run.pid:
                assert_ended_well(run)
                continue
            run.kill()
            sweep(archive, home)
            assert run.gone(), run.step
        assert not home.left(), run.step
        partial, rootfs = home.store / "partial", home.store / "rootfs"
        # The empty file that was its lock may stay until somebody unpacks again.
        assert not [one for one in partial.iterdir() if one.is_dir()], run.step
        assert len(list(rootfs.iterdir())) == 1, run.step


def litter(root: Path, home: Home, count: int) -> list[str]:
    """Leave what *count* killed firkins leave; return their containers' ids.

    All are started before any is killed, for each start sweeps.
    """
    names = []
    with contextlib.ExitStack() as stack:
        runs = []
        for number in range(count):
            asked = request(root, f"litter{number}")
            names.append(str(asked.name))
            runs.append(stack.enter_context(crash.start(asked, home.env, "child", 60)))
        for run in runs:
            assert run.pid
            run.kill()
            assert run.gone()
    return names


def check_many_sweep_at_once(command: Command, root: Path) -> None:
    home = command.home
    names = litter(root, home, 6)
    assert len(home.left()) >= 2 * len(names), "there is nothing to sweep"
    firkins = [
        command.firkin.start("run", root, "/bin/true", env=home.env, stderr=STDOUT)
        for _ in range(4)
    ]
    ends = [(process.communicate(timeout=60)[0], process.returncode) for process in firkins]
    assert ends == [("", 0)] * 4
    assert not [one for name in ("", *names) for one in home.left(name)]


def check_living_containers_are_left_alone(command: Command, root: Path) -> None:
    script = "echo up; read line; echo $line > /tmp/x; cat /tmp/x"
    process = command.start("-i", "--name", "living", root, "sh", "-c", script)
    for _ in range(3):
        assert command.run(root, "/bin/true").returncode == 0
    out, _ = process.communicate("hello\n", timeout=60)
    assert (out, process.returncode) == ("hello\n", 0), (out, process.returncode)
    assert not command.home.left()


def check_a_name_is_taken_while_its_container_lives(command: Command, root: Path) -> None:
    process = command.start("--name", "taken", root, *FAMILY)
    again = command.run("--name", "taken", root, "/bin/true")
    assert again.returncode == 125
    assert again.stderr == "firkin: cannot use the name 'taken': a running container has it\n"
    container = identities(leftovers.descendants(process.pid))
    finish(process)
    # What the dead one has left does not stand in the way.
    assert command.run("--name", "taken", root, "/bin/true").returncode == 0
    assert not wait_until_gone(container)
    assert not command.home.left()


# What stands in the record of a folder that nobody holds. {victim} is not firkin's.
RECORDS = {
    "empty": "",
    "half a line": "scratch {victim}",
    "garbage": "\x00\x01\x7f\n\n \nnonsense\npid\n",
    "a number that is none": "pid x y\n",
    "a number that is too big": "pid 99999999999999999999999 1\n",
    "this process, at another time": "pid {own} 1\n",
    "a negative number": "pid -1 1\n",
    "a foreign folder": "scratch {victim}\n",
    "a foreign folder with our name": "scratch {victim}/containers/../../victim\n",
    "a relative folder": "scratch victim\n",
    "a foreign cgroup path": "cgroup {victim}\n",
    "the top of the cgroups": "cgroup /sys/fs/cgroup\n",
    "a climbing cgroup": "cgroup /sys/fs/cgroup/../../../{victim}\n",
    "maps that are none": "maps 1 2\nscratch {victim}\n",
    "too many fields": "maps 0:1:2 0:1:2 0:1:2\n",
}


def check_hostile_records(command: Command, root: Path, tmp_path: Path, text: str) -> None:
    victim = tmp_path / "victim"
    (victim / "below").mkdir(parents=True)
    (victim / "file").write_text("kept")
    folder = command.home.state / "bad"
    folder.mkdir(parents=True)
    record = text.replace("{victim}", str(victim)).replace("{own}", str(os.getpid()))
    (folder / "record").write_text(record)
    for _ in range(2):
        done = command.run(root, "/bin/true")
        assert (done.returncode, done.stderr) == (0, "")
    assert (victim / "file").read_text() == "kept"
    assert (victim / "below").is_dir()


def check_what_is_not_a_containers_is_kept(command: Command, root: Path, tmp_path: Path) -> None:
    """Where FIRKIN_STATE was set to a folder with other things in it."""
    state = command.home.state
    (state / "papers/old").mkdir(parents=True)
    (state / "papers/letter").write_text("dear")
    (tmp_path / "far").mkdir()
    (tmp_path / "far/letter").write_text("dear")
    (state / "link").symlink_to(tmp_path / "far")
    (state / "file").write_text("dear")
    before = sorted(state.rglob("*"))
    assert command.run(root, "/bin/true").returncode == 0
    assert sorted(state.rglob("*")) == before
    assert (tmp_path / "far/letter").read_text() == "dear"
    assert os.listdir(tmp_path / "far") == ["letter"]
