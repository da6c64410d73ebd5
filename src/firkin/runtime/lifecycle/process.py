"""What the processes of ``create`` and ``exec`` have in common: rights, filter, terminal, pid."""

from __future__ import annotations

import os

from firkin.errors import SetupError
from firkin.linux import caps
from firkin.runtime import seccomp_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from firkin.init.plan import Plan


def load_seccomp(profile: dict[str, Any] | None) -> tuple[bytes | None, int]:
    """Return the program and the flags of ``linux.seccomp``, or (None, 0) without one."""
    if not profile:
        return None, 0
    program = seccomp_cache.cached(profile, seccomp_cache.directories())
    if not profile.get("flags") and not profile.get("listenerPath"):
        return program, 0
    from firkin.runtime import seccomp

    return program, seccomp.filter_flags(profile)


def clip_capabilities(plan: Plan, process: dict[str, Any], warn: Callable[[str], None]) -> None:
    """Leave out of *plan* what this process can't give, and say so, as the specification asks.

    A new user namespace gives all capabilities, over what is its own.
    """
    sets = ("bounding", "effective", "permitted", "inheritable", "ambient")
    given = process.get("capabilities") or {}
    # Not all of its members: those that the specification does not know hold anything.
    unknown = {name for kind in sets for name in given.get(kind) or () if name not in caps.NAMES}
    if not plan.new_user and not plan.joined_user:
        _, permitted, _ = caps.get_caps()
        for name in sets:
            wanted = getattr(plan, name)
            unknown.update(caps.names(wanted & ~permitted))
            setattr(plan, name, wanted & permitted)
    if unknown:
        warn(f"ignoring unknown or unavailable capabilities: {', '.join(sorted(unknown))}")


def lacks_home(plan: Plan) -> bool:
    """Whether the environment says nothing of ``HOME``, or only that it is empty."""
    return not any(entry.startswith("HOME=") and entry != "HOME=" for entry in plan.env)


def send_console(path: str, master: int) -> None:
    """Send the terminal's *master* to the Unix socket at *path*, as runc does.

    Source: runc's docs/terminals.md.
    """
    import _socket

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(path)
        import struct

        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", master))]
        connection.sendmsg([b"/dev/ptmx"], rights)
    except OSError as error:
        raise SetupError(
            f"cannot send the terminal to '{path}'", error.strerror or "", errno=error.errno or 0
        ) from error
    finally:
        connection.close()
        os.close(master)


def write_pid_file(path: str, pid: int) -> None:
    """Write *pid* to the file *path*, whole or not at all."""
    folder_, name = os.path.split(os.path.abspath(path))
    temporary = f"{folder_}/.{name}.{os.getpid()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.write(fd, str(pid).encode())
        finally:
            os.close(fd)
        try:
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise SetupError(f"cannot write the pid to '{path}'", error.strerror or "") from error
