"""Rights of root's containers; what an ordinary user's share is in ``support/cases_privileges``."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.cases_privileges import DEFAULT, Cases, alike, call, sets
from support.command import Firkin
from support.requires import requires
from support.running import Running


class TestPrivileges(Cases):
    """As :class:`Cases`."""


@pytest.mark.parametrize("user", ["1000", "alice", "65534:65534"])
def test_a_user_who_is_not_root_has_none(firkin: Firkin, busybox_root: Path, user: str) -> None:
    with Running(firkin, busybox_root, "--user", user, "--cap-add", "NET_ADMIN") as box:
        assert sets(box) == alike(0) | {"CapBnd": DEFAULT | 1 << 12}


@requires("program:runc")
def test_the_sets_are_runcs(firkin: Firkin, busybox_root: Path, tmp_path: Path) -> None:
    """What firkin spec prints gives the same sets in the hands of runc."""
    done = firkin("spec", busybox_root, "sh", "-c", "echo up; read x", check=True)
    (tmp_path / "config.json").write_text(done.stdout)
    command = ["runc", "--root", str(tmp_path / "runc"), "run", "-b", str(tmp_path)]
    with Running.of([*command, f"firkin-{tmp_path.name}"]) as box:
        assert sets(box) == alike(DEFAULT)
        assert (box.status("Seccomp"), box.status("NoNewPrivs")) == ("2", "1")


@requires("debian root")
@pytest.mark.parametrize(("option", "euid"), [("true", "1000"), ("false", "0")])
def test_a_setuid_program(
    firkin: Firkin, debian_root: Path, tmp_path: Path, option: str, euid: str
) -> None:
    program = tmp_path / "id"
    shutil.copy(debian_root / "usr/bin/id", program)
    program.chmod(0o4755)
    options = ["--user", "1000", "--security-opt", f"no-new-privileges={option}"]
    volume = ["-v", f"{program}:/usr/bin/id-of-root"]
    done = firkin("run", *options, *volume, debian_root, "id-of-root", "-u")
    assert (done.returncode, done.stdout.strip()) == (0, euid), done.stderr


SYS = {"unshare": 272, "mount": 165, "keyctl": 250, "clone": 56, "clone3": 435, "bpf": 321}
EPERM, ENOSYS, EINVAL = 1, 38, 22
NEWUSER = 0x10000000


@requires("debian root", "architecture:x86_64")
@pytest.mark.parametrize(
    ("name", "arguments", "denied", "free"),
    [
        ("unshare", (NEWUSER,), EPERM, 0),
        ("keyctl", (0, -3, 0), EPERM, 0),
        ("clone", (NEWUSER | 17, 0, 0, 0, 0), EPERM, None),
        ("clone3", (0, 0), ENOSYS, EINVAL),
        ("bpf", (9999, 0, 0), EPERM, None),
    ],
)
def test_system_calls_of_the_default_profile(
    firkin: Firkin,
    tmp_path: Path,
    name: str,
    arguments: tuple[int, ...],
    denied: int,
    free: int | None,
) -> None:
    """Each is denied by the profile, and by nothing else: without it the answer is another."""
    script = call(SYS[name], *arguments)
    for profile, expected in (([], denied), (["--security-opt", "seccomp=unconfined"], free)):
        if expected is None:
            continue
        done = firkin("run", *profile, "host", "python3", "-c", script)
        assert done.stdout == f"{expected}\n", done.stderr


@requires("program:strace")
def test_libseccomp_is_loaded_once(firkin: Firkin, busybox_root: Path, tmp_path: Path) -> None:
    """The first run compiles the filter; the next ones read it from the store."""
    env = firkin.env() | {"FIRKIN_STORE": str(tmp_path / "store")}
    log = tmp_path / "strace"
    opened = []
    for _ in range(2):
        trace = ["strace", "-qq", "-s", "4096", "-e", "trace=open,openat", "-o", str(log)]
        words = [firkin.command(), "run", str(busybox_root), "true"]
        subprocess.run([*trace, *words], check=True, env=env, timeout=60)
        text = log.read_text()
        opened.append(bool(re.search(r'libseccomp\.so[^"]*", .* = \d+$', text, re.MULTILINE)))
        assert f'"{tmp_path}/store/seccomp"' in text
    assert opened == [True, False]
