"""A set-user-ID program of the image: with no_new_privs it gives its caller nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.command import Firkin


@pytest.fixture
def program(debian_root: Path, tmp_path: Path) -> Path:
    """A grep that runs as root, whoever calls it."""
    shutil.copy(debian_root / "usr/bin/grep", tmp_path / "grep")
    (tmp_path / "grep").chmod(0o6755)
    return tmp_path / "grep"


def who(firkin: Firkin, debian_root: Path, program: Path, *options: str) -> list[str]:
    command = ["/grep", "-E", "^(Uid|CapEff)", "/proc/self/status"]
    volume = ["-v", f"{program}:/grep"]
    done = firkin("run", "-u", "1000", *volume, *options, debian_root, *command)
    return done.stdout.replace("\t", " ").splitlines()


@pytest.mark.parametrize("options", [[], ["--init"], ["--cap-add", "ALL"]])
def test_it_gives_nothing(
    firkin: Firkin, debian_root: Path, program: Path, options: list[str]
) -> None:
    lines = who(firkin, debian_root, program, *options)
    assert lines == ["Uid: 1000 1000 1000 1000", "CapEff: 0000000000000000"]


def test_it_does_where_that_is_asked_for(firkin: Firkin, debian_root: Path, program: Path) -> None:
    option = ["--security-opt", "no-new-privileges=false"]
    lines = who(firkin, debian_root, program, *option)
    assert lines[0] == "Uid: 1000 0 0 0"
    assert lines[1] != "CapEff: 0000000000000000"
