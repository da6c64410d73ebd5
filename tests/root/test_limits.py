"""Limits of a container, seen in its cgroup's files from the host and felt inside."""

from __future__ import annotations

import json
import os
import pwd
import re
import resource
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import leftovers
from support.command import Firkin
from support.requires import cgroup_mounts, need, requires
from support.running import Running, cgroup_of, wait_until

USER = "firkin-test"


def version(controller: str) -> int:
    """Return whether *controller* is on cgroup v1 or v2 here."""
    mounts = cgroup_mounts()
    return 2 if mounts.get(controller) == mounts.get("unified") else 1


# ---------------------------------------------------------------- what the kernel was told

M = 1 << 20

# Options; then (controller, file, value) on v1 and on v2; None where it has no such limit.
Told = tuple[str, str, str]
LIMITS: dict[str, tuple[str, Told, Told | None]] = {
    "pids": ("--pids-limit 20", ("pids", "pids.max", "20"), ("pids", "pids.max", "20")),
    "memory": (
        "--memory 64m",
        ("memory", "memory.limit_in_bytes", f"{64 * M}"),
        ("memory", "memory.max", f"{64 * M}"),
    ),
    "swap": (
        "--memory 64m --memory-swap 96m",
        ("memory", "memory.memsw.limit_in_bytes", f"{96 * M}"),
        ("memory", "memory.swap.max", f"{32 * M}"),
    ),
    "swap as much as memory": (
        "--memory 64m",
        ("memory", "memory.memsw.limit_in_bytes", f"{128 * M}"),
        ("memory", "memory.swap.max", f"{64 * M}"),
    ),
    "reservation": (
        "--memory-reservation 32m",
        ("memory", "memory.soft_limit_in_bytes", f"{32 * M}"),
        ("memory", "memory.low", f"{32 * M}"),
    ),
    "swappiness": ("--memory-swappiness 10", ("memory", "memory.swappiness", "10"), None),
    "cpus": (
        "--cpus 0.5",
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.max", "50000 100000"),
    ),
    "quota": (
        "--cpu-quota 30000 --cpu-period 60000",
        ("cpu", "cpu.cfs_quota_us", "30000"),
        ("cpu", "cpu.max", "30000 60000"),
    ),
    "period": (
        "--cpu-quota 30000 --cpu-period 60000",
        ("cpu", "cpu.cfs_period_us", "60000"),
        ("cpu", "cpu.max", "30000 60000"),
    ),
    "shares": ("--cpu-shares 512", ("cpu", "cpu.shares", "512"), ("cpu", "cpu.weight", "20")),
    "processors": (
        "--cpuset-cpus 0",
        ("cpuset", "cpuset.cpus", "0"),
        ("cpuset", "cpuset.cpus", "0"),
    ),
    "nodes": ("--cpuset-mems 0", ("cpuset", "cpuset.mems", "0"), ("cpuset", "cpuset.mems", "0")),
}


def told(name: str) -> tuple[list[str], Told]:
    """Return the options of a limit, and what the kernel has to say of it here."""
    options, old, new = LIMITS[name]
    need(f"controller:{old[0]}")
    chosen = old if version(old[0]) == 1 else new
    if chosen is None:
        need("cgroup v1")
    assert chosen
    if "swap" in chosen[1]:
        need("swap accounting")
    return options.split(), chosen


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_in_the_cgroups_files(firkin: Firkin, busybox_root: Path, name: str) -> None:
    options, (controller, file, value) = told(name)
    with Running(firkin, busybox_root, *options) as box:
        folder = box.cgroup(controller)
        assert (folder / file).read_text().strip() == value
    assert not folder.exists()


@requires("program:runc", "cgroup v1")
def test_runc_sets_the_same(firkin: Firkin, busybox_root: Path, tmp_path: Path) -> None:
    """The same configuration in the hands of another runtime: the table itself is right."""
    names = ["pids", "swap", "quota", "shares", "processors", "nodes"]
    options = [word for name in names for word in told(name)[0]]
    done = firkin("spec", *options, busybox_root, "sh", "-c", "echo up; read x", check=True)
    config = json.loads(done.stdout)
    # firkin spec leaves the choice of a place to who runs it.
    config["linux"]["cgroupsPath"] = f"/firkin-{uuid.uuid4().hex}"
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = ["runc", "--root", str(tmp_path / "runc"), "run", "-b", str(tmp_path)]
    with Running.of([*command, uuid.uuid4().hex]) as box:
        for name in names:
            controller, file, value = told(name)[1]
            assert (box.cgroup(controller) / file).read_text().strip() == value, name


