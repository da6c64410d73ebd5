"""Find the verb of ``firkin-runtime``, load it, and tell of what goes wrong.

Exit status: 0; 1 where an operation failed, 255 where ``exec`` could not start
its process; of ``run`` and ``exec`` otherwise that of the process.

Source: runc(8).
"""

from __future__ import annotations

import gc
import os
import sys

from firkin.cli.oci.logs import Log
from firkin.cli.oci.parse import FLAG, VALUE, Word, parse
from firkin.errors import FirkinError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# One module a verb, loaded by name: (module, what it does).
VERBS = {
    "checkpoint": "checkpoint a running container",
    "create": "create a container",
    "delete": "delete a container and all that was made for it",
    "events": "show a container's statistics and out-of-memory events",
    "exec": "run a process in a running container",
    "features": "show what this runtime can do, as JSON",
    "kill": "send a signal to a container",
    "list": "list the containers of this root",
    "pause": "suspend all processes of a container",
    "ps": "show the processes of a container",
    "restore": "restore a container from a checkpoint",
    "resume": "let the processes of a paused container go on",
    "run": "create and start a container",
    "spec": "write a new configuration",
    "start": "start a created container",
    "state": "show the state of a container",
    "update": "change a container's limits",
}

# The options before the verb: name, what follows, help.
GLOBALS = {
    "--root": Word(VALUE, "DIR", "where the containers are kept"),
    "--log": Word(VALUE, "FILE", "write errors and warnings to this file, too"),
    "--log-format": Word(VALUE, "FORMAT", "of the log: text (default) or json"),
    "--log-level": Word(VALUE, "LEVEL", "of the log: debug, info, warning, error …"),
    "--debug": Word(FLAG, "", "write more to the log"),
    "--systemd-cgroup": Word(FLAG, "", "cgroupsPath is systemd's slice:prefix:name"),
    "--cgroup-manager": Word(VALUE, "MANAGER", "cgroupfs, systemd or disabled, as crun has it"),
    "--rootless": Word(
        VALUE, "BOOL", "true, false or auto: whether failing cgroups are passed over"
    ),
    "--criu": Word(VALUE, "PATH", "the criu program"),
    "--version": Word(FLAG, "", "print the version"),
    "--help": Word(FLAG, "", "print this help"),
}
_SHORT = {"-v": "--version", "-h": "--help"}


class Context:
    """What the global options say, for the verbs.

    Attributes:
        root: where the containers are kept.
        log: takes errors and warnings.
        systemd_cgroup: whether ``cgroupsPath`` is systemd's.
        cgroup_manager: ``cgroupfs``, ``systemd`` or ``disabled``.
        criu: the criu program.
    """

    __slots__ = ("cgroup_manager", "criu", "log", "root", "systemd_cgroup")

    def __init__(self, options: dict[str, Any], log: Log) -> None:
        self.log = log
        self.root: str = options.get("--root") or ""
        if self.root:
            self.root = os.path.abspath(self.root)
        else:
            from firkin.runtime.lifecycle.folder import default_root

            self.root = default_root()
        self.cgroup_manager: str = options.get("--cgroup-manager") or "cgroupfs"
        if self.cgroup_manager not in ("cgroupfs", "systemd", "disabled"):
            raise UsageError(
                f"cannot use cgroup manager '{self.cgroup_manager}'",
                "expected cgroupfs, systemd or disabled",
            )
        self.systemd_cgroup = bool(options.get("--systemd-cgroup"))
        self.systemd_cgroup |= self.cgroup_manager == "systemd"
        self.criu: str = options.get("--criu") or "criu"
        rootless = options.get("--rootless") or "auto"
        if rootless.lower() not in ("auto", "true", "false", "1", "0", "t", "f"):
            raise UsageError(
                f"cannot set --rootless to '{rootless}'", "expected true, false or auto"
            )


def main() -> NoReturn:
    """Carry out the command line and end this process with its exit status."""
    gc.disable()
    # What a check of the standard descriptors would find missing later: see that 0 to 2 are open.
    _open_standard()
    log = Log()
    status = 1
    try:
        status = _dispatch(sys.argv[1:], log)
    except FirkinError as error:
        log.fail(error)
        status = 255 if getattr(error, "of_exec", False) else 1
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:
        # What can be said better was said where it happened.
        on = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        what = f"cannot use '{on}'" if on else "cannot do this"
        log.fail(FirkinError(what, error.strerror or str(error)))
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # Tearing the interpreter down costs 3 ms and frees what the kernel frees anyway.
        os._exit(status)


def _open_standard() -> None:
    """Keep files that we open from becoming somebody's standard input or output."""
    while True:
        fd = os.open("/dev/null", os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
        # The container's, too, for the same reason.
        os.set_inheritable(fd, True)


def _dispatch(argv: list[str], log: Log) -> int:
    options, words = parse(GLOBALS, _SHORT, argv, "firkin-runtime", interspersed=False)
    if options.get("--version"):
        from firkin.cli.oci import version

        return version.main()
    if options.get("--help") or not words:
        print(help_text(), end="")
        return 0
    log.open(
        options.get("--log") or "",
        options.get("--log-format") or "text",
        options.get("--log-level") or ("debug" if options.get("--debug") else "info"),
    )
    verb = words[0]
    if verb == "help":
        print(help_text(), end="")
        return 0
    if verb not in VERBS:
        raise UsageError(f"cannot do '{verb}'", "no such command", "see 'firkin-runtime --help'")
    # A table of imports would load nothing less and say it twice.
    module = __import__(f"firkin.cli.oci.{_module(verb)}", fromlist=("main",))
    context = Context(options, log)
    log.debug(f"firkin-runtime {' '.join(argv)}")
    result: int = module.main(context, words[1:])
    return result


def _module(verb: str) -> str:
    return {"exec": "execute", "list": "listing"}.get(verb, verb)


def help_text() -> str:
    """Return the help of the command as a whole."""
    verbs = "\n".join(f"  {name:12}{text}" for name, text in VERBS.items())
    width = max(len(f"{name} {word.metavar}") for name, word in GLOBALS.items())
    lines = "\n".join(
        f"  {f'{name} {word.metavar}':{width}}  {word.text}" for name, word in GLOBALS.items()
    )
    return (
        "Usage: firkin-runtime [GLOBAL OPTIONS] COMMAND [OPTIONS] …\n\n"
        "An OCI runtime; podman, Docker and containerd take it in runc's place.\n\n"
        f"Commands:\n{verbs}\n\nGlobal options:\n{lines}\n\n"
        "Run 'firkin-runtime COMMAND --help' for the options of a command.\n"
    )


if __name__ == "__main__":
    main()
