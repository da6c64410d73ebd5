"""Seccomp: from a profile to the bytes that the kernel takes, and their cache.

::

    moby's profile ── resolve_profile ──> linux.seccomp ── compile_oci ──> BPF ──> cache

A start with the default profile only opens and reads a file of the cache
(:func:`cached_default`); nothing is parsed, and libseccomp is not loaded.

Source: the OCI runtime specification, config-linux.md "Seccomp"; moby's
profiles/seccomp; runc's libcontainer/seccomp.
"""

from __future__ import annotations

import errno

from firkin.errors import ConfigError
from firkin.linux import seccomp as linux_seccomp
from firkin.runtime.seccomp_cache import PROFILE, machine_and_kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Any

    from firkin.linux.libseccomp import Context

# What uname(2) calls a machine: (libseccomp's name, the name in moby's "arches").
_MACHINES = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "i686": ("SCMP_ARCH_X86", "x86"),
    "armv7l": ("SCMP_ARCH_ARM", "arm"),
    "loongarch64": ("SCMP_ARCH_LOONGARCH64", "loong64"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
}

# What linux.seccomp may hold beside what is resolved.
_OCI_KEYS = ("flags", "listenerPath", "listenerMetadata")

_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": linux_seccomp.SECCOMP_FILTER_FLAG_TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": linux_seccomp.SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": linux_seccomp.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": linux_seccomp.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}

# --- profiles -------------------------------------------------------------------------


def resolve_profile(
    profile: dict[str, Any], *, capabilities: Collection[str], arch: str, kernel: tuple[int, int]
) -> dict[str, Any]:
    """Turn a profile as Docker and podman write them into an OCI ``linux.seccomp``.

    A profile that already is one comes back as it is.

    Args:
        profile: the profile's parsed JSON.
        capabilities: names in the container's bounding set.
        arch: the machine as ``uname -m`` names it.
        kernel: the running kernel's major and minor version.

    Raises:
        ConfigError: a field is malformed or contradicts another.
    """
    if not isinstance(profile, dict):
        raise ConfigError("linux.seccomp", "expected an object")
    entries = [_object(entry, field) for field, entry in _items(profile, "syscalls")]
    own_words = ("name", "includes", "excludes", "errno")
    if (
        not any(profile.get(key) for key in ("archMap", "defaultErrno"))
        and not any(entry.get(word) for entry in entries for word in own_words)
        and profile.get("defaultAction")
    ):
        return profile
    resolved: dict[str, Any] = {"defaultAction": _string(profile, "defaultAction")}
    code = _errno(profile, "defaultErrno", "defaultErrnoRet", "")
    if code is not None:
        resolved["defaultErrnoRet"] = code
    scmp_arch, moby_arch = _MACHINES.get(arch, ("", arch))
    architectures = _architectures(profile, scmp_arch)
    if architectures:
        resolved["architectures"] = architectures
    resolved.update({key: profile[key] for key in _OCI_KEYS if profile.get(key)})
    resolved["syscalls"] = [
        _resolve_entry(entry, f"syscalls[{index}].")
        for index, entry in enumerate(entries)
        if _applies(entry, f"syscalls[{index}].", capabilities, moby_arch, kernel)
    ]
    return resolved


def _architectures(profile: dict[str, Any], native: str) -> list[str]:
    architectures = [name for _, name in _items(profile, "architectures")]
    if architectures and profile.get("archMap"):
        raise ConfigError("linux.seccomp.archMap", "cannot stand beside architectures")
    for field, entry in _items(profile, "archMap"):
        if native and _object(entry, field).get("architecture") == native:
            subs = [name for _, name in _items(entry, "subArchitectures", f"{field}.")]
            return [native, *subs]
    return architectures


