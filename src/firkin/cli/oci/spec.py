"""``firkin-runtime spec``."""

from __future__ import annotations

import os

from firkin.cli.oci.parse import FLAG, VALUE, Word, verb
from firkin.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firkin.cli.oci.main import Context

_OPTIONS = {
    "--bundle": Word(VALUE, "DIR", "the bundle's folder (default: the current one)"),
    "--rootless": Word(FLAG, "", "for an ordinary user, with a user namespace"),
}


def main(_context: Context, argv: Sequence[str]) -> int:
    """Write a new ``config.json``; return 0."""
    found = verb(
        "spec",
        "[OPTIONS]",
        "Write a new configuration, config.json, for the folder rootfs beside it.",
        _OPTIONS,
        {"-b": "--bundle"},
        argv,
        least=0,
        most=0,
    )
    if found is None:
        return 0
    options, _ = found
    from firkin.spec.jsontext import dump
    from firkin.spec.template import template

    path = os.path.join(options.get("--bundle") or ".", "config.json")
    rootless = bool(options.get("--rootless"))
    config = template(rootless=rootless, uid=os.geteuid(), gid=os.getegid())
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise UsageError(f"cannot write '{path}'", "file exists", "remove it first") from None
    except OSError as error:
        raise UsageError(f"cannot write '{path}'", error.strerror or "") from None
    with os.fdopen(fd, "w") as file:
        file.write(dump(config, indent=4) + "\n")
    return 0
