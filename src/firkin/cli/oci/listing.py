"""``firkin-runtime list``."""

from __future__ import annotations

from firkin.cli.oci.parse import FLAG, VALUE, Word, verb
from firkin.cli.oci.state import describe
from firkin.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firkin.cli.oci.main import Context

_OPTIONS = {
    "--format": Word(VALUE, "FORMAT", "table (default) or json"),
    "--quiet": Word(FLAG, "", "only the ids"),
}
_COLUMNS = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")


def main(context: Context, argv: Sequence[str]) -> int:
    """Print all containers of the root; return 0."""
    found = verb(
        "list",
        "[OPTIONS]",
        "List the containers of this root.",
        _OPTIONS,
        {"-f": "--format", "-q": "--quiet"},
        argv,
        least=0,
        most=0,
    )
    if found is None:
        return 0
    options, _ = found
    form = options.get("--format") or "table"
    if form not in ("table", "json"):
        raise UsageError(f"cannot set --format to '{form}'", "expected table or json")
    from firkin.runtime.lifecycle.folder import containers

    known = containers(context.root)
    if options.get("--quiet"):
        for container in known:
            print(container.id)
        return 0
    states = [describe(container) for container in known]
    if form == "json":
        from firkin.spec.jsontext import dump

        for state in states:
            state["owner"] = state["owner"] or "root"
        print(dump(states) if states else "null")
        return 0
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for state in states:
        # The owner of a container of root's has no name in its record.
        owner = state["owner"] or "root"
        columns = (state["id"], state["pid"], state["status"], state["bundle"], state["created"])
        rows.append((*map(_shown, columns), owner))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        cells = (cell.ljust(max(width, 11)) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def _shown(value: object) -> str:
    """Return *value* as text of one line: a bundle's name may hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
