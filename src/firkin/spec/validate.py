"""Read and check an OCI runtime configuration (``config.json``), which is hostile until then."""

from __future__ import annotations

from firkin.errors import ConfigError, UsageError
from firkin.spec import jsontext
from firkin.spec.kinds import show
from firkin.spec.rules import PROCESS_RULES, RESOURCE_RULES, RULES
from firkin.spec.schema import CONFIG, PROCESS, RESOURCES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# Bytes of a config.json; podman's and Docker's have some tens of thousands.
MAX_SIZE = 16 << 20
# Levels of arrays and objects; the specification needs eight.
MAX_DEPTH = 64
# A number of the specification has at most 20.
MAX_DIGITS = 1000


def validate(config: dict[str, Any]) -> None:
    """Check *config* against version 1.3 of the OCI runtime specification for Linux.

    What another platform's section says is ignored, and so are members that
    the specification does not know. Nothing outside *config* is looked at: that
    paths exist is for the runtime to see.

    Args:
        config: what :func:`parse` returned.

    Raises:
        ConfigError: with the path of the first field that is wrong.
    """
    CONFIG.check(config, "")
    for rule in RULES:
        for fault in rule(config):
            raise ConfigError(*fault)


def validate_process(process: dict[str, Any]) -> None:
    """Check a ``process`` by itself, as ``exec --process`` takes one.

    Raises:
        ConfigError: as :func:`validate`.
    """
    PROCESS.check(process, "process")
    for rule in PROCESS_RULES:
        for fault in rule({"process": process}):
            raise ConfigError(*fault)


def validate_resources(resources: dict[str, Any]) -> None:
    """Check ``linux.resources`` by itself, as ``update --resources`` takes it.

    Raises:
        ConfigError: as :func:`validate`.
    """
    RESOURCES.check(resources, "linux.resources")
    for rule in RESOURCE_RULES:
        for fault in rule({"linux": {"resources": resources}}):
            raise ConfigError(*fault)


def parse(data: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object that *data* spells.

    Refused is what two readers could understand differently (a key given
    twice, another encoding than UTF-8, numbers that JSON has not) and what
    would cost too much to read. A caller need not read more than
    ``MAX_SIZE + 1`` bytes of a file.

    Args:
        data: the content of a file.
        name: the file's name, for errors.

    Raises:
        UsageError: *data* is not such an object; with line and column where there is one.
    """
    what = f"cannot read {name}"
    if len(data) > MAX_SIZE:
        raise UsageError(what, f"larger than {MAX_SIZE >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(what, f"not UTF-8 at line {line}, byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise UsageError(what, "starts with a byte order mark", "save it as UTF-8 without one")
    try:
        value = jsontext.Reader(_object, _integer, _fraction, _constant).read(text)
    except RecursionError:
        raise UsageError(what, f"nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        # A JSONDecodeError has the place; others are from the functions below.
        line, column = getattr(error, "lineno", 0), getattr(error, "colno", 0)
        why = getattr(error, "msg", str(error))
        if line:
            why = f"not JSON at line {line}, column {column}: {why}"
        raise UsageError(what, why) from None
    if not isinstance(value, dict):
        raise UsageError(what, "not a JSON object")
    # The reader's own limit differs between versions of Python, and whoever
    # writes the value out again has a lower one.
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
    if level:
        raise UsageError(what, f"nested deeper than {MAX_DEPTH} levels")
    return value


def _children(value: Any) -> list[Any]:
    """Return the members of *value* that are arrays or objects, if it is one."""
    members = value.values() if isinstance(value, dict) else value
    return [member for member in members if isinstance(member, (dict, list))]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"an object has the key {show(key)} twice")
            seen.add(key)
    return members


def _integer(digits: str) -> int:
    # int() of a million digits takes minutes, where it is not refused.
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _fraction(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {show(digits)} is too large")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
