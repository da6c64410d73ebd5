"""``firkin spec``: print the OCI configuration that ``firkin run`` would run."""

from __future__ import annotations

import os
import sys

from firkin.cli import run_options
from firkin.cli.options import HelpRequested
from firkin.engine.compose import Machine, Root, compose
from firkin.engine.resources import look_up_devices
from firkin.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firkin.engine.request import Request


class _RootUser:
    """Root, for a root file system that isn't there yet to look users up in."""

    uid = 0
    gid = 0

    def __init__(self) -> None:
        self.groups: list[int] = []

    home = "/root"


def main(argv: Sequence[str]) -> int:
    """Print the configuration for *argv*, the words after ``firkin spec``; return 0.

    Raises:
        FirkinError: as ``firkin run`` would.
    """
    import json

    try:
        request = run_options.parse(argv, "spec")
    except HelpRequested:
        print(run_options.help_text("spec"), end="")
        return 0
    if request.bundle is not None:
        raise UsageError("cannot combine --bundle with spec", "the bundle has its configuration")
    if request.image is None:
        config = _template(request)
    else:
        from firkin.engine.prepare import describe

        config = describe(request)
    json.dump(config, sys.stdout, indent=4)
    print()
    return 0


def _template(request: Request) -> dict[str, Any]:
    # As ``runc spec``: a bundle to start from, whose root is its folder "rootfs".
    request.command = ["sh"]
    rootless = os.geteuid() != 0
    machine = Machine(
        "firkin",
        rootless=rootless,
        devices=look_up_devices(request),
        uid_mappings=_only(os.geteuid()) if rootless else None,
        gid_mappings=_only(os.getegid()) if rootless else None,
    )
    return compose(request, Root("rootfs"), machine, _RootUser())


def _only(host_id: int) -> list[dict[str, int]]:
    return [{"containerID": 0, "hostID": host_id, "size": 1}]
