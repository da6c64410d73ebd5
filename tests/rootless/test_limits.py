"""Limits as an ordinary user: those of each process and of time; cgroups need a delegated one.

That limits hold in a delegated cgroup, ``tests/root/test_limits.py`` tries: only
root can delegate one.
"""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest

from support.command import Firkin
from support.requires import requires
from support.running import Running, cgroup_of

pytestmark = requires("user namespaces")


@pytest.mark.parametrize(
    "option",
    [
        "--memory=64m",
        "--memory-reservation=32m",
        "--pids-limit=20",
        "--cpus=1",
        "--cpu-shares=512",
        "--cpuset-cpus=0",
    ],
)
def test_without_a_delegated_cgroup_limits_are_refused(
    firkin: Firkin, busybox_root: Path, option: str
) -> None:
    """With the file that could not be made and the mend; never silently dropped."""
    done = firkin("run", option, busybox_root, "true")
    assert done.returncode == 125
    assert re.fullmatch(
        r"firkin: cannot \S+.* cgroup /sys/fs/cgroup/\S+: no right to write \S+.*; "
        r"run as root, or have a cgroup delegated to you .+\n",
        done.stderr,
    )


def test_without_limits_no_cgroup_is_needed(firkin: Firkin, busybox_root: Path) -> None:
    with Running(firkin, busybox_root) as box:
        assert box.cgroup("pids") == cgroup_of(box.process.pid, "pids")


@pytest.mark.parametrize(
    ("option", "name", "expected"),
    [
        ("nofile=100:200", "Max open files", ["100", "200"]),
        ("core=0", "Max core file size", ["0", "0"]),
        ("nproc=500", "Max processes", ["500", "500"]),
    ],
)
def test_ulimits(
    firkin: Firkin, busybox_root: Path, option: str, name: str, expected: list[str]
) -> None:
    with Running(firkin, busybox_root, "--ulimit", option) as box:
        lines = box.proc("limits").splitlines()
        line = next(line for line in lines if line.startswith(name))
        assert line.removeprefix(name).split()[:2] == expected


def test_a_hard_limit_is_not_raised(firkin: Firkin, busybox_root: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = firkin("run", "--ulimit", f"nofile={hard + 1}", busybox_root, "true")
    assert done.returncode == 125
    assert re.fullmatch(
        rf"firkin: cannot raise .*NOFILE to {hard + 1}: .*{hard}; .*CAP_SYS_RESOURCE\n", done.stderr
    )


def test_the_oom_score(firkin: Firkin, busybox_root: Path) -> None:
    command = [busybox_root, "cat", "/proc/self/oom_score_adj"]
    assert firkin("run", "--oom-score-adj", "600", *command).stdout == "600\n"
    done = firkin("run", "--oom-score-adj", "-600", *command)
    assert done.returncode == 125
    assert re.fullmatch(r"firkin: cannot set the OOM score to -600: .+; .+\n", done.stderr)


@pytest.mark.parametrize("options", [[], ["--init"]], ids=str)
def test_timeout_ends_the_whole_container(
    firkin: Firkin, busybox_root: Path, options: list[str]
) -> None:
    """What stays, no_leftovers sees."""
    script = "trap '' TERM; setsid sh -c \"trap '' TERM; sleep 100; :\" & echo early; sleep 100"
    done = firkin("run", *options, "--timeout", "0.5", busybox_root, "sh", "-c", script)
    assert (done.returncode, done.stdout) == (137, "early\n")
    assert done.stderr == "firkin: ended the container after 0.5 s: --timeout\n"
