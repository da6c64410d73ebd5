"""JSON, read and written by the C code of :mod:`json` without loading the rest of it.

Importing :mod:`json` costs as much as a bare interpreter does, for it brings
:mod:`re`; a runtime that is started for every ``state`` and ``kill`` can't
afford that. What is not ordinary (a malformed text) is left to :mod:`json`.

Source: RFC 8259; Modules/_json.c.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_BLANK = " \t\n\r"


class Reader:
    """How to read; the attributes are those that the scanner looks at, as in ``JSONDecoder``.

    Args:
        pairs: makes the object of a list of (key, value), or None for a dict.
        integer: makes the number of the digits of an integer.
        fraction: makes the number of the digits of any other number.
        constant: called with ``NaN``, ``Infinity`` or ``-Infinity``.
    """

    strict = True
    object_hook = None

    def __init__(
        self,
        pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
        integer: Callable[[str], Any] = int,
        fraction: Callable[[str], Any] = float,
        constant: Callable[[str], Any] = float,
    ) -> None:
        self.object_pairs_hook = pairs
        self.parse_int = integer
        self.parse_float = fraction
        self.parse_constant = constant

    def read(self, text: str) -> Any:
        """Return the value that *text* spells.

        Raises:
            json.JSONDecodeError: it spells none, or something follows the value.
            RecursionError: it is nested too deep.
        """
        start = 0
        while text[start : start + 1] in _BLANK and start < len(text):
            start += 1
        try:
            value, end = self._scan(text, start)
        except StopIteration as stop:
            raise _fault("Expecting value", text, stop.value) from None
        except SystemError:
            # Up to Python 3.12 its errors get lost where json.decoder is not loaded yet.
            import json.decoder  # noqa: F401

            return self.read(text)
        rest = text[end:].lstrip(_BLANK)
        if rest:
            raise _fault("Extra data", text, len(text) - len(rest))
        return value

    def _scan(self, text: str, start: int) -> tuple[Any, int]:
        # Any object with these attributes will do; the stubs know only the decoder.
        scanner = make_scanner(self)  # type: ignore[arg-type]
        return scanner(text, start)


def _fault(why: str, text: str, at: int) -> ValueError:
    from json import JSONDecodeError

    return JSONDecodeError(why, text, at)


def load(text: str) -> Any:
    """Return the value of *text*, which was written by ourselves."""
    return Reader().read(text)


def dump(value: Any, indent: int = 0, _level: int = 0) -> str:
    """Return *value* as JSON, in ASCII.

    Args:
        value: dicts with string keys, lists, tuples, strings, whole numbers,
            floats, booleans and None.
        indent: blanks a level, one member a line; 0 for all in one line.
    """
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    colon = ": " if indent else ":"
    if isinstance(value, dict):
        parts = [
            encode_basestring_ascii(k) + colon + dump(v, indent, _level + 1)
            for k, v in value.items()
        ]
    else:
        parts = [dump(v, indent, _level + 1) for v in value]
    if not parts or not indent:
        return opened + ",".join(parts) + closed
    line = "\n" + " " * (indent * (_level + 1))
    return opened + line + ("," + line).join(parts) + "\n" + " " * (indent * _level) + closed
