"""The container's root file system: an image's layers, a scratch folder, overlays of both.

The scratch folder is the container's own: what it writes, and its hosts,
hostname and resolv.conf. It is on the record before it exists, and removed with
the container.

Source: overlayfs.rst, statfs(2).
"""

from __future__ import annotations

import ctypes
import os
import stat

from firkin.engine import compose
from firkin.errors import SetupError, Unsupported, UsageError
from firkin.image import reference, store
from firkin.linux import libc, paths, signals
from firkin.runtime import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from firkin.engine.request import Mount, Request
    from firkin.runtime.idmap import IdMaps

# File systems whose folders overlayfs does not take as an upper layer: overlay,
# NFS, FUSE, CIFS, 9p, FAT, squashfs (statfs(2), overlayfs.rst).
_NOT_UPPER = frozenset(
    (0x794C7630, 0x6969, 0x65735546, 0xFF534D42, 0xFE534D42, 0x01021997, 0x4D44, 0x73717368)
)


_statfs = libc.function("statfs", ctypes.c_char_p, ctypes.c_char_p)


class Image:
    """What IMAGE names, found.

    Args:
        layers: folders, the uppermost first.
        overlays: (folder of the host, folder in the container) below overlays of their own.
        lock: a descriptor that keeps it in the store, or -1.
    """

    __slots__ = ("layers", "lock", "overlays")

    def __init__(
        self, layers: list[str], overlays: list[tuple[str, str]] | None = None, lock: int = -1
    ) -> None:
        self.layers = layers
        self.overlays = overlays or []
        self.lock = lock


def find_image(request: Request, maps: IdMaps | None) -> Image:
    """Find what IMAGE names, unpacking it if it is an archive that nobody has unpacked yet.

    Args:
        request: what was asked for.
        maps: the ids of the container's user namespace; an ordinary user's
            archives are unpacked by these.

    Raises:
        UsageError: there is no such image, or it can't be read or unpacked.
    """
    what = reference.parse(request.image or "")
    store_path = store.default_path()
    if what.kind == "host":
        from firkin.image import hostbase

        base = hostbase.prepare(store_path)
        return Image([base.lower], base.overlays, base.lock)
    if what.kind == "scratch":
        empty = os.path.join(store_path, "scratch")
        store.ensure_passable(store_path)
        store.ensure_directory(empty)
        os.chmod(empty, 0o755)
        return Image([empty])
    path = os.path.abspath(what.value)
    if not os.path.lexists(path):
        raise UsageError(f"cannot use image '{what.value}'", "no such file or folder")
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
            raise UsageError(f"cannot use image '{what.value}'", "Permission denied")
        return Image([os.path.realpath(path)])
    if maps is None or os.geteuid() == 0 or maps.is_single():
        return Image([_interruptible(lambda: store.Store(store_path).unpacked(path))])
    from firkin.runtime import idmap

    # Unpacked by the ids of the container, so that each file has its owner.
    owners = "".join(f"u{a}x{b}x{n}" for a, b, n in maps.uids)
    mapped = store.Store(
        store_path, unpack_in=lambda function: idmap.run_mapped(maps, function), owners=owners
    )
    return Image([_interruptible(lambda: mapped.unpacked(path))])


def _interruptible(function: Callable[[], str]) -> str:
    """Call *function*, which may take long, with the signals that end programs let through.

    They are blocked for the sake of a container that runs; there is none yet.
    """
    blocked = signals.block(())
    ending = (signals.SIGINT, signals.SIGTERM, signals.SIGHUP, signals.SIGQUIT)
    signals.set_mask(blocked & ~signals.mask_of(ending))
    try:
        return function()
    finally:
        signals.set_mask(blocked)


