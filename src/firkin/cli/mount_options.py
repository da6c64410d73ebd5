"""``--volume``, ``--mount`` and ``--tmpfs``: docker's three notations for a mount.

Source: https://docs.docker.com/engine/storage/bind-mounts/ and …/tmpfs/,
mount(8) for the options of tmpfs.
"""

from __future__ import annotations

import os

from firkin.cli import units
from firkin.cli.options import switch
from firkin.cli.units import refuse
from firkin.engine.request import Mount
from firkin.errors import UsageError

_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")

# Options that exclude each other, by what they are about. The first is the
# default of a tmpfs: docker's, and the safe one.
_EITHER = (("noexec", "exec"), ("nosuid", "suid"), ("nodev", "dev"))

_VOLUME = "HOST:CONTAINER[:OPTIONS]"


def volume(text: str, name: str) -> Mount:
    """Return what ``SRC:DST[:OPTIONS]`` asks for.

    ``z``, ``Z`` and ``nocopy`` are taken and do nothing: firkin sets no SELinux
    label that a file would have to match, and a bind mount is never copied into.
    """
    parts = text.split(":")
    if len(parts) > 3:
        raise refuse(text, name, _VOLUME)
    if len(parts) == 1 or (parts[0] and not _is_path(parts[0])):
        raise refuse(
            text,
            name,
            f"{_VOLUME} with a path for HOST",
            "there are no named volumes yet; a relative path starts with ./",
        )
    source, target = _host_path(parts[0], text, name), _target(parts[1], text, name)
    recursive, propagation, read_only, flags = "rbind", "rprivate", "", {}
    for option in parts[2].split(",") if len(parts) == 3 else ():
        if option in _PROPAGATION:
            propagation = option
        elif option in ("bind", "rbind"):
            recursive = option
        elif option in ("ro", "rw", "rro"):
            read_only = {"ro": "auto", "rw": "", "rro": "recursive"}[option]
        elif option in ("noexec", "exec", "nosuid", "suid", "nodev", "dev"):
            flags[option.removeprefix("no")] = option
        elif option not in ("z", "Z", "nocopy"):
            raise refuse(
                text, name, f"an option that exists instead of '{option}': ro, rw, rro, {_flags()}"
            )
    return Mount(
        "bind",
        target,
        source,
        (recursive, propagation, *flags.values()),
        read_only=_top_only(read_only, recursive),
        must_exist=False,
    )


def tmpfs(text: str, name: str) -> Mount:
    """Return what ``DST[:OPTIONS]`` asks for."""
    path, _, listed = text.partition(":")
    flags = {safe[2:]: safe for safe, _ in _EITHER}
    data, read_only = {}, ""
    for option in listed.split(",") if listed else ():
        key, equals, value = option.partition("=")
        if equals:
            data[key] = f"{key}={_tmpfs_value(key, value, text, name)}"
        elif option in ("ro", "rw"):
            read_only = "top" if option == "ro" else ""
        elif option.removeprefix("no") in flags:
            flags[option.removeprefix("no")] = option
        else:
            raise refuse(text, name, f"an option of tmpfs instead of '{option}'")
    options = (*flags.values(), *data.values())
    return Mount("tmpfs", _target(path, text, name), "", options, read_only=read_only)


def _tmpfs_value(key: str, value: str, text: str, name: str) -> str:
    if key == "size" and value.endswith("%"):
        return f"{units.integer(value[:-1], f'{name} {key}', 1, 100)}%"
    if key == "size":
        return str(units.size(value, f"{name} {key}"))
    if key == "mode":
        if not value or value.strip("01234567") or int(value, 8) > 0o7777:
            raise refuse(text, name, "a mode in octal, as 1777")
        return value
    if key in ("uid", "gid", "nr_inodes"):
        return str(units.integer(value, f"{name} {key}", 0, 2**32 - 2))
    raise refuse(
        text, name, f"an option of tmpfs instead of '{key}': size, mode, uid, gid, nr_inodes"
    )


# The keys of --mount by type; aliases point to the name used below.
_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_KEYS = {
    "bind": ("source", "readonly", "bind-propagation", "bind-nonrecursive", "bind-recursive"),
    "tmpfs": ("readonly", "tmpfs-size", "tmpfs-mode"),
    "overlay": ("source", "lowerdir", "upperdir", "workdir", "readonly"),
}


