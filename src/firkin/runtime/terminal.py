"""The parent's side of ``-t``: between the user's terminal and the container's.

::

    user's stdin ──read──> _input ──write──> master ═ slave: the container's stdin
    user's stdout <─write── _output <─read── master ═ slave: its stdout and stderr

The loop that waits for the container polls :meth:`Terminal.fds` with its own
descriptors and calls :meth:`Terminal.handle`. Nothing here blocks, so a reader
who takes no output (``| less``) delays neither signals nor a time limit; and
each buffer is bounded, so it delays the container instead of filling memory.

The user's terminal is raw meanwhile: Ctrl-C, Ctrl-Z and the rest are bytes for
the container, whose own terminal makes signals of them. :meth:`Terminal.close`
restores it, whatever happened, unless we are killed by SIGKILL: then stty(1)
``sane`` is the mend.

Source: pty(7), ioctl_tty(2), termios(3), and for the rules of -i and -t docker-run(1).
"""

from __future__ import annotations

import os
import select
import stat
import time

from firkin.errors import UsageError
from firkin.linux import pty, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_CHUNK = 65536
_LIMIT = 65536  # bytes in a buffer above which its source is not read
# More than a pseudoterminal holds by itself, so all that an ended process wrote.
_LEFT_BEHIND = 1 << 20
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR
_WRITABLE = select.POLLOUT | select.POLLHUP | select.POLLERR


def require_tty(stdin: int) -> None:
    """Refuse ``-it`` where *stdin* is no terminal, as Docker does.

    Raises:
        UsageError: it is none.
    """
    if not os.isatty(stdin):
        raise UsageError(
            "cannot use -i and -t together",
            "the input device is not a TTY",
            "leave out -t to feed a command from a pipe or a file",
        )


