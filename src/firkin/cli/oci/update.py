"""``firkin-runtime update``."""

from __future__ import annotations

import sys

from firkin.cli.oci.parse import NUMBER, VALUE, Word, verb
from firkin.errors import Unsupported, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firkin.cli.oci.main import Context

# option: (section and field of linux.resources, how its value is read, help)
_FIELDS = {
    "--blkio-weight": ("blockIO", "weight", "count", "weight of block I/O, 10 to 1000"),
    "--cpu-period": ("cpu", "period", "count", "microseconds that --cpu-quota is for"),
    "--cpu-quota": ("cpu", "quota", "count", "microseconds of CPU time in a period"),
    "--cpu-burst": ("cpu", "burst", "count", "microseconds that may be saved up"),
    "--cpu-share": ("cpu", "shares", "count", "share of the CPUs against others"),
    "--cpu-rt-period": ("cpu", "realtimePeriod", "count", "period of real-time scheduling"),
    "--cpu-rt-runtime": ("cpu", "realtimeRuntime", "count", "runtime of real-time scheduling"),
    "--cpu-idle": ("cpu", "idle", "count", "1: run only when nothing else wants to"),
    "--cpuset-cpus": ("cpu", "cpus", "text", "the CPUs to run on"),
    "--cpuset-mems": ("cpu", "mems", "text", "the memory nodes to use"),
    "--memory": ("memory", "limit", "bytes", "limit of memory, in bytes or with k, m, g"),
    "--memory-reservation": ("memory", "reservation", "bytes", "soft limit of memory"),
    "--memory-swap": ("memory", "swap", "bytes", "limit of memory and swap together; -1: none"),
    "--kernel-memory": ("memory", "kernel", "bytes", "obsolete, ignored by the kernel"),
    "--kernel-memory-tcp": ("memory", "kernelTCP", "bytes", "limit of TCP buffers"),
    "--pids-limit": ("pids", "limit", "count", "how many processes and threads; -1: any number"),
}
_OPTIONS = {
    "--resources": Word(VALUE, "FILE", "linux.resources as JSON, from a file or from - (stdin)"),
    **{
        name: Word(NUMBER if kind == "count" else VALUE, "N" if kind == "count" else "VALUE", text)
        for name, (_, _, kind, text) in _FIELDS.items()
    },
    "--l3-cache-schema": Word(VALUE, "SCHEMA", "refused: this runtime does not change resctrl"),
    "--mem-bw-schema": Word(VALUE, "SCHEMA", "refused, as --l3-cache-schema"),
}
_SUFFIXES = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}


def main(context: Context, argv: Sequence[str]) -> int:
    """Change the limits of a container; return 0."""
    found = verb(
        "update",
        "[OPTIONS] ID",
        "Change the limits of a container; those not named stay.",
        _OPTIONS,
        {"-r": "--resources"},
        argv,
        least=1,
        most=1,
    )
    if found is None:
        return 0
    given, arguments = found
    for option in ("--l3-cache-schema", "--mem-bw-schema"):
        if given.get(option):
            raise Unsupported(
                f"cannot set {option}", "a schema of resctrl is fixed when a container is created"
            )
    from firkin.runtime.lifecycle.folder import Container
    from firkin.runtime.lifecycle.update import update

    resources = _read(given["--resources"]) if given.get("--resources") else _collect(given)
    update(Container(context.root, arguments[0]), resources)
    return 0


def _collect(given: dict[str, Any]) -> dict[str, Any]:
    from firkin.spec import validate

    resources: dict[str, Any] = {}
    for option, (section, field, kind, _) in _FIELDS.items():
        if option in given:
            value = given[option]
            if kind == "bytes":
                value = _bytes(option, value)
            resources.setdefault(section, {})[field] = value
    validate.validate_resources(resources)
    return resources


def _bytes(option: str, text: str) -> int:
    number = text.lower().removesuffix("b")
    digits = number.rstrip("kmgtp")
    suffix = number[len(digits) :]
    plain = digits.removeprefix("-")
    if not (plain.isascii() and plain.isdigit()) or suffix not in _SUFFIXES or len(plain) > 18:
        raise UsageError(f"cannot set {option} to '{text}'", "expected bytes, or with k, m or g")
    return int(digits) << _SUFFIXES[suffix]


def _read(path: str) -> dict[str, Any]:
    from firkin.spec import validate

    try:
        if path == "-":
            data = sys.stdin.buffer.read(validate.MAX_SIZE + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(validate.MAX_SIZE + 1)
    except OSError as error:
        raise UsageError(f"cannot read '{path}'", error.strerror or "") from None
    resources = validate.parse(data, path)
    validate.validate_resources(resources)
    return resources
