"""The kinds of value that the tables in :mod:`firkin.spec.schema` are made of.

Each kind checks one value and, where it holds others, those too. The first
fault found is raised as a :class:`~firkin.errors.ConfigError` that names the
field. Members of an object that no table knows are ignored, as the runtime
specification demands (config.md, "Extensibility").
"""

from __future__ import annotations

from firkin.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    # Says what is wrong with a string, "" when nothing is.
    Form = Callable[[str], str]

# How much of a hostile value a message repeats.
SHOWN = 60


def show(text: str) -> str:
    """Return *text* quoted and cut short, for a message."""
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def describe(value: Any) -> str:
    """Return JSON's own name for the type of *value*, for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {str: "a string", int: "a number", float: "a fraction", list: "an array"}
    return names.get(type(value), "an object")


def within(field: str, name: str) -> str:
    """Return the path of member *name* of *field*, which is empty for the whole document."""
    return f"{field}.{name}" if field else name


def entry(field: str, key: str) -> str:
    """Return the path of *key* in *field*, a map whose keys the user chose."""
    # Quoted, because such keys hold dots of their own: sysctl["net.ipv4.ip_forward"].
    return f'{field}["{key if len(key) <= SHOWN else key[:SHOWN] + "..."}"]'


def unpassable(text: str) -> str:
    """Say why *text* cannot be handed to the kernel, "" when it can."""
    if "\0" in text:
        return "contains a NUL character"
    # JSON can spell half of a surrogate pair ("\ud800"), which no encoding holds.
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return "contains half of a surrogate pair"
    return ""


class Kind:
    """What a value may be."""

    __slots__ = ()

    def check(self, value: Any, field: str) -> None:
        """Check *value*, which stands at the path *field*.

        Raises:
            ConfigError: the value, or one that it holds, is not of this kind.
        """
        raise NotImplementedError


class Boolean(Kind):
    """``true`` or ``false``."""

    __slots__ = ()

    def check(self, value: Any, field: str) -> None:
        if not isinstance(value, bool):
            raise ConfigError(field, f"expected true or false, not {describe(value)}")


class Integer(Kind):
    """A whole number from *low* to *high*, both included."""

    __slots__ = ("high", "low")

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high

    def check(self, value: Any, field: str) -> None:
        # By exact type: to Python true is the number 1. 1.0 is refused as well,
        # by draft 4 of JSON Schema and by the Go runtimes alike.
        if type(value) is not int:
            raise ConfigError(field, f"expected a whole number, not {describe(value)}")
        if not self.low <= value <= self.high:
            # A number of a thousand digits helps nobody, and str() may refuse it.
            found = f": {value}" if abs(value) < 1 << 80 else ""
            raise ConfigError(field, f"outside {self.low} to {self.high}{found}")


class Text(Kind):
    """A string that can be handed to the kernel, optionally of a *form*."""

    __slots__ = ("form",)

    def __init__(self, form: Form | None = None) -> None:
        self.form = form

    def check(self, value: Any, field: str) -> None:
        if not isinstance(value, str):
            raise ConfigError(field, f"expected a string, not {describe(value)}")
        fault = unpassable(value) or (self.form(value) if self.form else "")
        if fault:
            raise ConfigError(field, f"{show(value)} {fault}")


class Choice(Kind):
    """One of a few strings, given separated by white space."""

    __slots__ = ("choices",)

    def __init__(self, choices: str) -> None:
        self.choices = tuple(choices.split())

    def check(self, value: Any, field: str) -> None:
        if not isinstance(value, str):
            raise ConfigError(field, f"expected a string, not {describe(value)}")
        if value not in self.choices:
            raise ConfigError(
                field, f"{show(value)} is unknown", f"expected one of {', '.join(self.choices)}"
            )


class Array(Kind):
    """A list of *items* of one kind; *least* is how many there must be."""

    __slots__ = ("items", "least")

    def __init__(self, items: Kind, least: int = 0) -> None:
        self.items = items
        self.least = least

    def check(self, value: Any, field: str) -> None:
        if not isinstance(value, list):
            raise ConfigError(field, f"expected an array, not {describe(value)}")
        if len(value) < self.least:
            raise ConfigError(field, "is empty")
        for index, item in enumerate(value):
            self.items.check(item, f"{field}[{index}]")


class Map(Kind):
    """An object with keys that the user chose, optionally of a *form*, and *values* of one kind."""

    __slots__ = ("form", "values")

    def __init__(self, values: Kind, form: Form | None = None) -> None:
        self.values = values
        self.form = form

    def check(self, value: Any, field: str) -> None:
        if not isinstance(value, dict):
            raise ConfigError(field, f"expected an object, not {describe(value)}")
        for key, member in value.items():
            if not key:
                raise ConfigError(field, "has an empty key")
            fault = unpassable(key) or (self.form(key) if self.form else "")
            if fault:
                raise ConfigError(entry(field, key), f"{show(key)} {fault}")
            self.values.check(member, entry(field, key))


class Object(Kind):
    """An object with known *members*; those named in *required* must be there."""

    __slots__ = ("members", "required")

    def __init__(self, members: Mapping[str, Kind], required: str = "") -> None:
        self.members = members
        self.required = tuple(required.split())

    def check(self, value: Any, field: str) -> None:
        if not isinstance(value, dict):
            raise ConfigError(field or "the document", f"expected an object, not {describe(value)}")
        for name in self.required:
            if name not in value:
                raise ConfigError(within(field, name), "is missing")
        # In the order of the table, so that the same fault is named whatever
        # order the document has.
        for name, kind in self.members.items():
            if name in value:
                kind.check(value[name], within(field, name))
