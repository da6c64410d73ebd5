"""linux/paths.py: nothing that a root contains leads out of it.

Every test runs twice: with openat2, and with the component walk that stands in
for it. What a path means is checked against the kernel's own answer in a chroot
where the test may make one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firkin.linux import libc, paths


@pytest.fixture(params=["openat2", "walk"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(paths, "_blocked", request.param == "walk")
    return str(request.param)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    return outside


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    root = tmp_path / "root"
    (root / "a/b/c").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("inside")
    (root / "file").write_text("file")
    links = {
        "absolute": "/etc",
        "climb": "../../../../../../etc",
        "a/up": "../etc",
        "out": str(outside),
        "passwd": "etc/passwd",
        "chain": "absolute/passwd",
        "loop1": "loop2",
        "loop2": "loop1",
        "dangling": "nowhere/deep/name",
        "dangling-out": f"{outside}/made",
        "slash": "etc/",
        "self": ".",
        "root": "/",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    return root


@pytest.fixture
def fd(root: Path) -> Iterator[int]:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def ino(fd: int) -> tuple[int, int]:
    try:
        found = os.fstat(fd)
        return found.st_dev, found.st_ino
    finally:
        os.close(fd)


def ino_of(path: Path) -> tuple[int, int]:
    return path.stat().st_dev, path.stat().st_ino


@contextlib.contextmanager
def refused(*numbers: int) -> Iterator[None]:
    """Expect an OSError with one of these numbers, and no descriptor left open by it."""
    before = open_fds()
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is what counts)
        yield
    assert caught.value.errno in numbers, caught.value
    assert open_fds() == before


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        (".", "."),
        ("/", "."),
        ("..", "."),
        ("../..", "."),
        ("../../a", "a"),
        ("/../a/./b//c", "a/b/c"),
        ("a/b/../../etc/passwd", "etc/passwd"),
        ("absolute/passwd", "etc/passwd"),
        ("climb/passwd", "etc/passwd"),
        ("a/up/passwd", "etc/passwd"),
        ("a/b/../up/passwd", "etc/passwd"),
        ("passwd", "etc/passwd"),
        ("chain", "etc/passwd"),
        ("slash", "etc"),
        ("slash/", "etc"),
        ("absolute/", "etc"),
        ("self/self/self/etc", "etc"),
        ("root/root/../a", "a"),
        ("a/", "a"),
        ("a/..", "."),
    ],
)
def test_resolves_as_a_chroot_does(way: str, root: Path, fd: int, path: str, inside: str) -> None:
    before = open_fds()
    assert ino(paths.open_in_root(fd, path, os.O_PATH)) == ino_of(root / inside)
    assert open_fds() == before


@pytest.mark.parametrize(
    ("path", "flags", "error"),
    [
        ("", os.O_PATH, errno.ENOENT),
        ("missing", os.O_PATH, errno.ENOENT),
        ("missing/../etc", os.O_PATH, errno.ENOENT),
        ("file/..", os.O_PATH, errno.ENOTDIR),
        ("file/.", os.O_PATH, errno.ENOTDIR),
        ("file/", os.O_PATH, errno.ENOTDIR),
        ("file/x", os.O_PATH, errno.ENOTDIR),
        ("file", os.O_PATH | os.O_DIRECTORY, errno.ENOTDIR),
        ("loop1", os.O_PATH, errno.ELOOP),
        ("loop1/x", os.O_PATH, errno.ELOOP),
        ("self/" * 41 + "etc", os.O_PATH, errno.ELOOP),
        ("passwd", os.O_RDONLY | os.O_NOFOLLOW, errno.ELOOP),
        ("out/secret", os.O_PATH, errno.ENOENT),
        ("dangling", os.O_PATH, errno.ENOENT),
        ("passwd", os.O_WRONLY | os.O_CREAT | os.O_EXCL, errno.EEXIST),
        ("dangling", os.O_WRONLY | os.O_CREAT | os.O_EXCL, errno.EEXIST),
        ("etc\0/../..", os.O_PATH, errno.EINVAL),
        ("a/" * 2048, os.O_PATH, errno.ENAMETOOLONG),
        ("x" * 256, os.O_PATH, errno.ENAMETOOLONG),
    ],
)
def test_refuses(way: str, fd: int, path: str, flags: int, error: int) -> None:
    with refused(error):
        paths.open_in_root(fd, path, flags)


def test_forty_links_are_followed(way: str, root: Path, fd: int) -> None:
    assert ino(paths.open_in_root(fd, "self/" * 40 + "etc", os.O_PATH)) == ino_of(root / "etc")


def test_nofollow_opens_the_link_itself(way: str, fd: int) -> None:
    link = paths.open_in_root(fd, "absolute", os.O_PATH | os.O_NOFOLLOW)
    assert stat.S_ISLNK(os.fstat(link).st_mode)
    os.close(link)


def test_creates_through_a_link_inside(way: str, root: Path, fd: int) -> None:
    os.close(paths.open_in_root(fd, "climb/new", os.O_WRONLY | os.O_CREAT, 0o640))
    assert stat.S_IMODE((root / "etc/new").stat().st_mode) == 0o640


def test_descriptors_are_not_inherited(way: str, fd: int) -> None:
    for found in (paths.open_in_root(fd, "etc", os.O_PATH), paths.make_in_root(fd, "etc/x/y")):
        assert not os.get_inheritable(found)
        os.close(found)


@pytest.mark.parametrize(
    "path", ["/etc", "..", "absolute/passwd", "climb", "out/secret", "a/../.."]
)
def test_beneath_refuses_what_would_be_clamped(way: str, fd: int, path: str) -> None:
    with refused(errno.EXDEV):
        paths.open_in_root(fd, path, os.O_PATH, beneath=True)
    with refused(errno.EXDEV):
        paths.make_in_root(fd, path + "/new/x", beneath=True)


def test_beneath_follows_links_that_stay(way: str, root: Path, fd: int) -> None:
    found = paths.open_in_root(fd, "a/up/passwd", os.O_PATH, beneath=True)
    assert ino(found) == ino_of(root / "etc/passwd")


def test_magic_links_are_refused(way: str) -> None:
    fd = os.open("/", os.O_PATH)
    try:
        for path in (
            "proc/self/exe",
            "proc/self/root/etc",
            "proc/thread-self/cwd",
            "proc/self/fd/0",
        ):
            with refused(errno.ELOOP):
                paths.open_in_root(fd, path, os.O_PATH)
        # These are ordinary links of procfs.
        os.close(paths.open_in_root(fd, "proc/self/status", os.O_RDONLY))
        os.close(paths.open_in_root(fd, "proc/mounts", os.O_RDONLY))
    finally:
        os.close(fd)


def test_make_directories(way: str, root: Path, fd: int) -> None:
    before = open_fds()
    made = ino(paths.make_in_root(fd, "/climb/x/y/../z/", mode=0o750))
    assert made == ino_of(root / "etc/x/z")
    assert stat.S_IMODE((root / "etc/x/z").stat().st_mode) == 0o750
    assert ino(paths.make_in_root(fd, "etc/x/z")) == made
    assert open_fds() == before


def test_make_a_file(way: str, root: Path, fd: int) -> None:
    made = paths.make_in_root(fd, "run/new/resolv.conf", "file", 0o644)
    with refused(errno.EBADF):
        os.write(made, b"x")
    assert ino(made) == ino_of(root / "run/new/resolv.conf")
    assert (root / "run/new/resolv.conf").read_bytes() == b""
    assert ino(paths.make_in_root(fd, "passwd", "file")) == ino_of(root / "etc/passwd")
    assert (root / "etc/passwd").read_text() == "inside"


def test_make_through_dangling_links_stays_inside(
    way: str, root: Path, outside: Path, fd: int
) -> None:
    os.close(paths.make_in_root(fd, "dangling", "file"))
    assert (root / "nowhere/deep/name").is_file()
    os.close(paths.make_in_root(fd, "dangling-out", "file"))
    assert (root / str(outside)[1:] / "made").is_file()
    os.close(paths.make_in_root(fd, "out/dir"))
    assert (root / str(outside)[1:] / "dir").is_dir()
    assert sorted(os.listdir(outside)) == ["secret"]


@pytest.mark.parametrize(
    ("path", "kind", "error"),
    [
        ("file", "dir", errno.ENOTDIR),
        ("file/x", "dir", errno.ENOTDIR),
        ("file/x", "file", errno.ENOTDIR),
        ("etc", "file", errno.EISDIR),
        ("absolute", "file", errno.EISDIR),
        ("loop1/x", "dir", errno.ELOOP),
        ("loop1", "file", errno.ELOOP),
    ],
)
def test_make_refuses(way: str, fd: int, path: str, kind: str, error: int) -> None:
    with refused(error):
        paths.make_in_root(fd, path, kind)


def test_read(way: str, root: Path, fd: int) -> None:
    (root / "big").write_bytes(b"x" * 100)
    (root / "empty").touch()
    assert paths.read_in_root(fd, "chain", 6) == b"inside"
    assert paths.read_in_root(fd, "empty", 0) == b""
    assert paths.read_in_root(fd, "big", 100) == b"x" * 100
    for path, limit, error in (
        ("big", 99, errno.EFBIG),
        ("etc", 10, errno.EINVAL),
        ("out/secret", 10, errno.ENOENT),
    ):
        with refused(error):
            paths.read_in_root(fd, path, limit)


def test_read_does_not_wait_for_a_fifo(way: str, root: Path, fd: int) -> None:
    os.mkfifo(root / "fifo")
    with refused(errno.EINVAL):
        paths.read_in_root(fd, "fifo", 10)


def test_endless_files_are_bounded(way: str) -> None:
    fd = os.open("/proc", os.O_PATH)
    with refused(errno.EFBIG):
        paths.read_in_root(fd, "kallsyms", 4096)
    os.close(fd)


def exchange(one: Path, other: Path) -> None:
    """Exchange two names in one step: renameat2 with RENAME_EXCHANGE."""
    libc.call("renameat2", RENAMEAT2, -100, bytes(one), -100, bytes(other), 2)


RENAMEAT2 = libc.function(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)


@contextlib.contextmanager
def attack(one: Path, other: Path) -> Iterator[None]:
    """Exchange the two all the time."""
    stop = threading.Event()

    def attacker() -> None:
        while not stop.is_set():
            exchange(one, other)

    thread = threading.Thread(target=attacker)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def race(attempt: Callable[[int], int], forbidden: tuple[int, int]) -> tuple[int, int]:
    """Repeat *attempt* until it has met both sides often; count what it opened and refused."""
    opened = refusals = 0
    for number in range(100_000):
        try:
            fd = attempt(number)
            assert not stat.S_ISLNK(os.fstat(fd).st_mode)
            assert ino(fd) != forbidden
            opened += 1
        except FileNotFoundError:
            refusals += 1
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ELOOP, errno.EAGAIN, errno.EEXIST):
                raise
            refusals += 1
        if min(opened, refusals) >= 300:
            break
    return opened, refusals


@pytest.mark.parametrize("target", ["absolute", "climbing"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH])
def test_a_file_exchanged_for_a_link_never_leads_out(
    way: str, root: Path, outside: Path, fd: int, target: str, flags: int
) -> None:
    (root / "swap").mkdir()
    (root / "swap/in").write_text("inside")
    link = root / "swap/link"
    link.symlink_to(outside / "secret" if target == "absolute" else "../../outside/secret")
    with attack(root / "swap/in", link):
        opened, refusals = race(
            lambda attempt: paths.open_in_root(fd, "swap/in", flags), ino_of(outside / "secret")
        )
    assert opened
    assert refusals


@pytest.mark.parametrize("beneath", [False, True])
@pytest.mark.parametrize("target", ["absolute", "climbing"])
def test_a_directory_exchanged_for_a_link_never_leads_out(
    way: str, root: Path, outside: Path, fd: int, beneath: bool, target: str
) -> None:
    """A thread exchanges a directory and a link out of the root while the path is resolved."""
    (root / "swap/in").mkdir(parents=True)
    (root / "swap/in/secret").write_text("inside")
    link = root / "swap/link"
    link.symlink_to(outside if target == "absolute" else "../../outside")

    def attempt(number: int) -> int:
        os.close(paths.make_in_root(fd, f"swap/in/{number % 9}", beneath=beneath))
        return paths.open_in_root(fd, "swap/in/secret", os.O_RDONLY, beneath=beneath)

    with attack(root / "swap/in", link):
        opened, refusals = race(attempt, ino_of(outside / "secret"))
    assert opened
    assert refusals
    assert os.listdir(outside) == ["secret"]


def test_a_directory_moved_out_while_resolved_is_noticed(
    root: Path, outside: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk holds ``a/b`` when it is moved out of the root; going on must fail."""
    monkeypatch.setattr(paths, "_blocked", True)
    (outside / "c").mkdir()
    enter = paths._enter

    def move(stack: list[int], name: bytes, make: int | None) -> bytes | None:
        text = enter(stack, name, make)
        if name == b"b":
            os.rename(root / "a/b", outside / "b")
        return text

    monkeypatch.setattr(paths, "_enter", move)
    with refused(errno.EXDEV):
        paths.open_in_root(fd, "a/b/c", os.O_PATH)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_a_missing_or_blocked_openat2_is_found_out_once(
    root: Path, fd: int, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    calls = []

    def syscall(name: str, *arguments: object, **options: object) -> int:
        calls.append(name)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(paths, "_blocked", None)
    monkeypatch.setattr(libc, "syscall", syscall)
    for _ in range(3):
        assert ino(paths.open_in_root(fd, "chain", os.O_PATH)) == ino_of(root / "etc/passwd")
    assert len(calls) <= 2


def test_a_true_eperm_is_not_taken_for_a_blocked_call(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    syscall = libc.syscall

    def refuse(name: str, number: int, *arguments: Any, **options: Any) -> int:
        if b"immutable" in arguments:
            raise OSError(errno.EPERM, "Operation not permitted")
        return syscall(name, number, *arguments, **options)

    monkeypatch.setattr(paths, "_blocked", None)
    monkeypatch.setattr(libc, "syscall", refuse)
    with refused(errno.EPERM):
        paths.open_in_root(fd, "immutable", os.O_PATH)
    assert paths._blocked is False
