"""The reserved image *host*: this machine's own programs, and nothing else of it.

``/usr``, ``/opt`` and, where they are directories of their own, ``/bin``, ``/sbin``
and ``/lib*`` are shared read-only. Everything else is a *skeleton* in the store: the
links of the host's root, empty directories, and an ``/etc`` with what programs
need to run (loader cache, alternatives, certificates, name service, time zone)
and a passwd file of its own. Of the host's ``/etc`` only what everybody may read
is taken, and only what is listed here.

::

    <store>/host/current        the skeleton in use, and what it was made from
    <store>/host/<key>/         a skeleton; locked (shared) while a container uses it
    <store>/host/new            being made, under the lock of <store>/host/lock

``current`` lists each file that was copied with its times, so that a start needs
only to compare them. When one has changed, a new skeleton is made and those that
nobody uses are removed.
"""

from __future__ import annotations

import errno
import os
import stat

from firkin.errors import SetupError
from firkin.image import store

# Raised whenever the code below makes another skeleton from the same host.
_FORMAT = "firkin host base 1"

_ATTEMPTS = 10

_SHARED = ("usr", "opt")
# Links into /usr on a merged system, directories of their own on others.
_MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")

# What of /etc is copied, if it is there.
_ETC = (
    "alternatives", "bash.bashrc", "bashrc", "ca-certificates", "ca-certificates.conf",
    "crypto-policies", "debian_version", "fedora-release", "fonts", "gai.conf", "host.conf",
    "inputrc", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias", "locale.conf",
    "localtime", "lsb-release", "magic", "magic.mime", "mime.types", "nsswitch.conf",
    "os-release", "perl", "pki", "protocols", "redhat-release", "rpc", "services", "shells",
    "skel", "ssl", "system-release", "terminfo", "timezone", "xattr.conf",
)  # fmt: skip
# Those that carry a version in their names.
_ETC_PREFIXES = ("python3", "java", "ld-musl-")
# Never copied, whatever its mode says.
_SECRET = frozenset({"private"})

# Path, mode. Those below /etc are filled from the host.
_DIRECTORIES = (
    ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("media", 0o755), ("mnt", 0o755),
    ("proc", 0o555), ("root", 0o700), ("run", 0o755), ("run/lock", 0o1777), ("srv", 0o755),
    ("sys", 0o555), ("tmp", 0o1777), ("var", 0o755), ("var/cache", 0o755), ("var/lib", 0o755),
    ("var/local", 0o755), ("var/log", 0o755), ("var/mail", 0o755), ("var/opt", 0o755),
    ("var/spool", 0o755), ("var/tmp", 0o1777),
)  # fmt: skip
_LINKS = (("var/run", "../run"), ("var/lock", "../run/lock"), ("etc/mtab", "../proc/self/mounts"))
_FILES = (
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n"
        "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
        "bin:x:2:2:bin:/bin:/usr/sbin/nologin\n"
        "sys:x:3:3:sys:/dev:/usr/sbin/nologin\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nmail:x:8:\n"
        "utmp:x:43:\nstaff:x:50:\nusers:x:100:\nnogroup:x:65534:\n",
    ),
    (
        "etc/profile",
        'if [ "$(id -u)" -eq 0 ]; then\n'
        "  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        "else\n"
        "  PATH=/usr/local/bin:/usr/bin:/bin\n"
        "fi\n"
        "export PATH\n",
    ),
    # Filled for each container; here so that its overlay need not make them.
    ("etc/hostname", ""),
    ("etc/hosts", ""),
    ("etc/resolv.conf", ""),
)


class HostBase:
    """The *host* image, ready for a container.

    Attributes:
        lower: the skeleton's directory, to be the container's lower layer.
        overlays: (directory on the host, directory in the container), each to be
            shared read-only or under an overlay of its own.
        lock: a descriptor that keeps the skeleton from being swept; to be kept open
            as long as the container lives.
    """

    __slots__ = ("lock", "lower", "overlays")

    def __init__(self, lower: str, overlays: list[tuple[str, str]], lock: int) -> None:
        self.lower = lower
        self.overlays = overlays
        self.lock = lock


def prepare(store_path: str, root: str = "/") -> HostBase:
    """Return the *host* base, made anew if the host has changed.

    Args:
        store_path: the store's directory; made if missing.
        root: where the host's files are.

    Raises:
        UsageError: the store is not the caller's.
        SetupError: the skeleton cannot be made.
    """
    store.ensure_passable(store_path)
    base = f"{store_path}/host"
    top = root.rstrip("/")
    try:
        for _ in range(_ATTEMPTS):
            key, _, recorded = store.read_file(f"{base}/current").partition("\n")
            if not key or recorded != _state(top, _recorded_paths(recorded)):
                key = _make(base, top)
            held = store.lock(f"{base}/{key}", shared=True) if key else None
            # Between reading the name and locking it, it may have been swept; the
            # lock is then that of a file that store.lock made in its place.
            if held is not None:
                if stat.S_ISDIR(os.fstat(held).st_mode):
                    return HostBase(f"{base}/{key}", _overlays(top), held)
                os.unlink(f"{base}/{key}")
                os.close(held)
        raise OSError(errno.EAGAIN, "the host's files keep changing", f"{top}/etc")
    except OSError as error:
        raise SetupError(
            "cannot make the host base",
            error.strerror or str(error),
            step="hostbase",
            errno=error.errno or 0,
            path=str(error.filename or base),
        ) from None


