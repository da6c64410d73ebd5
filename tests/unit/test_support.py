"""The rules of the test suite itself: what may skip in CI, and that nothing hangs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.command import execute
from support.requires import REQUIREMENTS, requires

TESTS = Path(__file__).parents[1]


def suite(folder: Path, tests: str, *, ci: bool, arguments: tuple[str, ...] = ("unit",)) -> str:
    """Run a suite of this project's conftest and *tests*, and return what pytest says."""
    shutil.copy(TESTS / "conftest.py", folder)
    shutil.copytree(TESTS / "support", folder / "support")
    for name in ("unit", "root", "rootless"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "unit/test_one.py").write_text(
        f"import pytest\nfrom support.requires import need, requires\n{tests}\n"
    )
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\naddopts = -ra --strict-markers\n")
    env = {name: value for name, value in os.environ.items() if name != "CI"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = execute(command, cwd=folder, env=env | ({"CI": "true"} if ci else {}))
    return f"{done.stdout}{done.stderr}\nstatus {done.returncode}"


SKIPS = {
    "mark": "@pytest.mark.skip(reason='lazy')\ndef test(): pass",
    "skipif": "@pytest.mark.skipif(True, reason='lazy')\ndef test(): pass",
    "call": "def test(): pytest.skip('lazy')",
    "xfail": "@pytest.mark.xfail\ndef test(): assert False",
    "file": "pytest.skip('lazy', allow_module_level=True)",
    "set-up": "@requires('program:no-such-program')\ndef test(): pass",
    "need": "def test(): need('user:no-such-user')",
}


@pytest.mark.parametrize("skip", SKIPS.values(), ids=SKIPS)
def test_ci_refuses_a_skip(tmp_path: Path, skip: str) -> None:
    said = suite(tmp_path, skip, ci=True)
    assert "status 1" in said or "status 2" in said, said


@pytest.mark.parametrize("skip", SKIPS.values(), ids=SKIPS)
def test_elsewhere_it_skips(tmp_path: Path, skip: str) -> None:
    said = suite(tmp_path, skip, ci=False)
    assert "1 skipped" in said or "1 xfailed" in said, said


def test_ci_accepts_what_only_another_machine_could_mend(tmp_path: Path) -> None:
    said = suite(tmp_path, "@requires('kernel:99.0')\ndef test(): pass", ci=True)
    assert "1 skipped" in said
    assert "requires kernel:99.0: the kernel is" in said
    assert "status 0" in said


@pytest.mark.parametrize(("folder", "status"), [("unit", 0), ("", 1)])
def test_ci_accepts_that_the_other_user_runs_it(tmp_path: Path, folder: str, status: int) -> None:
    other = "ordinary user" if os.geteuid() == 0 else "root"
    (tmp_path / folder).mkdir(exist_ok=True)
    test = f"from support.requires import requires\n@requires({other!r})\ndef test(): pass\n"
    (tmp_path / folder / "test_two.py").write_text(test)
    said = suite(tmp_path, "", ci=True, arguments=(f"{folder or '.'}/test_two.py",))
    assert f"status {status}" in said, said


def test_a_requirement_that_is_met_does_not_skip(tmp_path: Path) -> None:
    said = suite(tmp_path, "@requires('kernel:2.6', 'program:sh')\ndef test(): pass", ci=True)
    assert "1 passed" in said


def test_a_misspelt_requirement_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown requirement 'krenel'"):
        requires("krenel")


def test_every_requirement_answers() -> None:
    arguments = {
        "capability": "CAP_SYS_ADMIN",
        "kernel": "5.10",
        "cpus": "1",
        "user": "root",
        "program": "sh",
    }
    for name, requirement in REQUIREMENTS.items():
        lacking = requirement.lacking(arguments.get(name, "pid"))
        assert isinstance(lacking, str), name


@pytest.mark.parametrize(("ci", "status"), [(True, 4), (False, 0)])
def test_an_empty_folder_fails_in_ci(tmp_path: Path, ci: bool, status: int) -> None:
    said = suite(tmp_path, "def test(): pass", ci=ci, arguments=("unit", "rootless"))
    assert f"status {status}" in said


def test_no_test_at_all_fails(tmp_path: Path) -> None:
    assert "status 5" in suite(tmp_path, "", ci=False)


def test_a_test_of_another_user_is_skipped(tmp_path: Path) -> None:
    other = "rootless" if os.geteuid() == 0 else "root"
    (tmp_path / other).mkdir()
    (tmp_path / other / "test_two.py").write_text("def test(): pass")
    said = suite(tmp_path, "", ci=False, arguments=(other,))
    assert "1 skipped" in said
    assert "runs as" in said


def test_a_command_that_hangs_is_killed_and_described() -> None:
    started = time.monotonic()
    with pytest.raises(pytest.fail.Exception) as caught:
        execute(["sh", "-c", "echo first words; sleep 987 & wait"], timeout=0.5)
    assert time.monotonic() - started < 10
    assert "first words" in str(caught.value)
    assert "sleep 987" in str(caught.value)
    assert not running("sleep 987")


def running(command: str) -> bool:
    """Tell whether a process of exactly this command line is there."""
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return command in listing.stdout.splitlines()


HANGS = """
import subprocess
def test(): subprocess.run(["sh", "-c", "sleep 876; :"])
def test_two(): pass
"""


def test_a_test_that_hangs_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRKIN_TEST_LIMIT", "1")
    said = suite(tmp_path, HANGS, ci=False)
    assert "1 failed, 1 passed" in said
    assert "still ran after 1 s" in said
    assert "sleep 876" in said
    assert not running("sleep 876")


def test_the_session_folder_is_removed(tmp_path: Path) -> None:
    test = "def test(session_folder):\n    assert 0, f'FOLDER {session_folder} END'"
    said = suite(tmp_path, test, ci=False)
    folder = said.partition("AssertionError: FOLDER ")[2].split()[0]
    assert folder.startswith("/var/tmp/firkin-tests.")
    assert not os.path.exists(folder)