@requires("controller:io")
@pytest.mark.parametrize(
    ("option", "rate", "file"),
    [
        ("--device-read-bps", "1m", "read_bps_device"),
        ("--device-write-bps", "2m", "write_bps_device"),
        ("--device-read-iops", "30", "read_iops_device"),
        ("--device-write-iops", "40", "write_iops_device"),
    ],
)
def test_rates_of_a_disk(
    firkin: Firkin, busybox_root: Path, option: str, rate: str, file: str
) -> None:
    disk = next(
        (d for d in Path("/sys/block").iterdir() if Path("/dev", d.name).is_block_device()), None
    )
    assert disk, "this machine has no disk"
    number = (disk / "dev").read_text().strip()
    value = int(rate.replace("m", "")) * (M if "m" in rate else 1)
    with Running(firkin, busybox_root, option, f"/dev/{disk.name}:{rate}") as box:
        if version("blkio" if "blkio" in cgroup_mounts() else "io") == 1:
            said = (box.cgroup("blkio") / f"blkio.throttle.{file}").read_text()
            assert f"{number} {value}\n" in said
        else:
            word = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops"}
            said = (box.cgroup("io") / "io.max").read_text()
            assert f"{word.get(file[:-7], 'wiops')}={value}" in said


def test_weight_of_block_io_or_why_not(firkin: Firkin, busybox_root: Path) -> None:
    """Only the BFQ scheduler has weights; without it the option is refused, not dropped."""
    mounts = cgroup_mounts()
    need("controller:io")
    folder = Path(mounts.get("blkio", mounts.get("io", "")))
    # The root cgroup has no weight, so any cgroup below tells.
    has = any(folder.glob("*/*.weight"))
    done = firkin("run", "--blkio-weight", "300", busybox_root, "true")
    if has:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 125
        assert re.search(r"blockIO\.weight.*: .*weight does not exist: .*bfq", done.stderr)


# ---------------------------------------------------------------- what is felt


def test_a_fork_bomb_stays_bounded(firkin: Firkin, busybox_root: Path) -> None:
    bomb = "(bomb() { bomb | bomb & }; bomb) 2>/dev/null"
    with Running(firkin, busybox_root, "--pids-limit", "15", script=bomb) as box:
        folder = box.cgroup("pids")

        def refused() -> bool:
            return " 0" not in (folder / "pids.events").read_text()

        wait_until(refused, "a fork that is refused")
        assert int((folder / "pids.current").read_text()) <= 15
        assert len(leftovers.descendants(box.process.pid)) <= 15


@pytest.mark.parametrize(
    ("limits", "status"),
    [("--memory 16m --memory-swap 16m", 137), ("--memory 128m --memory-swap 128m", 0)],
)
def test_a_hog_is_killed(firkin: Firkin, busybox_root: Path, limits: str, status: int) -> None:
    # tail keeps what it may have to print: 40 MB without a newline.
    hog = "dd if=/dev/zero bs=1M count=40 2>/dev/null | tail"
    done = firkin("run", *limits.split(), busybox_root, "sh", "-c", f"{hog} >/dev/null")
    assert done.returncode == status, done.stderr


