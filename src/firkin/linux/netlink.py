"""rtnetlink, as much as every start needs: bringing the loopback device up.

Source: rtnetlink(7), netlink(7), include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import errno
import os
import struct

# _socket rather than socket: the latter imports enum and selectors (6 ms).
from _socket import socket
from time import perf_counter

from firkin.linux import libc

_AF_NETLINK = 16
_SOCK_RAW_CLOEXEC = 3 | 0o2000000
_NETLINK_ROUTE = 0
_NLM_F_REQUEST = 1
_NLM_F_ACK = 4
_NLMSG_ERROR = 2
_RTM_NEWLINK = 16
_IFF_UP = 1
_LOOPBACK_INDEX = 1


def loopback_up() -> None:
    """Set the loopback device of this network namespace up.

    Raises:
        OSError: EPERM without CAP_NET_ADMIN over the namespace.
    """
    connection = socket(_AF_NETLINK, _SOCK_RAW_CLOEXEC, _NETLINK_ROUTE)
    try:
        # struct ifinfomsg: family, pad, type, index, flags, mask of flags to change
        body = struct.pack("=BxHiII", 0, 0, _LOOPBACK_INDEX, _IFF_UP, _IFF_UP)
        header = struct.pack(
            "=IHHII", 16 + len(body), _RTM_NEWLINK, _NLM_F_REQUEST | _NLM_F_ACK, 1, 0
        )
        started = perf_counter()
        shown = (connection.fileno(), "RTM_NEWLINK", "lo", "IFF_UP")
        try:
            _request(connection, header + body)
        except OSError as error:
            libc.tell("sendmsg", shown, error, started)
            raise
        libc.tell("sendmsg", shown, 0, started)
    finally:
        connection.close()


def _request(connection: socket, message: bytes) -> None:
    connection.send(message)
    answer = connection.recv(4096)
    kind = struct.unpack_from("=IH", answer)[1]
    if kind != _NLMSG_ERROR:
        raise OSError(errno.EPROTO, f"unexpected netlink answer of type {kind}")
    number = -struct.unpack_from("=i", answer, 16)[0]
    if number:
        raise OSError(number, os.strerror(number))
