"""How the options of ``firkin run`` are read and stored: one function for each kind of value.

A *read* function takes the text and the option's name and returns a plain
value; a *take* function stores it in a :class:`~firkin.engine.request.Request`.
"""

from __future__ import annotations

import os

from firkin.cli import units
from firkin.cli.options import closest, switch
from firkin.cli.units import refuse
from firkin.errors import Unsupported, UsageError
from firkin.linux.caps import NAMES as CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from firkin.cli.options import Take
    from firkin.engine.request import Mount

    Read = Callable[[str, str], Any]

_ALNUM = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_NAME = _ALNUM + "_.-"


# How an option is stored: in a field, at the end of a list, in a dict.


def store(field: str, read: Read | None = None) -> Take:
    def take(request: Any, text: Any, name: str) -> None:
        setattr(request, field, read(text, name) if read else text)

    return take


def add(field: str, read: Read | None = None) -> Take:
    def take(request: Any, text: Any, name: str) -> None:
        getattr(request, field).append(read(text, name) if read else text)

    return take


def put(field: str, read: Read) -> Take:
    def take(request: Any, text: Any, name: str) -> None:
        key, *values = read(text, name)
        getattr(request, field)[key] = values[0] if len(values) == 1 else tuple(values)

    return take


# How the text of an option is read.


def integer(low: int, high: int = 2**63 - 1, unset: tuple[str, ...] = ()) -> Read:
    def read(text: str, name: str) -> int | None:
        return None if text in unset else units.integer(text, name, low, high)

    return read


def size_or_none(text: str, name: str) -> int | None:
    return units.size(text, name) or None  # 0 is docker's "no limit"


def memory_swap(text: str, name: str) -> int | None:
    return -1 if text == "-1" else size_or_none(text, name)


def cpus_or_none(text: str, name: str) -> int | None:
    return units.cpus(text, name) or None


def container_name(text: str, name: str) -> str:
    if not 0 < len(text) <= 128 or text[0] not in _ALNUM or any(c not in _NAME for c in text):
        raise refuse(text, name, "letters, digits, '_', '.' and '-', the first a letter or digit")
    return text


def host_name(text: str, name: str) -> str:
    # The kernel takes 64 bytes of anything; but this is also written to
    # /etc/hosts, where blanks and line ends would make new entries.
    if not 0 < len(text) <= 64 or text[0] not in _ALNUM or any(c not in _NAME for c in text):
        raise refuse(text, name, "at most 64 letters, digits, '-', '.' and '_'")
    return text


def user(text: str, name: str) -> str | None:
    _, colon, group = text.partition(":")
    if (colon and not group) or ":" in group:
        raise refuse(text, name, "NAME|UID[:GROUP|GID]")
    return text or None


def entrypoint(text: str, name: str) -> list[str]:
    return [text] if text else []


def namespace(*modes: str) -> Read:
    def read(text: str, name: str) -> tuple[str, str]:
        if text in modes:
            return text, ""
        if text.startswith("container:") and text != "container:":
            return "container", container_name(text.removeprefix("container:"), name)
        path = text.removeprefix("ns:")
        if path.startswith("/"):
            return "path", path
        expected = f"{', '.join(modes)}, container:ID or the absolute path of a namespace"
        raise refuse(text, name, expected)

    return read


def network(text: str, name: str) -> tuple[str, str]:
    mode, where = namespace("none", "host", "private")(text, name)
    return "none" if mode == "private" else mode, where


def address(text: str, name: str) -> str:
    from socket import AF_INET, AF_INET6, inet_pton

    bare = text.removeprefix("[").removesuffix("]") if ":" in text else text
    try:
        inet_pton(AF_INET6 if ":" in bare else AF_INET, bare)
    except (OSError, ValueError):
        raise refuse(text, name, "an IPv4 or IPv6 address") from None
    return bare


def extra_host(text: str, name: str) -> tuple[str, str]:
    host, separator, number = text.partition("=" if "=" in text else ":")
    if not separator:
        raise refuse(text, name, "HOST:ADDRESS")
    return host_name(host, name), address(number, name)


def device(text: str, name: str) -> tuple[str, str, str]:
    source, *rest = text.split(":")
    target, access = source, "rwm"
    if len(rest) == 1 and not rest[0].startswith("/"):
        access = rest[0]
    elif rest:
        target, access = rest[0], rest[1] if len(rest) == 2 else "rwm"
    if len(rest) > 2 or not access or access.strip("rwm") or not source.startswith("/"):
        raise refuse(text, name, "HOST[:CONTAINER[:rwm]] with absolute paths")
    return os.path.normpath(source), units.absolute(target, name), access


