"""``kill``: send a signal to a container.

Source: runtime-spec runtime.md, "Kill"; pidfd_send_signal(2).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from firkin.errors import SetupError, UsageError
from firkin.runtime.lifecycle import folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.runtime.lifecycle.folder import Container


def parse_signal(text: str) -> int:
    """Return the number of a signal given as ``15``, ``TERM`` or ``SIGTERM`` in any case.

    Raises:
        UsageError: there is no such signal.
    """
    name = text.upper().removeprefix("SIG")
    found = getattr(_signal, f"SIG{name}", None)
    if isinstance(found, int) and name.isalnum():
        return int(found)
    first, last = int(_signal.SIGRTMIN), int(_signal.SIGRTMAX)
    for base, start, sign in ((first, "RTMIN+", 1), (last, "RTMAX-", -1)):
        if name.startswith(start) and _is_number(name[len(start) :]):
            number = base + sign * int(name[len(start) :])
            if first <= number <= last:
                return number
    # 0 is no signal; runc takes it, to ask whether there is anybody.
    if _is_number(text) and 0 <= int(text) <= last:
        return int(text)
    raise UsageError(f"cannot send signal '{text}'", "there is no such signal")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 4


def kill(container: Container, number: int, *, everyone: bool = False) -> None:
    """Send the signal *number* to the container's first process, or to all of them.

    Raises:
        UsageError: the container is unknown, or does not run.
        SetupError: the kernel refuses.
    """
    container.find()
    record = container.record
    status = container.status()
    if status == folder.STOPPED and everyone and record.shares_pids:
        # Its first process has ended, and others of it go on.
        _kill_all(container, number)
        return
    if status in (folder.STOPPED, folder.CREATING):
        raise UsageError(f"cannot kill container '{container.id}'", "container not running")
    if everyone:
        _kill_all(container, number)
        return
    try:
        pidfd = os.pidfd_open(record.pid)
        try:
            # The descriptor is open: from here on the number can't come to mean another.
            if not folder.is_alive(record.pid, record.started):
                raise ProcessLookupError
            _signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)
    except ProcessLookupError:
        raise UsageError(
            f"cannot kill container '{container.id}'", "container not running"
        ) from None
    except OSError as error:
        raise SetupError(
            f"cannot kill container '{container.id}'", error.strerror or "", errno=error.errno or 0
        ) from error
    if number == _signal.SIGKILL and status == folder.PAUSED:
        folder.thaw(record.cgroups)


def _kill_all(container: Container, number: int) -> None:
    from firkin.runtime import cgroups

    record = container.record
    if not record.cgroups:
        raise UsageError(
            f"cannot kill all of container '{container.id}'", "it has no cgroup to find them by"
        )
    cgroup = cgroups.reopen(cgroups.detect(), record.cgroups)
    if number == _signal.SIGKILL:
        cgroup.kill()
        return
    for pid in cgroup.pids():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