def _scratch_directory() -> str:
    """Return the folder for what containers write, on a file system that overlayfs takes."""
    path = store.default_path()
    store.ensure_passable(path)
    if _filesystem(path) in _NOT_UPPER:
        directory = state.default_directory()
        if _filesystem(directory) in _NOT_UPPER:
            raise Unsupported(
                f"cannot keep containers' files in '{path}'",
                "its file system can't be the upper layer of an overlay",
                "set FIRKIN_STORE to a folder on ext4, xfs, btrfs or tmpfs",
            )
        path = state.prepare_directory(os.path.join(directory, ".scratch"))
    containers = os.path.join(path, "containers")
    store.ensure_passable(containers)
    return containers


def _filesystem(path: str) -> int:
    """Return the magic number of the file system that *path* is on; statfs(2)."""
    buffer = ctypes.create_string_buffer(256)
    libc.call("statfs", _statfs, os.fsencode(path), buffer, path=path, shown=(path,))
    return int.from_bytes(buffer.raw[:4], "little")


def make_scratch(record: state.State, image: Image, maps: IdMaps | None) -> str:
    """Make the container's folder, owned by its root; return its path.

    Raises:
        SetupError, Unsupported: it can't be made, or no overlay could use it.
    """
    scratch = os.path.join(_scratch_directory(), record.id)
    record.record_scratch(scratch, maps)
    names = ["upper", "work", *_overlay_folders(image)]
    mapped = maps is not None and os.geteuid() == 0
    try:
        # Closed to all but the container's root: others on the host must not execute
        # a set-user-ID program that a container made (CVE-2021-41091).
        os.mkdir(scratch, 0o700)
        if mapped and maps is not None:
            os.chown(scratch, maps.uids[0][1], maps.gids[0][1])
            names.append("rootfs")
        for name in names:
            path = os.path.join(scratch, name)
            # The upper folder is the root itself as the container sees it.
            os.mkdir(path, 0o755)
            if mapped and maps is not None:
                os.chown(path, maps.uids[0][1], maps.gids[0][1])
    except OSError as error:
        raise SetupError(
            f"cannot make the container's folder '{scratch}'", error.strerror or str(error)
        ) from error
    _copy_root_mode(image.layers[0], os.path.join(scratch, "upper"))
    return scratch


def set_layers(mount: Mount, scratch: str, number: int) -> None:
    """Give an overlay volume private upper and work folders, unless it has its own."""
    if not mount.upper:
        mount.upper = os.path.join(scratch, f"volume-upper{number}")
        mount.work = os.path.join(scratch, f"volume-work{number}")


def fill_mounts(request: Request, scratch: str, owner: IdMaps | None) -> None:
    """Make what volumes need on the host: folders of overlays, missing sources of ``-v``."""
    number = 0
    for mount in request.mounts:
        if mount.kind == "overlay":
            private = not mount.upper
            set_layers(mount, scratch, number)
            number += 1
            for path in (mount.upper, mount.work) if private else ():
                os.mkdir(path, 0o755)
                if owner is not None:
                    os.chown(path, owner.uids[0][1], owner.gids[0][1])
        elif mount.kind == "bind" and not os.path.lexists(mount.source):
            if mount.must_exist:
                raise UsageError(f"cannot mount '{mount.source}'", "no such file or folder")
            # As Docker does for -v; --mount refuses.
            try:
                os.makedirs(mount.source, 0o755)
            except OSError as error:
                raise UsageError(
                    f"cannot make the volume '{mount.source}'", error.strerror or str(error)
                ) from None


def _copy_root_mode(lower: str, upper: str) -> None:
    """Give the upper folder the mode of the image's root, which it hides."""
    mode = os.stat(lower).st_mode & 0o7777
    if mode != 0o755:
        os.chmod(upper, mode)


def _overlay_folders(image: Image) -> list[str]:
    return [
        f"{kind}{number}" for number in range(len(image.overlays)) for kind in ("upper", "work")
    ]


def _escape(path: str) -> str:
    """Escape what overlayfs's options take for separators."""
    for special in ("\\", ":", ","):
        path = path.replace(special, "\\" + special)
    return path