def rate(field: str, read: Read) -> Read:
    def rate(text: str, name: str) -> tuple[str, str, int]:
        device, _, value = text.rpartition(":")
        if not device.startswith("/"):
            raise refuse(text, name, "DEVICE:RATE with a path for DEVICE")
        return field, device, read(value, name)

    return rate


def sysctl(text: str, name: str) -> tuple[str, str]:
    key, value = units.pair(text, name)
    if any(c not in _ALNUM + "._-/" for c in key) or not value or key[0] in "./" or ".." in key:
        raise refuse(text, name, "NAME=VALUE with a sysctl's name, as net.ipv4.ip_forward=1")
    # sysctl(8) takes both ways of writing; the specification has dots.
    return key.replace("/", "."), value


def capability(text: str, name: str) -> str:
    capability = text.upper()
    if capability == "ALL":
        return capability
    if not capability.startswith("CAP_"):
        capability = "CAP_" + capability
    if capability not in CAPABILITIES:
        guess = closest(capability, CAPABILITIES)
        mend = f"did you mean {guess}?" if guess else "see capabilities(7)"
        raise refuse(text, name, "the name of a capability, or ALL", mend)
    return capability


def explain(text: str, name: str) -> str:
    return units.one_of("text", "json")(text or "text", name)


def host_path(text: str, name: str) -> str:
    if not text or text.startswith("-"):
        raise refuse(text, name, "a path")
    return os.path.abspath(text)


def cgroup_parent(text: str, name: str) -> str:
    if not text or ".." in text.split("/"):
        raise refuse(text, name, "the path of a cgroup, or a systemd slice")
    return text


# Options that are more than one value for one field.


def take_env(request: Any, text: str, name: str) -> None:
    key, equals, value = text.partition("=")
    if not key:
        raise refuse(text, name, "KEY=VALUE or KEY")
    # As docker: a KEY that the caller doesn't have is taken from the defaults.
    request.environment[key] = value if equals else os.environ.get(key)


def take_env_file(request: Any, path: str, name: str) -> None:
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(f"cannot read {name} '{path}'", str(error.strerror)) from None
    except ValueError:
        raise UsageError(f"cannot read {name} '{path}'", "it is not text in UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r").lstrip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals:
            key = key.rstrip()
        if not key or any(c.isspace() for c in key) or "\0" in line:
            raise UsageError(
                f"cannot read {name} '{path}'", f"line {number} is not KEY=VALUE, KEY or # comment"
            )
        if equals:
            request.environment[key] = value
        elif key in os.environ:
            request.environment[key] = os.environ[key]


def take_rm(request: Any, value: bool, name: str) -> None:
    if not value:
        raise Unsupported("cannot keep the container", "containers are always removed for now")


def take_rootfs(request: Any, text: str, name: str) -> None:
    request.image = host_path(text, name)


def take_security(request: Any, text: str, name: str) -> None:
    # docker's old notation had a colon.
    separator = "=" if "=" in text else ":"
    key, _, value = text.partition(separator)
    if key == "seccomp" and value:
        builtin = {"default": "default", "builtin": "default", "unconfined": "unconfined"}
        request.seccomp = builtin.get(value) or os.path.abspath(value)
    elif key == "no-new-privileges":
        request.no_new_privileges = switch(value or "true", f"{name} {key}")
    elif text == f"systempaths{separator}unconfined":
        request.system_paths = False
    elif key in ("apparmor", "label"):
        # Neither is set by firkin, so switching them off is always met.
        if value not in ("unconfined", "disable"):
            raise Unsupported(f"cannot set {name} to '{text}'", f"{key} is not supported")
    else:
        expected = "seccomp=FILE|unconfined, no-new-privileges[=false] or systempaths=unconfined"
        raise refuse(text, name, expected)


# Most runs have no volume: what reads their notations is loaded by the first that has one.


def volume(text: str, name: str) -> Mount:
    from firkin.cli import mount_options

    return mount_options.volume(text, name)


def mount(text: str, name: str) -> Mount:
    from firkin.cli import mount_options

    return mount_options.mount(text, name)


def tmpfs(text: str, name: str) -> Mount:
    from firkin.cli import mount_options

    return mount_options.tmpfs(text, name)
