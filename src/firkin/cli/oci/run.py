"""``firkin-runtime run``."""

from __future__ import annotations

from firkin.cli.oci import create
from firkin.cli.oci.parse import FLAG, Word, verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firkin.cli.oci.main import Context

_OPTIONS = {
    **create.OPTIONS,
    "--detach": Word(FLAG, "", "do not stay with the container"),
    "--keep": Word(FLAG, "", "do not delete the container when it has ended"),
    "--no-subreaper": Word(FLAG, "", "do not adopt the processes that the container leaves"),
}


def main(context: Context, argv: Sequence[str]) -> int:
    """Create and start a container; return the exit status of its command, or 0 if detached."""
    found = verb(
        "run",
        "[OPTIONS] ID",
        "Create and start a container.",
        _OPTIONS,
        {**create.SHORT, "-d": "--detach"},
        argv,
        least=1,
        most=1,
    )
    if found is None:
        return 0
    given, arguments = found
    from firkin.runtime.lifecycle import run
    from firkin.runtime.lifecycle.folder import Container

    options = create.request(context, given)
    options.detach = bool(given.get("--detach"))
    container = Container(context.root, arguments[0])
    return run.run(
        container,
        options,
        keep=bool(given.get("--keep")),
        subreaper=not given.get("--no-subreaper"),
    )
