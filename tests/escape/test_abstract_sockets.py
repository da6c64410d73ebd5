"""Abstract unix sockets of the host (CVE-2020-15257): they belong to the network namespace.

containerd's shim listened on one, and containers with the host's network could
have it start anything. With a network of its own there is nothing to connect to.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from support.attack import inside
from support.command import Firkin


@pytest.fixture
def name() -> Iterator[str]:
    name = f"firkin-escape-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        yield name


def connect(name: str) -> str:
    return f"""
with socket.socket(socket.AF_UNIX) as s:
    print(tried(s.connect, "\\0{name}"), {name!r} in open("/proc/net/unix").read())
"""


@pytest.mark.parametrize("options", [[], ["--pid", "host"], ["--ipc", "host"]])
def test_it_is_out_of_reach(firkin: Firkin, name: str, options: list[str]) -> None:
    assert inside(firkin, *options, code=connect(name)).stdout == "ECONNREFUSED False\n"


def test_it_is_reached_over_the_hosts_network(firkin: Firkin, name: str) -> None:
    assert inside(firkin, "--net", "host", code=connect(name)).stdout == "None True\n"
