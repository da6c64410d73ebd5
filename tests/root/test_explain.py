"""``--explain``: what it prints is what the kernel was asked, in the same order, on stderr only."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.command import Firkin
from support.requires import requires

LINE = re.compile(r" *(\d+) +(\d+\.\d{3}) ms  (parent|child ) (\w+)\((.*)\) += (.+)")
FIELDS = {"number", "process", "call", "arguments", "result", "milliseconds", "why"}

# What makes a container: every one of these that succeeds has to be explained.
MAKING = (
    *("mount", "umount2", "pivot_root", "open_tree", "move_mount", "mount_setattr", "fsopen"),
    *("fsconfig", "fsmount", "unshare", "setns", "clone", "clone3", "sethostname"),
    *("setdomainname", "mknodat", "capset", "setresuid", "setresgid", "setgroups", "seccomp"),
    *("chdir", "fchdir", "setsid", "keyctl", "close_range", "symlinkat", "mkdirat", "prctl"),
    *("execve", "openat2"),
)


def explained(stderr: str) -> list[dict[str, Any]]:
    """Return the calls of ``--explain=json``."""
    lines = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if "call" in line]


def traced(log: Path) -> dict[int, list[str]]:
    """Return the names of the calls of each process that succeeded, as strace saw them."""
    found: dict[int, list[str]] = {}
    pending: dict[int, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        if match := re.match(r"(\d+) +(\w+)\(.*<unfinished \.\.\.>$", line):
            pending[int(match[1])] = match[2]
            continue
        match = re.match(r"(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\().* = (-?\w+)", line)
        if match and match[3] != "-1":
            found.setdefault(int(match[1]), []).append(match[2])
    return found


@requires("program:strace")
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--memory", "64m", "--pids-limit", "50", "--user", "1000", "--ulimit", "core=0"],
        ["--read-only", "--tmpfs", "/x", "-v", "/usr:/mnt:ro", "--sysctl", "net.ipv4.ip_forward=1"],
        ["--init", "--time-offset", "boottime=100", "--cap-add", "ALL", "--domainname", "d"],
        ["--pid", "host", "--security-opt", "no-new-privileges=false"],
        ["--userns", "auto"],
    ],
    ids=["plain", "limits", "mounts", "init", "host", "userns"],
)
def test_every_call_that_made_the_container_is_told_in_order(
    firkin: Firkin, busybox_root: Path, tmp_path: Path, options: list[str]
) -> None:
    log = tmp_path / "strace"
    trace = ["strace", "-f", "-qq", "-e", f"trace={','.join(MAKING)}", "-o", str(log)]
    words = ["run", "--explain=json", *options, str(busybox_root), "true"]
    done = subprocess.run(
        [*trace, firkin.command(), *words],
        env=firkin.env(),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = [c for c in explained(done.stderr) if not c["result"].startswith("-1")]
    processes = traced(log)
    # Ours is the first: it executes itself, and makes nothing before its clone.
    ours = min(processes)
    child = [call for pid, calls in processes.items() if pid != ours for call in calls]
    start = child.index("setsid") - 1
    assert child[start] == "prctl"
    end = len(child) - child[::-1].index("execve") if "execve" in child else None
    made = child[start:end]
    # What --init's reaper does while it runs is not making.
    said = [call["call"] for call in told if call["process"] == "child" and call["call"] in MAKING]
    if "--init" not in options and "--userns" not in options:
        assert said == made
    missing = {name: made.count(name) - said.count(name) for name in set(MAKING) - {"clone"}}
    missing = {name: count for name, count in missing.items() if count > 0}
    # The reaper names itself and closes its files when the command is under way.
    reapers = {"prctl": 1, "close_range": 1} if "--init" in options else {}
    assert missing == reapers
    assert any(c["call"] in ("clone", "clone3") and c["process"] == "parent" for c in told)


def test_what_the_parent_does_to_cgroups_is_told(
    firkin: Firkin, busybox_root: Path, tmp_path: Path
) -> None:
    options = ["--memory", "64m", "--pids-limit", "50"]
    done = firkin("run", "--explain=json", *options, busybox_root, "true")
    calls = [(c["call"], c["arguments"]) for c in explained(done.stderr)]
    for call, pattern in (
        ("mkdirat", r"/pids/.*firkin|/firkin"),
        ("write", r'"/sys/fs/cgroup/.*pids\.max", "50"'),
        ("write", r'"/sys/fs/cgroup/.*memory\.(max|limit_in_bytes)", "67108864"'),
        ("rmdir", r"firkin-"),
    ):
        assert any(c == call and re.search(pattern, a) for c, a in calls), (call, pattern)


def test_the_containers_output_is_untouched(firkin: Firkin, busybox_root: Path) -> None:
    script = "echo to out; echo to err >&2; exit 5"
    done = firkin("run", "--explain", busybox_root, "sh", "-c", script)
    assert (done.returncode, done.stdout) == (5, "to out\n")
    lines = done.stderr.splitlines()
    assert lines.count("to err") == 1
    lines.remove("to err")
    calls = [line for line in lines if not line.startswith("#")]
    matches = [LINE.fullmatch(line) for line in calls]
    assert all(matches), [c for c, m in zip(calls, matches, strict=True) if not m]
    assert [int(m[1]) for m in matches if m] == list(range(1, len(calls) + 1))
    assert len(calls) > 100
    # Nothing a person could not read.
    assert not re.search(r"object at|<socket|b'|\\x", done.stderr)


def test_it_ends_with_what_others_would_see(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", "--explain", busybox_root, "true")
    tail = done.stderr.partition("# Where it would look different:\n")[2]
    assert "as an ordinary user: clone gets CLONE_NEWUSER" in tail
    assert re.search(r"on cgroup v[12]: ", tail)
    assert all(line.startswith("#   ") for line in tail.splitlines())
    assert firkin("run", busybox_root, "true").stderr == ""


def test_json(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", "--explain=json", busybox_root, "true")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(set(line) == FIELDS for line in lines[:-1])
    assert [line["number"] for line in lines[:-1]] == list(range(1, len(lines)))
    assert {line["process"] for line in lines[:-1]} == {"parent", "child"}
    assert all(line["milliseconds"] >= 0 for line in lines[:-1])
    assert sum(bool(line["why"]) for line in lines[:-1]) > len(lines) * 0.8
    assert set(lines[-1]) == {"differences"}


@pytest.mark.parametrize(
    ("words", "status", "last"),
    [
        (["{root}", "/nothing"], 127, "setresuid"),
        (["-v", "/:/bin/sh", "{root}", "true"], 125, "mount|open_tree|openat2?"),
        (["--pid", "/proc/self/ns/net", "{root}", "true"], 125, "openat|sigprocmask"),
    ],
)
def test_a_failing_run_is_explained_so_far(
    firkin: Firkin, busybox_root: Path, words: list[str], status: int, last: str
) -> None:
    words = [word.format(root=busybox_root) for word in words]
    done = firkin("run", "--explain=json", *words)
    assert done.returncode == status
    calls = [call["call"] for call in explained(done.stderr)]
    assert any(re.fullmatch(last, call) for call in calls)
    assert "execve" not in calls
    assert done.stderr.count("\nfirkin: ") == 1


@pytest.mark.parametrize("options", [["-t"], ["--init"], ["-t", "--init"]], ids=" ".join)
def test_with_terminal_and_init(firkin: Firkin, busybox_root: Path, options: list[str]) -> None:
    done = firkin("run", "--explain=json", *options, busybox_root, "echo", "hello")
    assert (done.returncode, done.stdout.strip()) == (0, "hello")
    calls = [(c["call"], c["arguments"]) for c in explained(done.stderr)]
    assert any("echo" in arguments for call, arguments in calls if call == "execve")
    if "-t" in options:
        assert any("TIOCSCTTY" in arguments for _, arguments in calls)


def test_another_form_is_refused(firkin: Firkin, busybox_root: Path) -> None:
    done = firkin("run", "--explain=xml", busybox_root, "true")
    assert done.returncode == 125
    assert done.stderr == "firkin: cannot set --explain to 'xml': expected text or json\n"
