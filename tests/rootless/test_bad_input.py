"""What firkin says to bad input, as an ordinary user."""

from __future__ import annotations

import tarfile

import pytest

from support import cases_bad_input as cases
from support.cases_bad_input import Bad

bad = cases.bad  # a fixture
TRUE = "{root} true"


@pytest.mark.parametrize(
    ("arguments", "status", "message"), cases.CASES.values(), ids=cases.CASES.keys()
)
def test_bad_input(bad: Bad, arguments: str, status: int, message: str) -> None:
    bad.refused(arguments, status, message)


@pytest.mark.parametrize("members", cases.CLIMBERS.values(), ids=cases.CLIMBERS.keys())
def test_an_archive_that_climbs(bad: Bad, members: list[tarfile.TarInfo]) -> None:
    cases.check_an_archive_that_climbs(bad, members)


def test_user_namespaces_forbidden(bad: Bad) -> None:
    cases.check_user_namespaces_forbidden(bad, "--userns keep-id")


def test_no_user_namespace_for_an_ordinary_user(bad: Bad) -> None:
    bad.refused("--userns host {root} true", 125, "cannot run without a user namespace: …; leave …")


def test_a_state_directory_of_another(bad: Bad) -> None:
    bad.refused(TRUE, 125, "cannot use the state directory '/var/lib': …", FIRKIN_STATE="/var/lib")


def test_a_state_directory_that_cannot_be_made(bad: Bad) -> None:
    bad.refused(
        TRUE,
        125,
        "cannot make the state directory '/usr/x': Permission denied; set FIRKIN_STATE …",
        FIRKIN_STATE="/usr/x",
    )


def test_a_state_directory_without_the_right_to_write(bad: Bad) -> None:
    bad.home.state.mkdir(mode=0o500)
    bad.refused(TRUE, 125, "cannot …{folder}/state…: Permission denied; set FIRKIN_STATE …")


def test_a_store_of_another(bad: Bad) -> None:
    bad.refused(TRUE, 125, "cannot use store '/usr': it belongs to uid 0; …", FIRKIN_STORE="/usr")


def test_an_image_folder_that_cannot_be_read(bad: Bad) -> None:
    secret = bad.folder / "secret"
    (secret / "bin").mkdir(parents=True)
    secret.chmod(0)
    try:
        bad.refused("{folder}/secret true", 125, "cannot …{folder}/secret…: Permission denied…")
    finally:
        secret.chmod(0o700)


def test_an_image_below_a_folder_that_cannot_be_passed(bad: Bad) -> None:
    bad.refused("/root/image true", 125, "cannot use image '/root/image': …")
