"""Where ``firkin-runtime`` says what went wrong: standard error, and ``--log``.

podman, containerd and Docker read the log and show its last error to people,
and tell by some words in it what to do. These words are Go's, in small letters.

Source: the log formats of logrus, which runc uses.
"""

from __future__ import annotations

import os
import sys

from firkin.errors import FirkinError, NotExecutable, NotFound, UsageError

TYPE_CHECKING = False

# In the order of their weight, as logrus has them.
_LEVELS = ("panic", "fatal", "error", "warning", "info", "debug", "trace")


# What podman and Docker look for to end with 127 and 126, whatever else is said.
_WORDS = (
    (NotFound, ("no such file or directory", "executable file not found")),
    (NotExecutable, ("permission denied", "operation not permitted")),
)


class Log:
    """The log of one operation; until :meth:`open` there is only standard error."""

    __slots__ = ("_fd", "_json", "_level")

    def __init__(self) -> None:
        self._fd = -1
        self._json = False
        self._level = _LEVELS.index("info")

    def open(self, path: str, form: str, level: str) -> None:
        """Begin to write to the file *path*, or with ``""`` to standard error only.

        Raises:
            UsageError: the form or the level is unknown, or the file can't be written.
        """
        if form not in ("text", "json"):
            raise UsageError(f"cannot set --log-format to '{form}'", "expected text or json")
        level = "warning" if level == "warn" else level
        if level not in _LEVELS:
            raise UsageError(
                f"cannot set --log-level to '{level}'", f"expected one of {', '.join(_LEVELS)}"
            )
        self._json = form == "json"
        self._level = _LEVELS.index(level)
        if not path:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write the log '{path}'", error.strerror or "") from None

    def fail(self, error: FirkinError) -> None:
        """Tell of the *error* that ended the operation, on both."""
        text = message(error)
        self._write("error", text)
        print(f"firkin-runtime: {text}", file=sys.stderr)

    def warn(self, text: str) -> None:
        """Tell of something that did not end it: in the log, else on standard error."""
        if self._fd >= 0:
            self._write("warning", text)
        elif self._level >= _LEVELS.index("warning"):
            print(f"firkin-runtime: warning: {text}", file=sys.stderr)

    def debug(self, text: str) -> None:
        """Tell what is being done."""
        self._write("debug", text)

    def _write(self, level: str, text: str) -> None:
        if self._fd < 0 or _LEVELS.index(level) > self._level:
            return
        from time import gmtime, strftime

        from firkin.spec.jsontext import dump

        now = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime())
        if self._json:
            line = dump({"level": level, "msg": text, "time": now})
        else:
            line = f"time={dump(now)} level={level} msg={dump(text)}"
        try:
            os.write(self._fd, line.encode() + b"\n")
        except OSError as error:
            print(f"firkin-runtime: cannot write the log: {error.strerror}", file=sys.stderr)


def message(error: FirkinError) -> str:
    """Return *error* in one line, with the kernel's reasons in small letters, as Go has them."""
    text = str(error)
    reasons = {os.strerror(number) for number in range(1, 134)}
    for reason in reasons:
        if reason in text:
            text = text.replace(reason, reason[:1].lower() + reason[1:])
    for kind, words in _WORDS:
        if isinstance(error, kind) and not any(word in text for word in words):
            text += f" ({words[0]})"
    return text
