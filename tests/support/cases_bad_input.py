"""What firkin says to bad input, and that it leaves nothing behind.

Run as root by ``tests/root/test_bad_input.py`` and as an ordinary user by
``tests/rootless/test_bad_input.py``.
"""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import tarfile
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from support.command import Firkin
from support.crash import Home

LONG = "a" * 300

# Options and IMAGE and command, as a shell splits them; the status; the message, of
# which "…" stands for anything. {root} is BusyBox's, {folder} the test's own.
CASES = {
    "unknown option": (
        "--memroy 1g {root} true",
        125,
        "cannot use option '--memroy': there is no such option; did you mean --memory? …",
    ),
    "missing rootfs": (
        "{folder}/none true",
        125,
        "cannot use image '{folder}/none': no such file or folder",
    ),
    "missing rootfs by option": (
        "--rootfs {folder}/none true",
        125,
        "cannot use image '{folder}/none': no such file or folder",
    ),
    "image by name": ("alpine true", 125, "cannot use image 'alpine': images by name …; give a …"),
    "no image": ("", 125, "cannot run: IMAGE is missing; see 'firkin run --help'"),
    "no command": ("{root}", 125, "cannot run: there is no command; write one after IMAGE"),
    "not found": ("{root} none", 127, "cannot run 'none': executable file not found in $PATH"),
    "not found by path": ("{root} /bin/none", 127, "cannot run '/bin/none': No such file or …"),
    "empty name": ("{root} ''", 127, "cannot run '': executable file not found in $PATH"),
    "not executable": ("{root} /etc/passwd", 126, "cannot run '/etc/passwd': Permission denied"),
    "a folder": ("{root} /etc", 126, "cannot run '/etc': Is a directory"),
    "memory no number": (
        "--memory abc {root} true",
        125,
        "cannot set --memory to 'abc': expected a number of bytes with an optional unit …",
    ),
    "pids no number": (
        "--pids-limit abc {root} true",
        125,
        "cannot set --pids-limit to 'abc': expected a whole number …",
    ),
    "cpus no number": ("--cpus abc {root} true", 125, "cannot set --cpus to 'abc': expected …"),
    "memory too small": (
        "--memory 64k {root} true",
        125,
        "cannot set --memory: … too few …; give …",
    ),
    "namespace that is a file": (
        "--net {root}/etc/passwd {root} true",
        125,
        "… '{root}/etc/passwd': it is not a namespace",
    ),
    "namespace that is missing": ("--ipc {folder}/x {root} true", 125, "… '{folder}/x': No such …"),
    "namespace of another kind": ("--net /proc/self/ns/uts {root} true", 125, "…: …"),
    "user unknown": (
        "-u nobodyknows {root} true",
        125,
        "cannot run as user 'nobodyknows': not in the container's /etc/passwd",
    ),
    "group unknown": ("-u root:nobodyknows {root} true", 125, "cannot …'nobodyknows…/etc/group"),
    "no such container": (
        "--pid container:none {root} true",
        125,
        "cannot find container 'none': …",
    ),
    "container id that climbs": ("--pid container:../x {root} true", 125, "cannot set --pid to …"),
    "container id of dots": ("--net container:.. {root} true", 125, "cannot set --net to '..': …"),
    "name with a slash": ("--name a/b {root} true", 125, "cannot set --name to 'a/b': expected …"),
    "name of dots": ("--name .. {root} true", 125, "cannot set --name to '..': expected …"),
    "name with a newline": ("--name 'a\nb' {root} true", 125, "cannot set --name to 'a\\nb': …"),
    "name too long": (f"--name {LONG} {{root}} true", 125, "cannot set --name to 'aaa…"),
    "image's name too long": (f"/{LONG} true", 125, "cannot use image '/aaa…"),
    "command's name too long": (f"{{root}} {LONG}", 127, "cannot run 'aaa…"),
    "workdir too long": (f"-w /{LONG} {{root}} true", 125, "cannot …/aaa…"),
    "newline and escape in the image": (
        "'/no\n\x1b[31m' true",
        125,
        "cannot use image '/no\\n\\x1b…",
    ),
    "newline in the command": ("{root} 'no\nway'", 127, "cannot run 'no\\nway': …"),
    "hostname with a newline": ("--hostname 'a\nb' {root} true", 125, "cannot set --hostname to …"),
    "volume that must exist": (
        "--mount type=bind,source={folder}/none,target=/x {root} true",
        125,
        "cannot mount '{folder}/none': no such file or folder",
    ),
    "mount of no type": ("--mount type=nfs,target=/x {root} true", 125, "cannot …nfs…"),
    "two mounts on one target": (
        "--tmpfs /x --tmpfs /x {root} true",
        125,
        "cannot mount on '/x': it is the target of two mounts",
    ),
    "workdir that is a file": ("-w /etc/passwd {root} true", 125, "cannot …'/etc/passwd': Not a …"),
    "env file missing": ("--env-file {folder}/none {root} true", 125, "cannot read --env-file …"),
    "env without a name": ("-e =x {root} true", 125, "cannot set -e to '=x': expected KEY=VALUE …"),
    "env file with a null byte": ("--env-file {folder}/nul {root} true", 125, "cannot …"),
    "bundle that is none": (
        "--bundle {folder}/none",
        125,
        "cannot read '{folder}/none/config.json…",
    ),
    "seccomp profile missing": (
        "--security-opt seccomp={folder}/none {root} true",
        125,
        "cannot use seccomp profile '{folder}/none': No such file or directory",
    ),
    "seccomp profile broken": (
        "--security-opt seccomp={folder}/nul {root} true",
        125,
        "cannot use seccomp profile '{folder}/nul': not JSON…",
    ),
    "broken archive": ("{folder}/broken.tar true", 125, "cannot …'{folder}/broken.tar': …"),
    "broken gzip": ("{folder}/broken.tar.gz true", 125, "cannot …'{folder}/broken.tar.gz': …"),
    "archive cut short": ("{folder}/cut.tar.gz true", 125, "cannot …'{folder}/cut.tar.gz': …"),
    "a FIFO as image": ("{folder}/fifo true", 125, "cannot use image '{folder}/fifo': neither …"),
    "terminal without one": ("-it {root} true", 125, "cannot …"),
    "capability unknown": ("--cap-add nope {root} true", 125, "cannot set --cap-add to 'nope': …"),
}


