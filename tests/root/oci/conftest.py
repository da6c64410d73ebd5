"""Fixtures: a runtime, ours and runc in turn, and bundles for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.oci import NAMES, PATHS, Bundle, Runtime
from support.requires import need


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    """Each runtime, with a state folder that is the test's own."""
    need(f"program:{PATHS[request.param]}")
    made = Runtime(PATHS[request.param], tmp_path / "state")
    yield made
    made.close()


@pytest.fixture
def make_bundle(busybox_root: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """Make a bundle of BusyBox: ``make_bundle("sleep", "9", folder="second")``."""

    def make(*args: str, folder: str = "bundle", root: Path = busybox_root) -> Bundle:
        return Bundle(tmp_path / folder, root, *args)

    return make


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    """A bundle of BusyBox whose command sleeps. Its root is not to be changed: see own_root."""
    return make_bundle()
