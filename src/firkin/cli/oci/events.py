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
# In seconds: Go counts nanoseconds in 63 bits.
_LONGEST = 1e9
# Those first that begin with another.
_UNITS = (("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("s", 1.0), ("m", 60.0), ("h", 3600.0))


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
    interval = _seconds(options.get("--interval", "5s"))
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
    """Return the seconds of a duration as Go writes them: ``1h5m2.5s``, ``300ms``."""
    total, rest = 0.0, text
    while rest:
        digits = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(digits) :]
        unit = next((unit for unit, _ in _UNITS if rest.startswith(unit)), "")
        if not unit or digits.count(".") > 1 or not digits.strip("."):
            break
        total += float(digits) * dict(_UNITS)[unit]
        rest = rest[len(unit) :]
    if rest or not 0 < total < _LONGEST:
        raise UsageError(f"cannot set --interval to '{text}'", "expected a duration such as 5s")
    return total
