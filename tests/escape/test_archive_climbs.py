"""Archives that write outside of where they are unpacked: ``..``, absolute names, links.

The class of CVE-2018-20969, CVE-2019-14271 and every "zip slip".
"""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from support.command import Firkin
from support.containers import refused


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = (
        kind,
        link,
        0o755,
        4 * (kind == tarfile.REGTYPE),
    )
    return info


def members(how: str, outside: str) -> list[tarfile.TarInfo]:
    up = "../" * 40
    return {
        "dots": [member(f"{up}{outside}/new")],
        "dots inside": [member(f"a/b/{up}{outside}/new")],
        "absolute": [member(f"{outside}/new")],
        "link": [member("l", tarfile.SYMTYPE, outside), member("l/new")],
        "link of dots": [member("l", tarfile.SYMTYPE, up + outside), member("l/new")],
        "link to link": [
            member("a", tarfile.SYMTYPE, "b"),
            member("b", tarfile.SYMTYPE, outside),
            member("a/new"),
        ],
        "hard link": [member("h", tarfile.LNKTYPE, f"{outside}/secret"), member("h")],
        "hard link of dots": [member("h", tarfile.LNKTYPE, f"{up}{outside}/secret"), member("h")],
        "hard link through link": [
            member("l", tarfile.SYMTYPE, outside),
            member("h", tarfile.LNKTYPE, "l/secret"),
            member("h"),
        ],
        "link over": [member("f", tarfile.SYMTYPE, f"{outside}/secret"), member("f")],
    }[how]


HOWS = (
    *("dots", "dots inside", "absolute", "link", "link of dots", "link to link"),
    *("hard link", "hard link of dots", "hard link through link", "link over"),
)


@pytest.mark.parametrize("how", HOWS)
def test_it_writes_nothing_outside(firkin: Firkin, tmp_path: Path, how: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("host")
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        for info in members(how, str(outside)):
            tar.addfile(info, io.BytesIO(b"evil"))
    done = firkin("run", tmp_path / "image.tar", "/none")
    refused(done, status=done.returncode)
    assert done.returncode in (125, 127)
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_text() == "host"
    assert (outside / "secret").stat().st_nlink == 1
