"""Stay with a process: pass on signals and its terminal until it has ended."""

from __future__ import annotations

import os
import select
from time import monotonic

from firkin.linux import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firkin.runtime.terminal import Terminal

# What is passed on, and what concerns the terminal.
HANDLED = (
    signals.SIGHUP,
    signals.SIGINT,
    signals.SIGQUIT,
    signals.SIGTERM,
    signals.SIGUSR1,
    signals.SIGUSR2,
    signals.SIGWINCH,
    signals.SIGCONT,
)


class Foreground:
    """The caller's side of a running process.

    The caller has blocked the signals of :data:`HANDLED`.

    Args:
        pid: of the process, a child of the caller.
        pidfd: of the same.
        signal_fd: a non-blocking signalfd of the handled signals.
        terminal: that of the process, or None.
        child_fd: one of SIGCHLD, which is blocked, too, if the caller adopts orphans
            (``PR_SET_CHILD_SUBREAPER``) and has no other children; else -1.
    """

    __slots__ = ("_child_fd", "_pid", "_pidfd", "_signal_fd", "_terminal")

    def __init__(
        self,
        pid: int,
        pidfd: int,
        signal_fd: int,
        terminal: Terminal | None,
        child_fd: int = -1,
    ) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._signal_fd = signal_fd
        self._terminal = terminal
        self._child_fd = child_fd

    def wait(
        self, deadline: float | None = None, on_deadline: Callable[[], None] | None = None
    ) -> int:
        """Return the process's exit status when it has ended; 128 + n after signal n.

        Args:
            deadline: when, by ``monotonic``, *on_deadline* is called; None for never.
            on_deadline: ends the process.
        """
        terminal = self._terminal
        while True:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            poller.register(self._signal_fd, select.POLLIN)
            if self._child_fd >= 0:
                poller.register(self._child_fd, select.POLLIN)
            for fd, events in terminal.fds() if terminal else ():
                poller.register(fd, events)
            remaining = None if deadline is None else max(0.0, deadline - monotonic()) * 1000
            ready = dict(poller.poll(remaining))
            if self._pidfd in ready:
                break
            if not ready and deadline is not None and monotonic() >= deadline:
                deadline = None
                if on_deadline is not None:
                    on_deadline()
            if self._signal_fd in ready:
                self._forward()
            if self._child_fd in ready:
                self._reap()
            if terminal is not None:
                for fd, events in ready.items():
                    if fd not in (self._pidfd, self._signal_fd, self._child_fd):
                        terminal.handle(fd, events)
        if terminal is not None:
            terminal.drain(self._signal_fd)
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _forward(self) -> None:
        terminal = self._terminal
        for number, *_ in signals.read_signalfd(self._signal_fd):
            if number == signals.SIGWINCH and terminal is not None:
                terminal.resize()
            elif number == signals.SIGCONT:
                if terminal is not None:
                    try:
                        terminal.resume()
                    except OSError:
                        continue  # hung up: SIGHUP, which comes with it, is for the command
            else:
                try:
                    signals.pidfd_send_signal(self._pidfd, number)
                except ProcessLookupError:
                    continue

    def _reap(self) -> None:
        """Wait for what we have adopted; one SIGCHLD can stand for any number."""
        signals.read_signalfd(self._child_fd)
        while True:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            # Ours is waited for when all that it wrote has been passed on.
            if found is None or found.si_pid == self._pid:
                return
            os.waitpid(found.si_pid, 0)