def _overlays(top: str) -> list[tuple[str, str]]:
    return [(f"{top}/{name}", f"/{name}") for name in _SHARED + _MERGED if _is_directory(top, name)]


def _is_directory(top: str, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(f"{top}/{name}").st_mode)
    except FileNotFoundError:
        return False


def _state(top: str, below: list[str]) -> str:
    """Describe the host as it is now: a line for each file that the skeleton comes from.

    Args:
        below: the paths of files below those of the list, as they were when copied. One
            that is new shows by its directory's times.
    """
    etc = os.listdir(f"{top}/etc")
    matching = sorted(name for name in etc if name.startswith(_ETC_PREFIXES))
    lines = [f"{_FORMAT} for {os.geteuid()}"]
    for path in [*_SHARED, *_MERGED, *(f"etc/{name}" for name in (*_ETC, *matching))]:
        lines.append(_line(top, path))
    lines.extend(_line(top, path) for path in below)
    return "\n".join(lines)


def _line(top: str, path: str) -> str:
    try:
        found = os.lstat(f"{top}/{path}")
    except OSError:
        return f"- {path}"
    if path in _SHARED or path in _MERGED:
        # Their contents are shared, not copied: only what they are counts.
        kind = stat.S_IFMT(found.st_mode)
        link = os.readlink(f"{top}/{path}") if stat.S_ISLNK(found.st_mode) else ""
        return f"{kind:o} {path} {link}"
    # ctime too: it tells of a chmod, and of a file with an old mtime moved into place.
    return f"{found.st_mode:o},{found.st_size},{found.st_mtime_ns},{found.st_ctime_ns} {path}"


def _recorded_paths(recorded: str) -> list[str]:
    """Return the paths in *recorded* that stand below those that are looked at anyway."""
    paths = []
    for line in recorded.split("\n"):
        path = line.partition(" ")[2]
        if path.startswith("etc/") and path.count("/") > 1:
            paths.append(path)
    return paths


def _make(base: str, top: str) -> str:
    """Make a skeleton of the host as it is, and return its name."""
    import hashlib

    store.ensure_directory(base)
    held = store.lock(f"{base}/lock")
    new = f"{base}/new"
    try:
        store.remove_tree(new)
        lines = [_state(top, [])]
        os.mkdir(new, 0o700)
        _fill(new, top, lines)
        recorded = "\n".join(lines)
        if recorded != _state(top, _recorded_paths(recorded)):
            return ""  # the host changed meanwhile; prepare() tries again
        key = hashlib.sha256(os.fsencode(recorded)).hexdigest()[:32]
        if os.path.isdir(f"{base}/{key}"):
            store.remove_tree(new)
        else:
            os.chmod(new, 0o755)
            os.rename(new, f"{base}/{key}")
        store.replace_file(f"{base}/current", f"{key}\n{recorded}", f"{base}/current.new")
        _sweep(base, key)
        return key
    finally:
        if held is not None:
            os.close(held)


def _sweep(base: str, current: str) -> None:
    """Remove the skeletons that no container uses."""
    store.remove_tree(f"{base}/old")
    for name in os.listdir(base):
        path = f"{base}/{name}"
        if name == current or not os.path.isdir(path):
            continue
        held = store.lock(path, wait=False)
        if held is not None:
            try:
                # Under another name first: half removed, it must not be taken for whole.
                os.rename(path, f"{base}/old")
                store.remove_tree(f"{base}/old")
            finally:
                os.close(held)


def _fill(new: str, top: str, lines: list[str]) -> None:
    for path, mode in _DIRECTORIES:
        os.mkdir(f"{new}/{path}")
        os.chmod(f"{new}/{path}", mode)
    for path, text in _LINKS:
        os.symlink(text, f"{new}/{path}")
    for path, text in _FILES:
        _write(f"{new}/{path}", text.encode(), 0o644)
    for name in _SHARED + _MERGED:
        try:
            text = os.readlink(f"{top}/{name}")
        except FileNotFoundError:
            continue
        except OSError:  # EINVAL: not a link
            os.mkdir(f"{new}/{name}")
            os.chmod(f"{new}/{name}", 0o755)
        else:
            os.symlink(text, f"{new}/{name}")
    for name in sorted(os.listdir(f"{top}/etc")):
        if name in _ETC or name.startswith(_ETC_PREFIXES):
            _copy(f"etc/{name}", new, top, lines)


def _copy(path: str, new: str, top: str, lines: list[str]) -> None:
    """Copy *path* if everybody may read it; describe what was looked at in *lines*."""
    source, target = f"{top}/{path}", f"{new}/{path}"
    try:
        found = os.lstat(source)
    except FileNotFoundError:
        return  # gone since it was listed; the directory's time tells
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(source), target)
        return
    if path.count("/") > 1:  # the others are in the list already
        lines.append(_line(top, path))
    if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o005 == 0o005:
        os.mkdir(target)
        for name in sorted(os.listdir(source)):
            if name not in _SECRET and "\n" not in name:
                _copy(f"{path}/{name}", new, top, lines)
        os.chmod(target, 0o755)
    elif stat.S_ISREG(found.st_mode) and found.st_mode & 0o004:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(source, flags), "rb") as file:
            _write(target, file.read(), 0o755 if found.st_mode & 0o001 else 0o644)


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, mode)
