"""A set-user-ID program of the image: with no_new_privs it gives its caller nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.command import Firkin


@pytest.fixture
def setuid_root(own_root: Path) -> Path:
    shutil.copy(own_root / "bin/busybox", own_root / "bin/busybox-of-root")
    (own_root / "bin/busybox-of-root").chmod(0o6755)
    return own_root


def who(firkin: Firkin, root: Path, *options: str) -> list[str]:
    script = "/bin/busybox-of-root grep -E '^(Uid|CapEff)' /proc/self/status"
    done = firkin("run", "-u", "alice", *options, root, "sh", "-c", script)
    return done.stdout.replace("\t", " ").splitlines()


@pytest.mark.parametrize("options", [[], ["--init"], ["--cap-add", "ALL"]])
def test_it_gives_nothing(firkin: Firkin, setuid_root: Path, options: list[str]) -> None:
    lines = who(firkin, setuid_root, *options)
    assert lines == ["Uid: 1000 1000 1000 1000", "CapEff: 0000000000000000"]


def test_it_does_where_that_is_asked_for(firkin: Firkin, setuid_root: Path) -> None:
    lines = who(firkin, setuid_root, "--security-opt", "no-new-privileges=false")
    assert lines[0] == "Uid: 1000 0 0 0"
    assert lines[1] != "CapEff: 0000000000000000"
