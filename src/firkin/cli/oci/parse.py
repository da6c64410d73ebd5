"""The grammar of runc's command line, which is that of Go's ``flag`` and urfave/cli.

* ``--name value``, ``--name=value``, and the same with one dash;
* flags: ``--flag``, ``--flag=false``;
* after the verb, options may also follow its arguments, except where those are a
  command line of their own (``exec``, ``ps``); ``--`` ends them.

Source: https://pkg.go.dev/flag (command line flag syntax).
"""

from __future__ import annotations

from firkin.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

VALUE = "value"  # a value follows
LIST = "list"  # a value follows; may be given several times
NUMBER = "number"  # a whole number follows
FLAG = "flag"  # nothing follows, or =true, =false

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Word:
    """One option: what follows its name (VALUE, LIST, NUMBER, FLAG), and its help."""

    __slots__ = ("kind", "metavar", "text")

    def __init__(self, kind: str, metavar: str, text: str) -> None:
        self.kind = kind
        self.metavar = metavar
        self.text = text


def parse(
    table: Mapping[str, Word],
    short: Mapping[str, str],
    argv: Sequence[str],
    command: str,
    *,
    interspersed: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """Split *argv* into options and arguments.

    Args:
        table: the options, by their names with two dashes.
        short: other names, and what they stand for.
        argv: the words after the command.
        command: for messages.
        interspersed: whether options may follow arguments.

    Returns:
        The options given, by name: a str, int, bool, or list of str; and the arguments.

    Raises:
        UsageError: an unknown option, a missing or wrong value.
    """
    options: dict[str, Any] = {}
    arguments: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            return options, arguments + words
        if not word.startswith("-") or word == "-":
            arguments.append(word)
            if interspersed:
                continue
            return options, arguments + words
        name, equals, text = word.partition("=")
        name = short.get(name, "--" + name.lstrip("-"))
        found = table.get(name)
        if found is None:
            raise UsageError(
                f"cannot use option '{word.partition('=')[0]}'",
                "no such option",
                f"see '{command} --help'",
            )
        if found.kind == FLAG:
            if equals and text not in _TRUE + _FALSE:
                raise UsageError(f"cannot set {name} to '{text}'", "expected true or false")
            options[name] = not equals or text in _TRUE
            continue
        if not equals:
            if not words:
                # Go's words: podman looks for them, to learn which options there are.
                raise UsageError(f"cannot use option {name}", "flag needs an argument")
            text = words.pop(0)
        if found.kind == LIST:
            options.setdefault(name, []).append(text)
        elif found.kind == NUMBER:
            options[name] = _number(name, text)
        else:
            options[name] = text
    return options, arguments


def _number(name: str, text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 20:
        raise UsageError(f"cannot set {name} to '{text}'", "expected a whole number")
    return int(text)


HELP = {"--help": Word(FLAG, "", "print this help")}


def verb(
    name: str,
    usage: str,
    summary: str,
    table: Mapping[str, Word],
    short: Mapping[str, str],
    argv: Sequence[str],
    *,
    least: int,
    most: int,
    interspersed: bool = True,
) -> tuple[dict[str, Any], list[str]] | None:
    """Parse the words of a verb; None where they ask for help, which is printed.

    Args:
        name: the verb.
        usage: what follows it, for help.
        summary: what it does, in one line.
        table, short, argv, interspersed: as for :func:`parse`.
        least, most: how many arguments it takes; -1 for any number.

    Raises:
        UsageError: as :func:`parse`, or too few or many arguments.
    """
    command = f"firkin-runtime {name}"
    options, arguments = parse(
        {**table, **HELP}, {"-h": "--help", **short}, argv, command, interspersed=interspersed
    )
    if options.get("--help"):
        print(_help(f"{command} {usage}", summary, {**table, **HELP}, short), end="")
        return None
    if len(arguments) < least or -1 < most < len(arguments):
        expected = str(least) if least == most else f"at least {least}"
        raise UsageError(
            f"cannot {name}",
            f"expected {expected} argument{'' if expected == '1' else 's'}, got {len(arguments)}",
            f"see '{command} --help'",
        )
    return options, arguments


def _help(usage: str, summary: str, table: Mapping[str, Word], short: Mapping[str, str]) -> str:
    heads = {}
    for name, word in table.items():
        names = [other for other, long in short.items() if long == name]
        heads[name] = f"{', '.join([*names, name])} {word.metavar}".rstrip()
    width = max(map(len, heads.values()))
    lines = "\n".join(f"  {heads[name]:{width}}  {word.text}" for name, word in table.items())
    return f"Usage: {usage}\n\n{summary}\n\nOptions:\n{lines}\n"