def root_of(image: Image, scratch: str, *, in_userns: bool, mapped: bool) -> compose.Root:
    """Return the mounts that make the root file system.

    Args:
        image: its layers.
        scratch: the container's folder.
        in_userns: the overlays are mounted in a user namespace.
        mapped: the image is mounted at ``rootfs`` in the scratch folder, with its ids mapped.
    """
    extra = ["volatile"]
    if in_userns:
        # trusted.* attributes belong to the host's root.
        extra.append("userxattr")

    def overlay(destination: str, lower: str, upper: str, work: str) -> dict[str, Any]:
        return {
            "destination": destination,
            "type": "overlay",
            "source": "overlay",
            "options": [
                f"lowerdir={lower}",
                f"upperdir={_escape(os.path.join(scratch, upper))}",
                f"workdir={_escape(os.path.join(scratch, work))}",
                *extra,
            ],
        }

    layers = [os.path.join(scratch, "rootfs")] if mapped else image.layers
    lower = ":".join(_escape(layer) for layer in layers)
    mounts = [overlay("/", lower, "upper", "work")]
    for number, (source, destination) in enumerate(image.overlays):
        mounts.append(overlay(destination, _escape(source), f"upper{number}", f"work{number}"))
    etc = [
        {
            "destination": f"/etc/{name}",
            "type": "bind",
            "source": os.path.join(scratch, name),
            "options": ["bind"],
        }
        for name in ("hosts", "hostname", "resolv.conf")
    ]
    return compose.Root(layers[0], mounts, etc)


def make_targets(lower: str, upper: str, config: dict[str, Any]) -> None:
    """Make the mount points that the image lacks, in the upper folder.

    The container's root could not, where the image belongs to somebody whose id
    has no place in the user namespace: such a folder can't be copied up.
    """
    fds = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in (lower, upper)]
    try:
        for entry in config["mounts"]:
            destination = entry["destination"]
            is_file = entry["type"] == "bind" and not os.path.isdir(entry["source"])
            if destination == "/" or not _is_missing(fds[0], destination):
                continue
            os.close(paths.make_in_root(fds[1], destination, "file" if is_file else "dir"))
    finally:
        for fd in fds:
            os.close(fd)


def _is_missing(root: int, path: str) -> bool:
    """Whether *path* is not there, and all above it that is there is plain folders."""
    folder = os.dup(root)
    try:
        for name in path.strip("/").split("/"):
            try:
                below = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            except FileNotFoundError:
                return True
            os.close(folder)
            folder = below
            if not stat.S_ISDIR(os.fstat(folder).st_mode):
                return False
        return False
    finally:
        os.close(folder)


def write_etc(
    request: Request, scratch: str, config: dict[str, Any], owner: tuple[int, int] | None
) -> None:
    """Write hosts, hostname and resolv.conf for the container."""
    hostname = config.get("hostname") or os.uname().nodename
    hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    if request.network[0] == "host":
        hosts = _read("/etc/hosts") or hosts
    elif request.network[0] in ("none", "private"):
        hosts += f"127.0.1.1\t{hostname}\n"
    hosts += "".join(f"{address}\t{name}\n" for name, address in request.add_hosts)
    resolv = "".join(f"nameserver {server}\n" for server in request.dns)
    texts = {
        "hosts": hosts,
        "hostname": f"{hostname}\n",
        "resolv.conf": resolv or _read("/etc/resolv.conf"),
    }
    for name, text in texts.items():
        path = os.path.join(scratch, name)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)
            if owner is not None:
                os.fchown(fd, *owner)
            os.write(fd, text.encode("utf-8", "surrogateescape"))
        finally:
            os.close(fd)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def remove_scratch(path: str, maps: IdMaps | None) -> None:
    """Remove the scratch folder *path*, whoever of *maps* owns what is in it."""
    try:
        store.remove_tree(path)
    except PermissionError:
        if maps is None or maps.is_single():
            raise
        from firkin.runtime import idmap

        idmap.run_mapped(maps, lambda: store.remove_tree(path))
