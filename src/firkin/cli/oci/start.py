"""``firkin-runtime start``."""

from __future__ import annotations

from firkin.cli.oci.parse import verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firkin.cli.oci.main import Context


def main(context: Context, argv: Sequence[str]) -> int:
    """Let the command of a created container run; return 0."""
    found = verb("start", "ID", "Start a created container.", {}, {}, argv, least=1, most=1)
    if found is None:
        return 0
    from firkin.runtime.lifecycle.folder import Container
    from firkin.runtime.lifecycle.start import start

    start(Container(context.root, found[1][0]))
    return 0
