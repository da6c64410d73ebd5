"""Command-line options: a table, its parser and its help text.

Why not argparse: importing it costs 9 ms, of the 25 ms that a whole
``firkin run`` takes. And its grammar is not docker's, which is that of Go's
pflag with options before the first positional only:

* ``--name value``, ``--name=value``; the value is taken whatever it looks like;
* flags: ``--flag``, ``--flag=false``;
* short: ``-v x``, ``-vx``, ``-v=x``, and flags in front of one: ``-itv x``;
* the first word that is not an option ends them, and so does ``--``;
* no abbreviations; given twice, the last wins, where the option is not a list.

Source: https://pkg.go.dev/github.com/spf13/pflag (command line flag syntax).
"""

from __future__ import annotations

import os

from firkin.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    # Stores one value of an option: (target, value, the option's name as it was written).
    Take = Callable[[Any, Any, str], None]
    # An option table: the titles of groups, and the options of each.
    Groups = Sequence[tuple[str, Sequence["Option"]]]
    # An option of a command line, its value, and its name as it was written.
    Given = tuple["Option", Any, str]

# The kinds of an option: what follows its name.
VALUE = "value"  # always a value
LIST = "list"  # always a value; may be given several times
FLAG = "flag"  # nothing, or =true, =false
OPTIONAL = "optional"  # nothing, or =VALUE

# What Go's strconv.ParseBool accepts.
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class HelpRequested(Exception):
    """``--help`` was given: the caller prints the help text and succeeds."""


class Option:
    """One row of an option table.

    Args:
        names: all its names with their dashes and a blank between, as ``-e --env``.
        metavar: how help calls the value; empty for a flag.
        text: what it does, in one line without a full stop.
        take: called with the target, the value and the name as written, each
            time the option is given. The value is a str; a bool for a FLAG;
            ``""`` for an OPTIONAL without one.
        kind: VALUE, LIST, FLAG or OPTIONAL.
    """

    __slots__ = ("kind", "metavar", "names", "take", "text")

    def __init__(self, names: str, metavar: str, text: str, take: Take, kind: str = VALUE) -> None:
        self.names = names.split()
        self.metavar = metavar
        self.text = text
        self.take = take
        self.kind = kind


def switch(text: str, name: str) -> bool:
    """Return what *text* says as a value of a flag.

    Raises:
        UsageError: it is neither true nor false.
    """
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise UsageError(f"cannot set {name} to '{text}'", "expected true or false")


def parse(groups: Groups, argv: Sequence[str], command: str) -> tuple[list[Given], list[str]]:
    """Split *argv* into options and the rest.

    Args:
        groups: the option table.
        argv: the words after the verb.
        command: how the user calls it, as ``firkin run``, for messages.

    Returns:
        The options in the order of the command line, and the words from the
        first positional on.

    Raises:
        UsageError: an unknown option, a missing value, a flag that is neither true nor false.
        HelpRequested: ``--help`` was given.
    """
    known = {name: option for _, options in groups for option in options for name in option.names}
    given: list[Given] = []
    words = list(argv)
    at = 0

    def add(name: str, attached: str | None) -> None:
        nonlocal at
        option = known[name]
        value: Any = attached
        if option.kind == FLAG:
            value = True if attached is None else switch(attached, name)
        elif attached is None and option.kind == OPTIONAL:
            value = ""
        elif attached is None:
            if at == len(words):
                raise UsageError(f"cannot use option {name}", "its value is missing", _see(command))
            value = words[at]
            at += 1
        given.append((option, value, name))

    while at < len(words):
        word = words[at]
        if word == "-" or not word.startswith("-"):
            break
        at += 1
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, text = word.partition("=")
            if name == "--help":
                raise HelpRequested
            if name not in known:
                raise _unknown(name, known, command)
            add(name, text if equals else None)
            continue
        letters = word[1:]
        while letters:
            name, letters = "-" + letters[0], letters[1:]
            if name not in known:
                raise _unknown(name, known, command)
            if letters.startswith("=") or (letters and known[name].kind in (VALUE, LIST)):
                add(name, letters.removeprefix("="))
                break
            add(name, None)
    return given, words[at:]


def apply(given: Sequence[Given], target: object) -> None:
    """Store each of *given* in *target*.

    Raises:
        UsageError: an option refuses its value.
    """
    for option, value, name in given:
        option.take(target, value, name)


def _see(command: str) -> str:
    return f"see '{command} --help'"


def _unknown(name: str, known: dict[str, Option], command: str) -> UsageError:
    mend = _see(command)
    guess = closest(name, known) if len(name) > 2 else ""
    if guess:
        mend = f"did you mean {guess}? {mend}"
    return UsageError(f"cannot use option '{name}'", "there is no such option", mend)


def closest(word: str, possible: Sequence[str] | dict[str, Any]) -> str:
    """Return the one of *possible* that *word* was most likely meant to be, or ``""``."""
    # Only ever imported on the way to an error message.
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(possible), 1)), "")


def help_text(
    usage: str,
    summary: str,
    groups: Groups,
    notes: str = "",
    width: int = 0,
) -> str:
    """Return the help of a command.

    Args:
        usage: the line after ``Usage:``.
        summary: one line that says what the command does.
        groups: the option table.
        notes: printed after the options, as it is.
        width: columns to wrap at; 0 for those of the terminal, or 80 without one.
    """
    from textwrap import wrap

    if not width:
        try:
            width = os.get_terminal_size().columns
        except OSError:
            width = 80
    width = min(max(width, 50), 120)
    lines = [f"Usage: {usage}", "", summary]
    for title, options in groups:
        lines += ["", f"{title}:"]
        heads = [_head(option) for option in options]
        # One very long head must not push all texts to the right edge.
        column = min(max(map(len, heads)) + 2, width // 2)
        for option, head in zip(options, heads, strict=True):
            texts = wrap(option.text, width - column, break_on_hyphens=False)
            if len(head) + 2 > column:
                lines.append(head)
                head = ""
            lines.append(head.ljust(column) + texts[0])
            lines += [" " * column + text for text in texts[1:]]
    if notes:
        lines += ["", notes]
    return "\n".join(lines) + "\n"


def _head(option: Option) -> str:
    # Long names line up whether or not there is a short one in front.
    head = "  " if len(option.names[0]) == 2 else "      "
    head += ", ".join(option.names)
    if option.kind == OPTIONAL:
        return f"{head}[={option.metavar}]"
    return f"{head} {option.metavar}" if option.metavar else head
