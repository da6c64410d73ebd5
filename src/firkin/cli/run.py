"""``firkin run``: run a command in a new container."""

from __future__ import annotations

import os
import sys

from firkin.cli import run_options
from firkin.cli.options import HelpRequested
from firkin.engine.run import Run
from firkin.linux import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the container of *argv*, the words after ``firkin run``; return its exit status.

    Raises:
        FirkinError: it could not be started.
    """
    try:
        request = run_options.parse(argv)
    except HelpRequested:
        print(run_options.help_text(), end="")
        return 0
    # What a careless parent may have left us: ignored, SIGCHLD hides exit statuses
    # (wait(2)), and a strict umask would close the container's folders to its users.
    signals.reset_disposition(signals.SIGCHLD)
    os.umask(0o022)
    run = Run(request)
    if request.explain is None:
        status = run.run()
    else:
        from firkin.cli import explain

        with explain.Explainer(request.explain) as explainer:
            run.on_debug = explainer.child
            status = run.run()
            explainer.end(request)
    if run.timed_out:
        print(
            f"firkin: ended the container after {request.timeout:g} s: --timeout", file=sys.stderr
        )
    return status
