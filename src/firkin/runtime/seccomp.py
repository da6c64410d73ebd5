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
import os
import stat
import struct
from time import time
from zlib import crc32

from firkin import __version__
from firkin.errors import ConfigError
from firkin.linux import seccomp as linux_seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import Any

    from firkin.linux.libseccomp import Context

# Raised whenever compile_oci makes another program from the same input.
CACHE_FORMAT = 1

PROFILE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "data", "seccomp.json")

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

_MAGIC = b"firkinB1"
_HEADER = struct.Struct("=8sII")  # magic, length of the program, crc32 of name and program
_MAX_FILE = _HEADER.size + linux_seccomp.BPF_MAXINSNS * linux_seccomp.INSTRUCTION_SIZE
_TEMPORARY = ".tmp-"
_TEMPORARY_AGE = 3600  # seconds after which a temporary file's writer is dead
_UNUSED_AGE = 90 * 86400  # seconds after which an entry may be of a version long gone


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

    machine, version = _machine()
    with open(PROFILE, encoding="utf-8") as file:
        profile = json.load(file)
    return resolve_profile(
        profile,
        capabilities=capabilities,
        arch=arch or machine,
        kernel=kernel if any(kernel) else version,
    )


def _machine() -> tuple[str, tuple[int, int]]:
    """Return the machine and the kernel's major and minor version."""
    uname = os.uname()
    major, minor = uname.release.split(".")[:2]
    # "6.1" of "6.1-rc2": the minor version can carry a suffix.
    digits = len(minor) - len(minor.lstrip("0123456789"))
    return uname.machine, (int(major), int(minor[:digits]))


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


# --- the cache ------------------------------------------------------------------------


def cached_default(capabilities: Collection[str] | int, cache_dirs: Sequence[str]) -> bytes:
    """Return the default profile's program, from the first cache that has it.

    The name of the cache's file holds everything the program depends on but
    the version of libseccomp, which only decides how many names are known.

    Args:
        capabilities: the bounding set, as names or as a mask.
        cache_dirs: folders in the order of preference; one that others can
            write to is not used. On a miss the first that can be written gets
            the program.

    Raises:
        Unsupported: a miss, and libseccomp is not installed.
    """
    if isinstance(capabilities, int):
        mask = capabilities
    else:
        from firkin.linux import caps

        mask = caps.mask(capabilities)

    def compile_default() -> bytes:
        from firkin.linux import caps

        return compile_oci(default_profile(caps.names(mask)))

    profile = os.stat(PROFILE)
    name = f"default-{profile.st_size:x}-{profile.st_mtime_ns:x}-{mask:x}-{_suffix()}"
    return _cached(name, cache_dirs, compile_default)


def cached(seccomp: dict[str, Any], cache_dir: str) -> bytes:
    """Return the program of an OCI ``linux.seccomp``, from the cache if it is there.

    Raises:
        ConfigError, Unsupported: as :func:`compile_oci`.
    """
    import hashlib
    import json

    text = json.dumps(seccomp, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return _cached(f"oci-{digest}-{_suffix()}", [cache_dir], lambda: compile_oci(seccomp))


def _suffix() -> str:
    machine, (major, minor) = _machine()
    return f"{machine}-{major}.{minor}-{__version__}-{CACHE_FORMAT}.bpf"


def _cached(name: str, cache_dirs: Sequence[str], compile_it: Callable[[], bytes]) -> bytes:
    for path in cache_dirs:
        found = _lookup(path, name)
        if found is not None:
            return found
    program = compile_it()
    for path in cache_dirs:
        if _store(path, name, program):
            break
    return program


def _ours(status: os.stat_result) -> bool:
    """Whether nobody but us can have written this file or folder."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _open_folder(path: str) -> int | None:
    """Open a cache's folder; None where it isn't there or is not ours alone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    if _ours(os.fstat(fd)):
        return fd
    os.close(fd)
    return None


def _checksum(name: str, program: bytes) -> int:
    # With the name, so that a file under another's name is not taken for it.
    return crc32(program, crc32(os.fsencode(name)))


def _lookup(path: str, name: str) -> bytes | None:
    """Return the program in a cache's folder, None for anything but a sound one."""
    folder = _open_folder(path)
    if folder is None:
        return None
    try:
        # O_NONBLOCK: opening a FIFO must not hang before fstat has refused it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=folder)
    except OSError:
        return None
    finally:
        os.close(folder)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _ours(status):
            return None
        data = os.read(fd, _MAX_FILE + 1)
    except OSError:
        return None
    finally:
        os.close(fd)
    if len(data) < _HEADER.size:
        return None
    magic, length, checksum = _HEADER.unpack_from(data)
    program = data[_HEADER.size :]
    sound = magic == _MAGIC and length == len(program) and checksum == _checksum(name, program)
    return program if sound and length else None


def _store(path: str, name: str, program: bytes) -> bool:
    """Put *program* into a cache's folder; False where that cannot be.

    A cache that is full, read-only or not ours costs time, not the start.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError:
        return False
    folder = _open_folder(path)
    if folder is None:
        return False
    temporary = f"{_TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}"
    try:
        _sweep(folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            header = _HEADER.pack(_MAGIC, len(program), _checksum(name, program))
            # Not synced: a file torn by a crash is found by its next reader.
            whole = os.write(fd, header + program) == len(header) + len(program)
        except OSError:
            whole = False
        finally:
            os.close(fd)
        if whole:
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            os.unlink(temporary, dir_fd=folder)
        return whole
    except OSError:
        return False
    finally:
        os.close(folder)


def _sweep(folder: int) -> None:
    """Remove what writers that died and versions long gone left in a cache's folder."""
    now = time()
    with os.scandir(folder) as entries:
        for entry in entries:
            temporary = entry.name.startswith(_TEMPORARY)
            if not temporary and not entry.name.endswith(".bpf"):
                continue
            limit = _TEMPORARY_AGE if temporary else _UNUSED_AGE
            try:
                if now - entry.stat(follow_symlinks=False).st_mtime > limit:
                    os.unlink(entry.name, dir_fd=folder)
            except FileNotFoundError:
                pass  # another writer sweeps too
