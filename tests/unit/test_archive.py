"""image/archive.py: what archives may do, and what they must not.

These run as whoever runs them; tests/root/test_image.py adds owners and devices.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firkin.errors import SetupError, UsageError
from firkin.image import archive
from firkin.image.archive import Unpacked, unpack

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}


def entry(name: str, data: bytes = b"", **options: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Describe a regular file, or with *type* something else."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    for key, value in options.items():
        setattr(info, key, value)
    return info, data


def directory(name: str, mode: int = 0o755, **options: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, mode=mode, **options)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def tar(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as writer:
        for info, data in entries:
            writer.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def extract(data: bytes, root: Path, **options: Any) -> Unpacked:
    options.setdefault("preserve_owner", False)
    return unpack(io.BytesIO(data), str(root), name="x.tar", **options)


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def nothing_escapes_or_stays_open(tmp_path: Path) -> Any:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    fds = len(os.listdir("/proc/self/fd"))
    yield
    assert canary.read_text() == "alive"
    assert set(os.listdir(tmp_path)) <= {"canary", "root", "source", "made.tar"}
    assert len(os.listdir("/proc/self/fd")) == fds


def refused(data: bytes, root: Path, **options: Any) -> str:
    """Unpack what must be refused, and return the message."""
    before = sorted(os.listdir(root.parent))
    with pytest.raises(UsageError) as caught:
        extract(data, root, **options)
    assert sorted(os.listdir(root.parent)) == before, "something is left behind"
    text = str(caught.value)
    assert text.startswith("cannot unpack 'x.tar'")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_unpacks(root: Path, compression: str, format: int) -> None:  # noqa: A002
    big = random.Random(1).randbytes(3_000_001)
    data = tar(
        directory("./", mode=0o751, mtime=1_000_000_000),
        directory("./etc", mode=0o555, mtime=1_100_000_000),
        entry("./etc/passwd", b"root:x:0:0", mode=0o600, mtime=1_200_000_000),
        entry("./bin/deep/down/big", big, mode=0o755),
        symlink("./var", "/run/../../.."),
        hardlink("./etc/copy", "./etc/passwd"),
        entry("./fifo", type=tarfile.FIFOTYPE, mode=0o622),
        format=format,
    )
    done = extract(COMPRESSORS[compression](data), root)
    assert (done.entries, done.size, done.devices) == (7, 10 + len(big), 0)
    assert tree(root) == [
        "bin", "bin/deep", "bin/deep/down", "bin/deep/down/big", "etc", "etc/copy", "etc/passwd",
        "fifo", "var",
    ]  # fmt: skip
    assert (root / "bin/deep/down/big").read_bytes() == big
    assert os.readlink(root / "var") == "/run/../../.."
    modes = {name: stat.S_IMODE(os.stat(root / name).st_mode) for name in (".", "etc", "bin/deep")}
    assert modes == {".": 0o751, "etc": 0o555, "bin/deep": 0o755}
    passwd = os.stat(root / "etc/passwd")
    assert (stat.S_IMODE(passwd.st_mode), passwd.st_nlink) == (0o600, 2)
    assert passwd.st_mtime == 1_200_000_000
    assert os.stat(root / "etc").st_mtime == 1_100_000_000
    assert os.stat(root).st_mtime == 1_000_000_000
    assert stat.S_ISFIFO(os.stat(root / "fifo").st_mode)


def test_umask_does_not_matter(root: Path) -> None:
    before = os.umask(0o077)
    try:
        extract(tar(entry("a/b/c", b"x", mode=0o666), directory("d", mode=0o777)), root)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((root / name).stat().st_mode) for name in (".", "a", "a/b", "a/b/c", "d")]
    assert modes == [0o755, 0o755, 0o755, 0o666, 0o777]


def test_into_an_open_directory(root: Path) -> None:
    root.mkdir()
    fd = os.open(root, os.O_PATH)
    try:
        unpack(io.BytesIO(tar(entry("a", b"x"))), fd, preserve_owner=False)
        assert tree(root) == ["a"]
        with pytest.raises(UsageError, match="not empty"):
            unpack(io.BytesIO(tar(entry("b", b"x"))), fd, preserve_owner=False)
        assert tree(root) == ["a"]
    finally:
        os.close(fd)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(root: Path, format: int) -> None:  # noqa: A002
    name = "/".join(["d" * 200] * 5) + "/" + "f" * 255
    extract(tar(entry(name, b"x"), symlink("l", "t" * 3000), format=format), root)
    assert (root / name).read_bytes() == b"x"
    assert os.readlink(root / "l") == "t" * 3000


def test_names_are_bytes(root: Path) -> None:
    data = tar(entry("naïve", b"1"), entry("raw-\udcff", b"2"), entry("new\nline\x1b[2J", b"3"))
    extract(data, root)
    assert set(os.listdir(os.fsencode(root))) == {
        "naïve".encode(),
        b"raw-\xff",
        b"new\nline\x1b[2J",
    }


def test_times_have_nanoseconds_and_no_end(root: Path) -> None:
    data = tar(
        entry("a", mtime=1234567890.25),
        entry("before", mtime=-86400),
        entry("huge", pax_headers={"mtime": "9999999999999999999"}),
    )
    extract(data, root)
    assert (root / "a").stat().st_mtime_ns == 1234567890_250000000
    assert (root / "before").stat().st_mtime == -86400


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([entry("../canary", b"dead")], "'..' in a name"),
        ([entry("a/../../canary", b"dead")], "'..' in a name"),
        ([directory("..")], "'..' in a name"),
        ([entry("./a/..")], "'..' in a name"),
        ([entry("/etc/canary", b"dead")], "an absolute name"),
        ([symlink("../canary", "x")], "'..' in a name"),
        ([entry(".")], "the root itself can only be a directory"),
        ([symlink("./", "/")], "the root itself can only be a directory"),
        # Through a symbolic link.
        ([symlink("out", ".."), entry("out/canary", b"dead")], "leads out"),
        ([symlink("out", "/tmp"), entry("out/canary", b"dead")], "leads out"),
        ([symlink("out", "/"), entry("out/canary", b"dead")], "leads out"),
        ([symlink("a/out", "../.."), entry("a/out/canary", b"dead")], "leads out"),
        ([symlink("a", "."), symlink("a/b", ".."), entry("a/b/canary")], "leads out"),
        ([symlink("out", ".."), directory("out/new/deep")], "leads out"),
        ([symlink("out", ".."), symlink("out/canary", "x")], "leads out"),
        ([symlink("l1", "l2"), symlink("l2", "l1"), entry("l1/x")], "Too many levels"),
        ([entry("f", b"x"), entry("f/x", b"y")], "Not a directory"),
        # Hard links.
        ([hardlink("l", "../canary")], "hard link to '../canary': '..' in a name"),
        ([hardlink("l", "/etc/passwd")], "hard link to '/etc/passwd': an absolute name"),
        ([hardlink("l", "missing")], "which the archive does not have"),
        ([hardlink("l", "./")], "a hard link to the root"),
        ([directory("d"), hardlink("l", "d")], "a hard link to a directory"),
        ([symlink("out", ".."), hardlink("l", "out/canary")], "leads out"),
        ([symlink("out", ".."), entry("f", b"x"), hardlink("out/l", "f")], "leads out"),
        # Names that cannot be.
        ([entry("x" * 256)], "File name too long"),
        ([entry("a/" * 2048 + "b")], "a name too long"),
        ([symlink("l", "t" * 4096)], "File name too long"),
    ],
)
def test_refuses(root: Path, entries: list[tuple[tarfile.TarInfo, bytes]], why: str) -> None:
    data = tar(entry("good", b"x" * 100_000), directory("gooddir/sub", mode=0), *entries)
    text = refused(data, root)
    assert why in text
    assert f"entry '{entries[-1][0].name[:50]}".rstrip("/") in text


@pytest.mark.parametrize("key", ["path", "linkpath"])
def test_a_null_byte_in_an_extended_header(root: Path, key: str) -> None:
    info, _ = symlink("l", "t")
    info.pax_headers = {key: "a\0b"}
    refused(tar((info, b"")), root)


def test_messages_stay_one_printable_line(root: Path) -> None:
    assert "\x1b" not in refused(
        tar(entry("/\x1b[2J\n\ud800".encode("utf-8", "ignore").decode())), root
    )


def test_a_link_that_stays_inside_is_followed(root: Path) -> None:
    data = tar(
        directory("usr/bin"),
        symlink("bin", "usr/bin"),
        entry("bin/sh", b"sh"),
        symlink("usr/lib", "../lib"),
        entry("usr/lib/early", b"before lib itself"),
        hardlink("usr/bin/dash", "bin/sh"),
    )
    extract(data, root)
    assert (root / "usr/bin/sh").read_bytes() == (root / "usr/bin/dash").read_bytes() == b"sh"
    assert (root / "lib/early").is_file()
    assert (root / "bin").is_symlink()


def test_the_last_entry_of_a_name_wins(root: Path) -> None:
    data = tar(
        entry("a", b"first", mode=0o600),
        entry("a", b"second", mode=0o640),
        # A link is replaced, not written through.
        symlink("link", "a"),
        entry("link", b"own"),
        symlink("dirlink", "b"),
        directory("b", mode=0o700),
        directory("dirlink"),
        entry("dirlink/x", b"x"),
        directory("b", mode=0o711),
        # A file over a directory, and a directory over a file.
        entry("d/e/f", b"gone"),
        entry("d", b"file"),
        entry("f", b"file"),
        directory("f"),
        entry("f/x", b"x"),
        # A hard link is cut, not written through.
        entry("h1", b"kept"),
        hardlink("h2", "h1"),
        entry("h2", b"new"),
        hardlink("h1", "./h1"),
    )
    extract(data, root)
    assert tree(root) == ["a", "b", "d", "dirlink", "dirlink/x", "f", "f/x", "h1", "h2", "link"]
    contents = {name: (root / name).read_bytes() for name in ("a", "link", "d", "h1", "h2")}
    assert contents == {"a": b"second", "link": b"own", "d": b"file", "h1": b"kept", "h2": b"new"}
    assert not (root / "dirlink").is_symlink()
    assert stat.S_IMODE((root / "b").stat().st_mode) == 0o711


def test_a_directory_exchanged_for_a_link_is_not_remembered(root: Path) -> None:
    data = tar(
        entry("a/b/one", b"1"),
        entry("a", b""),
        symlink("a", ".."),
        entry("a/b/two", b"2"),
    )
    assert "leads out" in refused(data, root)


def test_extended_attributes(root: Path) -> None:
    info, data = entry("f", b"x")
    info.pax_headers = {
        "SCHILY.xattr.user.note": "kept",
        "SCHILY.xattr.user.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.system.posix_acl_access": "junk",
    }
    other, _ = directory("d")
    other.pax_headers = {"SCHILY.xattr.user.note": "too", "SCHILY.xattr.user.overlay.opaque": "y"}
    extract(tar((info, data), (other, b"")), root)
    assert os.listxattr(root / "f") == ["user.note"]
    assert os.getxattr(root / "f", "user.note") == b"kept"
    assert os.listxattr(root / "d") == ["user.note"]


def test_set_user_id_of_another_owner_is_dropped(root: Path) -> None:
    data = tar(
        entry("root", mode=0o6755),
        entry("other", mode=0o4755, uid=7),
        entry("group", mode=0o2755, gid=7),
        directory("sticky", mode=0o1777, uid=7),
    )
    extract(data, root)
    modes = [stat.S_IMODE((root / n).stat().st_mode) for n in ("root", "other", "group", "sticky")]
    assert modes == [0o6755, 0o755, 0o755, 0o1777]


@pytest.mark.parametrize("form", ["gnu", "posix-0.0", "posix-0.1", "posix-1.0"])
def test_sparse_files(root: Path, tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "sparse", "wb") as file:
        for index in range(40):
            file.seek(index * 1_000_000 + 300_000)
            file.write(b"data %d" % index)
        file.truncate(50_000_000)
    flags = ["--format=gnu"] if form == "gnu" else [f"--sparse-version={form[-3:]}"]
    if form != "gnu":
        flags.append("--format=posix")
    made = tmp_path / "made.tar"
    subprocess.run(["tar", "-cSf", made, *flags, "-C", source, "."], check=True)
    assert made.stat().st_size < 2_000_000
    extract(made.read_bytes(), root)
    assert (root / "sparse").read_bytes() == (source / "sparse").read_bytes()
    assert (root / "sparse").stat().st_blocks * 512 < 2_000_000
    # Cut anywhere, it is an error.
    root_two = tmp_path / "root"
    subprocess.run(["rm", "-rf", root_two], check=True)
    refused(made.read_bytes()[: made.stat().st_size // 2], root_two)


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "0,5,3,5", "GNU.sparse.size": "10"},  # overlap
        {"GNU.sparse.map": "0,5,9,5", "GNU.sparse.size": "10"},  # past the end
        {"GNU.sparse.map": "0,5", "GNU.sparse.size": "10"},  # less than there is
        {"GNU.sparse.map": "-1,10", "GNU.sparse.size": "10"},
        {"GNU.sparse.map": "0,5,5", "GNU.sparse.size": "10"},
        {"GNU.sparse.map": "0,10"},
        {"GNU.sparse.map": "0,10", "GNU.sparse.size": "9" * 30},
        {"GNU.sparse.major": "1", "GNU.sparse.realsize": "10"},  # the data is no map
        {"size": "-5"},
        {"size": "99999999999999999999"},
        {"uid": "x"},
        {"mtime": "yesterday"},
    ],
)
def test_hostile_extended_headers(root: Path, headers: dict[str, str]) -> None:
    refused(tar(entry("f", b"0123456789", pax_headers=headers)), root)


def header(name: bytes, size: int, kind: bytes, data: bytes = b"") -> bytes:
    """Make a raw header and its data, whatever *size* says."""
    info = tarfile.TarInfo(name.decode())
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"%011o\0" % size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + b"\0" * (-len(data) % 512)


END = b"\0" * 1024


@pytest.mark.parametrize(
    "data",
    [
        header(b"x", 8 << 30, b"x", b""),  # an extended header of 8 GiB
        header(b"x", (1 << 20) + 1, b"L", b"a" * ((1 << 20) + 1)) + END,
        header(b"x", 4, b"L", b"name") * 40 + header(b"f", 0, b"0") + END,  # a chain
        header(b"x", 12, b"x", b"12 path=abc\n") * 40 + header(b"f", 0, b"0") + END,
        header(b"x", 12, b"x", b"99 path=abc\n") + header(b"f", 0, b"0") + END,
        header(b"x", 12, b"x", b"00 path=abc\n") + header(b"f", 0, b"0") + END,
        header(b"x", 1 << 19, b"x", b"1" * (1 << 19)) + header(b"f", 0, b"0") + END,
        header(b"x", 12, b"x", b"12 path=abc\n") + END,  # nothing follows
        header(b"f", 0, b"M") + END,  # a multi-volume archive's
        header(b"f", 0, b"?") + END,
        header(b"f", 100, b"S", b"x" * 100) + END,
    ],
    ids=range(11),
)
def test_hostile_headers(root: Path, data: bytes) -> None:
    refused(data, root)


def test_negative_sizes(root: Path) -> None:
    block = bytearray(header(b"f", 0, b"0"))
    block[124:136] = b"\xff" * 11 + b"\x00"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert "has the size -256" in refused(bytes(block) + END, root)


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_truncated_anywhere(root: Path, compression: str) -> None:
    noise = random.Random(2).randbytes(5000)
    data = COMPRESSORS[compression](tar(entry("a", noise), directory("d"), entry("d/b", b"x")))
    # Of a plain archive the zeros after the mark may be missing.
    whole = len(data.rstrip(b"\0")) if compression == "plain" else len(data)
    for length in [*range(0, whole, 97), whole - 1]:
        refused(data[:length], root)
    extract(data, root)


@pytest.mark.parametrize("compression", ["gz", "xz"])
def test_damaged_data_is_noticed(root: Path, compression: str) -> None:
    data = bytearray(COMPRESSORS[compression](tar(entry("a", bytes(100_000)))))
    data[-6 if compression == "gz" else len(data) // 2] ^= 0xFF
    assert "corrupt" in refused(bytes(data), root)


def test_a_broken_header_in_the_middle_is_not_the_end(root: Path) -> None:
    data = bytearray(tar(entry("a", b"x"), entry("b", b"y")))
    data[1024] ^= 0x55
    assert "checksum" in refused(bytes(data), root)


@pytest.mark.parametrize(
    "data",
    [b"", b"#!/bin/sh\n", b"\x7fELF" + bytes(2000), b"PK\x03\x04" + bytes(2000), b"BZh9" * 500,
     b"x" * 10_000, b"\x1f\x8b" + b"x" * 600, gzip.compress(b"text"), zstd.compress(b"t" * 5000)],
    ids=range(9),
)  # fmt: skip
def test_not_an_archive(root: Path, data: bytes) -> None:
    refused(data, root)


def test_streams_after_each_other(root: Path) -> None:
    data = tar(entry("a", b"x" * 5000), entry("b", b"y"))
    for number, compress in enumerate((gzip.compress, lzma.compress, zstd.compress)):
        parts = compress(data[:3000]) + compress(data[3000:])
        extract(parts, root)
        assert (root / "b").read_bytes() == b"y", number
        subprocess.run(["rm", "-rf", root], check=True)


def test_bytes_are_limited(root: Path) -> None:
    data = tar(*(entry(f"f{n}", b"x" * 1000) for n in range(10)))
    assert extract(data, root, max_bytes=10_000).size == 10_000
    subprocess.run(["rm", "-rf", root], check=True)
    assert "more than 9999 bytes" in refused(data, root, max_bytes=9999)


def test_a_bomb_is_stopped_by_what_it_claims(root: Path) -> None:
    """A terabyte of zeros in a few bytes is refused before a byte of it is written."""
    assert "bytes of data" in refused(gzip.compress(header(b"bomb", (1 << 33) - 1, b"0")), root,
                                      max_bytes=1 << 20)  # fmt: skip


def test_entries_are_limited(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_ENTRIES", 5)
    assert "more than 5 entries" in refused(tar(*(entry(f"f{n}") for n in range(6))), root)


def test_xz_memory_is_limited(root: Path) -> None:
    small = bytearray(lzma.compress(b"x"))
    # Block header and its filter's flags (xz file format 1.1, sections 3.1 and 5.3.1): a
    # dictionary of 1 GiB is claimed, which nobody needs to have used.
    end = 12 + (small[12] + 1) * 4
    assert small[14:16] == b"\x21\x01"
    small[16] = 36
    small[end - 4 : end] = zlib.crc32(small[12 : end - 4]).to_bytes(4, "little")
    assert "emory usage limit" in refused(bytes(small), root)


def test_a_failing_disk_is_not_the_archives_fault(root: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(SetupError) as caught:
            extract(tar(entry("ok", b"x"), entry("big", b"x" * 5000)), root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert "entry 'big': File too large" in str(caught.value)
    assert not root.exists()


def test_random_damage_never_does_more_than_fail(root: Path) -> None:
    """Flip bytes all over an archive: it unpacks or is refused, and never anything else."""
    rng = random.Random(3)
    data = tar(
        directory("d"),
        entry("d/" + "n" * 150, b"x" * 700, pax_headers={"SCHILY.xattr.user.a": "b"}),
        symlink("d/l", "../e"),
        hardlink("h", "d/" + "n" * 150),
        entry("e", b"y"),
    ).rstrip(b"\0") + END  # fmt: skip
    outcomes = set()
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(broken))
            broken[at] = rng.choice([0, 0x2F, 0x2E, 0xFF, rng.randrange(256)])
        # Headers stay valid, so that the damage gets past the checksum.
        for at in range(0, len(broken), 512):
            if broken[at + 257 : at + 262] == b"ustar":
                broken[at + 148 : at + 156] = b" " * 8
                broken[at + 148 : at + 156] = b"%06o\0 " % sum(broken[at : at + 512])
        try:
            extract(bytes(broken), root)
            outcomes.add("unpacked")
        except UsageError:
            outcomes.add("refused")
        subprocess.run(["rm", "-rf", root], check=True)
    assert outcomes == {"unpacked", "refused"}
