"""``firkin-runtime exec`` into a hostile container: what enters brings and trusts nothing."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.attack import PRELUDE
from support.oci import Bundle, Container, Runtime, nothing_remains

HOSTS_PYTHON = Path(os.path.realpath(sys.executable))


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """CVE-2019-5736 is about the runtime's own program, which is the host's Python here."""

    def state() -> tuple[bytes, int, int]:
        found = HOSTS_PYTHON.stat()
        return hashlib.sha256(HOSTS_PYTHON.read_bytes()).digest(), found.st_mode, found.st_uid

    before = state()
    yield
    assert state() == before


def refused(runtime: Runtime, container: Container, *words: str) -> str:
    return runtime.refused(container.exec(*words), 255)


LINKS = ("/proc/self/exe", "/proc/thread-self/exe", "/proc/1/exe", "/proc/self/fd/3")


def test_our_own_program_as_the_command(runtime: Runtime, bundle: Bundle, own_root: Path) -> None:
    container = runtime.up(bundle)
    for number, link in enumerate(LINKS):
        if link != "/proc/1/exe":  # here that is the container's own
            refused(runtime, container, link, "-c", "print('escaped')")
            (own_root / f"link{number}").symlink_to(link)
            refused(runtime, container, f"/link{number}", "-c", "print('escaped')")
        script = own_root / f"script{number}"
        script.write_text(f"#!{link} -c1\n")
        script.chmod(0o755)
        refused(runtime, container, f"/script{number}")


WATCH = (
    PRELUDE
    + """
import time
PTRACE_SEIZE = 0x4206  # does not stop who is traced
seen, own = {}, {os.getpid(), 1}
print("up", flush=True)
end = time.monotonic() + 60
while not os.path.exists("/done") and time.monotonic() < end:
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in own:
            continue
        folder = "/proc/" + name
        try:
            program = os.readlink(folder + "/exe")
        except OSError as error:
            program = errno.errorcode[error.errno]
        if program.startswith("/bin/"):
            continue  # the command, which is the container's
        result = [program]
        for file, flags in (
            ("exe", os.O_RDONLY), ("exe", os.O_PATH), ("mem", os.O_RDWR), ("environ", os.O_RDONLY),
            ("maps", os.O_RDONLY), ("ns/mnt", os.O_RDONLY), ("root", os.O_RDONLY),
            ("cwd", os.O_PATH), *((f"fd/{fd}", os.O_PATH) for fd in range(9))):
            got = tried(os.open, folder + "/" + file, flags)
            if isinstance(got, int):
                if "python" in os.readlink(f"/proc/self/fd/{got}"):
                    seen["our program"] = 1  # even if it has ended meanwhile
                os.close(got)
                got = f"opened {file} of {program}"
            result.append(got)
        traced = call("ptrace", PTRACE_SEIZE, int(name), 0, 0)
        result.append(traced and errno.errorcode[-traced])
        # It may have become the command, or ended, while we looked.
        try:
            late = os.readlink(folder + "/exe").startswith("/bin/")
        except FileNotFoundError:
            late = True
        except OSError:
            late = False
        for value in [] if late else result:
            seen[str(value)] = seen.get(str(value), 0) + 1
    # Of those that were traced the parent hears when we have: it would wait for ever.
    while tried(os.waitpid, -1, os.WNOHANG | 0x40000000) not in ("ECHILD", (0, 0)):
        pass
print(sorted(seen), sum(seen.values()), flush=True)
time.sleep(1000)
"""
)


def test_who_watches_for_entering_processes(
    runtime: Runtime, bundle: Bundle, own_root: Path
) -> None:
    """CVE-2016-9962: neither trace it, nor open its program, memory, root or descriptors."""
    container = runtime.up(bundle.args("/usr/bin/python3", "-c", WATCH))
    container.output("up\n")
    for _ in range(30):
        assert container.exec("/bin/true").returncode == 0, container.errors()
    (own_root / "done").touch()
    found = container.output("]").splitlines()[1]
    kinds, _, count = found.rpartition("] ")
    # What it can learn is that it may not; or the process was no more.
    assert set(kinds.strip("[").replace("'", "").split(", ")) <= {
        "EACCES",
        "EPERM",
        "ENOENT",
        "ESRCH",
    }
    assert int(count) > 10, "it saw none"


def test_a_program_of_the_container_that_is_replaced(
    runtime: Runtime, bundle: Bundle, own_root: Path
) -> None:
    """A command that turns into a link to our program between two execs."""
    container = runtime.up(bundle)
    command = own_root / "command"
    command.write_text("#!/bin/sh\necho fine\n")
    command.chmod(0o755)
    assert container.exec("/command").stdout == "fine\n"
    command.unlink()
    command.symlink_to("/proc/self/exe")
    refused(runtime, container, "/command", "-c", "print('escaped')")


@pytest.mark.parametrize("fd", range(3, 14))
def test_a_working_directory_by_descriptor(runtime: Runtime, bundle: Bundle, fd: int) -> None:
    """CVE-2024-21626, with a folder of the host's open in the caller as well."""
    container = runtime.up(bundle)
    host = os.open("/", os.O_RDONLY)
    try:
        for suffix in ("", "/..", "/../../.."):
            words = ("--cwd", f"/proc/self/fd/{fd}{suffix}", "ls", "-a", ".")
            done = container.exec(*words, pass_fds=[host])
            if done.returncode == 255:
                runtime.refused(done, 255)
            else:
                assert "work" not in done.stdout.split()
                assert "boot" not in done.stdout.split()
    finally:
        os.close(host)