class Bad:
    """Runs firkin with what is wrong, and checks what every failure has in common."""

    def __init__(self, firkin: Firkin, folder: Path, root: Path, tar: Path) -> None:
        self.firkin, self.folder, self.root = firkin, folder, root
        self.home = Home(folder)
        (folder / "nul").write_bytes(b"A=x\0y\n")
        (folder / "broken.tar").write_bytes(b"no archive " * 100)
        (folder / "broken.tar.gz").write_bytes(b"\x1f\x8b" + b"no archive " * 100)
        (folder / "cut.tar.gz").write_bytes(tar.read_bytes()[:4000])
        os.mkfifo(folder / "fifo")

    def fill_in(self, text: str) -> str:
        return text.replace("{root}", str(self.root)).replace("{folder}", str(self.folder))

    def refused(self, arguments: str, status: int, message: str, **env: str) -> None:
        """Check that ``firkin run ARGUMENTS`` fails with *message*, and leaves nothing."""
        words = shlex.split(self.fill_in(arguments))
        done = self.firkin("run", *words, env=self.home.env | env)
        self.check(done, status, message)

    def check(self, done: CompletedProcess[str], status: int, message: str) -> None:
        lines = done.stderr.splitlines()
        assert done.stderr.endswith("\n"), repr(done.stderr)
        assert len(lines) == 1, done.stderr
        assert done.stdout == ""
        assert lines[0].startswith("firkin: "), done.stderr
        # What failed, and why.
        assert ": " in lines[0].removeprefix("firkin: "), done.stderr
        assert all(c.isprintable() for c in lines[0]), repr(done.stderr)
        wanted = f"firkin: {self.fill_in(message)}"
        assert matches(lines[0], wanted), f"{lines[0]!r} is not {wanted!r}"
        assert done.returncode == status, done.stderr
        assert not self.left(), self.left()

    def left(self) -> list[str]:
        """Return containers' files, and unpacked or half unpacked trees."""
        found = self.home.left()
        for name in ("partial", "rootfs", "index"):
            folder = self.home.store / name
            found += [str(one) for one in folder.iterdir()] if folder.is_dir() else []
        return found


