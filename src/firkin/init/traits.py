"""What the child sets of itself for rare fields; loaded by those plans only.

Source: set_mempolicy(2), proc_pid_attr(5).
"""

from __future__ import annotations

import errno
import os

from firkin.init.plan import Plan
from firkin.linux import libc, sched


def set_memory_policy(plan: Plan) -> None:
    """Choose the memory nodes of the command; of ours is nothing left by then."""
    libc.because("linux.memoryPolicy")
    mode, nodes = plan.memory_policy
    sched.set_memory_policy(mode, nodes)


def set_labels(plan: Plan, proc: int) -> None:
    """Have ``execve`` change to the AppArmor profile and the SELinux label of the command.

    Args:
        plan: the command's.
        proc: the host's ``/proc``: what the container has there may be anything.

    Raises:
        OSError: ENOENT or EINVAL where no such profile or label is loaded.
    """
    libc.because("process.apparmorProfile, process.selinuxLabel")
    for files, text in plan.labels:
        _write(proc, files, text)
    os.close(proc)


def _write(proc: int, files: tuple[str, ...], text: str) -> None:
    for file in files:
        try:
            fd = libc.via(os.open, f"thread-self/{file}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        except FileNotFoundError:
            continue
        try:
            libc.via(os.write, fd, text.encode())
        except OSError as error:
            raise OSError(error.errno, f"'{text}': {error.strerror}", f"/proc/{file}") from None
        finally:
            os.close(fd)
        return
    raise OSError(errno.ENOENT, "this kernel has no such file", f"/proc/{files[0]}")
