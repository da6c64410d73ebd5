"""image/: archives with owners, the store with several processes, the host base."""

from __future__ import annotations

import ctypes
import errno
import filecmp
import io
import os
import pickle
import signal
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firkin.errors import FirkinError, SetupError, UsageError
from firkin.image import hostbase, store
from firkin.image.archive import unpack
from firkin.image.store import Store, remove_tree
from firkin.linux import clone, libc, mount, ns

NOBODY = 65534
PR_SET_DUMPABLE = 4
PRCTL = libc.function("prctl", ctypes.c_int, ctypes.c_ulong)


def in_child(function: Callable[[], Any], uid: int = 0) -> Any:
    """Run *function* in a forked child, as user *uid*, and hand on what it returns or raises."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                # Changing the user made /proc/self root's, so that no map could be written.
                libc.call("prctl", PRCTL, PR_SET_DUMPABLE, 1)
            try:
                answer = pickle.dumps((True, function()))
            except FirkinError as error:
                answer = pickle.dumps((False, (type(error), error.what, error.why, error.mend)))
            except BaseException as error:
                answer = pickle.dumps((False, (AssertionError, repr(error))))
            with open(writing, "wb") as file:
                file.write(answer)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    good, value = pickle.loads(data)
    if not good:
        raise value[0](*value[1:])
    return value


def in_user_namespace(function: Callable[[], None]) -> None:
    """Run *function* where the caller is mapped to root: what an ordinary user's runtime does."""
    uid, gid = os.getuid(), os.getgid()

    def child() -> None:
        ns.unshare(clone.CLONE_NEWUSER)
        libc.write_file("/proc/self/setgroups", "deny")
        libc.write_file("/proc/self/uid_map", f"0 {uid} 1")
        libc.write_file("/proc/self/gid_map", f"0 {gid} 1")
        assert os.geteuid() == 0
        function()

    in_child(child)


def in_mount_namespace(function: Callable[[], Any]) -> Any:
    """Run *function* where its mounts are gone with it."""

    def child() -> Any:
        ns.unshare(clone.CLONE_NEWNS)
        mount.mount("", "/", "", mount.MS_REC | mount.MS_PRIVATE)
        return function()

    return in_child(child)


def entry(name: str, data: bytes = b"", **options: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    for key, value in options.items():
        setattr(info, key, value)
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as writer:
        for info, data in entries:
            writer.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


# ---------------------------------------------------------------- archives

# A version 2 capability attribute: cap_net_raw, permitted and effective (capabilities(7)).
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)

