"""``--init``: our own process as pid 1 of the container, above the command.

Pid 1 of a namespace inherits its orphans and is sent its signals, and few
programs are written for that. This one waits for every child, passes each
signal on to the command, and ends with the command's status, whereupon the
kernel ends whatever else is left in the namespace.

Nothing is imported or opened here once the command runs: the files of the
host's Python are out of reach behind ``pivot_root``.

Source: pid_namespaces(7), signalfd(2), and the behaviour of tini, Docker's ``--init``.
"""

from __future__ import annotations

import ctypes
import os

from firkin.linux import clone, libc, pty, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_NAME = b"firkin-init"
_PR_SET_NAME = 15
_NR_CLOSE_RANGE = 436  # one number on all architectures

# The kernel's notes to us, not messages for the command.
_KEPT = frozenset((signals.SIGCHLD, signals.SIGTTIN, signals.SIGTTOU))

_prctl = libc.function("prctl", ctypes.c_int, ctypes.c_char_p)


def arguments_area() -> tuple[int, int]:
    """Return where this process's command line lies in memory: address and bytes.

    Call it in the parent, for :func:`run`, while ``/proc`` is the host's: anyone
    in the container may read ``/proc/1/cmdline``, and a forked interpreter still
    has the command line of firkin there, with paths of the host.
    """
    with open("/proc/self/stat", "rb") as file:
        # The name, in parentheses, may hold anything; arg_start is field 48.
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    return start, end - start


def run(
    execute: Callable[[], object],
    on_started: Callable[[int], None] | None = None,
    arguments: tuple[int, int] = (0, 0),
) -> NoReturn:
    """Start the command and be its init until it ends. Ends this process with its status.

    The command leads a session of its own, with the controlling terminal if there
    is one, just as it would as pid 1: Ctrl-C is for it alone, and Ctrl-Z, which
    nobody could undo, does nothing to it (its group is orphaned, setpgid(2)).

    Args:
        execute: called in the new process, with all signals blocked: resets
            dispositions and mask and executes the command. What it raises comes
            out of :func:`run` in that process, which then must report and exit.
        on_started: called with the command's pid before the descriptors of this
            process are closed. That the command runs, is not known yet.
        arguments: what :func:`arguments_area` returned.

    Raises:
        OSError: in either process: the command could not be started.
    """
    signals.block(signals.ALL)
    # A caller that ignores SIGCHLD would have the kernel reap the command unseen.
    signals.reset_dispositions()
    signal_fd = signals.signalfd(signals.ALL)
    terminal = _release_terminal()
    command = clone.fork()
    if command == 0:
        os.close(signal_fd)
        libc.via(os.setsid)
        if terminal:
            pty.set_controlling(0)
        execute()
        os._exit(125)
    if on_started is not None:
        on_started(command)
    try:
        # Nobody hears us when the channel is closed.
        libc.listen(None)
        _close_others(signal_fd)
        _set_names(arguments)
        status = _tend(command)
    except BaseException:
        # Without its init a container cannot go on: it ends, with all in it.
        os._exit(125)
    os._exit(status)


def _release_terminal() -> bool:
    """Give up the controlling terminal, for the command to take. Return whether there was one.

    A terminal that was merely passed in belongs to a session outside: left alone.
    """
    if os.getsid(0) != os.getpid():
        return False
    try:
        pty.release_controlling(0)
    except OSError:
        return False
    # The kernel tells our own group of it, which is not to be passed on.
    flags = signals.SFD_CLOEXEC | signals.SFD_NONBLOCK
    fd = signals.signalfd((signals.SIGHUP, signals.SIGCONT), flags)
    signals.read_signalfd(fd)
    os.close(fd)
    return True


def _close_others(signal_fd: int) -> None:
    """Close all but *signal_fd*, which becomes descriptor 0.

    With stdio open here, whoever reads the command's output would not see its
    end before ours, and the channel to the parent says by its end that the
    command was executed.
    """
    os.dup2(signal_fd, 0, inheritable=False)
    try:
        libc.syscall("close_range", _NR_CLOSE_RANGE, 1, 0xFFFFFFFF, 0)
    except OSError:  # a seccomp profile older than the call
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))


def _set_names(arguments: tuple[int, int]) -> None:
    """Show ``firkin-init`` in ps(1), as the process's name and its command line."""
    libc.call("prctl", _prctl, _PR_SET_NAME, _NAME)
    start, length = arguments
    if length > len(_NAME) + 1:
        ctypes.memset(start, 0, length)
        ctypes.memmove(start, _NAME, len(_NAME))
        # A last byte that is not NUL has the kernel show the line only up to the first
        # NUL (setproctitle, fs/proc/base.c), and not how long it was.
        ctypes.memset(start + length - 1, ord(" "), 1)


def _tend(command: int) -> int:
    """Reap and pass on signals until *command* has ended; return its exit status."""
    while True:
        for number, _, _, _, _ in signals.read_signalfd(0):
            if number not in _KEPT:
                # It may be a zombie, but until we wait for it the number is its own.
                try:
                    os.kill(command, number)
                except PermissionError:  # a set-user-ID command, and we have no CAP_KILL
                    continue
        # One SIGCHLD can stand for any number of children.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == command:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