def test_links_as_the_working_directory(runtime: Runtime, bundle: Bundle, own_root: Path) -> None:
    container = runtime.up(bundle)
    for fd in range(3, 14):
        (own_root / f"dir{fd}").symlink_to(f"/proc/self/fd/{fd}/../../..")
        refused(runtime, container, "--cwd", f"/dir{fd}", "/bin/pwd")


def test_no_descriptor_comes_along(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    host = os.open("/etc", os.O_RDONLY)
    try:
        script = "cd /proc/self/fd && for f in *; do readlink $f; done"
        done = container.exec("sh", "-c", script, pass_fds=[host])
    finally:
        os.close(host)
    links = [line for line in done.stdout.splitlines() if not line.startswith("pipe:")]
    assert set(links) <= {"/dev/null", "/proc/1/fd"} or all("/proc/" in one for one in links), links


PTMX = ("link", "link to a console", "fifo", "file", "folder", "missing", "socket", "device")


@pytest.mark.parametrize("what", PTMX)
def test_a_terminal_where_there_is_no_devpts(
    runtime: Runtime, bundle: Bundle, own_root: Path, what: str
) -> None:
    """/dev/pts/ptmx is the container's: only the kernel's own may be used, and nothing waits."""
    bundle.config["mounts"] = [m for m in bundle.config["mounts"] if m["destination"] not in (
        "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")]  # fmt: skip
    ptmx = own_root / "dev/pts/ptmx"
    ptmx.parent.mkdir(parents=True)
    make = {
        "link": lambda: ptmx.symlink_to("/etc/passwd"),
        "link to a console": lambda: ptmx.symlink_to("/proc/self/fd/0"),
        "fifo": lambda: os.mkfifo(ptmx),
        "file": ptmx.touch,
        "folder": ptmx.mkdir,
        "missing": lambda: None,
        "socket": lambda: os.mknod(ptmx, 0o140666),
        "device": lambda: os.mknod(ptmx, 0o020666, os.makedev(1, 3)),
    }
    make[what]()
    container = runtime.up(bundle)
    passwd = (own_root / "etc/passwd").read_bytes()
    refused(runtime, container, "--tty", "true")
    assert (own_root / "etc/passwd").read_bytes() == passwd
    assert container.exec("true").returncode == 0


PASSWD = ("fifo", "link", "folder", "zeros", "large", "lines", "fields", "missing", "loop")


@pytest.mark.parametrize("what", PASSWD)
def test_hostile_users(runtime: Runtime, bundle: Bundle, own_root: Path, what: str) -> None:
    """HOME is looked up in the container's /etc/passwd, which may be anything."""
    passwd = own_root / "etc/passwd"
    passwd.unlink()
    make = {
        "fifo": lambda: os.mkfifo(passwd),
        "link": lambda: passwd.symlink_to("/proc/self/environ"),
        "folder": passwd.mkdir,
        "zeros": lambda: passwd.symlink_to("/dev/zero"),
        "large": lambda: (passwd.touch(), os.truncate(passwd, 1 << 40)),
        "lines": lambda: passwd.write_text("\n" * 500_000),
        "fields": lambda: passwd.write_text(":" * 900_000 + "\nroot:x:0:0:x:\x01/\xff:\n"),
        "missing": lambda: None,
        "loop": lambda: passwd.symlink_to("passwd"),
    }
    make[what]()
    container = runtime.up(bundle)
    done = container.exec("sh", "-c", "echo $HOME")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "/\n" or what == "fields"


def test_a_container_that_is_full(runtime: Runtime, bundle: Bundle) -> None:
    """The process that enters counts, too: an error, and nothing that hangs or stays."""
    bundle.linux["resources"]["pids"] = {"limit": 3}
    container = runtime.up(bundle.shell("sleep 1000 & sleep 1000 & wait"))
    pids = container.cgroup("pids")
    while len((pids / "cgroup.procs").read_text().split()) < 3:
        continue
    before = (pids / "cgroup.procs").read_text()
    for words in (("true",), ("--tty", "true"), ("--user", "1000", "true")):
        done = container.exec(*words)
        # v1 lets a process in that moves itself; then it is the command that can't fork.
        assert done.returncode in (0, 255), done
        if done.returncode:
            runtime.refused(done, 255)
    assert (pids / "cgroup.procs").read_text() == before
    assert container.status == "running"
    container.delete("--force")
    nothing_remains(runtime, container.id)


def test_a_container_that_moved_below_its_cgroup(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    top = {kind: container.cgroup(kind) for kind in ("pids", "memory")}
    for folder in top.values():
        (folder / "a/b").mkdir(parents=True)
        (folder / "a/b/cgroup.procs").write_text(str(container.pid))
    pid = container.exec_detached()
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    for folder in top.values():
        name = folder.name
        assert any(f"/{name}" in line for line in lines), lines
    container.delete("--force")
    container.wait_adopted(pid)
    nothing_remains(runtime, container.id)


def test_exec_of_another_identity_keeps_no_rights(runtime: Runtime, bundle: Bundle) -> None:
    """(uid_t) -1 leaves setresuid(2) at root: it is nobody, and refused."""
    container = runtime.up(bundle)
    for user in ("4294967295", "0:4294967295", "4294967295:4294967295"):
        refused(runtime, container, "--user", user, "id")
    refused(runtime, container, "--additional-gids", "4294967295", "id")
    done = container.exec("--user", "4294967294:4294967294", "id", "-u")
    assert done.stdout == "4294967294\n", done.stderr
