"""``firkin-runtime kill``."""

from __future__ import annotations

from firkin.cli.oci.parse import FLAG, Word, verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firkin.cli.oci.main import Context

_OPTIONS = {"--all": Word(FLAG, "", "to all processes of the container")}


def main(context: Context, argv: Sequence[str]) -> int:
    """Send a signal, by default SIGTERM; return 0."""
    found = verb(
        "kill",
        "[OPTIONS] ID [SIGNAL]",
        "Send a signal (default: TERM) to the first process of a container.",
        _OPTIONS,
        {"-a": "--all"},
        argv,
        least=1,
        most=2,
    )
    if found is None:
        return 0
    options, arguments = found
    from firkin.runtime.lifecycle.folder import Container
    from firkin.runtime.lifecycle.kill import kill, parse_signal

    number = parse_signal(arguments[1] if len(arguments) > 1 else "TERM")
    kill(Container(context.root, arguments[0]), number, everyone=bool(options.get("--all")))
    return 0
