"""CVE-2019-5736: overwriting the runtime's own executable through ``/proc/self/exe``.

An image whose command is ``/proc/self/exe``, or a script with that as its
interpreter, had runc execute itself inside the container, where root could then
write to it through ``/proc/PID/exe``. Here that program is the host's Python.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.attack import inside
from support.command import Firkin
from support.containers import refused

HOSTS_PYTHON = Path(os.path.realpath(sys.executable))


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    before = hashlib.sha256(HOSTS_PYTHON.read_bytes()).digest()
    yield
    assert hashlib.sha256(HOSTS_PYTHON.read_bytes()).digest() == before


LINKS = ("/proc/self/exe", "/proc/thread-self/exe", "/proc/1/exe", "/proc/self/fd/3")


@pytest.mark.parametrize("path", LINKS)
@pytest.mark.parametrize("options", [[], ["--init"]], ids=["plain", "init"])
def test_as_the_command(firkin: Firkin, busybox_root: Path, options: list[str], path: str) -> None:
    done = firkin("run", *options, busybox_root, path, "-c", "print('escaped')")
    assert done.returncode in (126, 127), done.stdout + done.stderr
    refused(done, status=done.returncode)


@pytest.mark.parametrize("path", LINKS[:3])
@pytest.mark.parametrize(
    "how", ["interpreter", "interpreter of interpreter", "link", "link to link"]
)
def test_as_an_entry_point_of_the_image(
    firkin: Firkin, own_root: Path, how: str, path: str
) -> None:
    entry, other = own_root / "entry", own_root / "other"
    if "interpreter" in how:
        entry.write_text(f"#!{path if how == 'interpreter' else '/other'} -c1\n")
        other.write_text(f"#! {path}\n")
        entry.chmod(0o755)
        other.chmod(0o755)
    else:
        entry.symlink_to(path if how == "link" else "other")
        other.symlink_to(path)
    for command in ("/entry", "entry"):
        done = firkin("run", "-e", "PATH=/", own_root, command, input="print('escaped')")
        assert "escaped" not in done.stdout
        refused(done, status=126)


WRITE = """
print(tried(os.readlink, "/proc/1/exe"), [
    tried(os.open, "/proc/1/exe", flags) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_PATH)
])
"""


@pytest.mark.parametrize("options", [[], ["--cap-add", "SYS_PTRACE"], ["--userns", "auto"]])
def test_the_reaper_at_pid_1_gives_no_handle(firkin: Firkin, options: list[str]) -> None:
    done = inside(firkin, "--init", *options, code=WRITE)
    # Not even for reading: such a handle could be opened for writing once pid 1 has ended.
    answers = set(re.findall("E[A-Z]+", done.stdout))
    assert answers <= {"EACCES", "ENOENT"}, done.stdout
    assert len(re.findall("E[A-Z]+", done.stdout)) == 4, done.stdout + done.stderr
