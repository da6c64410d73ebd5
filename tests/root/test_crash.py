"""Killing firkin, or the container's first process, at any moment of a run."""

from __future__ import annotations

from pathlib import Path

from support import cases_crash as cases
from support.cases_crash import home  # noqa: F401  (a fixture)
from support.crash import Home


def test_kill_firkin_at_each_of_its_own_steps(busybox_root: Path, home: Home) -> None:
    cases.check_kill_firkin_at_its_own_steps(busybox_root, home, stride=1)


def test_kill_firkin_at_each_step_of_the_child(busybox_root: Path, home: Home) -> None:
    cases.check_kill_firkin_at_the_childs_steps(busybox_root, home, stride=1)


def test_kill_the_child_at_each_of_its_steps(busybox_root: Path, home: Home) -> None:
    cases.check_kill_the_child(busybox_root, home, stride=1)