def test_six_megabytes_are_enough_to_start(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", "--memory", "6m", busybox_root, "/bin/true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_quota_throttles(firkin: Firkin, busybox_root: Path) -> None:
    spin = "while :; do :; done &"
    with Running(firkin, busybox_root, "--cpus", "0.2", script=spin) as box:
        folder = box.cgroup("cpu")

        def throttled() -> bool:
            return int(stat(folder)["nr_throttled"]) >= 3

        wait_until(throttled, "throttling")
        facts = stat(folder)
        assert int(facts["nr_throttled"]) <= int(facts["nr_periods"])


def stat(folder: Path) -> dict[str, str]:
    lines = (folder / "cpu.stat").read_text().splitlines()
    return dict(line.split() for line in lines)


@requires("cpus:2")
def test_only_the_given_processor_is_used(firkin: Firkin, busybox_root: Path) -> None:
    with Running(firkin, busybox_root, "--cpuset-cpus", "1") as box:
        assert os.sched_getaffinity(box.pid) == {1}
        assert box.status("Cpus_allowed_list") == "1"
    done = firkin("run", "--cpuset-cpus", "1", busybox_root, "nproc")
    assert done.stdout == "1\n"


def test_without_limits_there_are_none(firkin: Firkin, busybox_root: Path) -> None:
    with Running(firkin, busybox_root) as box:
        assert (box.cgroup("pids") / "pids.max").read_text() == "max\n"
        assert box.cgroup("pids") != cgroup_of(os.getpid(), "pids")


@pytest.fixture
def parent() -> Iterator[str]:
    """A name for ``--cgroup-parent`` that no one else has; whatever is made there goes."""
    name = f"firkin-parent-{uuid.uuid4().hex[:8]}"
    yield name
    for folder in parents(name):
        for path in (*folder.glob("*/"), folder):
            path.rmdir()


def parents(name: str) -> list[Path]:
    folders = {Path(mount, name) for mount in cgroup_mounts().values()}
    return [folder for folder in folders if folder.exists()]


def below(name: str) -> list[Path]:
    """Return the cgroups below the parent *name*, in all hierarchies; it must be there."""
    assert parents(name)
    return [path for folder in parents(name) for path in folder.glob("*/")]


@pytest.mark.parametrize("form", ["{}", "/{}", "/{}/deep"])
def test_a_parent_for_the_cgroup(
    firkin: Firkin, busybox_root: Path, parent: str, form: str
) -> None:
    path = form.format(parent)
    with Running(firkin, busybox_root, "--cgroup-parent", path) as box:
        folder = box.cgroup("pids")
        assert folder.parent == Path(cgroup_mounts()["pids"], path.strip("/"))
    assert not folder.exists()
    assert folder.parent.exists(), "the parent is not the container's to remove"


# ---------------------------------------------------------------- gone after each end


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["false"], 1),
        (["/nothing"], 127),
        (["/etc/passwd"], 126),
        (["sh", "-c", "kill -9 $$"], 0),  # pid 1 is deaf to its own signals
        (["sh", "-c", "sleep 100 & sleep 100 & exit 7"], 7),
    ],
)
def test_the_cgroup_is_gone_after(
    firkin: Firkin, busybox_root: Path, parent: str, command: list[str], status: int
) -> None:
    limits = ["--pids-limit", "50", "--memory", "64m", "--cpus", "1"]
    done = firkin("run", *limits, "--cgroup-parent", parent, busybox_root, *command)
    assert done.returncode == status, done.stderr
    assert not below(parent)


def test_what_the_container_made_in_its_cgroup_goes_too(
    firkin: Firkin, busybox_root: Path, parent: str
) -> None:
    with Running(firkin, busybox_root, "--cgroup-parent", parent) as box:
        (box.cgroup("pids") / "inner/most").mkdir(parents=True)
    assert not below(parent)


@pytest.mark.parametrize("whom", ["firkin by SIGTERM", "the command by SIGKILL"])
def test_the_cgroup_is_gone_after_a_kill(
    firkin: Firkin, busybox_root: Path, parent: str, whom: str
) -> None:
    options = ["--init", "--memory", "64m", "--cgroup-parent", parent]
    script = "trap 'exit 9' TERM"
    with Running(firkin, busybox_root, *options, script=script) as box:
        assert box.cgroup("memory") in below(parent)
        if whom.startswith("firkin"):
            box.process.send_signal(signal.SIGTERM)
        else:
            os.kill(box.pid, signal.SIGKILL)
        box.process.wait(20)
        assert box.process.returncode == (9 if whom.startswith("firkin") else 137)
        assert not below(parent)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--memory 12q", "--memory to '12q'"),
        ("--memory=-5", "--memory to '-5'"),
        ("--memory 1k", "--memory: 1024"),
        ("--memory 64m --memory-swap 32m", "--memory-swap to 33554432"),
        ("--memory-swap 32m", "--memory-swap to 33554432"),
        ("--memory-swappiness 101", "--memory-swappiness to '101'"),
        ("--pids-limit many", "--pids-limit to 'many'"),
        ("--pids-limit=-7", "--pids-limit to '-7'"),
        ("--cpus 0", None),
        ("--cpus -1", "--cpus to '-1'"),
        ("--cpus two", "--cpus to 'two'"),
        ("--cpu-shares 1", "--cpu-shares to '1'"),
        ("--cpu-quota 1", "--cpu-quota to '1'"),
        ("--cpu-period 5", "--cpu-period to '5'"),
        ("--cpus 1 --cpu-quota 50000", "--cpus"),
        ("--cpuset-cpus 0-", "--cpuset-cpus to '0-'"),
        ("--cpuset-cpus 4000", "--cpuset-cpus: '4000'"),
        ("--cpuset-mems 900", "--cpuset-mems: '900'"),
        ("--blkio-weight 5", "--blkio-weight to '5'"),
        ("--device-read-bps /dev/nothing:1m", "/dev/nothing"),
        ("--device-read-bps /etc/passwd:1m", "/etc/passwd"),
        ("--device-read-bps 1m", "--device-read-bps to '1m'"),
        ("--ulimit nofile", "--ulimit to 'nofile'"),
        ("--ulimit nofile=20:10", "--ulimit to 'nofile=20:10'"),
        ("--ulimit files=10", "--ulimit to 'files=10'"),
        ("--oom-score-adj 1001", "--oom-score-adj to '1001'"),
        ("--timeout 0", "--timeout to '0'"),
        ("--timeout soon", "--timeout to 'soon'"),
        ("--cgroup-parent ../x", "../x"),
    ],
)
def test_refusals(firkin: Firkin, busybox_root: Path, options: str, says: str | None) -> None:
    """One line with the flag and the value, status 125; that nothing is left no_leftovers sees."""
    done = firkin("run", *options.split(), busybox_root, "true")
    if says is None:  # as Docker: no limit
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert done.returncode == 125, done.stderr
    assert re.fullmatch(r"firkin: cannot .+: .+\n", done.stderr)
    assert says in done.stderr


