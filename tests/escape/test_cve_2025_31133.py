"""CVE-2025-31133: masking paths with a ``/dev/null`` that the image, or a volume, provides.

With ``/dev/null`` a link to ``/proc/sys/kernel/core_pattern``, runc bound that
over the masked path, writable. CVE-2025-52565 is the same with ``/dev/console``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.command import Firkin
from support.containers import refused

CORE_PATTERN = "/proc/sys/kernel/core_pattern"


@pytest.mark.parametrize("name", ["null", "console"])
@pytest.mark.parametrize("how", ["image", "volume"])
def test_a_device_that_is_a_link(
    firkin: Firkin, own_root: Path, tmp_path: Path, how: str, name: str
) -> None:
    folder = own_root / "dev" if how == "image" else tmp_path / "volume"
    folder.mkdir(exist_ok=True)
    (folder / name).symlink_to(CORE_PATTERN)
    before = Path(CORE_PATTERN).read_text()
    options = [] if how == "image" else ["-v", f"{folder}:/dev"]
    # What is masked has no contents, and least of all those of the link's target.
    script = f"head -c 9 /proc/interrupts | wc -c; (: >>{CORE_PATTERN}) 2>&1; true"
    done = firkin("run", *options, own_root, "sh", "-c", script)
    if done.returncode == 0:
        assert done.stdout.startswith("0\n")
        assert f"create {CORE_PATTERN}: Read-only" in done.stdout, done.stdout
    else:
        refused(done, "/dev")
    assert Path(CORE_PATTERN).read_text() == before
    assert os.listdir(own_root / "dev") in ([], [name])
