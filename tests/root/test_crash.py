"""Killing firkin, or the container's first process, at any moment of a run, as root."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import cases_crash as cases
from support.cases_crash import Command
from support.crash import Home

home, command = cases.home, cases.command  # fixtures


def test_kill_firkin_at_each_of_its_own_steps(busybox_root: Path, home: Home) -> None:
    cases.check_kill_firkin_at_its_own_steps(busybox_root, home, stride=1)


def test_kill_firkin_at_steps_of_the_child(busybox_root: Path, home: Home) -> None:
    cases.check_kill_firkin_at_the_childs_steps(busybox_root, home, stride=2)


@pytest.mark.parametrize("kind", ["init", "terminal", "host pids", "joined"])
def test_kill_firkin_in_other_kinds_of_starts(busybox_root: Path, home: Home, kind: str) -> None:
    cases.check_kill_firkin_at_the_childs_steps(busybox_root, home, stride=13, kind=kind)


def test_kill_the_child_at_its_steps(busybox_root: Path, home: Home) -> None:
    cases.check_kill_the_child(busybox_root, home, stride=2)


@pytest.mark.parametrize("options", [[], ["--init"], ["-t"], ["--pid", "host"]], ids=" ".join)
def test_kill_a_running_container(command: Command, busybox_root: Path, options: list[str]) -> None:
    cases.check_kill_a_running_container(command, busybox_root, options)


def test_a_program_that_does_not_die_with_firkin(command: Command, busybox_root: Path) -> None:
    cases.check_a_program_that_does_not_die_with_firkin(command, busybox_root)


def test_a_crash_while_unpacking(busybox_tar: Path, tmp_path: Path) -> None:
    cases.check_a_crash_while_unpacking(busybox_tar, tmp_path)


def test_many_sweep_at_once(command: Command, busybox_root: Path) -> None:
    cases.check_many_sweep_at_once(command, busybox_root)


def test_living_containers_are_left_alone(command: Command, busybox_root: Path) -> None:
    cases.check_living_containers_are_left_alone(command, busybox_root)


def test_a_name_is_taken_while_its_container_lives(command: Command, busybox_root: Path) -> None:
    cases.check_a_name_is_taken_while_its_container_lives(command, busybox_root)


@pytest.mark.parametrize("text", cases.RECORDS.values(), ids=cases.RECORDS.keys())
def test_hostile_records(command: Command, busybox_root: Path, tmp_path: Path, text: str) -> None:
    cases.check_hostile_records(command, busybox_root, tmp_path, text)


def test_what_is_not_a_containers_is_kept(
    command: Command, busybox_root: Path, tmp_path: Path
) -> None:
    cases.check_what_is_not_a_containers_is_kept(command, busybox_root, tmp_path)