def _applies(
    entry: dict[str, Any],
    prefix: str,
    capabilities: Collection[str],
    arch: str,
    version: tuple[int, int],
) -> bool:
    """Whether *entry*'s ``includes`` all hold and of its ``excludes`` none does."""
    excludes = _object(entry.get("excludes") or {}, f"{prefix}excludes")
    includes = _object(entry.get("includes") or {}, f"{prefix}includes")

    def names(filters: dict[str, Any], key: str, where: str) -> list[str]:
        items = _items(filters, key, f"{prefix}{where}.")
        return [_string({field: name}, field) for field, name in items]

    if arch in names(excludes, "arches", "excludes"):
        return False
    if any(name in capabilities for name in names(excludes, "caps", "excludes")):
        return False
    if excludes.get("minKernel") and version >= _version(excludes, f"{prefix}excludes"):
        return False
    arches = names(includes, "arches", "includes")
    if arches and arch not in arches:
        return False
    if not all(name in capabilities for name in names(includes, "caps", "includes")):
        return False
    return not includes.get("minKernel") or version >= _version(includes, f"{prefix}includes")


def _version(filters: dict[str, Any], field: str) -> tuple[int, int]:
    text = filters["minKernel"]
    parts = text.split(".") if isinstance(text, str) else []
    if len(parts) < 2 or not all(map(_is_small_number, parts[:2])):
        raise ConfigError(
            f"linux.seccomp.{field}.minKernel", f"expected a version as '4.8', found {text!r}"
        )
    return int(parts[0]), int(parts[1])


def _resolve_entry(entry: dict[str, Any], prefix: str) -> dict[str, Any]:
    if entry.get("name") and entry.get("names"):
        raise ConfigError(f"linux.seccomp.{prefix}name", "cannot stand beside names")
    resolved: dict[str, Any] = {
        "names": [entry["name"]] if entry.get("name") else entry.get("names"),
        "action": _string(entry, "action", prefix),
    }
    code = _errno(entry, "errno", "errnoRet", prefix)
    # podman writes the code beside every action; OCI only knows it beside these.
    if code is not None and resolved["action"] in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        resolved["errnoRet"] = code
    if entry.get("args"):
        resolved["args"] = entry["args"]
    return resolved


def _errno(obj: dict[str, Any], name_key: str, number_key: str, prefix: str) -> Any:
    """Return podman's errno by name where there is one, else the number."""
    name = obj.get(name_key)
    if not name:
        return obj.get(number_key)
    if isinstance(name, str):
        if _is_small_number(name):
            return int(name)
        if name in errno.errorcode.values():
            return getattr(errno, name)
    raise ConfigError(f"linux.seccomp.{prefix}{name_key}", f"unknown errno {name!r}")


def _is_small_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 5


