"""``firkin-runtime restore``."""

from __future__ import annotations

from firkin.cli.oci import create
from firkin.cli.oci.checkpoint import COMMON, settle
from firkin.cli.oci.parse import FLAG, VALUE, Word, verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firkin.cli.oci.main import Context

_OPTIONS = {
    **{
        name: create.OPTIONS[name]
        for name in ("--bundle", "--console-socket", "--pid-file", "--no-pivot")
    },
    "--detach": Word(FLAG, "", "do not stay with the container"),
    "--no-subreaper": Word(FLAG, "", "do not adopt the processes that the container leaves"),
    **COMMON,
    "--lsm-profile": Word(VALUE, "TYPE:NAME", "another LSM profile than at the checkpoint"),
    "--lsm-mount-context": Word(VALUE, "CONTEXT", "another SELinux context of mounts"),
}


def main(context: Context, argv: Sequence[str]) -> int:
    """Restore a container; return the exit status of its command, or 0 if detached."""
    found = verb(
        "restore",
        "[OPTIONS] ID",
        "Make a container again from the files of a checkpoint.",
        _OPTIONS,
        {"-b": "--bundle", "-d": "--detach"},
        argv,
        least=1,
        most=1,
    )
    if found is None:
        return 0
    given, arguments = found
    from firkin.runtime.lifecycle import restore
    from firkin.runtime.lifecycle.folder import Container

    options = restore.Options()
    settle(options, context, given)
    options.lsm_profile = given.get("--lsm-profile") or ""
    options.lsm_mount_context = given.get("--lsm-mount-context") or ""
    shared = create.request(context, given)
    shared.detach = bool(given.get("--detach"))
    return restore.restore(
        Container(context.root, arguments[0]),
        shared,
        options,
        subreaper=not given.get("--no-subreaper"),
    )
