"""``cli/units.py``: what people write, and the plain values it stands for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firkin.cli import units
from firkin.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("64k", 64 << 10),
        ("64K", 64 << 10),
        ("64kb", 64 << 10),
        ("64KiB", 64 << 10),
        ("64m", 64 << 20),
        ("1.5g", 3 << 29),
        (".5k", 512),
        ("1.", 1),
        ("2 m", 2 << 20),
        ("1t", 1 << 40),
        ("1p", 1 << 50),
        ("9223372036854775807", 2**63 - 1),  # a float would round it up
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert units.size(text, "--memory") == expected


SIZES = ["", "12q", "k", "-1", "+1", "1e3", "0x10", "1_000", "1kbb", "1bb", "1ib", "1bib", "1ki"]
SIZES += [
    "1.2.3k",
    "9223372036854775808",
    "8192p",
    "1" * 5000,
    "\u0661",
    "1  m",
    "nan",
    "1,5g",
    " 1",
]


@pytest.mark.parametrize("text", SIZES)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.size(text, "--memory")
    expected = "expected a number of bytes with an optional unit b, k, m or g"
    assert caught.value.what == f"cannot set --memory to '{text}'"
    assert caught.value.why == expected


def test_an_error_as_a_person_sees_it() -> None:
    with pytest.raises(UsageError) as caught:
        units.size("12q", "--memory")
    expected = "expected a number of bytes with an optional unit b, k, m or g"
    assert str(caught.value) == f"cannot set --memory to '12q': {expected}"


@given(st.integers(0, 2**63 - 1))
def test_a_number_of_bytes_is_itself(number: int) -> None:
    assert units.size(str(number), "-m") == number


READERS: list[Callable[[str, str], Any]] = [
    units.size,
    units.seconds,
    units.cpus,
    units.offset,
    units.ulimit,
    units.cpuset,
    units.absolute,
    units.pair,
    lambda text, name: units.integer(text, name, -5, 5),
]


@given(st.sampled_from(READERS), st.text() | st.text("0123456789.-+=,:kmgbi /"))
def test_any_text_is_a_value_or_a_usage_error(read: Callable[[str, str], Any], text: str) -> None:
    with suppress(UsageError):
        read(text, "--option")


@pytest.mark.parametrize(("text", "expected"), [("1", 1.0), ("0.25", 0.25), ("90.5", 90.5)])
def test_seconds(text: str, expected: float) -> None:
    assert units.seconds(text, "--timeout") == expected


@pytest.mark.parametrize("text", ["0", "-1", "", "5s", "inf", "nan", "1e9"])
def test_seconds_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="expected a number of seconds above 0"):
        units.seconds(text, "--timeout")


@pytest.mark.parametrize(
    ("text", "expected"), [("1.5", 1_500_000_000), ("2", 2 * 10**9), ("0.01", 10**7), ("0", 0)]
)
def test_processors(text: str, expected: int) -> None:
    assert units.cpus(text, "--cpus") == expected


@pytest.mark.parametrize("text", ["0.009", "-1", "all", ""])
def test_processors_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"at least 0.01"):
        units.cpus(text, "--cpus")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nofile=64", ("RLIMIT_NOFILE", 64, 64)),
        ("nofile=64:128", ("RLIMIT_NOFILE", 64, 128)),
        ("core=0", ("RLIMIT_CORE", 0, 0)),
        ("memlock=-1", ("RLIMIT_MEMLOCK", units.UNLIMITED, units.UNLIMITED)),
        ("stack=8:unlimited", ("RLIMIT_STACK", 8, units.UNLIMITED)),
    ],
)
def test_ulimits(text: str, expected: tuple[str, int, int]) -> None:
    assert units.ulimit(text, "--ulimit") == expected


ULIMITS = ["", "nofile", "nofile=", "nofile=1:", "nofile=:1", "nofile=a", "nofiles=1", "=1"]


@pytest.mark.parametrize("text", [*ULIMITS, "nofile=2:1", "nofile=-1:5", "nofile=-2"])
def test_ulimits_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="cannot set --ulimit"):
        units.ulimit(text, "--ulimit")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("boottime=60", ("boottime", 60, 0)),
        ("monotonic=+1.5", ("monotonic", 1, 500_000_000)),
        ("boottime=-0.25", ("boottime", -1, 750_000_000)),
        ("boottime=-2", ("boottime", -2, 0)),
    ],
)
def test_time_offsets(text: str, expected: tuple[str, int, int]) -> None:
    assert units.offset(text, "--time-offset") == expected


@pytest.mark.parametrize("text", ["realtime=1", "boottime", "boottime=", "boottime=+-1", "60"])
def test_time_offsets_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="boottime=SECONDS or monotonic=SECONDS"):
        units.offset(text, "--time-offset")


@pytest.mark.parametrize("text", ["0", "0-3", "0-1,3", "2,2"])
def test_cpusets(text: str) -> None:
    assert units.cpuset(text, "--cpuset-cpus") == text


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "0,", "0 1", "0-1-2"])
def test_cpusets_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="numbers and ranges"):
        units.cpuset(text, "--cpuset-cpus")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("/", "/"), ("//a", "/a"), ("/a/../b/./c/", "/b/c"), ("/../..", "/"), ("/a b", "/a b")],
)
def test_absolute_paths(text: str, expected: str) -> None:
    assert units.absolute(text, "--workdir") == expected


@pytest.mark.parametrize("text", ["", "a", "./a", "/a\0b"])
def test_paths_that_are_not_absolute(text: str) -> None:
    with pytest.raises(UsageError, match="an absolute path in the container"):
        units.absolute(text, "--workdir")


def test_whole_numbers_say_their_range() -> None:
    assert units.integer("-5", "--n", -5, 5) == -5
    with pytest.raises(UsageError, match="a whole number from -5 to 5"):
        units.integer("6", "--n", -5, 5)
    with pytest.raises(UsageError, match=r"a whole number of at least 1$"):
        units.integer("0", "--n", 1)
