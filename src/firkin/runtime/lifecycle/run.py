"""``run``: create and start in one, and, unless detached, stay until the end.

Source: runc-run(8).
"""

from __future__ import annotations

import os

from firkin.errors import FirkinError
from firkin.linux import caps, signals
from firkin.runtime import foreground
from firkin.runtime.lifecycle import delete, start
from firkin.runtime.lifecycle.create import Creation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.runtime.lifecycle.create import Options
    from firkin.runtime.lifecycle.folder import Container
    from firkin.runtime.terminal import Terminal

_PR_SET_CHILD_SUBREAPER = 36


def run(container: Container, options: Options, *, keep: bool, subreaper: bool) -> int:
    """Run *container*; return its command's exit status, or 0 if it is detached.

    Args:
        container: a new one.
        options: the options of ``create``.
        keep: leave it when it has ended, for ``delete``.
        subreaper: adopt what it leaves behind in a PID namespace that it shares.

    Raises:
        FirkinError: it could not be run; nothing of it is left.
    """
    creation = Creation(container, options)
    if options.detach:
        _, pidfd = creation.start(wait=False)
        os.close(pidfd)
        _after_start(container)
        container.close()
        return 0
    terminal: Terminal | None = None

    def attach(master: int) -> None:
        from firkin.runtime.terminal import Terminal

        nonlocal terminal
        terminal = Terminal(master, 0, 1, interactive=True)
        terminal.start()

    creation.on_console = attach
    if subreaper:
        caps.prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)
    old = signals.block(foreground.HANDLED)
    signal_fd = signals.signalfd(foreground.HANDLED, signals.SFD_CLOEXEC | signals.SFD_NONBLOCK)
    try:
        pid, pidfd = creation.start(wait=False)
        _after_start(container)
        # Others may want to use it while it runs.
        container.close()
        status = foreground.Foreground(pid, pidfd, signal_fd, terminal).wait()
        os.close(pidfd)
    finally:
        if terminal is not None:
            terminal.close()
        os.close(signal_fd)
        signals.set_mask(old)
    if not keep:
        delete.delete(container, force=True, warn=options.warn)
    return status


def _after_start(container: Container) -> None:
    try:
        start.after_start(container)
    except FirkinError:
        delete.destroy(container)
        raise
