"""The ``firkin`` command: finds the verb and loads nothing else.

Exit status: that of the container's command; 125 where firkin itself failed,
126 where the command can't be executed, 127 where it isn't there.
"""

from __future__ import annotations

import gc
import os
import sys

from firkin import __version__
from firkin.errors import FirkinError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_VERBS = {
    "run": "run a command in a new container",
    "spec": "print the OCI configuration of a container",
}

_USAGE = """\
Usage: firkin COMMAND [OPTIONS]

Containers without a daemon.

Commands:
{verbs}

Run 'firkin COMMAND --help' for the options of a command.
"""


def main() -> NoReturn:
    """Carry out the command line and end this process with its exit status."""
    # A process this short makes no garbage worth collecting; looking for some
    # while modules load costs a millisecond.
    gc.disable()
    status = 125
    try:
        status = _dispatch(sys.argv[1:])
    except FirkinError as error:
        print(f"firkin: {error}", file=sys.stderr)
        status = error.exit_status
    except KeyboardInterrupt:
        # Before the start, which blocks signals: end by it, so that a shell's loop ends, too.
        from firkin.linux import signals

        signals.reset_dispositions()
        os.kill(os.getpid(), signals.SIGINT)
    except BrokenPipeError:
        # Who read our output has closed it; there is nobody left to tell.
        os._exit(125)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # Tearing the interpreter down costs 3 ms and frees what the kernel frees anyway.
        os._exit(status)


def _dispatch(argv: list[str]) -> int:
    verb = argv[0] if argv else "--help"
    if verb == "run":
        from firkin.cli import run

        return run.main(argv[1:])
    if verb == "spec":
        from firkin.cli import spec

        return spec.main(argv[1:])
    if verb in ("--help", "-h", "help"):
        verbs = "\n".join(f"  {name:8}{text}" for name, text in _VERBS.items())
        print(_USAGE.format(verbs=verbs), end="")
        return 0 if argv else 125
    if verb in ("--version", "version"):
        print(f"firkin {__version__}")
        return 0
    from firkin.cli.options import closest
    from firkin.errors import UsageError

    guess = closest(verb, _VERBS)
    mend = f"did you mean {guess}? " if guess else ""
    raise UsageError(
        f"cannot do '{verb}'", "there is no such command", f"{mend}see 'firkin --help'"
    )


if __name__ == "__main__":
    main()