def matches(line: str, pattern: str) -> bool:
    """Tell whether *line* is *pattern*, whose ``…`` stand for anything."""
    parts = pattern.split("…")
    if not line.startswith(parts[0]) or not line.endswith(parts[-1]):
        return False
    for part in filter(None, parts):
        _, found, line = line.partition(part)
        if not found:
            return False
    return True


@pytest.fixture
def bad(firkin: Firkin, tmp_path: Path, busybox_root: Path, busybox_tar: Path) -> Bad:
    return Bad(firkin, tmp_path, busybox_root, busybox_tar)


# ---------------------------------------------------------------- archives


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, 0o755
    if kind == tarfile.REGTYPE:
        made.size = 4
    return made


LINK, HARD, FOLDER = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE

# {victim} is a folder outside, which holds a file "kept".
CLIMBERS = {
    "dots": [member("../victim/new")],
    "dots in the middle": [member("a/", FOLDER), member("a/../../victim/new")],
    "hard link with dots": [member("x", HARD, "../victim/kept"), member("x")],
    "hard link, absolute": [member("x", HARD, "{victim}/kept"), member("x")],
    "hard link through a link": [
        member("l", LINK, "{victim}"),
        member("x", HARD, "l/kept"),
        member("x"),
    ],
    "below a link": [member("l", LINK, "{victim}"), member("l/new")],
    "below a relative link": [member("l", LINK, "../../../../../victim"), member("l/new")],
    "below a link to a link": [
        member("m", LINK, "{victim}"),
        member("l", LINK, "m"),
        member("l/new"),
    ],
    "absolute": [member("{victim}/new")],
}


def check_an_archive_that_climbs(bad: Bad, members: list[tarfile.TarInfo]) -> None:
    """It is refused, or what it names lands inside its root: never outside."""
    victim = bad.folder / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    archive = bad.folder / "climbs.tar"
    with tarfile.open(archive, "w") as tar:
        for one in members:
            copy = tarfile.TarInfo.frombuf(one.tobuf(), "utf-8", "strict")
            copy.name = one.name.replace("{victim}", str(victim))
            copy.linkname = one.linkname.replace("{victim}", str(victim))
            tar.addfile(copy, io.BytesIO(b"evil") if copy.size else None)
    done = bad.firkin("run", archive, "/bin/true", env=bad.home.env)
    assert sorted(one.name for one in victim.iterdir()) == ["kept"]
    assert (victim / "kept").read_text() == "kept"
    # Without a /bin/true it can't run, however it was unpacked.
    assert done.returncode in (125, 127), done.stderr
    if done.returncode == 125:
        bad.check(done, 125, "cannot unpack '{folder}/climbs.tar': …")
    else:
        assert not bad.home.left()


# ---------------------------------------------------------------- user namespaces forbidden


def check_user_namespaces_forbidden(bad: Bad, options: str) -> None:
    """In a user namespace whose own sysctl forbids more of them."""
    inner = (
        f"echo 0 > /proc/sys/user/max_user_namespaces; exec {bad.firkin.command()} run {options}"
    )
    script = f"{inner} {bad.root} true"
    outer = ["unshare", "--user", "--map-root-user", "--mount", "--fork", "sh", "-c", script]
    done = subprocess.run(outer, env=bad.home.env, capture_output=True, text=True, timeout=60)
    bad.check(
        done,
        125,
        "cannot create a user namespace: …; sysctl user.max_user_namespaces is 0: ask an …",
    )
