"""Pseudoterminals: masters and slaves, sizes, modes, the controlling terminal."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from firkin.errors import SetupError
from firkin.linux import pty, signals


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """A master and its slave."""
    master = pty.open_ptmx("/dev/ptmx")
    slave = pty.open_slave(master)
    yield master, slave
    os.close(master)
    os.close(slave)


def test_slave_is_the_other_end(pair: tuple[int, int]) -> None:
    master, slave = pair
    assert os.fstat(master).st_rdev == pty.PTMX_DEVICE
    assert os.isatty(slave)
    os.write(master, b"to the program\n")
    assert os.read(slave, 100) == b"to the program\n"
    os.read(master, 100)  # its echo
    os.write(slave, b"from it")
    assert os.read(master, 100) == b"from it"


def test_descriptors_close_on_exec_and_block(pair: tuple[int, int]) -> None:
    for fd in pair:
        assert not os.get_inheritable(fd)
        assert os.get_blocking(fd)


def test_relative_to_a_folder() -> None:
    folder = os.open("/dev", os.O_PATH)
    try:
        os.close(pty.open_ptmx("ptmx", dir_fd=folder))
    finally:
        os.close(folder)


@pytest.mark.parametrize("kind", ["null", "file", "fifo"])
def test_refuses_what_is_no_ptmx(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "ptmx"
    if kind == "null":
        path.symlink_to("/dev/null")
    elif kind == "file":
        path.touch()
    else:
        os.mkfifo(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SetupError, match="not a ptmx device"):
        pty.open_ptmx(str(path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_missing_ptmx_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pty.open_ptmx(str(tmp_path / "nowhere"))


def test_winsize(pair: tuple[int, int]) -> None:
    master, slave = pair
    assert pty.get_winsize(slave) == (0, 0)
    pty.set_winsize(master, 33, 101)
    assert pty.get_winsize(slave) == (33, 101)
    assert os.get_terminal_size(slave) == (101, 33)


def test_make_raw_is_cfmakeraw(pair: tuple[int, int]) -> None:
    attributes = pty.get_attributes(pair[1])
    # The C library's struct begins as the kernel's does, and has longer arrays.
    expected = ctypes.create_string_buffer(attributes, 128)
    ctypes.CDLL(None).cfmakeraw(expected)
    raw = pty.make_raw(attributes)
    assert raw == expected.raw[: len(raw)]
    assert raw != attributes


def test_attributes_take_effect(pair: tuple[int, int]) -> None:
    master, slave = pair
    cooked = pty.get_attributes(master)
    assert cooked == pty.get_attributes(slave)
    pty.set_attributes(slave, pty.make_raw(cooked))
    os.write(master, b"\x03\x04\r")
    assert os.read(slave, 100) == b"\x03\x04\r"
    os.write(slave, b"a\nb")
    assert os.read(master, 100) == b"a\nb"
    pty.set_attributes(slave, cooked)
    assert pty.get_attributes(master) == cooked


def test_attributes_of_another_size_are_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="36 bytes, not 3"):
        pty.set_attributes(pair[1], b"abc")


def test_end_of_file_character(pair: tuple[int, int]) -> None:
    cooked = pty.get_attributes(pair[1])
    assert pty.end_of_file(cooked) == (b"\x04", True)
    assert not pty.end_of_file(pty.make_raw(cooked))[1]


def test_no_terminal_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for function in (pty.get_winsize, pty.get_attributes, pty.release_controlling):
            with pytest.raises(OSError, match="Inappropriate ioctl"):
                function(fd)
    finally:
        os.close(fd)


def test_controlling_terminal_is_taken_and_given_up(pair: tuple[int, int]) -> None:
    slave = pair[1]
    child = os.fork()
    if child == 0:
        result = 1
        try:
            os.setsid()
            signals.block((signals.SIGHUP,))  # giving it up raises that
            pty.set_controlling(slave)
            os.close(os.open("/dev/tty", os.O_RDWR))
            assert os.tcgetpgrp(slave) == os.getpid()
            pty.release_controlling(slave)
        except BaseException:
            os._exit(result)
        try:
            os.open("/dev/tty", os.O_RDWR)
        except OSError:
            result = 0
        os._exit(result)
    assert os.waitpid(child, 0)[1] == 0
