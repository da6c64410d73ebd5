"""The container's process between ``create`` and ``start``: it waits on a FIFO.

The FIFO is open for reading and writing here, so that reading waits for as
long as nobody has written; ``start`` writes one byte. What goes wrong
afterwards is written to a file, for ``start``'s process is not our parent.
"""

from __future__ import annotations

import errno
import os
import select

from firkin.linux import signals

# Signals whose default does not end a process.
_HARMLESS = frozenset(
    (
        signals.SIGCHLD,
        signals.SIGCONT,
        signals.SIGURG,
        signals.SIGWINCH,
        signals.SIGTSTP,
        signals.SIGTTIN,
        signals.SIGTTOU,
    )
)


def prepare(fifo: int) -> tuple[int, select.poll]:
    """Block all signals, and return what :func:`wait` needs besides *fifo*.

    Raises:
        OSError: a seccomp filter forbids it.
    """
    signals.block(signals.ALL)
    signal_fd = signals.signalfd(signals.ALL)
    poller = select.poll()
    poller.register(fifo, select.POLLIN)
    poller.register(signal_fd, select.POLLIN)
    poller.poll(0)
    return signal_fd, poller


def wait(fifo: int, signal_fd: int, poller: select.poll) -> None:
    """Wait until a byte is written to *fifo*; all signals are blocked meanwhile.

    A signal that would end a program ends this process: pid 1 of a PID
    namespace is otherwise deaf to what it has no handler for.
    """
    while True:
        ready = dict(poller.poll())
        if not ready:
            raise OSError(errno.EPERM, "the seccomp filter answers in poll's place")
        if signal_fd in ready:
            for number, *_ in signals.read_signalfd(signal_fd):
                if number not in _HARMLESS:
                    os._exit(128 + number)
        if fifo in ready:
            break
    os.read(fifo, 1)
    os.close(signal_fd)


def report(fd: int, step: str, number: int, path: str, text: str) -> None:
    """Write what failed to the file *fd*, in the fields of an ERROR message."""
    fields = "\0".join((step, str(number), path, text))
    try:
        os.write(fd, fields.encode("utf-8", "surrogateescape"))
    except OSError:
        os._exit(125)
