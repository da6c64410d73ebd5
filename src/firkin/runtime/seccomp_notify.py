"""Handing the listener of a seccomp filter to the agent of ``linux.seccomp.listenerPath``.

Source: runtime-spec config-linux.md, "Seccomp" and "The Container Process State".
"""

from __future__ import annotations

# _socket rather than socket: the latter imports enum and selectors (6 ms).
import _socket
import sys

from firkin.errors import ConfigError, SetupError
from firkin.init import listener
from firkin.spec import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PASSING = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")
_NOTIFY = "SCMP_ACT_NOTIFY"
_NOSIGNAL = 0x4000  # MSG_NOSIGNAL: an agent that is gone is an error, not a signal


def way(profile: dict[str, Any]) -> int:
    """Return how the child can hand its listener over under *profile*: a Plan's ``listener``.

    Raises:
        ConfigError: it lets neither of the two calls through.
    """
    # Answered for by the agent, which has the listener by then, it may be, too.
    if not _actions(profile, "recvmsg") <= {*_PASSING, _NOTIFY}:
        raise ConfigError("linux.seccomp", "with a listener it has to let recvmsg through")
    if _actions(profile, "sendmsg") <= set(_PASSING):
        return listener.BY_MESSAGE
    if _actions(profile, "write") <= set(_PASSING):
        return listener.BY_NUMBER
    raise ConfigError(
        "linux.seccomp",
        "nobody could hand its listener over: it lets neither sendmsg nor write through",
    )


def _actions(profile: dict[str, Any], name: str) -> set[str]:
    """Return the actions that a call of *name* can meet, whatever its arguments."""
    rules = [rule for rule in profile.get("syscalls") or () if name in rule["names"]]
    actions = {rule["action"] for rule in rules}
    if all(rule.get("args") for rule in rules):
        actions.add(profile["defaultAction"])
    return actions


def send(profile: dict[str, Any], state: dict[str, Any], pid: int, fd: int) -> None:
    """Send the listener *fd* to the agent of *profile*, with the container process state.

    Args:
        profile: ``linux.seccomp``.
        state: the state of the container, as ``state`` prints it.
        pid: of the process that has the filter.
        fd: the listener; it stays open here.

    Raises:
        SetupError: nobody listens there.
    """
    path = profile["listenerPath"]
    process = {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": pid}
    if profile.get("listenerMetadata"):
        process["metadata"] = profile["listenerMetadata"]
    process["state"] = state
    data = jsontext.dump(process).encode()
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))]
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(path)
        # The descriptor goes with the first byte; the rest may take several calls.
        sent = connection.sendmsg([data], rights, _NOSIGNAL)
        if sent < len(data):
            connection.sendall(data[sent:], _NOSIGNAL)
    except OSError as error:
        raise SetupError(
            f"cannot send the seccomp listener to '{path}'",
            error.strerror or str(error),
            "linux.seccomp.listenerPath has to be a stream socket that an agent listens on",
            step="send_listener",
            errno=error.errno or 0,
            path=path,
        ) from error
    finally:
        connection.close()
