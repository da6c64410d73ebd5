"""Kernel calls as people read them: names, flags and results, for ``--explain``."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Calls whose arguments hold flags of open(2), and where.
_OPEN_FLAGS = tuple(
    (getattr(os, name), name)
    for name in (
        "O_WRONLY",
        "O_RDWR",
        "O_CREAT",
        "O_EXCL",
        "O_TRUNC",
        "O_APPEND",
        "O_NONBLOCK",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_NOCTTY",
        "O_PATH",
        "O_CLOEXEC",
    )
)


def decode(name: str, shown: tuple[Any, ...]) -> tuple[str, str]:
    """Return a call's kernel name and its arguments as people write them."""
    words = list(shown)
    where = _FLAGS_AT.get(name, 0)
    if 0 < where < len(words) and isinstance(words[where], int):
        words[where] = _Bare(_flags(words[where]))
    mode = _MODE_AT.get(name, 0)
    if 0 < mode < len(words) and isinstance(words[mode], int):
        words[mode] = _Bare(f"{words[mode]:#o}")
    return _KERNEL_NAMES.get(name, name), _join(words)


class _Bare(str):
    """A text that is shown without quotes: a constant's name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


# Which argument holds flags of open(2), and which a mode.
_FLAGS_AT = {"open": 1, "openat2": 2}
_MODE_AT = {"mkdir": 1, "mknod": 1, "openat2": 3, "open": 2}

# os names the system call it makes by another name than the kernel does.
_KERNEL_NAMES = {
    "open": "openat",
    "mknod": "mknodat",
    "mkdir": "mkdirat",
    "symlink": "symlinkat",
    "readlink": "readlinkat",
    "unlink": "unlinkat",
    "dup2": "dup3",
}


def _join(words: list[Any] | tuple[Any, ...]) -> str:
    parts = []
    for word in words:
        if isinstance(word, tuple) and len(word) == 2 and isinstance(word[0], str):
            parts.append(f"{word[0]}={word[1]!r}")
        elif isinstance(word, str) and _is_constant(word):
            parts.append(word)
        else:
            parts.append(repr(word))
    return ", ".join(parts)


def _is_constant(word: str) -> bool:
    """Whether *word* is names of kernel constants, as ``MS_NOSUID|MS_NODEV``."""
    return "_" in word and all(
        part.replace("_", "").isalnum() and part.isupper() for part in word.split("|")
    )


def _flags(value: int) -> str:
    names = [name for flag, name in _OPEN_FLAGS if flag and value & flag == flag]
    if not value & (os.O_WRONLY | os.O_RDWR | os.O_PATH):
        names.insert(0, "O_RDONLY")
    return "|".join(names)


def describe_result(result: Any) -> str:
    """Return a result as strace(1) shows it; "" where there is none worth showing."""
    if isinstance(result, OSError):
        return f"-{result.errno} {result.strerror}"
    return str(result) if isinstance(result, int) else ""
