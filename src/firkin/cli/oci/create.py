"""``firkin-runtime create``, and what it has in common with ``run``."""

from __future__ import annotations

from firkin.cli.oci.parse import FLAG, NUMBER, VALUE, Word, verb
from firkin.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firkin.cli.oci.main import Context
    from firkin.runtime.lifecycle.create import Options

OPTIONS = {
    "--bundle": Word(VALUE, "DIR", "the bundle's folder (default: the current one)"),
    "--config": Word(VALUE, "FILE", "another configuration than the bundle's config.json"),
    "--console-socket": Word(VALUE, "PATH", "a Unix socket that takes the master of the terminal"),
    "--pid-file": Word(VALUE, "FILE", "write the pid of the container's first process to it"),
    "--no-pivot": Word(FLAG, "", "move the root instead of pivoting; for a host on a ramfs"),
    "--no-new-keyring": Word(FLAG, "", "leave the session keyring as it is"),
    "--preserve-fds": Word(NUMBER, "N", "pass N more descriptors from 3 on to the container"),
}
SHORT = {"-b": "--bundle", "-f": "--config"}


def main(context: Context, argv: Sequence[str]) -> int:
    """Create a container; return 0."""
    found = verb(
        "create", "[OPTIONS] ID", "Create a container.", OPTIONS, SHORT, argv, least=1, most=1
    )
    if found is None:
        return 0
    options, arguments = found
    from firkin.runtime.lifecycle import create
    from firkin.runtime.lifecycle.folder import Container

    create.create(Container(context.root, arguments[0]), request(context, options))
    return 0


def request(context: Context, given: dict[str, Any]) -> Options:
    """Return what the options *given* ask for."""
    from firkin.runtime.lifecycle.create import Options

    options = Options()
    options.bundle = given.get("--bundle") or "."
    options.config = given.get("--config") or ""
    options.pid_file = given.get("--pid-file") or ""
    options.console_socket = given.get("--console-socket") or ""
    options.no_pivot = bool(given.get("--no-pivot"))
    options.new_keyring = not given.get("--no-new-keyring")
    options.preserve_fds = given.get("--preserve-fds") or 0
    if options.preserve_fds < 0:
        raise UsageError(
            f"cannot set --preserve-fds to {options.preserve_fds}", "it can't be negative"
        )
    options.systemd_cgroup = context.systemd_cgroup
    options.no_cgroup = context.cgroup_manager == "disabled"
    options.warn = context.log.warn
    return options