# ---------------------------------------------------------------- the limits of each process


def limit(box: Running, name: str) -> tuple[str, str]:
    """Return the soft and the hard limit in ``/proc/PID/limits``."""
    for line in box.proc("limits").splitlines():
        if line.startswith(name):
            soft, hard = line.removeprefix(name).split()[:2]
            return soft, hard
    raise KeyError(name)


@pytest.mark.parametrize(
    ("option", "name", "expected"),
    [
        ("nofile=100:200", "Max open files", ("100", "200")),
        ("nofile=150", "Max open files", ("150", "150")),
        ("core=0", "Max core file size", ("0", "0")),
        ("cpu=50:60", "Max cpu time", ("50", "60")),
        ("fsize=1048576:2097152", "Max file size", ("1048576", "2097152")),
        ("stack=4194304", "Max stack size", ("4194304", "4194304")),
        ("nproc=500", "Max processes", ("500", "500")),
    ],
)
@pytest.mark.parametrize("user", ["0", "1000"])
def test_ulimits(
    firkin: Firkin,
    busybox_root: Path,
    option: str,
    name: str,
    expected: tuple[str, str],
    user: str,
) -> None:
    with Running(firkin, busybox_root, "--ulimit", option, "--user", user) as box:
        assert limit(box, name) == expected


def test_other_limits_are_the_callers(firkin: Firkin, busybox_root: Path) -> None:
    with Running(firkin, busybox_root, "--ulimit", "core=0") as box:
        own = Path("/proc/self/limits").read_text().splitlines()
        theirs = box.proc("limits").splitlines()
        assert [line for line in own if "core" not in line] == [
            line for line in theirs if "core" not in line
        ]


def test_a_hard_limit_is_raised_or_refused_with_the_reason(
    firkin: Firkin, busybox_root: Path
) -> None:
    hard = 64
    limits = (hard, hard)
    command = ["run", "--ulimit", f"nofile={4 * hard}", busybox_root, "sh", "-c", "ulimit -n"]
    done = firkin(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits))
    effective = int(re.findall(r"CapEff:\s(\w+)", Path("/proc/self/status").read_text())[0], 16)
    if effective >> 24 & 1:
        assert (done.returncode, done.stdout) == (0, f"{4 * hard}\n")
    else:
        assert done.returncode == 125
        assert re.fullmatch(
            rf"firkin: cannot raise .*nofile.* to {4 * hard}: .*{hard}; .*CAP_SYS_RESOURCE\n",
            done.stderr,
            re.IGNORECASE,
        )


@pytest.mark.parametrize("score", ["500", "1000"])
def test_the_oom_score(firkin: Firkin, busybox_root: Path, score: str) -> None:
    with Running(firkin, busybox_root, "--oom-score-adj", score) as box:
        assert box.proc("oom_score_adj") == f"{score}\n"
        own = Path("/proc/self/oom_score_adj").read_text()
        assert Path(f"/proc/{box.process.pid}/oom_score_adj").read_text() == own