class Terminal:
    """Copies between the master of a container's terminal and the user's stdin and stdout.

    A context manager: :meth:`start` on entry, :meth:`close` on exit.

    Args:
        master: the container's terminal; ours to close from now on.
        stdin: the user's input, read only if *interactive*; stays open.
        stdout: where the container's output goes; stays open.
        interactive: ``-i``: pass on input, in raw mode if it comes from a terminal.

    Attributes:
        output_error: why output could no longer be delivered and is thrown away, or None.
    """

    __slots__ = (
        "_ended",
        "_input",
        "_interactive",
        "_last",
        "_master",
        "_opened",
        "_output",
        "_saved",
        "_shared",
        "_sink",
        "_slave",
        "_source",
        "_stdin",
        "_stdout",
        "output_error",
    )

    def __init__(self, master: int, stdin: int, stdout: int, interactive: bool) -> None:
        self._master = master
        self._stdin = stdin
        self._stdout = stdout
        self._interactive = interactive
        self._slave = -1
        self._source = -1  # our own descriptor of stdin; -1 when there is no more to read
        self._sink = -1  # our own descriptor of stdout; -1 when nobody reads it any more
        self._opened: list[int] = []
        self._shared: list[int] = []  # of these O_NONBLOCK is to be taken back
        self._saved: bytes | None = None
        self._input = bytearray()
        self._output = bytearray()
        self._last = b"\n"
        self._ended = False
        self.output_error: OSError | None = None

    def __enter__(self) -> Terminal:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Set the container's window size and the user's raw mode; call it before the program runs.

        In the background of a shell with job control, stops this process until
        it is brought to the foreground, before anything was changed.

        Raises:
            OSError: a terminal was hung up; everything is restored and closed.
        """
        try:
            os.set_blocking(self._master, False)
            # While a slave is open the master never reports a hang-up: a program may
            # close its terminal and open it again, and poll does not spin meanwhile.
            self._slave = pty.open_slave(self._master)
            self._sink = self._own(self._stdout, os.O_WRONLY)
            if self._interactive:
                self._source = self._own(self._stdin, os.O_RDONLY)
                if os.isatty(self._stdin):
                    _wait_for_foreground(self._stdin)
                    self._saved = pty.get_attributes(self._stdin)
            self.resume()
        except BaseException:
            self.close()
            raise

    def _own(self, fd: int, flags: int) -> int:
        own, shared = _nonblocking(fd, flags)
        self._opened.append(own)
        if shared:
            self._shared.append(own)
        return own

    def resume(self) -> None:
        """Set raw mode and size again: after SIGCONT, as shells change modes while we are stopped.

        Raises:
            OSError: the user's terminal was hung up.
        """
        if self._saved is not None:
            _set_attributes(self._stdin, pty.make_raw(self._saved))
        self.resize()

    def resize(self) -> None:
        """Give the container's terminal the size of the user's: at the start and on SIGWINCH."""
        for fd in (self._stdout, self._stdin):
            try:
                rows, columns = pty.get_winsize(fd)
            except OSError:
                continue  # not a terminal
            if rows and columns:
                pty.set_winsize(self._master, rows, columns)
                return

    def fds(self) -> list[tuple[int, int]]:
        """Return what to poll for now: descriptors and their events."""
        wanted = []
        master = select.POLLIN if len(self._output) < _LIMIT else 0
        if self._input:
            master |= select.POLLOUT
        if master and not self._ended:
            wanted.append((self._master, master))
        if self._source >= 0 and not self._ended and len(self._input) < _LIMIT:
            wanted.append((self._source, select.POLLIN))
        if self._sink >= 0 and self._output:
            wanted.append((self._sink, select.POLLOUT))
        return wanted

    def handle(self, fd: int, events: int) -> bool:
        """Do what poll found possible.

        Args:
            fd: a descriptor; whoever polls need not know whose it is.
            events: what poll reported for it.

        Returns:
            Whether *fd* was one of ours.
        """
        if fd == self._master:
            if events & _READABLE:
                self._read_master()
            if events & _WRITABLE:
                self._write_master()
        elif fd == self._source:
            self._read_source()
        elif fd == self._sink:
            self._write_sink()
        else:
            return False
        return True

    def _read_master(self) -> int:
        """Return the number of bytes read; 0 if there were none for now, or ever."""
        try:
            data = os.read(self._master, _CHUNK)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: no slave is open any more
            data = b""
        if not data:
            self._ended = True
            self._input.clear()
        elif self._sink >= 0:
            self._output += data
            self._write_sink()
        return len(data)

    def _write_sink(self) -> None:
        try:
            while self._output:
                del self._output[: os.write(self._sink, self._output)]
        except BlockingIOError:
            pass
        except OSError as error:
            # Nobody reads any more, or the disk is full. The container must not
            # block on that: its output is read on and thrown away.
            self.output_error = error
            self._sink = -1
            self._output.clear()

    def _read_source(self) -> None:
        try:
            data = os.read(self._source, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the user's terminal was hung up
            data = b""
        if data:
            self._input += data
            self._last = data[-1:]
        else:
            self._source = -1
            self._input += self._end_of_input()
        self._write_master()

    def _end_of_input(self) -> bytes:
        """Return the bytes that make the program read end-of-file once."""
        try:
            character, in_lines = pty.end_of_file(pty.get_attributes(self._master))
        except OSError:
            return b""
        if character == b"\0":  # _POSIX_VDISABLE: the program wants no such character
            return b""
        # Within a line the first only hands over that line's beginning.
        within_line = in_lines and self._last not in (b"\n", b"\r", character)
        return character * 2 if within_line else character

    def _write_master(self) -> None:
        if self._ended:
            return
        try:
            while self._input:
                del self._input[: os.write(self._master, self._input)]
        except BlockingIOError:
            pass
        except OSError:
            self._input.clear()

    def drain(self, interrupt: int = -1, seconds: float | None = None) -> bool:
        """Deliver what is left of the output; call it once the container's process has ended.

        All that the process wrote is read without waiting. Then this waits for
        the reader of stdout, as any program in a pipeline does. Call it again to
        go on after an interrupt that turned out to be none.

        Args:
            interrupt: a descriptor that ends the wait when it becomes readable (a
                signalfd), or -1.
            seconds: how long to wait at most; for ever by default.

        Returns:
            Whether everything was delivered, or nobody was there to take it.
        """
        self._close_slave()
        self._source = -1
        # Whoever else still holds the slave could write for ever: the bound.
        left_behind = _LEFT_BEHIND
        while left_behind > 0 and not self._ended:
            count = self._read_master()
            left_behind = left_behind - count if count else 0
        if not self._output:
            return True
        deadline = None if seconds is None else time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._sink, select.POLLOUT)
        if interrupt >= 0:
            poll.register(interrupt, select.POLLIN)
        while self._output:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = poll.poll(left)
            if not ready or any(fd == interrupt for fd, _ in ready):
                return False
            self._write_sink()
        return True

    def close(self) -> None:
        """Restore the user's terminal and close what is ours. Never fails; may be called again."""
        saved, self._saved = self._saved, None
        try:
            if saved is not None:
                _set_attributes(self._stdin, saved)
        except OSError:
            pass  # hung up: there is no terminal left to restore
        for fd in self._shared:
            os.set_blocking(fd, True)
        self._close_slave()
        for fd in self._opened:
            os.close(fd)
        if self._master >= 0:
            os.close(self._master)
        self._shared, self._opened = [], []
        self._master = self._source = self._sink = -1
        self._ended = True

    def _close_slave(self) -> None:
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1


def _nonblocking(fd: int, flags: int) -> tuple[int, bool]:
    """Return a non-blocking descriptor of our own for the file of *fd*.

    O_NONBLOCK belongs to the open file, which we share with the user's shell and
    whatever else was started there. So the file is opened once more, where that
    gives the same file: not a socket, not a ptmx, not another user's terminal
    after su(1). A regular file never blocks, and has an offset to share.

    Returns:
        The descriptor, and whether O_NONBLOCK was set on the shared file after all.
    """
    status = os.fstat(fd)
    terminal = os.isatty(fd) and status.st_rdev != pty.PTMX_DEVICE
    if terminal or stat.S_ISFIFO(status.st_mode):
        flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            return os.open(f"/proc/self/fd/{fd}", flags), False
        except OSError:
            pass
    own = os.dup(fd)
    shared = os.get_blocking(own) and not stat.S_ISREG(status.st_mode)
    if shared:
        os.set_blocking(own, False)
    return own, shared


def _wait_for_foreground(fd: int) -> None:
    """Stop like any program that wants the terminal while in the background, until ``fg``.

    By ourselves, not by the kernel at the first change of modes: what we save
    must not be the modes that the shell has set for its own prompt.
    """
    try:
        background = os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:  # not our controlling terminal, so no job control on it
        return
    if background:
        os.kill(0, signals.SIGTTOU)


def _set_attributes(fd: int, attributes: bytes) -> None:
    # From the background this would stop us, for good at the end of a run.
    mask = signals.block((signals.SIGTTOU,))
    try:
        pty.set_attributes(fd, attributes)
    finally:
        signals.set_mask(mask)