def mount(text: str, name: str) -> Mount:
    """Return what ``type=…,source=…,target=…,…`` asks for."""
    given: dict[str, str] = {}
    for field in _fields(text, name):
        key, equals, value = field.partition("=")
        key = _ALIASES.get(key, key)
        # A key alone is a flag that is set: readonly, bind-nonrecursive.
        given[key] = value if equals or key not in ("readonly", "bind-nonrecursive") else "true"
    kind = given.pop("type", "")
    if kind not in _KEYS:
        raise refuse(text, name, "type=bind, type=tmpfs or type=overlay")
    target = _target(given.pop("target", ""), text, name)
    for key in given:
        if key not in _KEYS[kind]:
            raise refuse(
                text, name, f"a key of {kind} instead of '{key}': {', '.join(_KEYS[kind])}"
            )
    read_only = "auto" if _switch(given, "readonly", name) else ""
    if kind == "tmpfs":
        options = [safe for safe, _ in _EITHER]
        options += [
            f"{key}={_tmpfs_value(key, given[f'tmpfs-{key}'], text, name)}"
            for key in ("size", "mode")
            if f"tmpfs-{key}" in given
        ]
        return Mount("tmpfs", target, "", tuple(options), read_only="top" if read_only else "")
    if kind == "overlay":
        return _overlay(given, target, bool(read_only), text, name)
    return _bind(given, target, read_only, text, name)


def _bind(given: dict[str, str], target: str, read_only: str, text: str, name: str) -> Mount:
    propagation = given.get("bind-propagation", "rprivate")
    if propagation not in _PROPAGATION:
        raise refuse(text, name, "a bind-propagation out of " + ", ".join(_PROPAGATION))
    recursive = given.get("bind-recursive", "enabled")
    if _switch(given, "bind-nonrecursive", name):
        recursive = "disabled"
    if recursive not in ("enabled", "disabled", "writable", "readonly"):
        raise refuse(text, name, "bind-recursive=enabled, disabled, writable or readonly")
    if recursive == "readonly" and not read_only:
        raise refuse(text, name, "readonly together with bind-recursive=readonly")
    if read_only and recursive != "enabled":
        read_only = "recursive" if recursive == "readonly" else "top"
    flag = "bind" if recursive == "disabled" else "rbind"
    source = _host_path(given.get("source", ""), text, name)
    return Mount("bind", target, source, (flag, propagation), read_only=read_only)


def _overlay(given: dict[str, str], target: str, read_only: bool, text: str, name: str) -> Mount:
    lower = given.get("lowerdir", given.get("source", ""))
    upper, work = given.get("upperdir", ""), given.get("workdir", "")
    if bool(upper) != bool(work):
        raise refuse(text, name, "upperdir and workdir together, or neither for private ones")
    folders = [_host_path(folder, text, name) for folder in lower.split(":")]
    if upper:
        upper, work = _host_path(upper, text, name), _host_path(work, text, name)
    if any(c in path for path in (*folders, upper, work) for c in ",\\:"):
        # The kernel reads these as separators in the options of an overlay.
        raise refuse(text, name, "folders of an overlay without ',', ':' or '\\' in their paths")
    only = "top" if read_only else ""
    return Mount("overlay", target, ":".join(folders), (), read_only=only, upper=upper, work=work)


def _switch(given: dict[str, str], key: str, name: str) -> bool:
    """Return the flag *key* of a ``--mount``; False where it isn't given."""
    return key in given and switch(given[key], f"{name} {key}")


def _fields(text: str, name: str) -> list[str]:
    # One record of RFC 4180 CSV, as docker reads it: a field in double quotes
    # may hold commas, and quotes written twice.
    fields, at = [], 0
    while True:
        if text.startswith('"', at):
            field, at = "", at + 1
            while True:
                end = text.find('"', at)
                if end < 0:
                    raise refuse(text, name, "a closing quote")
                field += text[at:end]
                at = end + 1
                if not text.startswith('"', at):
                    break
                field, at = field + '"', at + 1
            if text[at : at + 1] not in ("", ","):
                raise refuse(text, name, "a comma after a closing quote")
        else:
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            field, at = text[at:end], end
        fields.append(field)
        if at >= len(text):
            return fields
        at += 1


def _is_path(text: str) -> bool:
    return text in (".", "..") or text.startswith(("/", "./", "../"))


def _host_path(path: str, text: str, name: str) -> str:
    if not _is_path(path):
        raise refuse(text, name, "a path on the host that starts with /, ./ or ../")
    return "/" + os.path.abspath(path).lstrip("/")


def _target(path: str, text: str, name: str) -> str:
    target = units.absolute(path, f"the target of {name} {text}")
    if target == "/":
        raise UsageError(f"cannot set {name} to '{text}'", "the root itself cannot be mounted over")
    return target


def _top_only(read_only: str, recursive: str) -> str:
    # Without the mounts below the source there is nothing to recurse into.
    return "top" if read_only and recursive == "bind" else read_only


def _flags() -> str:
    return ", ".join((*_PROPAGATION, "noexec", "nosuid", "nodev"))
