"""The exceptions of firkin, and the form in which a person reads them.

::

    FirkinError                 anything firkin itself can fail with; exit 125
    ├── UsageError              bad input: an option, a value, a file (also a ValueError)
    │   └── ConfigError         a field of an OCI configuration
    ├── Unsupported             this machine, kernel or user cannot do what was asked
    └── SetupError              a kernel call failed while the container was made
        ├── NotExecutable       the command exists and cannot be executed; exit 126
        └── NotFound            the command does not exist in the container; exit 127

Every message has one form: *what* failed (and on what), *why*, and where it is
known the *mend*: ``cannot set pids.max to 'abc': expected a number or 'max'``.
"""

from __future__ import annotations


class FirkinError(Exception):
    """A failure that a person can read.

    Args:
        what: what was being done and on what, without a full stop.
        why: the reason, usually the kernel's or the rule that was broken.
        mend: what the reader can do about it; empty where we don't know.
    """

    exit_status = 125

    def __init__(self, what: str, why: str, mend: str = "") -> None:
        super().__init__(what, why, mend)
        self.what = what
        self.why = why
        self.mend = mend

    def __str__(self) -> str:
        text = f"{self.what}: {self.why}"
        if self.mend:
            text += f"; {self.mend}"
        # One line, whatever a hostile path or file put into it: a control
        # character in a message could repaint the reader's terminal.
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UsageError(FirkinError, ValueError):
    """Bad input, found before anything was started."""


class ConfigError(UsageError):
    """A field of an OCI configuration that is missing, malformed or impossible.

    Args:
        field: the field's path, as ``linux.resources.memory.limit`` or ``mounts[3].destination``.
    """

    def __init__(self, field: str, why: str, mend: str = "") -> None:
        super().__init__(f"invalid configuration: {field}", why, mend)
        self.field = field


class Unsupported(FirkinError):
    """This machine, kernel or user cannot have what was asked for."""


class SetupError(FirkinError):
    """A kernel call failed while a container was being made.

    Args:
        step: the name of the step in ``firkin.init.stages`` (or of the parent's half) that failed.
        errno: the kernel's error number, 0 where none applies.
        path: the file the call was on, empty where none applies.
    """

    def __init__(
        self, what: str, why: str, mend: str = "", *, step: str = "", errno: int = 0, path: str = ""
    ) -> None:
        super().__init__(what, why, mend)
        self.step = step
        self.errno = errno
        self.path = path


class NotExecutable(SetupError):
    """The command exists in the container and cannot be executed."""

    exit_status = 126


class NotFound(SetupError):
    """The command does not exist in the container."""

    exit_status = 127
