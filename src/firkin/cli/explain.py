"""``--explain``: every kernel call that makes the container, as it happens, and why.

Written to standard error, so that it never mixes with the container's output.
The parent's calls come straight from ``linux/libc.py``; the child sends its own
over the channel, and they are printed as they arrive.
"""

from __future__ import annotations

import os

from firkin.linux import decode, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firkin.engine.request import Request


class Explainer:
    """Prints the calls of one start, as text or as JSON lines."""

    def __init__(self, form: str) -> None:
        self._json = form == "json"
        self._number = 0
        self._why = ""
        # Our own descriptor: the terminal proxy and the container may change theirs.
        self._out = os.dup(2)

    def __enter__(self) -> Explainer:
        libc.listen(self.parent)
        return self

    def __exit__(self, *_: object) -> None:
        libc.listen(None)
        os.close(self._out)

    def parent(
        self, name: str, shown: tuple[Any, ...], result: Any, seconds: float, why: str
    ) -> None:
        """Print a call of this process; the signature is that of ``libc.listener``."""
        name, arguments = decode.decode(name, shown)
        self._print("parent", name, arguments, decode.describe_result(result), seconds, why)

    def child(self, fields: list[str]) -> None:
        """Print a call of the child, in the fields of a DEBUG message."""
        name, arguments, result, seconds, why = fields
        self._print("child", name, arguments, result, float(seconds), why)

    def _print(
        self, process: str, name: str, arguments: str, result: str, seconds: float, why: str
    ) -> None:
        self._number += 1
        milliseconds = round(seconds * 1000, 3)
        if self._json:
            import json

            line = json.dumps(
                {
                    "number": self._number,
                    "process": process,
                    "call": name,
                    "arguments": arguments,
                    "result": result,
                    "milliseconds": milliseconds,
                    "why": why,
                }
            )
        else:
            # The reason stands once above the calls that it is for.
            if why and why != self._why:
                self._write(f"# {process}: {why}")
            self._why = why
            answer = f" = {result}" if result else ""
            call = f"{name}({arguments})"
            # Results in one column where they fit, as strace has them.
            line = f"{self._number:4} {milliseconds:8.3f} ms  {process:6} {call:<48}{answer}"
        self._write(line)

    def _write(self, line: str) -> None:
        # One write a line, so that lines of two processes do not mix.
        printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
        os.write(self._out, printable.encode("utf-8", "backslashreplace") + b"\n")

    def end(self, request: Request) -> None:
        """Say where all this would look different for others."""
        notes = differences(request)
        if self._json:
            import json

            self._write(json.dumps({"differences": notes}))
            return
        self._write("# Where it would look different:")
        for note in notes:
            self._write(f"#   {note}")


def differences(request: Request) -> list[str]:
    """Say what other users and other machines would see instead."""
    from firkin.runtime import cgroups

    notes = []
    if os.geteuid() == 0:
        notes.append(
            "as an ordinary user: clone gets CLONE_NEWUSER, newuidmap and newgidmap write the "
            "id maps, devices are bound from the host instead of made, and limits need a "
            "delegated cgroup"
        )
    else:
        notes.append(
            "as root: no user namespace unless --userns asks for one, devices are made by "
            "mknod, and limits need nobody's permission"
        )
    version = cgroups.detect().version
    if version == "v2":
        notes.append(
            "on cgroup v1: a folder in each controller's hierarchy, memory.limit_in_bytes and "
            "memory.memsw.limit_in_bytes, cpu.cfs_quota_us, and devices.allow instead of BPF"
        )
    else:
        notes.append(
            "on cgroup v2: one folder for all controllers, memory.max, memory.swap.max, cpu.max, "
            "and a BPF program instead of devices.allow"
        )
    if request.seccomp is None:
        notes.append("the seccomp filter is compiled on first use and then read from the store")
    return notes
