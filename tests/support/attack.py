"""What the exploits of ``tests/escape`` have in common: system calls from Python."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from support.command import Firkin, execute

# What each exploit starts with. `call` returns the result, or the negative errno.
PRELUDE = """
import ctypes, errno, os, socket, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    function = getattr(libc, name)
    function.restype = ctypes.c_long if name == "syscall" else ctypes.c_int
    result = function(*[a if not isinstance(a, int) else ctypes.c_long(a) for a in arguments])
    return -ctypes.get_errno() if result == -1 else result
def tried(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except OSError as error:
        return errno.errorcode[error.errno]
"""


def inside(
    firkin: Firkin, *options: str | os.PathLike[str], code: str, **more: Any
) -> subprocess.CompletedProcess[Any]:
    """Run Python *code* after :data:`PRELUDE` in a container of the host's programs."""
    return firkin("run", *options, "host", "python3", "-c", PRELUDE + code, **more)


def outside(code: str, *wrapper: str, **more: Any) -> subprocess.CompletedProcess[Any]:
    """Run the same on the host, below a weaker *wrapper*: what shows that the exploit works."""
    return execute([*wrapper, "/usr/bin/python3", "-c", PRELUDE + code], **more)