def default_profile(
    capabilities: Collection[str], *, arch: str = "", kernel: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """Return the packaged default profile as an OCI ``linux.seccomp``.

    Args:
        capabilities: names in the container's bounding set.
        arch: the machine, by default the running one.
        kernel: major and minor version, by default the running kernel's.
    """
    import json

    machine, version = machine_and_kernel()
    with open(PROFILE, encoding="utf-8") as file:
        profile = json.load(file)
    return resolve_profile(
        profile,
        capabilities=capabilities,
        arch=arch or machine,
        kernel=kernel if any(kernel) else version,
    )


# --- compiling ------------------------------------------------------------------------


def filter_flags(seccomp: dict[str, Any]) -> int:
    """Return the ``SECCOMP_FILTER_FLAG_*`` bits to load an OCI ``linux.seccomp`` with.

    Raises:
        ConfigError: a flag is unknown or cannot be had without ``SCMP_ACT_NOTIFY``.
    """
    flags = 0
    for field, name in _items(seccomp, "flags"):
        if not isinstance(name, str) or name not in _FLAGS:
            raise ConfigError(f"linux.seccomp.{field}", f"unknown flag {name!r}")
        flags |= _FLAGS[name]
    notify = any(
        _object(entry, field).get("action") == "SCMP_ACT_NOTIFY"
        for field, entry in _items(seccomp, "syscalls")
    )
    if notify:
        flags |= linux_seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER
        if flags & linux_seccomp.SECCOMP_FILTER_FLAG_TSYNC:
            # Both use the result, so the kernel takes the pair only with this third.
            flags |= linux_seccomp.SECCOMP_FILTER_FLAG_TSYNC_ESRCH
    elif flags & linux_seccomp.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV:
        raise ConfigError(
            "linux.seccomp.flags",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY",
        )
    return flags


def compile_oci(seccomp: dict[str, Any]) -> bytes:
    """Compile an OCI ``linux.seccomp`` for this machine.

    As in runc and crun: names that libseccomp doesn't know are skipped; the
    native architecture is always covered; conditions of which several are on
    one argument become a rule each; and where the default action is
    ``SCMP_ACT_ERRNO``, calls newer than any that the profile names get ENOSYS.

    Returns:
        The program as ``struct sock_filter[]``; load it with :func:`filter_flags`.

    Raises:
        ConfigError: a field is malformed, or libseccomp cannot express it.
        Unsupported: libseccomp is not installed.
    """
    from firkin.linux import libseccomp

    if not isinstance(seccomp, dict):
        raise ConfigError("linux.seccomp", "expected an object")
    filter_flags(seccomp)
    default = _action(seccomp, "defaultAction", "defaultErrnoRet", "")
    if default == libseccomp.SCMP_ACT_NOTIFY:
        raise ConfigError(
            "linux.seccomp.defaultAction",
            "SCMP_ACT_NOTIFY would stop the container before its listener is handed on",
        )
    tokens = {libseccomp.native(): None}  # a dict for an ordered set
    for field, name in _items(seccomp, "architectures"):
        token = libseccomp.arch(name) if isinstance(name, str) else None
        if token is None:
            raise ConfigError(
                f"linux.seccomp.{field}",
                f"libseccomp {libseccomp.version()} does not know the architecture {name!r}",
            )
        tokens[token] = None
    largest: dict[int, int] = {}
    calls = 0
    field = "defaultAction"
    try:
        with libseccomp.Context(default) as context:
            field = "architectures"
            for token in tokens:
                context.arch_add(token)
            for field, entry in _items(seccomp, "syscalls"):
                for name in _add_rules(context, _object(entry, field), f"{field}.", default):
                    calls += 1
                    for token in tokens:
                        number = libseccomp.syscall_on(token, name) or 0
                        largest[token] = max(number, largest.get(token, 0))
            field = "syscalls"
            # Up to 2.5.4 a tree without rules is broken (runc), and for a few a
            # list is as fast.
            if calls > 32:
                context.binary_tree()
            program = context.export()
    except OSError as error:
        raise ConfigError(f"linux.seccomp.{field}", str(error.strerror)) from None
    errno_default = default & ~0xFFFF == libseccomp.SCMP_ACT_ERRNO
    if errno_default and default & 0xFFFF != errno.ENOSYS:
        named = {token: number for token, number in largest.items() if number}
        program = libseccomp.enosys_stub(named) + program
    count = len(program) // linux_seccomp.INSTRUCTION_SIZE
    if count > linux_seccomp.BPF_MAXINSNS:
        raise ConfigError(
            "linux.seccomp.syscalls",
            f"compiles to {count} instructions, and the kernel takes {linux_seccomp.BPF_MAXINSNS}",
        )
    return program


def _add_rules(context: Context, entry: dict[str, Any], prefix: str, default: int) -> list[str]:
    """Add the rules of one entry of ``syscalls`` and return the names it has."""
    from firkin.linux import libseccomp

    action = _action(entry, "action", "errnoRet", prefix)
    names = []
    for field, name in _items(entry, "names", prefix):
        # A zero byte would end the name early on its way into the library.
        if not isinstance(name, str) or not name.isascii() or not name.isprintable() or not name:
            raise ConfigError(f"linux.seccomp.{field}", f"expected a system call, found {name!r}")
        names.append(name)
    if not names:
        raise ConfigError(f"linux.seccomp.{prefix}names", "expected at least one system call")
    conditions = [
        _condition(_object(arg, field), f"{field}.") for field, arg in _items(entry, "args", prefix)
    ]
    rules = [conditions]
    if len({condition[0] for condition in conditions}) < len(conditions):
        # libseccomp takes one condition an argument. runc and crun then let any
        # one of the conditions do, and profiles in the wild rely on that.
        rules = [[condition] for condition in conditions]
    if action == default:
        return names  # libseccomp refuses rules that change nothing
    for number in map(libseccomp.syscall, names):
        if number is not None:
            for rule in rules:
                context.rule_add(action, number, rule)
    return names


def _action(obj: dict[str, Any], key: str, errno_key: str, prefix: str) -> int:
    """Return the action under *key* with its errno, as libseccomp wants it."""
    from firkin.linux import libseccomp

    actions = {
        "SCMP_ACT_KILL": libseccomp.SCMP_ACT_KILL_THREAD,
        "SCMP_ACT_KILL_THREAD": libseccomp.SCMP_ACT_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS": libseccomp.SCMP_ACT_KILL_PROCESS,
        "SCMP_ACT_TRAP": libseccomp.SCMP_ACT_TRAP,
        "SCMP_ACT_ERRNO": libseccomp.SCMP_ACT_ERRNO,
        "SCMP_ACT_TRACE": libseccomp.SCMP_ACT_TRACE,
        "SCMP_ACT_LOG": libseccomp.SCMP_ACT_LOG,
        "SCMP_ACT_NOTIFY": libseccomp.SCMP_ACT_NOTIFY,
        "SCMP_ACT_ALLOW": libseccomp.SCMP_ACT_ALLOW,
    }
    # What libseccomp takes: an errno below the kernel's MAX_ERRNO, 16 bits for a tracer.
    limits = {"SCMP_ACT_ERRNO": 4094, "SCMP_ACT_TRACE": 0xFFFF}
    name = _string(obj, key, prefix)
    if name not in actions:
        raise ConfigError(f"linux.seccomp.{prefix}{key}", f"unknown action {name!r}")
    if name in limits:
        return actions[name] | _number(obj, errno_key, prefix, limits[name], errno.EPERM)
    if obj.get(errno_key) is not None:
        # The specification asks for this error.
        raise ConfigError(f"linux.seccomp.{prefix}{errno_key}", f"{name} takes no errno")
    return actions[name]


def _condition(arg: dict[str, Any], prefix: str) -> tuple[int, int, int, int]:
    from firkin.linux import libseccomp

    operator = _string(arg, "op", prefix)
    if operator not in libseccomp.SCMP_CMP:
        raise ConfigError(f"linux.seccomp.{prefix}op", f"unknown operator {operator!r}")
    return (
        _number(arg, "index", prefix, 5),
        libseccomp.SCMP_CMP[operator],
        _number(arg, "value", prefix, 2**64 - 1),
        _number(arg, "valueTwo", prefix, 2**64 - 1, 0),
    )


def _object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"linux.seccomp.{field}", "expected an object")
    return value


def _items(obj: dict[str, Any], key: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (field's path, element) of the list under *key*, which may be absent or null."""
    value = obj.get(key)
    if value is None:
        return
    if not isinstance(value, list):
        raise ConfigError(f"linux.seccomp.{prefix}{key}", "expected a list")
    for index, element in enumerate(value):
        yield f"{prefix}{key}[{index}]", element


def _string(obj: dict[str, Any], key: str, prefix: str = "") -> str:
    value = obj.get(key)
    if not isinstance(value, str):
        raise ConfigError(f"linux.seccomp.{prefix}{key}", f"expected a string, found {value!r}")
    return value


def _number(
    obj: dict[str, Any], key: str, prefix: str, limit: int, default: int | None = None
) -> int:
    value = obj.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 <= value <= limit:
        raise ConfigError(
            f"linux.seccomp.{prefix}{key}", f"expected a number from 0 to {limit}, found {value!r}"
        )
    return value