def test_a_lower_oom_score_is_set_or_refused(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", "--oom-score-adj", "-900", busybox_root, "cat", "/proc/self/oom_score_adj")
    effective = int(re.findall(r"CapEff:\s(\w+)", Path("/proc/self/status").read_text())[0], 16)
    if effective >> 24 & 1:
        assert done.stdout == "-900\n"
    else:
        assert done.returncode == 125
        assert re.fullmatch(r"firkin: cannot set the OOM score to -900: .+; .+\n", done.stderr)


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("options", [[], ["--init"], ["--pid", "host"]], ids=str)
def test_timeout_ends_the_whole_container(
    firkin: Firkin, busybox_root: Path, options: list[str]
) -> None:
    """With what left the session and ignores every signal that can be ignored."""
    script = """
        trap '' TERM INT HUP QUIT
        setsid sh -c "trap '' TERM INT HUP; while :; do sleep 100; done" &
        (setsid setsid sleep 100 &)
        sleep 100
    """
    own = os.fspath(busybox_root)
    done = firkin("run", *options, "--timeout", "0.4", busybox_root, "sh", "-c", script)
    assert done.returncode == 137
    assert done.stderr == "firkin: ended the container after 0.4 s: --timeout\n"
    left = [pid for pid in leftovers.ours(str(firkin.folder)) if own in mounts_of(pid)]
    assert not left


def mounts_of(pid: int) -> str:
    return "\n".join(leftovers.mountinfo(pid))


def test_timeout_leaves_alone_what_ends_in_time(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", "--timeout", "30", busybox_root, "sh", "-c", "echo out; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "")


def test_output_before_the_timeout_is_kept(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", "--timeout", "0.4", busybox_root, "sh", "-c", "echo early; sleep 100")
    assert (done.returncode, done.stdout) == (137, "early\n")


# ---------------------------------------------------------------- an ordinary user's cgroup


@pytest.fixture
def delegated() -> Iterator[list[Path]]:
    """A cgroup in each hierarchy that is firkin-test's, as an administrator delegates them."""
    need("cgroup v1", f"user:{USER}")
    owner = pwd.getpwnam(USER)
    folders = []
    name = f"firkin-delegated-{uuid.uuid4().hex[:8]}"
    mounts = cgroup_mounts()
    with ExitStack() as stack:
        for mount in sorted({mounts[c] for c in ("pids", "memory", "cpu", "cpuset")}):
            folder = Path(mount, name)
            folder.mkdir()
            stack.callback(leave, folder)
            folders.append(folder)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (folder / file).exists():
                    (folder / file).write_text((folder.parent / file).read_text())
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            for file in ("cgroup.procs", "tasks"):
                os.chown(folder / file, owner.pw_uid, owner.pw_gid)
        yield folders


def leave(folder: Path) -> None:
    """Remove a cgroup, which must be empty but for processes that are ending."""
    wait_until(lambda: not (folder / "cgroup.procs").read_text(), f"the end of all in {folder}")
    folder.rmdir()


@requires("user namespaces")
@pytest.mark.parametrize("name", ["pids", "memory", "swap", "quota", "shares", "processors"])
def test_limits_hold_in_a_delegated_cgroup(
    firkin: Firkin, busybox_root: Path, delegated: list[Path], name: str
) -> None:
    options, (controller, file, value) = told(name)
    # Root moves its shell there and only then becomes the user, as a login does.
    command = [firkin.command(USER), "run", "-i", *options, str(busybox_root)]
    script = "".join(f"echo 0 > {folder}/cgroup.procs\n" for folder in delegated)
    script += f'exec setpriv --reuid {USER} --regid {USER} --init-groups "$@"'
    shell = ["sh", "-c", "echo up; read x"]
    start = ["/bin/sh", "-c", script, "sh", *command, *shell]
    with Running.of(start, env=firkin.env(USER), cwd="/") as box:
        folder = box.cgroup(controller)
        assert folder.parent in delegated
        assert (folder / file).read_text().strip() == value
        assert folder.stat().st_uid == pwd.getpwnam(USER).pw_uid
    assert not folder.exists()


@requires("user namespaces")
@pytest.mark.parametrize("option", ["--memory=64m", "--pids-limit=20", "--cpus=1"])
def test_without_a_delegated_cgroup_limits_are_refused(
    firkin: Firkin, busybox_root: Path, option: str
) -> None:
    done = firkin("run", option, busybox_root, "true", user=USER)
    assert done.returncode == 125
    assert re.fullmatch(
        r"firkin: cannot create cgroup /sys/fs/cgroup/\S+: no right to write in /\S+; "
        r"run as root, or have a cgroup delegated to you .+\n",
        done.stderr,
    )


@requires("user namespaces")
def test_a_user_without_limits_needs_no_cgroup(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", busybox_root, "id", "-u", user=USER)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
