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


def state_of(path: Path) -> tuple[bytes, int, int]:
    """Return what a container could have changed: contents, mode and owner."""
    found = path.stat()
    return hashlib.sha256(path.read_bytes()).digest(), found.st_mode, found.st_uid


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    before = state_of(HOSTS_PYTHON)
    yield
    assert state_of(HOSTS_PYTHON) == before


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


SCRIPTS = {
    # The kernel follows five interpreters of interpreters.
    "the last that the kernel follows": [b"/c1", b"/c2", b"/c3", b"/c4", b"/proc/self/exe"],
    "a blank that is none for the kernel": [b"\x0cx"],
    "a name that ends at NUL": [b"/proc/self/exe\0"],
    "tabs before the name": [b"\t \t/proc/self/exe\tx"],
}


@pytest.mark.parametrize("interpreters", SCRIPTS.values(), ids=SCRIPTS)
def test_hidden_from_who_reads_scripts_unlike_the_kernel(
    firkin: Firkin, own_root: Path, interpreters: list[bytes]
) -> None:
    for number, interpreter in enumerate(interpreters):
        script = own_root / (f"c{number}" if number else "entry")
        script.write_bytes(b"#!" + interpreter + b"\n")
        script.chmod(0o755)
    (own_root / "x").symlink_to("/bin/busybox")
    (own_root / "\x0cx").symlink_to("/proc/self/exe")
    refused(firkin("run", own_root, "/entry", input="print('escaped')"), status=126)


def test_a_script_that_its_user_may_not_read(firkin: Firkin, own_root: Path) -> None:
    script = own_root / "entry"
    script.write_text("#!/proc/self/exe\n")
    script.chmod(0o711)
    refused(firkin("run", "-u", "1000", own_root, "/entry"), status=126)
    # A program that its user may not read is none, and runs.
    program = own_root / "program"
    program.write_bytes((own_root / "bin/busybox").read_bytes())
    program.chmod(0o711)
    done = firkin("run", "-u", "1000", own_root, "/program", "true")
    assert (done.returncode, done.stderr) == (127, "program: applet not found\n")


def test_an_init_that_could_be_traced_is_refused(firkin: Firkin, busybox_root: Path) -> None:
    options = ["--init", "--cap-add", "SYS_PTRACE"]
    refused(firkin("run", *options, busybox_root, "true"), "CAP_SYS_PTRACE", "--userns auto")
    assert firkin("run", "--userns", "auto", *options, busybox_root, "true").returncode == 0


@pytest.mark.parametrize("options", [[], ["--userns", "auto"]])
def test_the_reaper_at_pid_1_gives_no_handle(firkin: Firkin, options: list[str]) -> None:
    done = inside(firkin, "--init", *options, code=WRITE)
    # Not even for reading: such a handle could be opened for writing once pid 1 has ended.
    answers = set(re.findall("E[A-Z]+", done.stdout))
    assert answers <= {"EACCES", "ENOENT"}, done.stdout
    assert len(re.findall("E[A-Z]+", done.stdout)) == 4, done.stdout + done.stderr
