"""``firkin-runtime delete``."""

from __future__ import annotations

from firkin.cli.oci.parse import FLAG, Word, verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firkin.cli.oci.main import Context

_OPTIONS = {"--force": Word(FLAG, "", "kill it if it runs; one that does not exist is no error")}


def main(context: Context, argv: Sequence[str]) -> int:
    """Delete a container; return 0."""
    found = verb(
        "delete",
        "[OPTIONS] ID",
        "Delete a container and all that was made for it.",
        _OPTIONS,
        {"-f": "--force"},
        argv,
        least=1,
        most=1,
    )
    if found is None:
        return 0
    options, arguments = found
    from firkin.runtime.lifecycle.delete import delete
    from firkin.runtime.lifecycle.folder import Container

    container = Container(context.root, arguments[0])
    delete(container, force=bool(options.get("--force")), warn=context.log.warn)
    return 0
