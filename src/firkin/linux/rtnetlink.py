"""Network devices between namespaces, by rtnetlink: names, addresses, moves.

What every start needs, the loopback device, has the smaller ``netlink.py``.

Source: rtnetlink(7), netlink(7), include/uapi/linux/if_link.h and if_addr.h;
do_setlink in net/core/rtnetlink.c for what a move keeps.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

# _socket rather than socket: the latter imports enum and selectors (6 ms).
from _socket import socket
from time import perf_counter

from firkin.linux import libc, ns
from firkin.linux.clone import CLONE_NEWNET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_AF_NETLINK = 16
_SOCK_RAW_CLOEXEC = 3 | 0o2000000
_NETLINK_ROUTE = 0
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_CREATE = 0x1, 0x4, 0x300, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 16, 18, 20, 22
_NAMES = {
    _RTM_NEWLINK: "RTM_NEWLINK",
    _RTM_GETLINK: "RTM_GETLINK",
    _RTM_NEWADDR: "RTM_NEWADDR",
    _RTM_GETADDR: "RTM_GETADDR",
}
_IFLA_IFNAME, _IFLA_NET_NS_FD = 3, 28
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS, _IFA_RT_PRIORITY = 1, 2, 4, 8, 9
_IFA_F_PERMANENT = 0x80
# What the kernel finds out anew: duplicate address detection's results.
_IFA_F_RESULTS = 0x40 | 0x08 | 0x04 | 0x20 | 0x01
_RT_SCOPE_UNIVERSE = 0
_IFF_UP = 1

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
_RECEIVE = 1 << 16


class Link:
    """One network device of a namespace.

    Attributes:
        index: its number there.
        name: its name there.
        up: whether it is switched on.
    """

    __slots__ = ("index", "name", "up")

    def __init__(self, index: int, name: str, up: bool) -> None:
        self.index = index
        self.name = name
        self.up = up


class Address:
    """A permanent address of a device, as RTM_NEWADDR takes it again."""

    __slots__ = ("attributes", "family", "flags", "prefix", "scope")

    def __init__(self, family: int, prefix: int, flags: int, scope: int, attributes: bytes) -> None:
        self.family = family
        self.prefix = prefix
        self.flags = flags
        self.scope = scope
        self.attributes = attributes


class Connection:
    """A socket to the devices of one network namespace.

    Args:
        namespace: a descriptor of the namespace; the caller's own without. The caller is
            in that namespace for a moment: it has to be single-threaded.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN over the namespace.
    """

    def __init__(self, namespace: int = -1) -> None:
        if namespace < 0:
            self._socket = socket(_AF_NETLINK, _SOCK_RAW_CLOEXEC, _NETLINK_ROUTE)
            return
        own = ns.open_namespace("/proc/self/ns/net", CLONE_NEWNET)
        try:
            ns.setns(namespace, CLONE_NEWNET)
            try:
                self._socket = socket(_AF_NETLINK, _SOCK_RAW_CLOEXEC, _NETLINK_ROUTE)
            finally:
                ns.setns(own, CLONE_NEWNET)
        finally:
            os.close(own)

    def close(self) -> None:
        self._socket.close()

    def links(self) -> dict[str, Link]:
        """Return all devices by name."""
        found = {}
        for body in self._ask(_RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0)):
            _, _, index, flags, _ = _LINK.unpack_from(body)
            for kind, value in _attributes(body[_LINK.size :]):
                if kind == _IFLA_IFNAME:
                    name = os.fsdecode(value.rstrip(b"\0"))
                    found[name] = Link(index, name, bool(flags & _IFF_UP))
        return found

    def addresses(self, index: int) -> list[Address]:
        """Return the permanent addresses of global scope that a device has."""
        found = []
        for body in self._ask(_RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
            family, prefix, flags, scope, owner = _ADDRESS.unpack_from(body)
            kept = b""
            for kind, value in _attributes(body[_ADDRESS.size :]):
                if kind == _IFA_FLAGS:
                    flags = int.from_bytes(value, sys.byteorder)
                elif kind in (_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_RT_PRIORITY):
                    kept += _attribute(kind, value)
            if owner == index and scope == _RT_SCOPE_UNIVERSE and flags & _IFA_F_PERMANENT:
                found.append(Address(family, prefix, flags & ~_IFA_F_RESULTS, scope, kept))
        return found

    def move(self, index: int, namespace: int, name: str) -> None:
        """Move a device to another namespace; it arrives switched off, without addresses.

        Args:
            index: of the device here.
            namespace: a descriptor of the namespace to move to.
            name: what it is called there; ``%d`` in it becomes a number that is free.

        Raises:
            OSError: EINVAL for a device that is bound to its namespace, EEXIST for a name
                that is taken.
        """
        body = _LINK.pack(0, 0, index, 0, 0)
        body += _attribute(_IFLA_NET_NS_FD, namespace.to_bytes(4, sys.byteorder))
        body += _attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0")
        self._request(_RTM_NEWLINK, body, (index, f"IFLA_NET_NS_FD={namespace}", name))

    def add_address(self, index: int, address: Address) -> None:
        """Give a device an address that :meth:`addresses` returned."""
        body = _ADDRESS.pack(
            address.family, address.prefix, address.flags & 0xFF, address.scope, index
        )
        body += address.attributes
        body += _attribute(_IFA_FLAGS, address.flags.to_bytes(4, sys.byteorder))
        self._request(_RTM_NEWADDR, body, (index,), _NLM_F_CREATE)

    def set_up(self, index: int) -> None:
        """Switch a device on."""
        self._request(_RTM_NEWLINK, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP), (index, "IFF_UP"))

    def _request(self, kind: int, body: bytes, shown: tuple[object, ...], flags: int = 0) -> None:
        started = perf_counter()
        shown = (self._socket.fileno(), _NAMES[kind], *shown)
        header = _HEADER.pack(
            _HEADER.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, 1, 0
        )
        self._socket.send(header + body)
        for answer, _ in _messages(self._socket.recv(_RECEIVE)):
            error = _error(answer)
            libc.tell("sendmsg", shown, error or 0, started)
            if error is not None:
                raise error

    def _ask(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Send a request for a list, and yield the bodies of the answers."""
        started = perf_counter()
        header = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        self._socket.send(header + body)
        libc.tell("sendmsg", (self._socket.fileno(), _NAMES[kind], "NLM_F_DUMP"), 0, started)
        while True:
            for message, number in _messages(self._socket.recv(_RECEIVE)):
                if number == _NLMSG_DONE:
                    return
                if number == _NLMSG_ERROR:
                    raise _error(message) or OSError(errno.EPROTO, "an empty netlink answer")
                yield message[_HEADER.size :]


def _messages(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield each message of a datagram, header included, and its type."""
    while len(data) >= _HEADER.size:
        length, kind = struct.unpack_from("=IH", data)
        yield data[:length], kind
        data = data[_padded(max(length, _HEADER.size)) :]


def _error(message: bytes) -> OSError | None:
    number = -int(struct.unpack_from("=i", message, _HEADER.size)[0])
    return OSError(number, os.strerror(number)) if number else None


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]  # without the flags of nested and byte order
        data = data[_padded(length) :]


def _attribute(kind: int, value: bytes) -> bytes:
    packed = struct.pack("=HH", 4 + len(value), kind) + value
    return packed + b"\0" * (_padded(len(packed)) - len(packed))


def _padded(length: int) -> int:
    return length + 3 & ~3
