"""Run the hooks of a configuration: by the parent on the host's side, by the child on its own.

A hook is a program that gets the container's state on its standard input. What
it prints is only shown when it fails.

Source: runtime-spec config.md, "POSIX-platform Hooks".
"""

from __future__ import annotations

import errno
import os
import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# How much of a failing hook's output an error quotes, in bytes.
_QUOTED = 1024
# poll(2) counts milliseconds in an int; who has more time is asked again, in seconds.
_LONGEST = 1_000_000.0
_SIGKILL, _SIGPIPE, _SIGXFSZ = 9, 13, 25


class Hook:
    """One hook, ready to be run.

    Attributes:
        path: the program.
        args: its arguments; the first is its name.
        env: ``NAME=value``; nothing else is in its environment.
        timeout: in seconds, or 0 for none.
    """

    __slots__ = ("args", "env", "path", "timeout")

    def __init__(
        self, path: str, args: Sequence[str] = (), env: Sequence[str] = (), timeout: int = 0
    ) -> None:
        self.path = path
        self.args = tuple(args) or (path,)
        self.env = dict(entry.partition("=")[::2] for entry in env)
        self.timeout = timeout


def run(hooks: Sequence[Hook], kind: str, state: str) -> None:
    """Run *hooks* one after the other; the first that fails ends it.

    Args:
        hooks: in their order.
        kind: what they are called in the configuration, for errors.
        state: JSON for their standard input.

    Raises:
        OSError: with the hook's path: it could not be run, failed or took too long.
    """
    for number, hook in enumerate(hooks):
        try:
            _run(hook, state.encode())
        except OSError as error:
            why = f"{kind} hook {number}: {error.strerror or error}"
            raise OSError(error.errno or errno.EIO, why, hook.path) from None


def _run(hook: Hook, state: bytes) -> None:
    # A file in memory: whether the hook reads it or not, nobody waits and no pipe breaks.
    stdin = os.memfd_create("state", os.MFD_CLOEXEC)
    os.write(stdin, state)
    os.lseek(stdin, 0, os.SEEK_SET)
    output, printed = os.pipe2(os.O_CLOEXEC)
    try:
        actions = [
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, printed, 1),
            (os.POSIX_SPAWN_DUP2, printed, 2),
        ]
        pid = os.posix_spawn(
            hook.path,
            hook.args,
            hook.env,
            file_actions=actions,
            setpgroup=0,  # what it starts is killed with it
            setsigmask=(),
            setsigdef=(_SIGPIPE, _SIGXFSZ),  # Python ignores them
        )
    except OSError:
        os.close(output)
        raise
    finally:
        os.close(stdin)
        os.close(printed)
    pidfd = os.pidfd_open(pid)
    try:
        text = _listen(hook, pid, pidfd, output)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
        os.close(output)
    code = os.waitstatus_to_exitcode(status)
    if code:
        how = f"exit status {code}" if code > 0 else f"signal {-code}"
        raise OSError(errno.EIO, f"{how}{', it said: ' if text else ''}{text}")


def _listen(hook: Hook, pid: int, pidfd: int, output: int) -> str:
    """Read what the hook prints until it ends; return the end of that."""
    os.set_blocking(output, False)
    deadline = monotonic() + hook.timeout if hook.timeout else None
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(output, select.POLLIN)
    text = b""
    while True:
        left = _LONGEST if deadline is None else max(0.0, deadline - monotonic())
        ready = dict(poller.poll(min(left, _LONGEST) * 1000))
        if not ready and left < _LONGEST:
            os.killpg(pid, _SIGKILL)
            os.waitpid(pid, 0)
            raise OSError(errno.ETIMEDOUT, f"it took longer than {hook.timeout} s")
        if output in ready:
            part = _read(output)
            text = (text + part)[-_QUOTED:]
            if not part:
                poller.unregister(output)
        if pidfd in ready:
            # A daemon that it left behind may hold the pipe: don't wait for that.
            text = (text + _read(output))[-_QUOTED:]
            return text.decode(errors="replace").strip()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""
