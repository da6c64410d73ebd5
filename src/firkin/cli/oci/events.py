"""``firkin-runtime events``."""

from __future__ import annotations

import sys

from firkin.cli.oci.parse import FLAG, VALUE, Word, verb
from firkin.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firkin.cli.oci.main import Context

_OPTIONS = {
    "--interval": Word(VALUE, "TIME", "between two statistics, as 500ms, 5s (default) or 1m"),
    "--stats": Word(FLAG, "", "print the statistics once, and end"),
}
_UNITS = (("ms", 0.001), ("us", 0.000001), ("s", 1.0), ("m", 60.0), ("h", 3600.0))


def main(context: Context, argv: Sequence[str]) -> int:
    """Print a container's statistics and out-of-memory events, a JSON object a line; return 0."""
    found = verb(
        "events",
        "[OPTIONS] ID",
        "Show a container's statistics and out-of-memory events until it ends.",
        _OPTIONS,
        {},
        argv,
        least=1,
        most=1,
    )
    if found is None:
        return 0
    options, arguments = found
    interval = _seconds(options.get("--interval") or "5s")
    from firkin.runtime.lifecycle import events
    from firkin.runtime.lifecycle.folder import Container

    container = Container(context.root, arguments[0])
    if options.get("--stats"):
        _show(events.statistics(container.find()))
        return 0
    for event in events.follow(container.find(), interval):
        _show(event)
    return 0


def _show(event: dict[str, Any]) -> None:
    from firkin.spec.jsontext import dump

    sys.stdout.write(dump(event) + "\n")
    sys.stdout.flush()


def _seconds(text: str) -> float:
    for unit, factor in _UNITS:
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit() and number.isascii():
            value = float(number) * factor
            if value > 0:
                return value
    raise UsageError(f"cannot set --interval to '{text}'", "expected a duration such as 5s")
