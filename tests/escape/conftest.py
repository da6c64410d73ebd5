"""Fixtures for the exploits against ``firkin-runtime``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.oci import NAMES, PATHS, Bundle, Runtime, mount


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime(PATHS[NAMES[0]], tmp_path / "state")
    yield made
    made.close()


@pytest.fixture
def bundle(own_root: Path, tmp_path: Path) -> Bundle:
    """BusyBox in a root that the container may change, and the host's Python, read-only."""
    made = Bundle(tmp_path / "bundle", own_root)
    made.config["root"]["readonly"] = False
    for folder in ("/usr", "/lib", "/lib64"):
        if Path(folder).exists():
            made.config["mounts"].append(mount(folder, "bind", folder, "rbind", "ro"))
    return made