OWNED = (
    entry("etc", type=tarfile.DIRTYPE, mode=0o2750, uid=3, gid=4),
    entry("etc/shadow", b"x", mode=0o640, gid=42),
    entry("su", b"x", mode=0o4755),
    entry("sg", b"x", mode=0o2755, uid=5, gid=42),
    entry("ping", b"x", mode=0o755, gid=1, pax_headers={"SCHILY.xattr.user.x": "y"}),
    entry("link", type=tarfile.SYMTYPE, linkname="su", uid=7, gid=8),
    entry("fifo", type=tarfile.FIFOTYPE, mode=0o600, uid=9),
    entry("dev/null", type=tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
    entry("dev/sda", type=tarfile.BLKTYPE, mode=0o666, devmajor=8, devminor=0),
)


def test_owners_modes_and_attributes(root: Path) -> None:
    done = unpack(io.BytesIO(tar(*OWNED)), str(root), preserve_owner=True)
    names = ("etc", "etc/shadow", "su", "sg", "ping", "link", "fifo")
    assert [owner(root / name) for name in names] == [
        (3, 4), (0, 42), (0, 0), (5, 42), (0, 1), (7, 8), (9, 0),
    ]  # fmt: skip
    modes = [stat.S_IMODE((root / name).lstat().st_mode) for name in ("etc", "su", "sg", "fifo")]
    assert modes == [0o2750, 0o4755, 0o2755, 0o600]
    assert os.getxattr(root / "ping", "user.x") == b"y"
    assert (done.devices, done.owners) == (2, 0)
    assert not (root / "dev").exists() or os.listdir(root / "dev") == []


def test_file_capabilities_survive(tmp_path: Path, root: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "ping").write_text("x")
    os.setxattr(source / "ping", "security.capability", CAPABILITY)
    made = tmp_path / "made.tar"
    subprocess.run(
        [
            "tar",
            "--xattrs",
            "--xattrs-include=*",
            "--owner=:1",
            "--group=:1",
            "-cf",
            made,
            "-C",
            source,
            ".",
        ],
        check=True,
    )
    with open(made, "rb") as file:
        unpack(file, str(root), preserve_owner=True)
    assert owner(root / "ping") == (1, 1)
    assert os.getxattr(root / "ping", "security.capability") == CAPABILITY


def test_owners_are_shifted(root: Path) -> None:
    ids = [(0, 100_000, 5), (42, 200_000, 1)]
    done = unpack(io.BytesIO(tar(*OWNED)), str(root), preserve_owner=True, ids=ids)
    assert owner(root / "etc") == (100_003, 100_004)
    assert owner(root / "etc/shadow") == (100_000, 200_000)
    assert owner(root / "su") == (100_000, 100_000)
    assert stat.S_IMODE((root / "su").stat().st_mode) == 0o4755
    # In no range: sg, link, fifo. They stay the caller's, and sg gives nobody its rights.
    assert done.owners == 3
    assert owner(root / "sg") == (0, 0)
    assert stat.S_IMODE((root / "sg").stat().st_mode) == 0o755


@pytest.mark.parametrize("options", [{"uid": 2**32 - 1}, {"gid": 2**40}])
def test_owners_that_cannot_be(root: Path, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        unpack(io.BytesIO(tar(entry("f", b"", **options))), str(root), preserve_owner=True)
    assert not root.exists()


def test_as_an_ordinary_user(tmp_path: Path, root: Path) -> None:
    tmp_path.chmod(0o777)

    def work() -> tuple[int, int]:
        done = unpack(io.BytesIO(tar(*OWNED)), str(root), preserve_owner=False)
        return done.devices, done.owners

    assert in_child(work, NOBODY) == (2, 0)
    assert {owner(path) for path in root.rglob("*")} == {(NOBODY, NOBODY)}
    assert stat.S_IMODE((root / "su").stat().st_mode) == 0o4755
    assert stat.S_IMODE((root / "sg").stat().st_mode) == 0o755


@pytest.mark.parametrize("uid", [0, NOBODY])
@pytest.mark.parametrize(
    "hostile",
    [
        (entry("../canary", b"dead"),),
        (entry("/canary", b"dead"),),
        (entry("out", type=tarfile.SYMTYPE, linkname="../"), entry("out/canary", b"dead")),
        (entry("out", type=tarfile.SYMTYPE, linkname="/etc"), entry("out/passwd", b"dead")),
        (entry("l", type=tarfile.LNKTYPE, linkname="../canary"),),
        (entry("l", type=tarfile.LNKTYPE, linkname="/etc/passwd"), entry("l", b"dead")),
    ],
    ids=["dotdot", "absolute", "link", "absolute-link", "hard-link", "absolute-hard-link"],
)
def test_nothing_climbs_out(tmp_path: Path, root: Path, uid: int, hostile: Any) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "canary").write_text("alive")
    (tmp_path / "canary").chmod(0o666)
    # Directories that their owner may not enter, half way: they must go too.
    data = tar(entry("d", type=tarfile.DIRTYPE, mode=0), entry("d/x", b"x"), *hostile)
    with pytest.raises(UsageError, match=r"cannot unpack 'archive': entry '.*': "):
        in_child(lambda: unpack(io.BytesIO(data), str(root), preserve_owner=uid == 0), uid)
    assert (tmp_path / "canary").read_text() == "alive"
    assert os.listdir(tmp_path) == ["canary"]


# ---------------------------------------------------------------- the store


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs.tar"
    path.write_bytes(tar(entry("a", b"1"), entry("b/c", b"2")))
    return path


@pytest.fixture(autouse=True)
def trust_new_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the store trust a file's times at once; nobody can set a ctime back."""
    monkeypatch.setattr(store, "_SETTLED_NS", -(10**9))


def keys(path: Path) -> list[str]:
    return sorted(os.listdir(path / "rootfs"))


def test_unpacked_once(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def directly(function: Callable[[], None]) -> None:
        calls.append(function)
        function()

    the_store = Store(str(tmp_path / "store"), unpack_in=directly)
    root = the_store.unpacked(str(archive))
    assert (Path(root) / "b/c").read_text() == "2"
    assert len(calls) == 1
    # From here on the archive is not read again.
    with monkeypatch.context() as patch:
        patch.setattr(store, "_digest", None)
        assert the_store.unpacked(str(archive)) == root
    # The same content under another name is the same tree.
    other = tmp_path / "other.tar"
    other.write_bytes(archive.read_bytes())
    assert the_store.unpacked(str(other)) == root
    # Other content under the same name, size and mtime is not.
    before = archive.stat()
    archive.write_bytes(tar(entry("a", b"9"), entry("b/c", b"2")))
    os.utime(archive, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert archive.stat().st_size == before.st_size
    changed = the_store.unpacked(str(archive))
    assert changed != root
    assert (Path(changed) / "a").read_text() == "9"
    assert len(calls) == 2
    assert os.listdir(tmp_path / "store/partial") == []


def test_a_file_that_just_changed_is_not_trusted(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_SETTLED_NS", 10**18)
    the_store = Store(str(tmp_path / "store"))
    root = the_store.unpacked(str(archive))
    assert os.listdir(tmp_path / "store/index") == []
    assert the_store.unpacked(str(archive)) == root


def test_a_lost_tree_is_made_again(tmp_path: Path, archive: Path) -> None:
    the_store = Store(str(tmp_path / "store"))
    root = the_store.unpacked(str(archive))
    remove_tree(os.path.dirname(root))
    assert the_store.unpacked(str(archive)) == root
    assert (Path(root) / "a").exists()


def test_other_id_maps_are_other_trees(tmp_path: Path, archive: Path) -> None:
    one = Store(str(tmp_path / "store")).unpacked(str(archive))
    other = Store(str(tmp_path / "store"), owners="map1").unpacked(str(archive))
    assert one != other
    assert len(keys(tmp_path / "store")) == 2


def test_several_at_once_unpack_once(tmp_path: Path, archive: Path) -> None:
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    gate, opening = os.pipe()

    def noted(function: Callable[[], None]) -> None:
        os.write(log, b"x")
        function()

    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(opening)
                os.read(gate, 1)  # all start when the parent closes its end
                Store(str(tmp_path / "store"), unpack_in=noted).unpacked(str(archive))
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    os.close(opening)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 6
    os.close(gate)
    os.close(log)
    assert (tmp_path / "log").read_bytes() == b"x"
    assert os.listdir(tmp_path / "store/partial") == []


def test_what_a_killed_process_left_is_swept(tmp_path: Path, archive: Path) -> None:
    path = str(tmp_path / "store")
    started, telling = os.pipe()

    def stop_half_way(function: Callable[[], None]) -> None:
        function()
        os.write(telling, b"x")
        signal.pause()

    pid = os.fork()
    if pid == 0:
        try:
            Store(path, unpack_in=stop_half_way).unpacked(str(archive))
        finally:
            os._exit(1)
    assert os.read(started, 1) == b"x"
    partial = tmp_path / "store/partial"
    left = sorted(os.listdir(partial))
    assert len(left) == 2
    # Not while its owner lives.
    Store(path).sweep()
    assert sorted(os.listdir(partial)) == left
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(started)
    os.close(telling)
    assert sorted(os.listdir(partial)) == left
    other = tmp_path / "other.tar"
    other.write_bytes(tar(entry("z", b"z")))
    Store(path).unpacked(str(other))
    assert os.listdir(partial) == []
    assert (Path(Store(path).unpacked(str(archive))) / "a").exists()


def test_a_bad_archive_leaves_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.tar"
    bad.write_bytes(tar(entry("a", b"1"), entry("../x", b"2")))
    with pytest.raises(UsageError, match=r"cannot unpack '.*/bad\.tar': entry '\.\./x': '\.\.'"):
        Store(str(tmp_path / "store")).unpacked(str(bad))
    assert keys(tmp_path / "store") == []
    assert os.listdir(tmp_path / "store/partial") == []
    assert os.listdir(tmp_path / "store/index") == []


def test_an_archive_that_changes_while_it_is_read(tmp_path: Path, archive: Path) -> None:
    def change(function: Callable[[], None]) -> None:
        function()
        with open(archive, "ab") as file:
            file.write(bytes(512))

    with pytest.raises(UsageError, match="it changed while being read"):
        Store(str(tmp_path / "store"), unpack_in=change).unpacked(str(archive))
    assert keys(tmp_path / "store") == []


def test_what_is_no_archive_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    the_store = Store(str(tmp_path / "store"))
    for name, why in (
        ("missing", "No such file or directory"),
        ("fifo", "neither a directory nor an archive file"),
        (".", "neither a directory nor an archive file"),
    ):
        with pytest.raises(UsageError, match=why):
            the_store.unpacked(str(tmp_path / name))


def test_modes_of_the_store(tmp_path: Path, archive: Path) -> None:
    tmp_path.chmod(0o777)
    for uid, mode in ((0, 0o711), (NOBODY, 0o700)):
        path = tmp_path / f"store{uid}"
        in_child(lambda path=path: Store(str(path)).unpacked(str(archive)), uid)
        for folder in (path, path / "rootfs", *(path / "rootfs").iterdir(), path / "index"):
            # Passed through for containers with a user namespace, but no further.
            assert stat.S_IMODE(folder.stat().st_mode) == (mode if folder == path else 0o700)
            assert folder.stat().st_uid == uid


def test_a_store_of_others_is_refused(tmp_path: Path, archive: Path) -> None:
    path = tmp_path / "store"
    Store(str(path)).unpacked(str(archive))
    with pytest.raises(UsageError, match="it belongs to uid 0; set FIRKIN_STORE"):
        in_child(lambda: Store(str(path)).unpacked(str(archive)), NOBODY)
    path.chmod(0o777)
    with pytest.raises(UsageError, match="others may write to it"):
        Store(str(path)).unpacked(str(archive))
    tmp_path.chmod(0o755)
    with pytest.raises(UsageError, match=r"cannot use store .* Permission denied; set FIRKIN"):
        in_child(lambda: Store(str(tmp_path / "new")).unpacked(str(archive)), NOBODY)


def test_default_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRKIN_STORE", "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    assert store.default_path() == "/var/lib/firkin"
    assert in_child(store.default_path, NOBODY) == "/nonexistent/.local/share/firkin"
    monkeypatch.setenv("HOME", "/h")
    assert in_child(store.default_path, NOBODY) == "/h/.local/share/firkin"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert in_child(store.default_path, NOBODY) == "/h/.local/share/firkin"
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    assert in_child(store.default_path, NOBODY) == "/x/firkin"
    assert store.default_path() == "/var/lib/firkin"
    monkeypatch.setenv("FIRKIN_STORE", "/s")
    assert store.default_path() == in_child(store.default_path, NOBODY) == "/s"


def test_unpacking_in_a_user_namespace(tmp_path: Path) -> None:
    """An ordinary user with a single id: what belongs to others becomes root's in there."""
    tmp_path.chmod(0o777)
    archive = tmp_path / "rootfs.tar"
    archive.write_bytes(tar(*OWNED))
    archive.chmod(0o644)
    path = tmp_path / "store"
    the_store = Store(str(path), unpack_in=in_user_namespace, owners="single")
    root = Path(in_child(lambda: the_store.unpacked(str(archive)), NOBODY))
    assert {owner(found) for found in root.rglob("*")} == {(NOBODY, NOBODY)}
    assert stat.S_IMODE((root / "sg").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "su").stat().st_mode) == 0o4755
    meta = (root.parent / "meta").read_text()
    assert "devices skipped 2\nowners not kept 6\n" in meta
    archive.write_bytes(tar(entry("/etc/x", b"")))
    with pytest.raises(UsageError, match="an absolute name"):
        in_child(lambda: the_store.unpacked(str(archive)), NOBODY)
    assert os.listdir(path / "partial") == []


def test_a_real_root(tmp_path: Path, busybox_root: Path, busybox_tar: Path) -> None:
    root = Path(Store(str(tmp_path / "store")).unpacked(str(busybox_tar)))

    def same(compared: filecmp.dircmp[str]) -> bool:
        return (
            not (compared.left_only or compared.right_only or compared.diff_files)
            and all(same(below) for below in compared.subdirs.values())
        )  # fmt: skip

    assert same(filecmp.dircmp(busybox_root, root))
    done = subprocess.run(["chroot", root, "/bin/sh", "-c", "echo $((6*7))"], capture_output=True)
    assert done.stdout == b"42\n"


# ---------------------------------------------------------------- removing


def test_remove_tree_does_not_follow(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("x")
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    (top / "a/out").symlink_to("../../kept")
    (top / "a/b/file").symlink_to(tmp_path / "kept/file")
    os.mkfifo(top / "a/fifo")
    (top / "a/hard").hardlink_to(tmp_path / "kept/file")
    (tmp_path / "link").symlink_to("kept")
    remove_tree(str(top))
    remove_tree(str(top))
    remove_tree(str(tmp_path / "link"))
    remove_tree(str(tmp_path / "no/such/thing"))
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


def test_remove_tree_of_any_depth(tmp_path: Path) -> None:
    """Deeper than a path can be long, and than a process may have descriptors."""
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for level in range(5000):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open(f"f{level}", os.O_CREAT, dir_fd=fd))
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    fds = len(os.listdir("/proc/self/fd"))
    remove_tree(str(top))
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == fds


def test_remove_tree_as_an_ordinary_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    def work() -> None:
        (tmp_path / "top/work/work").mkdir(parents=True)
        (tmp_path / "top/work/work/f").touch()
        (tmp_path / "top/read-only").mkdir()
        (tmp_path / "top/read-only/f").touch()
        for name, mode in (("work/work", 0), ("work", 0o500), ("read-only", 0o555), (".", 0o100)):
            (tmp_path / "top" / name).chmod(mode)
        remove_tree(str(tmp_path / "top"))

    in_child(work, NOBODY)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("at", [".", "a/m"])
@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
def test_remove_tree_stops_at_mounts(tmp_path: Path, kind: str, at: str) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (tmp_path / "top/a/m").mkdir(parents=True)

    def work() -> tuple[int, bool]:
        target = str(tmp_path / "top" / at)
        if kind == "bind":  # of the same file system: st_dev does not tell
            mount.mount(str(kept), target, "", mount.MS_BIND)
        else:
            mount.mount("tmpfs", target, "tmpfs", 0)
            (tmp_path / "top" / at / "file").touch()
        with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is checked)
            remove_tree(str(tmp_path / "top"))
        return caught.value.errno or 0, os.path.exists(f"{target}/file")

    assert in_mount_namespace(work) == (errno.EBUSY, True)
    assert (kept / "file").exists()


# ---------------------------------------------------------------- the host base


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A small host of our own making, to be changed."""
    host = tmp_path / "host"
    folders = (
        "usr/bin", "usr/lib", "opt", "sbin", "etc/ssl/private", "etc/ssl/certs", "etc/ssh",
        "etc/python3.12", "etc/skel/.config", "etc/java-99/locked",
    )  # fmt: skip
    for name in folders:
        (host / name).mkdir(parents=True)
    (host / "bin").symlink_to("usr/bin")
    (host / "lib").symlink_to("usr/lib")
    files = {
        "etc/ld.so.cache": 0o644, "etc/nsswitch.conf": 0o644, "etc/shadow": 0o640,
        "etc/passwd": 0o644, "etc/machine-id": 0o444, "etc/hostname": 0o644,
        "etc/ssh/ssh_host_key": 0o600, "etc/ssl/private/key.pem": 0o644,
        "etc/ssl/openssl.cnf": 0o644, "etc/ssl/certs/ca.crt": 0o644, "etc/ssl/secret": 0o640,
        "etc/python3.12/sitecustomize.py": 0o644, "etc/java-99/locked/x": 0o644,
        "etc/skel/.config/run": 0o755, "etc/services": 0o600,
    }  # fmt: skip
    for name, mode in files.items():
        (host / name).write_text(f"the host's {name}")
        (host / name).chmod(mode)
    (host / "etc/java-99/locked").chmod(0o750)
    (host / "etc/localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
    os.mkfifo(host / "etc/rpc")
    return host


def prepare(tmp_path: Path, host: Path) -> Path:
    base = hostbase.prepare(str(tmp_path / "store"), str(host))
    os.close(base.lock)
    return Path(base.lower)


def test_the_skeleton(tmp_path: Path, host: Path) -> None:
    lower = prepare(tmp_path, host)
    assert sorted(str(p.relative_to(lower)) for p in (lower / "etc").rglob("*")) == [
        "etc/group", "etc/hostname", "etc/hosts", "etc/java-99", "etc/ld.so.cache",
        "etc/localtime", "etc/mtab", "etc/nsswitch.conf", "etc/passwd", "etc/profile",
        "etc/python3.12", "etc/python3.12/sitecustomize.py", "etc/resolv.conf", "etc/skel",
        "etc/skel/.config", "etc/skel/.config/run", "etc/ssl", "etc/ssl/certs",
        "etc/ssl/certs/ca.crt", "etc/ssl/openssl.cnf",
    ]  # fmt: skip
    assert "host" not in (lower / "etc/passwd").read_text()
    assert (lower / "etc/hostname").read_text() == ""
    assert os.readlink(lower / "etc/localtime") == "/usr/share/zoneinfo/Etc/UTC"
    assert os.readlink(lower / "bin") == "usr/bin"
    assert (lower / "sbin").is_dir()
    modes = {n: stat.S_IMODE((lower / n).stat().st_mode) for n in (".", "root", "tmp", "var/tmp")}
    assert modes == {".": 0o755, "root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}
    assert (lower / "etc/skel/.config/run").stat().st_mode & 0o111
    assert os.readlink(lower / "var/run") == "../run"


def test_what_is_shared(tmp_path: Path, host: Path) -> None:
    base = hostbase.prepare(str(tmp_path / "store"), str(host))
    os.close(base.lock)
    assert base.overlays == [
        (f"{host}/usr", "/usr"), (f"{host}/opt", "/opt"), (f"{host}/sbin", "/sbin"),
    ]  # fmt: skip


def rewrite(path: Path) -> None:
    """Change the contents of *path* and nothing else that its owner can set."""
    before = path.stat()
    path.write_text(path.read_text().swapcase())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "edited": lambda etc: (etc / "nsswitch.conf").write_text("new"),
    "edited, same size and time": lambda etc: rewrite(etc / "ssl/openssl.cnf"),
    "deep edit": lambda etc: (etc / "skel/.config/run").write_text("new"),
    "deep addition": lambda etc: (etc / "ssl/certs/new.crt").write_text("new"),
    "deep removal": lambda etc: (etc / "ssl/certs/ca.crt").unlink(),
    "appeared": lambda etc: (etc / "timezone").write_text("new"),
    "appeared, by prefix": lambda etc: (etc / "python3.13").mkdir(),
    "went": lambda etc: (etc / "ld.so.cache").unlink(),
    "closed": lambda etc: (etc / "ssl/certs/ca.crt").chmod(0o600),
    "opened": lambda etc: (etc / "services").chmod(0o644),
    "relinked": lambda etc: (
        (etc / "localtime").unlink(),
        (etc / "localtime").symlink_to("/usr/share/zoneinfo/Asia/Tokyo"),
    ),
    "unmerged": lambda etc: ((etc / "../bin").unlink(), (etc / "../bin").mkdir()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_skeleton_follows_the_host(tmp_path: Path, host: Path, change: str) -> None:
    first = prepare(tmp_path, host)
    assert prepare(tmp_path, host) == first
    CHANGES[change](host / "etc")
    second = prepare(tmp_path, host)
    assert second != first
    assert prepare(tmp_path, host) == second
    # The one that nobody uses is gone.
    assert sorted(os.listdir(tmp_path / "store/host")) == sorted([second.name, "current", "lock"])


def test_nothing_is_copied_without_a_change(
    tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(tmp_path, host)
    # These are none of the skeleton's.
    (host / "etc/shadow").write_text("new")
    (host / "etc/unknown").write_text("new")
    (host / "usr/bin/new").write_text("new")
    monkeypatch.setattr(hostbase, "_make", None)
    assert prepare(tmp_path, host) == first


def test_a_skeleton_in_use_is_kept(tmp_path: Path, host: Path) -> None:
    base = hostbase.prepare(str(tmp_path / "store"), str(host))
    CHANGES["edited"](host / "etc")
    second = prepare(tmp_path, host)
    assert (Path(base.lower) / "etc/nsswitch.conf").read_text() == "the host's etc/nsswitch.conf"
    os.close(base.lock)
    CHANGES["appeared"](host / "etc")
    third = prepare(tmp_path, host)
    assert sorted(os.listdir(tmp_path / "store/host")) == sorted([third.name, "current", "lock"])
    assert not second.exists()


def test_what_was_half_made_is_made_again(tmp_path: Path, host: Path) -> None:
    (tmp_path / "store/host/new/etc").mkdir(parents=True)
    (tmp_path / "store/host").chmod(0o711)
    (tmp_path / "store").chmod(0o711)
    (tmp_path / "store/host/old/etc").mkdir(parents=True)
    lower = prepare(tmp_path, host)
    assert (lower / "etc/passwd").exists()
    assert sorted(os.listdir(tmp_path / "store/host")) == sorted([lower.name, "current", "lock"])


def test_an_ordinary_user_has_one_too(tmp_path: Path, host: Path) -> None:
    tmp_path.chmod(0o777)

    def work() -> str:
        base = hostbase.prepare(str(tmp_path / "store"), str(host))
        return base.lower

    lower = Path(in_child(work, NOBODY))
    assert owner(lower) == (NOBODY, NOBODY)
    assert not (lower / "etc/ssl/secret").exists()


def test_a_host_without_etc(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot make the host base: No such file"):
        hostbase.prepare(str(tmp_path / "store"), str(tmp_path / "nothing"))


def test_this_machine(tmp_path: Path) -> None:
    """The real host: programs run on the skeleton, and none of its secrets is in it."""
    base = hostbase.prepare(str(tmp_path / "store"))
    os.close(base.lock)
    lower = Path(base.lower)
    assert dict(base.overlays)["/usr"] == "/usr"
    for name in ("shadow", "gshadow", "machine-id", "ssh", "sudoers", "ssl/private", "pki/private"):
        assert not (lower / "etc" / name).exists(), name
    for found in lower.rglob("*"):
        assert found.is_symlink() or found.is_dir() or found.is_file()
        assert owner(found) == (0, 0)

    def work() -> str:
        for source, destination in base.overlays:
            mount.mount(source, base.lower + destination, "", mount.MS_BIND)
        script = (
            "getent passwd nobody; getent services https; echo ~root; cd /tmp; touch x; ls /home"
        )
        return subprocess.run(
            ["chroot", "--userspec=65534:65534", base.lower, "/bin/sh", "-c", script],
            capture_output=True, check=True, text=True, env={"PATH": "/usr/sbin:/usr/bin:/bin"},
        ).stdout  # fmt: skip

    lines = in_mount_namespace(work).splitlines()
    assert lines[0].startswith("nobody:x:65534:65534:")
    assert lines[1].split()[:2] == ["https", "443/tcp"]
    assert lines[2:] == ["/root"]
