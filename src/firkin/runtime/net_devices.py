"""Moving network devices of the host into a container: ``linux.netDevices``.

A device keeps its permanent global addresses, as the specification says, and is
switched on in the container. When the start fails, it goes back as it was.

Source: runtime-spec config-linux.md, "Network Devices"; network_namespaces(7).
"""

from __future__ import annotations

import os

from firkin.errors import ConfigError, SetupError
from firkin.linux import libc, ns
from firkin.linux.clone import CLONE_NEWNET
from firkin.linux.rtnetlink import Address, Connection, Link
from firkin.spec.kinds import entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FIELD = "linux.netDevices"


def compile_devices(wanted: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return (name on the host, name in the container) of each device.

    Raises:
        ConfigError: two devices with one name.
    """
    devices = tuple((name, (what or {}).get("name") or name) for name, what in wanted.items())
    seen: set[str] = set()
    for name, inside in devices:
        if inside in seen and "%d" not in inside:
            raise ConfigError(entry(_FIELD, name), f"there are two devices with name '{inside}'")
        seen.add(inside)
    return devices


class _Moved:
    """A device that has left: what it takes to bring it back."""

    __slots__ = ("addresses", "index", "link")

    def __init__(self, link: Link, addresses: list[Address], index: int) -> None:
        self.link = link
        self.addresses = addresses
        self.index = index  # in the container


class Devices:
    """The devices of one container, on their way.

    Args:
        namespace: ``/proc/PID/ns/net`` of the container's first process.

    Raises:
        SetupError: the namespace can't be opened.
        ConfigError: it is the host's.
    """

    def __init__(self, namespace: str) -> None:
        self._moved: list[_Moved] = []
        try:
            self._there = ns.open_namespace(namespace, CLONE_NEWNET)
            self._here = ns.open_namespace("/proc/self/ns/net", CLONE_NEWNET)
        except OSError as error:
            raise SetupError(
                "cannot open the container's network namespace",
                error.strerror or "",
                step="net_devices",
                errno=error.errno or 0,
            ) from error
        if os.path.sameopenfile(self._there, self._here):
            self.close()
            raise ConfigError(
                _FIELD,
                "the container shares the network namespace of the host",
                'add {"type": "network"} to linux.namespaces',
            )

    def move(self, devices: tuple[tuple[str, str], ...]) -> None:
        """Move *devices*, all or none.

        Raises:
            ConfigError: the host lacks one, or the container has one of that name.
            SetupError: the kernel refused.
        """
        libc.because("network devices of the host become the container's")
        host = container = None
        at = ""
        try:
            host, container = Connection(), Connection(self._there)
            for name, inside in devices:
                at = name
                self._move(host, container, name, inside)
        except OSError as error:
            self.undo()
            raise SetupError(
                f"cannot move the network device '{at}' into the container",
                error.strerror or "",
                "it takes CAP_NET_ADMIN over both network namespaces",
                step="net_devices",
                errno=error.errno or 0,
            ) from error
        except ConfigError:
            self.undo()
            raise
        finally:
            for connection in (host, container):
                if connection is not None:
                    connection.close()

    def _move(self, host: Connection, container: Connection, name: str, inside: str) -> None:
        link = host.links().get(name)
        if link is None:
            raise ConfigError(entry(_FIELD, name), "the host has no such device")
        before = container.links()
        if inside in before:
            raise ConfigError(
                entry(_FIELD, name), f"the container has a device with name '{inside}' already"
            )
        addresses = host.addresses(link.index)
        try:
            host.move(link.index, self._there, inside)
        except OSError:
            # The kernel moves first and renames then: it may be there under its old name.
            stranded = container.links().get(name) if name not in before else None
            if stranded is not None:
                self._moved.append(_Moved(link, addresses, stranded.index))
            raise
        after = container.links()
        new = [found for found in after if found not in before]
        index = after[inside if inside in after else new[0]].index
        self._moved.append(_Moved(link, addresses, index))
        for address in addresses:
            container.add_address(index, address)
        container.set_up(index)

    def undo(self) -> None:
        """Bring back what was moved, with its name, addresses and state."""
        libc.because("the start failed: network devices go back to the host")
        while self._moved:
            moved = self._moved.pop()
            container, host = Connection(self._there), Connection()
            try:
                container.move(moved.index, self._here, moved.link.name)
                index = host.links()[moved.link.name].index
                for address in moved.addresses:
                    host.add_address(index, address)
                if moved.link.up:
                    host.set_up(index)
            except (OSError, KeyError):
                # What made the start fail is the error to tell.
                continue
            finally:
                container.close()
                host.close()

    def close(self) -> None:
        """Let go of the namespaces: what has been moved stays."""
        for fd in (self._there, self._here):
            os.close(fd)
