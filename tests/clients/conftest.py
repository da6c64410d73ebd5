"""Daemons that several files of this folder drive; each is started once with each runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.clients import RUNTIMES
from support.containerd import Containerd
from support.docker import Docker
from support.requires import need


@pytest.fixture(scope="session", params=RUNTIMES)
def shared_docker(
    request: pytest.FixtureRequest, session_folder: Path, busybox_tar: Path
) -> Iterator[Docker]:
    need("root")
    docker = Docker(session_folder / f"docker-{request.param}", request.param, busybox_tar)
    yield docker
    docker.close()


@pytest.fixture
def docker(shared_docker: Docker) -> Iterator[Docker]:
    """Docker; the test must leave nothing of its containers."""
    before = set(shared_docker.left())
    yield shared_docker
    assert set(shared_docker.left()) <= before


@pytest.fixture(scope="session", params=RUNTIMES)
def shared_containerd(
    request: pytest.FixtureRequest, session_folder: Path, busybox_tar: Path
) -> Iterator[Containerd]:
    need("root")
    folder = session_folder / f"containerd-{request.param}"
    containerd = Containerd(folder, request.param, busybox_tar)
    yield containerd
    containerd.close()


@pytest.fixture
def containerd(shared_containerd: Containerd) -> Iterator[Containerd]:
    """containerd; the test must leave nothing of its containers."""
    before = set(shared_containerd.left())
    yield shared_containerd
    assert set(shared_containerd.left()) <= before
