"""The one door to the kernel.

Each call that makes a container goes through :func:`call` (functions of the C
library and raw system calls) or :func:`via` (functions of :mod:`os` and its
like). Both raise :class:`OSError` with the errno and the path, and both tell
:data:`listener` what was done, which is how ``--explain`` works. With nobody
listening the cost is one comparison.
"""

from __future__ import annotations

import ctypes
import os
from time import perf_counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Listener = Callable[[str, tuple[Any, ...], Any, float, str], None]

# CDLL releases the GIL around each call. Only clone must not (see clone.py).
library = ctypes.CDLL(None, use_errno=True)

# What --explain listens with: (name, arguments, result or OSError, seconds, why).
# One per process by nature, as the calls are; None unless someone listens.
listener: Listener | None = None

# Why the calls now being made are made; kept for the listener only.
_why = ""


def because(why: str) -> None:
    """Say why the calls that follow are made, in one line, for whoever listens."""
    global _why
    _why = why


def listen(function: Listener | None) -> None:
    """Tell *function* of every kernel call from now on, or nobody with ``None``."""
    global listener
    listener = function


def tell(name: str, shown: tuple[Any, ...], result: Any, started: float) -> None:
    """Tell the listener, if any, of a call made elsewhere; *started* by ``perf_counter``."""
    if listener is not None:
        listener(name, shown, result, perf_counter() - started, _why)


def function(name: str, *argtypes: Any, restype: Any = ctypes.c_int) -> Any:
    """Return the C library's function *name* with its types set once.

    Raises:
        AttributeError: this C library has no such function.
    """
    # By index, which makes a new object: an attribute is shared by all who ask for it,
    # and prctl and ioctl are called with different types.
    found = library[name]
    found.argtypes = argtypes
    found.restype = restype
    return found


def call(
    name: str,
    cfunction: Any,
    *arguments: Any,
    path: str | bytes | None = None,
    shown: tuple[Any, ...] | None = None,
) -> int:
    """Call *cfunction* and return its result.

    Args:
        name: the kernel's name for the call, for errors and listeners.
        cfunction: what :func:`function` returned.
        arguments: passed as they are.
        path: the file that an error is about.
        shown: the arguments as a person should see them, where the real ones
            are pointers to structures.

    Raises:
        OSError: the call returned -1; with its errno and *path*.
    """
    started = perf_counter() if listener is not None else 0.0
    result: int = cfunction(*arguments)
    error: OSError | None = None
    if result == -1:
        number = ctypes.get_errno()
        # errno, text, then the path: what str() shows and what callers match on.
        if path is None:
            error = OSError(number, os.strerror(number))
        else:
            error = OSError(number, os.strerror(number), os.fsdecode(path))
    if listener is not None:
        seconds = perf_counter() - started
        listener(name, arguments if shown is None else shown, error or result, seconds, _why)
    if error is not None:
        raise error
    return result


def via(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Make a kernel call that the standard library wraps, under the same listener."""
    if listener is None:
        return function(*arguments, **options)
    started = perf_counter()
    shown = arguments + tuple(options.items())
    try:
        result = function(*arguments, **options)
    except OSError as error:
        listener(function.__name__, shown, error, perf_counter() - started, _why)
        raise
    listener(function.__name__, shown, result, perf_counter() - started, _why)
    return result


_syscall = function("syscall", ctypes.c_long, restype=ctypes.c_long)
# Variadic: only the number's type is fixed, so integers wider than an int are
# passed as explicit c_long / c_void_p by the callers.


def syscall(
    name: str,
    number: int,
    *arguments: Any,
    path: str | bytes | None = None,
    shown: tuple[Any, ...] | None = None,
) -> int:
    """Make the system call *number*, for those that the C library does not wrap.

    Integers are passed as C longs, bytes as pointers. Raises as :func:`call`.
    """
    wide = [ctypes.c_long(a) if type(a) is int else a for a in arguments]
    shown = arguments if shown is None else shown
    return call(name, _syscall, number, *wide, path=path, shown=shown)


def write_file(path: str, text: str | bytes) -> None:
    """Write *text* to an existing kernel file (``/proc``, cgroup) in one ``write``.

    Raises:
        OSError: with *path*, whether opening or writing failed.
    """
    data = text.encode() if isinstance(text, str) else text
    via(_write_file, path, data)


def _write_file(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


_write_file.__name__ = "write"
