"""``run``: create and start in one, and, unless detached, stay until the end.

Source: runc-run(8).
"""

from __future__ import annotations

import os

from firkin.errors import FirkinError
from firkin.runtime.lifecycle import delete, start
from firkin.runtime.lifecycle.create import Creation
from firkin.runtime.lifecycle.stay import stay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.runtime.lifecycle.create import Options
    from firkin.runtime.lifecycle.folder import Container


def run(container: Container, options: Options, *, keep: bool, subreaper: bool) -> int:
    """Run *container*; return its command's exit status, or 0 if it is detached.

    Args:
        container: a new one.
        options: the options of ``create``.
        keep: leave it when it has ended, for ``delete``.
        subreaper: adopt what it leaves behind in a PID namespace that it shares.

    Raises:
        FirkinError: it could not be run; nothing of it is left.
    """
    creation = Creation(container, options)
    if options.detach:
        _, pidfd = creation.start(wait=False)
        os.close(pidfd)
        _after_start(container)
        container.close()
        return 0

    def begin() -> tuple[int, int]:
        process = creation.start(wait=False)
        _after_start(container)
        # Others may want to use it while it runs.
        container.close()
        return process

    status = stay(creation, begin, adopt=subreaper)
    if not keep:
        delete.delete(container, force=True, warn=options.warn)
    return status


def _after_start(container: Container) -> None:
    try:
        start.after_start(container)
    except FirkinError:
        delete.destroy(container)
        raise
