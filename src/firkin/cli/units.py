"""Numbers, sizes and names of options, from the text of a command line to plain values.

Each function takes the text and the option's name, and raises
:class:`~firkin.errors.UsageError` in one form: ``cannot set --memory to '12q':
expected a number of bytes with an optional unit b, k, m or g``.
"""

from __future__ import annotations

import os

from firkin.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_INT64_MAX = 2**63 - 1
# What the kernel calls RLIM_INFINITY.
UNLIMITED = 2**64 - 1

# Powers of 1024, as go-units' RAMInBytes, which docker reads sizes with.
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", 1):
    _UNITS[_letter] = _UNITS[_letter + "b"] = _UNITS[_letter + "ib"] = 1024**_power

# The names of --ulimit; those of docker and "as".
ULIMITS = (
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
)


def refuse(text: str, name: str, expected: str, mend: str = "") -> UsageError:
    """Return the error for *text* as a value of option *name*."""
    return UsageError(f"cannot set {name} to '{text}'", f"expected {expected}", mend)


def _digits(text: str) -> bool:
    # int() also takes underscores, blanks and the digits of every script, and
    # refuses more than 4300 digits with an error of its own.
    return text.isascii() and text.isdigit() and len(text) <= 20


def decimal(text: str, scale: int) -> int | None:
    """Return the decimal number *text* times *scale*, rounded down, or None if it isn't one.

    Exact, where a float would lose the last digits of a large number.
    """
    whole, _, fraction = text.partition(".")
    if not _digits(whole or "0") or not _digits(fraction or "0") or not (whole or fraction):
        return None
    result: int = int(whole + fraction) * scale // 10 ** len(fraction)
    return result


def integer(text: str, name: str, low: int, high: int = _INT64_MAX) -> int:
    """Return the whole number *text*, which must lie between *low* and *high*, inclusive."""
    number = text.removeprefix("-")
    if _digits(number) and low <= int(text) <= high:
        return int(text)
    if high == _INT64_MAX:
        raise refuse(text, name, f"a whole number of at least {low}")
    raise refuse(text, name, f"a whole number from {low} to {high}")


def size(text: str, name: str) -> int:
    """Return a number of bytes: ``512k``, ``64m``, ``1.5g``, ``2GiB``; units are powers of 1024."""
    number = text.rstrip("bBkKmMgGtTpPiI")
    unit = _UNITS.get(text[len(number) :].lower())
    result = decimal(number.removesuffix(" "), unit) if unit else None
    if result is None or result > _INT64_MAX:
        raise refuse(text, name, "a number of bytes with an optional unit b, k, m or g")
    return result


def seconds(text: str, name: str) -> float:
    """Return a positive number of seconds: ``5``, ``0.25``."""
    nanoseconds = decimal(text, 10**9)
    if not nanoseconds:
        raise refuse(text, name, "a number of seconds above 0")
    return nanoseconds / 10**9


def cpus(text: str, name: str) -> int:
    """Return a number of processors in billionths: ``1.5`` is 1500000000; 0 is no limit.

    The kernel's smallest quota is 1 ms in a period of 100 ms: 0.01 processors.
    """
    nano = decimal(text, 10**9)
    if nano is None or (nano != 0 and nano < 10**7):
        raise refuse(text, name, "a number of processors, as 1.5, of at least 0.01")
    return nano


def offset(text: str, name: str) -> tuple[str, int, int]:
    """Return ``CLOCK=SECONDS`` as clock, seconds (of either sign) and nanoseconds (0 or more)."""
    clock, _, amount = text.partition("=")
    nanoseconds = decimal(amount[1:] if amount.startswith(("+", "-")) else amount, 10**9)
    if clock not in ("boottime", "monotonic") or nanoseconds is None:
        raise refuse(text, name, "boottime=SECONDS or monotonic=SECONDS")
    whole, rest = divmod(-nanoseconds if amount.startswith("-") else nanoseconds, 10**9)
    return clock, whole, rest


def ulimit(text: str, name: str) -> tuple[str, int, int]:
    """Return ``NAME=SOFT[:HARD]`` as ``RLIMIT_NAME``, soft and hard; HARD is SOFT if left out."""
    resource, equals, limits = text.partition("=")
    if resource not in ULIMITS:
        raise refuse(text, name, "NAME=SOFT[:HARD] with a NAME of " + ", ".join(ULIMITS))
    soft, colon, hard = limits.partition(":")
    values = [_limit(value) for value in (soft, hard if colon else soft)]
    if not equals or values[0] is None or values[1] is None:
        raise refuse(text, name, f"{resource}=SOFT[:HARD] with whole numbers, or -1 for unlimited")
    if values[0] > values[1]:
        raise refuse(text, name, "a soft limit that is not above the hard limit")
    return "RLIMIT_" + resource.upper(), values[0], values[1]


def _limit(text: str) -> int | None:
    if text in ("-1", "unlimited"):
        return UNLIMITED
    return int(text) if _digits(text) and int(text) <= UNLIMITED else None


def cpuset(text: str, name: str) -> str:
    """Return a list of processors or memory nodes as the kernel takes it: ``0-2,5``."""
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not _digits(first) or (dash and (not _digits(last) or int(last) < int(first))):
            raise refuse(text, name, "numbers and ranges, as 0-2,5")
    return text


def absolute(text: str, name: str) -> str:
    """Return the path *text* in the container, without ``.`` and ``..``; it must be absolute."""
    if not text.startswith("/") or "\0" in text:
        raise refuse(text, name, "an absolute path in the container")
    # normpath keeps two leading slashes, which POSIX allows to mean something.
    return "/" + os.path.normpath(text).lstrip("/")


def pair(text: str, name: str) -> tuple[str, str]:
    """Return ``KEY=VALUE`` as key and value; a value left out is empty."""
    key, _, value = text.partition("=")
    if not key:
        raise refuse(text, name, "KEY=VALUE")
    return key, value


def one_of(*values: str) -> Callable[[str, str], str]:
    """Return a reader of a value that must be one of *values*."""

    def read(text: str, name: str) -> str:
        if text not in values:
            raise refuse(text, name, " or ".join(values))
        return text

    return read
