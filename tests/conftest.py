"""Fixtures, the skip rule of CI and the search for leftovers; see ``tests/support``."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import leftovers, roots
from support.command import Firkin, execute
from support.requires import CI, Kind, Unmet, need

HERE = Path(__file__).parent
# Who runs the tests of a folder.
WHO = {"root": "root", "escape": "root", "rootless": "ordinary user"}
# Folders that both users run: a test of the other user's is skipped.
BOTH = ("unit", "clients")

# Not /tmp: that may be a tmpfs, which cannot be the upper layer of every kernel's overlay.
SESSIONS = Path("/var/tmp")
STALE = 60  # seconds; a session takes its lock within milliseconds
LIMIT = int(os.environ.get("FIRKIN_TEST_LIMIT", "180"))  # seconds for one test

lock = pytest.StashKey[int]()
session_path = pytest.StashKey[Path]()


# ---------------------------------------------------------------- the session's folder


@pytest.hookimpl(tryfirst=True)  # before pytest's own, which decides where tmp_path lies
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires(names): see support/requires.py")
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=leftovers.PREFIX, dir=SESSIONS))
    # Mapped and other users pass through it to roots and stores.
    folder.chmod(0o755)
    config.stash[lock] = os.open(folder, os.O_RDONLY)
    config.stash[session_path] = folder
    fcntl.flock(config.stash[lock], fcntl.LOCK_SH)
    if config.option.basetemp is None:
        config.option.basetemp = str(folder / "tmp")


def pytest_unconfigure(config: pytest.Config) -> None:
    remove(config.stash[session_path])
    os.close(config.stash[lock])


def remove(folder: Path) -> None:
    """Remove a session's folder, and nothing that is mounted in it."""
    leftovers.unmount_all(str(folder))
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=False, capture_output=True)
    if folder.exists() and os.geteuid() != 0:
        # Files of this user's subordinate ids: only a user namespace has power over them.
        inside = ["unshare", "--user", "--map-auto", "--map-root-user"]
        subprocess.run([*inside, "rm", "-rf", folder], check=False, capture_output=True)


def sweep() -> None:
    """Remove the folders of sessions that were killed."""
    for folder in SESSIONS.glob(leftovers.PREFIX + "*"):
        try:
            status = folder.lstat()
            if status.st_uid != os.geteuid() or time.time() - status.st_mtime < STALE:
                continue
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


@pytest.fixture(scope="session")
def session_folder(pytestconfig: pytest.Config) -> Path:
    """A folder for this session that every user can pass through."""
    return pytestconfig.stash[session_path]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """pytest's, but open to other users: containers with mapped ids live in it."""
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o755)
    return tmp_path


# ---------------------------------------------------------------- who may skip


def room(path: Path) -> str:
    """Return the folder below ``tests/`` that a test lies in."""
    return path.relative_to(HERE).parts[0] if path.is_relative_to(HERE) else ""


def lawful(error: BaseException | None, folder: str) -> bool:
    """Tell whether CI accepts a skip in a folder of ``tests/``; see ``support/requires.py``."""
    if not isinstance(error, Unmet):
        return False
    return error.kind is Kind.MACHINE or (error.kind is Kind.USER and folder in BOTH)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if room(item.path) in WHO:
        need(WHO[room(item.path)])
    for mark in item.iter_markers("requires"):
        need(*mark.args)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: sees what skip and xfail made of it
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if CI and report.skipped and not lawful(call.excinfo and call.excinfo.value, room(item.path)):
        report.outcome = "failed"
        vars(report).pop("wasxfail", None)
        report.longrepr = f"{item.nodeid}: CI does not accept this skip: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: in CI no whole file may skip: {report.longrepr}"
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    """In CI, each folder that was named must hold tests.

    pytest's own status 5 comes only where there is no test at all.
    """
    options = session.config.option
    if not CI or options.keyword or options.markexpr or session.testsfailed:
        return
    for argument in session.config.args:
        path = (session.config.invocation_params.dir / argument.split("::")[0]).resolve()
        # One that does not exist is pytest's own error.
        if path.exists() and not any(item.path.is_relative_to(path) for item in session.items):
            raise pytest.UsageError(f"there are no tests in {argument}")


# ---------------------------------------------------------------- time


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """Fail a test that hangs, so that the others still run."""

    before = set(leftovers.children())

    def late(*_: object) -> None:
        new = [pid for pid in leftovers.children() if pid not in before]
        below = [pid for child in new for pid in leftovers.descendants(child)]
        described = leftovers.describe([*new, *below])
        leftovers.kill([*new, *below])
        pytest.fail(f"still ran after {LIMIT} s\n{described}")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


# ---------------------------------------------------------------- leftovers


@pytest.fixture(autouse=True)
def no_leftovers(request: pytest.FixtureRequest, session_folder: Path) -> Iterator[None]:
    """Fail a test that leaves mounts, processes, cgroups or interfaces on the host."""
    if room(request.path) not in (*WHO, "clients"):
        yield
        return
    folder = str(session_folder)
    before = leftovers.take(folder)
    yield
    left = leftovers.after(before, folder)
    if left:
        details = leftovers.kill_new(before, folder)
        pytest.fail("left behind:\n" + "\n".join([*left, details]), pytrace=False)


# ---------------------------------------------------------------- roots


@pytest.fixture(scope="session")
def busybox_root(session_folder: Path) -> Path:
    """A root file system of BusyBox: a folder, not to be changed; see ``support/roots.py``."""
    need("program:busybox")
    return roots.make_busybox_root(session_folder / "busybox")


@pytest.fixture(scope="session")
def busybox_tar(busybox_root: Path, session_folder: Path) -> Path:
    """The same, packed as ``.tar.gz``."""
    return roots.pack(busybox_root, session_folder / "busybox.tar.gz")


@pytest.fixture(scope="session")
def debian_root() -> Path:
    """A Debian of debootstrap's, minimal: a folder, root's, not to be changed."""
    need("debian root")
    return roots.DEBIAN_FOLDER


@pytest.fixture(scope="session")
def debian_tar() -> Path:
    """The same, packed as ``.tar.zst``."""
    need("debian root")
    return roots.DEBIAN_ARCHIVE


@pytest.fixture
def own_root(tmp_path: Path) -> Path:
    """As :func:`busybox_root`, to change; without the mount points that others leave there."""
    need("program:busybox")
    return roots.make_busybox_root(tmp_path / "root")


# ---------------------------------------------------------------- commands


@pytest.fixture(scope="session")
def firkin(session_folder: Path) -> Firkin:
    """The command: ``firkin("run", …)`` runs it, ``firkin.start("run", …)`` starts it."""
    return Firkin(session_folder / "firkin")


@pytest.fixture(scope="session")
def as_user() -> Callable[..., subprocess.CompletedProcess[Any]]:
    """Run a command as another user: ``as_user("firkin-test", ["id"])``; needs root."""

    def run(name: str, command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        need("root", f"user:{name}")
        return execute(command, user=name, **options)

    return run
