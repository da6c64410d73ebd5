"""``firkin-runtime checkpoint``, and what it has in common with ``restore``."""

from __future__ import annotations

from firkin.cli.oci.parse import FLAG, LIST, NUMBER, VALUE, Word, verb
from firkin.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firkin.cli.oci.main import Context
    from firkin.runtime.criu import Settings

COMMON = {
    "--image-path": Word(VALUE, "DIR", "the folder of the checkpoint (default: checkpoint)"),
    "--work-path": Word(VALUE, "DIR", "the folder of logs (default: that of the checkpoint)"),
    "--tcp-established": Word(FLAG, "", "established TCP connections, too"),
    "--ext-unix-sk": Word(FLAG, "", "Unix sockets whose other end is outside, too"),
    "--shell-job": Word(FLAG, "", "the terminal and the session may be the caller's"),
    "--file-locks": Word(FLAG, "", "file locks, too"),
    "--lazy-pages": Word(FLAG, "", "fetch memory when it is used, by userfaultfd"),
    "--manage-cgroups-mode": Word(VALUE, "MODE", "soft (default), full, strict or ignore"),
    "--empty-ns": Word(LIST, "network", "make the namespace, and nothing in it; always so"),
    "--auto-dedup": Word(FLAG, "", "free pages that are stored twice"),
}
_OPTIONS = {
    **COMMON,
    "--parent-path": Word(VALUE, "DIR", "of an earlier --pre-dump, relative to --image-path"),
    "--leave-running": Word(FLAG, "", "let the container go on"),
    "--pre-dump": Word(FLAG, "", "memory only; the container goes on"),
    "--tcp-skip-in-flight": Word(FLAG, "", "leave TCP connections out that are being made"),
    "--link-remap": Word(FLAG, "", "give files without a name one for the time"),
    "--status-fd": Word(NUMBER, "FD", "gets a NUL when --lazy-pages can serve pages"),
    "--page-server": Word(VALUE, "ADDRESS:PORT", "send pages to this page server"),
}


def main(context: Context, argv: Sequence[str]) -> int:
    """Write a container to files; return 0."""
    found = verb(
        "checkpoint",
        "[OPTIONS] ID",
        "Write a running container to files, from which restore makes it again.",
        _OPTIONS,
        {},
        argv,
        least=1,
        most=1,
    )
    if found is None:
        return 0
    given, arguments = found
    from firkin.runtime.lifecycle import checkpoint
    from firkin.runtime.lifecycle.folder import Container

    options = checkpoint.Options()
    settle(options, context, given)
    options.parent_path = given.get("--parent-path") or ""
    options.leave_running = bool(given.get("--leave-running"))
    options.pre_dump = bool(given.get("--pre-dump"))
    options.tcp_skip_in_flight = bool(given.get("--tcp-skip-in-flight"))
    options.link_remap = bool(given.get("--link-remap"))
    options.status_fd = given.get("--status-fd", -1)
    if given.get("--page-server"):
        options.page_server = _server(given["--page-server"])
    options.warn = context.log.warn
    checkpoint.checkpoint(Container(context.root, arguments[0]), options)
    return 0


def settle(settings: Settings, context: Context, given: dict[str, Any]) -> None:
    """Set what the options of :data:`COMMON` say.

    Raises:
        UsageError: a value that no option takes.
    """
    from firkin.runtime.criu import CGROUP_MODES

    settings.program = context.criu
    settings.image_path = given.get("--image-path") or settings.image_path
    settings.work_path = given.get("--work-path") or ""
    settings.tcp_established = bool(given.get("--tcp-established"))
    settings.ext_unix_sk = bool(given.get("--ext-unix-sk"))
    settings.shell_job = bool(given.get("--shell-job"))
    settings.file_locks = bool(given.get("--file-locks"))
    settings.lazy_pages = bool(given.get("--lazy-pages"))
    settings.auto_dedup = bool(given.get("--auto-dedup"))
    settings.cgroups_mode = given.get("--manage-cgroups-mode") or settings.cgroups_mode
    if settings.cgroups_mode not in CGROUP_MODES:
        raise UsageError(
            f"cannot set --manage-cgroups-mode to '{settings.cgroups_mode}'",
            f"expected {', '.join(CGROUP_MODES)}",
        )
    for kind in given.get("--empty-ns", ()):
        if kind != "network":
            raise UsageError(f"cannot set --empty-ns to '{kind}'", "only network is supported")


def _server(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not address or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 1 << 16:
        raise UsageError(f"cannot set --page-server to '{text}'", "expected ADDRESS:PORT")
    return address, int(port)
