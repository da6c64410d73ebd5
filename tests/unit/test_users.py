"""image/users.py: ``-u`` as Docker and runc understand it, from hostile files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firkin.errors import UsageError
from firkin.image.users import User, lookup_user

PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
# a comment: with : colons : and : more : of : them
+::::::
junk
bad:x:one:two::/evil:/bin/sh
negative:x:-1:-1::/evil:/bin/sh
huge:x:99999999999:1::/evil:/bin/sh
bob:x:1000:1001:Bob,,,:/home/bob:/bin/bash
bob:x:0:0:second:/root:/bin/sh
twin:x:1000:7::/home/twin:/bin/sh
homeless:x:1002:1002:::
7:x:4242:4242::/home/seven:/bin/sh
"""
GROUP = b"""\
root:x:0:
audio:x:29:root,bob,alice
video:x:44:alice
bob:x:1001:
bad:x:x:bob
docker:x:998:bob
docker:x:0:bob
again:x:998:bob
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(PASSWD)
    (tmp_path / "etc/group").write_bytes(GROUP)
    return tmp_path


@pytest.fixture
def lookup(root: Path) -> Iterator[Callable[[str], User]]:
    fd = os.open(root, os.O_PATH)
    yield lambda spec: lookup_user(fd, spec)
    os.close(fd)


Lookup = Callable[[str], User]


@pytest.mark.parametrize(
    ("spec", "uid", "gid", "groups", "home", "name"),
    [
        ("root", 0, 0, [29], "/root", "root"),
        ("", 0, 0, [29], "/root", "root"),
        ("0", 0, 0, [29], "/root", "root"),
        ("bob", 1000, 1001, [29, 998, 0], "/home/bob", "bob"),
        ("1000", 1000, 1001, [29, 998, 0], "/home/bob", "bob"),
        ("bob:audio", 1000, 29, [], "/home/bob", "bob"),
        ("bob:docker", 1000, 998, [], "/home/bob", "bob"),
        ("bob:5", 1000, 5, [], "/home/bob", "bob"),
        ("4000", 4000, 0, [], "/", ""),
        ("4000:audio", 4000, 29, [], "/", ""),
        ("4294967294:4294967294", 4294967294, 4294967294, [], "/", ""),
        ("homeless", 1002, 1002, [], "/", "homeless"),
        # A number is never a name.
        ("7", 7, 0, [], "/", ""),
        (":audio", 0, 29, [], "/root", "root"),
    ],
)
def test_finds(
    lookup: Lookup, spec: str, uid: int, gid: int, groups: list[int], home: str, name: str
) -> None:
    user = lookup(spec)
    assert (user.uid, user.gid, user.groups, user.home, user.name) == (
        uid,
        gid,
        groups,
        home,
        name,
    )


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("alice", "not in the container's /etc/passwd"),
        ("bad", "not in the container's /etc/passwd"),
        ("negative", "not in the container's /etc/passwd"),
        ("huge", "not in the container's /etc/passwd"),
        ("-1", "not in the container's /etc/passwd"),
        ("1_000", "not in the container's /etc/passwd"),
        ("١٢", "not in the container's /etc/passwd"),
        ("bob:alice", "group 'alice' is not in the container's /etc/group"),
        ("bob:bad", "group 'bad' is not in the container's /etc/group"),
        ("4294967295", "ids go from 0 to 4294967294"),
        ("bob:4294967295", "ids go from 0 to 4294967294"),
        ("9" * 5000, "ids go from 0 to 4294967294"),
        ("bob:", "expected NAME|UID[:GROUP|GID]"),
        ("a:b:c", "expected NAME|UID[:GROUP|GID]"),
        ("bo\0b", "expected NAME|UID[:GROUP|GID]"),
    ],
)
def test_refuses(lookup: Lookup, spec: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        lookup(spec)
    assert caught.value.what == f"cannot run as user '{spec}'"
    assert caught.value.why == why


def test_numbers_need_no_files(root: Path, lookup: Lookup) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/group").unlink()
    assert lookup("5:6").gid == 6
    with pytest.raises(UsageError, match="not in the container's /etc/passwd"):
        lookup("root")


def test_links_stay_in_the_root(root: Path, lookup: Lookup, tmp_path: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/etc/passwd.real")
    (root / "etc/passwd.real").write_text("inner:x:5:6::/inner:/bin/sh\n")
    assert lookup("inner").uid == 5
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("../../../../../../../../../../usr/passwd")
    with pytest.raises(UsageError, match="not in the container's"):
        lookup("root")


def test_what_is_not_a_file_is_refused_at_once(root: Path, lookup: Lookup) -> None:
    (root / "etc/passwd").unlink()
    os.mkfifo(root / "etc/passwd")
    with pytest.raises(UsageError, match="cannot read the container's /etc/passwd: not a regular"):
        lookup("bob")


def test_size_is_limited(root: Path, lookup: Lookup) -> None:
    with open(root / "etc/passwd", "ab") as file:
        file.truncate(17 << 20)
    with pytest.raises(UsageError, match="more than 16 MiB"):
        lookup("bob")


def test_long_lines_and_binary_junk(root: Path, lookup: Lookup) -> None:
    junk = b"x" * (4 << 20) + b"\n" + bytes(range(256)) * 64 + b"\n" + b":" * 100_000 + b"\n"
    (root / "etc/passwd").write_bytes(junk + PASSWD)
    (root / "etc/group").write_bytes(junk + b"g:x:12:" + b"u," * 1_000_000 + b"bob\n")
    assert lookup("bob").groups == [12]


def test_too_many_groups(root: Path, lookup: Lookup) -> None:
    (root / "etc/group").write_text("".join(f"g{n}:x:{n}:bob\n" for n in range(65537)))
    with pytest.raises(UsageError, match="the kernel allows 65536"):
        lookup("bob")
