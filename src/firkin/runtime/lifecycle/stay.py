"""Stay with a process that ``run``, ``restore`` or ``exec`` has begun, until it has ended."""

from __future__ import annotations

import os

from firkin.linux import caps, signals
from firkin.runtime import foreground

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from firkin.runtime.terminal import Terminal

    class Owner(Protocol):
        """What hands over the master of a process's terminal."""

        on_console: Callable[[int], None] | None


_PR_SET_CHILD_SUBREAPER = 36


def stay(owner: Owner, begin: Callable[[], tuple[int, int]], *, adopt: bool = False) -> int:
    """Begin a process, pass signals and its terminal on, and return its exit status.

    Args:
        owner: its ``on_console`` is set here, for a process with a terminal.
        begin: returns the process's pid and pidfd.
        adopt: become the parent of what the process leaves behind in a PID namespace
            that it shares, and wait for that, too, while the process lasts.

    Raises:
        FirkinError: what *begin* raises.
    """
    terminal: Terminal | None = None

    def attach(master: int) -> None:
        from firkin.runtime.terminal import Terminal

        nonlocal terminal
        terminal = Terminal(master, 0, 1, interactive=True)
        terminal.start()

    owner.on_console = attach
    flags = signals.SFD_CLOEXEC | signals.SFD_NONBLOCK
    old = signals.block((*foreground.HANDLED, signals.SIGCHLD) if adopt else foreground.HANDLED)
    signal_fd = signals.signalfd(foreground.HANDLED, flags)
    child_fd = -1
    if adopt:
        caps.prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)
        child_fd = signals.signalfd((signals.SIGCHLD,), flags)
    try:
        pid, pidfd = begin()
        status = foreground.Foreground(pid, pidfd, signal_fd, terminal, child_fd).wait()
        os.close(pidfd)
        return status
    finally:
        if terminal is not None:
            terminal.close()
        for fd in (signal_fd, child_fd):
            if fd >= 0:
                os.close(fd)
        signals.set_mask(old)
