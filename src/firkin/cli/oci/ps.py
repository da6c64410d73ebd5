"""``firkin-runtime ps``."""

from __future__ import annotations

from firkin.cli.oci.parse import VALUE, Word, verb
from firkin.errors import SetupError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firkin.cli.oci.main import Context

_OPTIONS = {"--format": Word(VALUE, "FORMAT", "table (default) or json")}


def main(context: Context, argv: Sequence[str]) -> int:
    """Print the processes of a container: as ps(1) shows them, or their pids; return 0."""
    found = verb(
        "ps",
        "[OPTIONS] ID [PS-OPTIONS…]",
        "Show the processes of a container.",
        _OPTIONS,
        {"-f": "--format"},
        argv,
        least=1,
        most=-1,
        interspersed=False,
    )
    if found is None:
        return 0
    options, arguments = found
    form = options.get("--format") or "table"
    if form not in ("table", "json"):
        raise UsageError(f"cannot set --format to '{form}'", "expected table or json")
    from firkin.runtime.lifecycle import folder
    from firkin.runtime.lifecycle.freeze import cgroup_of

    container = folder.Container(context.root, arguments[0]).find()
    if container.record.cgroups:
        pids = sorted(cgroup_of(container).pids())
    elif container.status() == folder.STOPPED:
        pids = []
    else:
        pids = folder.processes_of(container)
    if form == "json":
        from firkin.spec.jsontext import dump

        print(dump(pids))
        return 0
    _table(pids, arguments[1:] or ["-ef"])
    return 0


def _table(pids: Sequence[int], arguments: Sequence[str]) -> None:
    """Print what ps(1) says of *pids* alone."""
    import subprocess

    try:
        done = subprocess.run(
            ["ps", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise SetupError("cannot run ps", error.strerror or "", "install it (procps)") from None
    if done.returncode:
        why = done.stderr.strip().splitlines()
        raise UsageError("cannot show the processes", f"ps: {why[0] if why else 'it failed'}")
    lines = done.stdout.splitlines()
    title = lines[0].split()
    if "PID" not in title:
        raise UsageError("cannot show the processes", "ps did not print a column PID")
    column = title.index("PID")
    wanted = [[str(pid)] for pid in pids]
    print(lines[0])
    for line in lines[1:]:
        # The last column, a command, may hold anything; those before it do not hold blanks.
        if line.split()[column : column + 1] in wanted:
            print(line)
