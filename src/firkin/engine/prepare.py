"""From a request to everything that a start needs: image, ids, files, configuration.

:func:`prepare` makes what must exist on disk, each thing on the container's
record first; :func:`describe` only composes, for ``firkin spec``.
"""

from __future__ import annotations

import os
import stat

from firkin.engine import compose, resources
from firkin.errors import SetupError, Unsupported, UsageError
from firkin.image import hostbase, reference, store, users
from firkin.linux import caps, ns, paths, signals
from firkin.runtime import cgroups, seccomp, state
from firkin.spec import defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from firkin.engine.request import Mount, Request, Source
    from firkin.runtime.cgroups import Layout
    from firkin.runtime.idmap import IdMaps, Mapping

# File systems whose folders overlayfs does not take as an upper layer: overlay,
# NFS, FUSE, CIFS, 9p, FAT, squashfs (statfs(2), overlayfs.rst).
_NOT_UPPER = frozenset(
    (0x794C7630, 0x6969, 0x65735546, 0xFF534D42, 0xFE534D42, 0x01021997, 0x4D44, 0x73717368)
)


class Prepared:
    """A container that is ready to be compiled and started.

    Attributes:
        config: the OCI configuration.
        bundle: the folder that its relative paths start from.
        maps: the ids of its new user namespace, or None.
        lower: the image's folder, where it has to be mounted with its ids
            mapped by the caller; empty where it need not.
        seccomp: the compiled filter, or None.
        seccomp_flags: the flags to load it with.
        layout: this machine's cgroups.
        cgroup_path: OCI's ``linux.cgroupsPath``.
        lock: a descriptor that keeps the image in the store while the
            container lives, or -1.
    """

    __slots__ = (
        "bundle",
        "cgroup_path",
        "config",
        "layout",
        "lock",
        "lower",
        "maps",
        "seccomp",
        "seccomp_flags",
    )

    def __init__(self, layout: Layout) -> None:
        self.config: dict[str, Any] = {}
        self.bundle = "/"
        self.maps: IdMaps | None = None
        self.lower = ""
        self.seccomp: bytes | None = None
        self.seccomp_flags = 0
        self.layout = layout
        self.cgroup_path = ""
        self.lock = -1


class _Image:
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


def new_id() -> str:
    """Return a new container id, as Docker's: 64 hexadecimal digits."""
    return os.urandom(32).hex()


def user_maps(request: Request) -> IdMaps | None:
    """Return the id maps of the user namespace that *request* needs, or None for none.

    Raises:
        Unsupported: it needs one and there are no ids for it, or it needs none
            and the caller is an ordinary user.
    """
    mode = request.userns[0] if request.userns else ""
    uid = os.geteuid()
    if mode == "path":
        return _joined_maps(request.userns[1] if request.userns else "")
    if mode == "host" or (not mode and uid == 0):
        if uid != 0:
            raise Unsupported(
                "cannot run without a user namespace",
                "an ordinary user has no rights over the other namespaces",
                "leave out --userns host",
            )
        return None
    from firkin.runtime import idmap

    return idmap.choose(mode or "auto", uid, os.getegid())


def _joined_maps(path: str) -> IdMaps:
    from firkin.runtime import idmap

    try:
        return idmap.of_namespace(path)
    except OSError as error:
        raise UsageError(
            f"cannot set --userns to '{path}'",
            error.strerror or str(error),
            "only its owner's rights allow to join it, and it must not be the caller's own",
        ) from None


def remove_scratch(path: str, maps: IdMaps | None) -> None:
    """Remove the scratch folder *path*, whoever of *maps* owns what is in it."""
    try:
        store.remove_tree(path)
    except PermissionError:
        if maps is None or maps.is_single():
            raise
        from firkin.runtime import idmap

        idmap.run_mapped(maps, lambda: store.remove_tree(path))


def prepare(request: Request, record: state.State) -> Prepared:
    """Make everything for *request*, and note on *record* what a sweep must remove.

    Raises:
        FirkinError: what can't be had, and why.
    """
    if request.bundle is not None:
        return _bundle(request, record.id)
    _find_namespaces(request)
    maps = user_maps(request)
    image = _find_image(request, maps)
    layout = cgroups.detect()
    scratch = _make_scratch(record, image, maps)
    # Root's own files are nobody's in a user namespace of other ids: the image is
    # mounted with its ids mapped, at a folder that the container's root can reach.
    mapped = maps is not None and os.geteuid() == 0
    root = _root(image, scratch, in_userns=maps is not None, mapped=mapped)
    _fill_mounts(request, scratch, maps if mapped else None)
    config = _compose(request, record.id, image, root, maps, layout)
    if maps is not None and not mapped:
        _make_targets(image.layers[0], os.path.join(scratch, "upper"), config)
    root_ids = (maps.uids[0][1], maps.gids[0][1]) if maps is not None and mapped else None
    _write_etc(request, scratch, config, root_ids)
    prepared = Prepared(layout)
    prepared.config = config
    prepared.maps = maps
    prepared.lock = image.lock
    prepared.lower = image.layers[0] if mapped else ""
    prepared.cgroup_path = config["linux"].get("cgroupsPath") or _cgroup_path(record.id)
    _load_seccomp(prepared, request, config)
    return prepared


def describe(request: Request) -> dict[str, Any]:
    """Return the configuration that ``firkin run`` would compose, with its seccomp profile.

    Raises:
        FirkinError: as :func:`prepare`.
    """
    _find_namespaces(request)
    maps = user_maps(request)
    image = _find_image(request, maps)
    layout = cgroups.detect()
    container_id = request.name or new_id()
    scratch = os.path.join(store.default_path(), "containers", container_id)
    # Who runs it makes no folders for an overlay: the image itself is the root, as in
    # any bundle. What is not the caller's own folder is not theirs to write to.
    binds = [defaults.mount(where, "bind", what, "rbind", "ro") for what, where in image.overlays]
    for number, mount in enumerate(m for m in request.mounts if m.kind == "overlay"):
        _set_layers(mount, scratch, number)
    root = compose.Root(image.layers[0], binds, [])
    config = _compose(request, container_id, image, root, maps, layout)
    what = reference.parse(request.image or "")
    if what.kind != "path" or not os.path.isdir(what.value):
        config["root"]["readonly"] = True
    profile = compose.seccomp_profile(request)
    if profile == "default":
        bounding = config["process"]["capabilities"]["bounding"]
        config["linux"]["seccomp"] = seccomp.default_profile(bounding)
    elif profile != "unconfined":
        config["linux"]["seccomp"] = _profile(profile, config)
    return config


def _find_image(request: Request, maps: IdMaps | None) -> _Image:
    what = reference.parse(request.image or "")
    store_path = store.default_path()
    if what.kind == "host":
        base = hostbase.prepare(store_path)
        return _Image([base.lower], base.overlays, base.lock)
    if what.kind == "scratch":
        empty = os.path.join(store_path, "scratch")
        store.ensure_directory(store_path)
        store.ensure_directory(empty)
        os.chmod(empty, 0o755)
        return _Image([empty])
    path = os.path.abspath(what.value)
    if not os.path.lexists(path):
        raise UsageError(f"cannot use image '{what.value}'", "no such file or folder")
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
            raise UsageError(f"cannot use image '{what.value}'", "Permission denied")
        return _Image([os.path.realpath(path)])
    if maps is None or os.geteuid() == 0 or maps.is_single():
        return _Image([store.Store(store_path, unpack_in=_interruptible).unpacked(path)])
    from firkin.runtime import idmap

    # Unpacked by the ids of the container, so that each file has its owner.
    owners = "".join(f"u{a}x{b}x{n}" for a, b, n in maps.uids)
    unpacked = store.Store(
        store_path,
        unpack_in=lambda function: _interruptible(lambda: idmap.run_mapped(maps, function)),
        owners=owners,
    )
    return _Image([unpacked.unpacked(path)])


def _interruptible(function: Callable[[], None]) -> None:
    """Call *function*, which may take long, with the signals that end programs let through.

    They are blocked for the sake of a container that runs; there is none yet.
    """
    blocked = signals.block(())
    ending = (signals.SIGINT, signals.SIGTERM, signals.SIGHUP, signals.SIGQUIT)
    signals.set_mask(blocked & ~signals.mask_of(ending))
    try:
        function()
    finally:
        signals.set_mask(blocked)


def _scratch_directory() -> str:
    """Return the folder for what containers write, on a file system that overlayfs takes."""
    path = store.default_path()
    store.ensure_directory(path)
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
    store.ensure_directory(containers)
    return containers


def _filesystem(path: str) -> int:
    """Return the magic number of the file system that *path* is on; statfs(2)."""
    import ctypes

    from firkin.linux import libc

    buffer = ctypes.create_string_buffer(256)
    statfs = libc.function("statfs", ctypes.c_char_p, ctypes.c_char_p)
    libc.call("statfs", statfs, os.fsencode(path), buffer, path=path, shown=(path,))
    return int.from_bytes(buffer.raw[:4], "little")


def _make_scratch(record: state.State, image: _Image, maps: IdMaps | None) -> str:
    scratch = os.path.join(_scratch_directory(), record.id)
    record.record_scratch(scratch, maps)
    names = ["upper", "work", *_overlay_folders(image)]
    mapped = maps is not None and os.geteuid() == 0
    try:
        os.mkdir(scratch, 0o711)
        if mapped:
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


def _set_layers(mount: Mount, scratch: str, number: int) -> None:
    """Give an overlay volume private upper and work folders, unless it has its own."""
    if not mount.upper:
        mount.upper = os.path.join(scratch, f"volume-upper{number}")
        mount.work = os.path.join(scratch, f"volume-work{number}")


def _fill_mounts(request: Request, scratch: str, owner: IdMaps | None) -> None:
    """Make what volumes need on the host: folders of overlays, missing sources of ``-v``."""
    number = 0
    for mount in request.mounts:
        if mount.kind == "overlay":
            private = not mount.upper
            _set_layers(mount, scratch, number)
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


def _overlay_folders(image: _Image) -> list[str]:
    return [
        f"{kind}{number}" for number in range(len(image.overlays)) for kind in ("upper", "work")
    ]


def _escape(path: str) -> str:
    """Escape what overlayfs's options take for separators."""
    for special in ("\\", ":", ","):
        path = path.replace(special, "\\" + special)
    return path


def _root(image: _Image, scratch: str, *, in_userns: bool, mapped: bool) -> compose.Root:
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


def _compose(
    request: Request,
    container_id: str,
    image: _Image,
    root: compose.Root,
    maps: IdMaps | None,
    layout: Layout,
) -> dict[str, Any]:
    uid, gid = os.geteuid(), os.getegid()
    machine = compose.Machine(
        container_id,
        rootless=uid != 0,
        uid=uid,
        gid=gid,
        uid_mappings=_oci_maps(maps.uids) if maps else None,
        gid_mappings=_oci_maps(maps.gids) if maps else None,
        cgroup_version=2 if layout.version == "v2" else 1,
        terminal=os.environ.get("TERM", ""),
        hostname=os.uname().nodename,
        capabilities=caps.NAMES if maps else caps.names(_own_capabilities()),
        devices=resources.look_up_devices(request),
        recursive_read_only=_kernel() >= (5, 12),
        swap_limit=_has_swap_limit(layout),
        masked_paths=_thermal_throttle(),
    )
    user = _user(request, image)
    return compose.compose(request, root, machine, user)


def _oci_maps(mappings: list[Mapping]) -> list[dict[str, int]]:
    return [{"containerID": a, "hostID": b, "size": n} for a, b, n in mappings]


def _own_capabilities() -> int:
    """Return the mask of what we may hand on: root inside another container has not all."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapPrm:"):
                return int(line.split()[1], 16)
    return 0


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _has_swap_limit(layout: Layout) -> bool:
    hierarchy = layout.controllers.get("memory")
    if hierarchy is None:
        return False
    name = "memory.memsw.limit_in_bytes" if hierarchy.version == 1 else "memory.swap.max"
    # v2's root has no limits of its own: any other cgroup tells, so ask our own.
    own = os.path.join(hierarchy.mount, name)
    return os.path.exists(own) or (hierarchy.version == 2 and os.path.exists("/proc/swaps"))


def _thermal_throttle() -> list[str]:
    """Paths that tell of the host's load (GHSA-6fw5-f8r9-fgfm), one a processor."""
    base = "/sys/devices/system/cpu"
    if not os.path.isdir(f"{base}/cpu0/thermal_throttle"):
        return []
    return [
        f"{base}/{name}/thermal_throttle"
        for name in os.listdir(base)
        if name[:3] == "cpu" and name[3:].isdigit()
    ]


def _user(request: Request, image: _Image) -> users.User:
    keeps_id = request.userns is not None and request.userns[0] == "keep-id"
    own = f"{os.geteuid()}:{os.getegid()}" if keeps_id else "0"
    root = os.open(image.layers[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        user = users.lookup_user(root, request.user or own)
        for group in request.group_add:
            gid = users.lookup_user(root, f"0:{group}").gid
            if gid not in user.groups:
                user.groups.append(gid)
    finally:
        os.close(root)
    return user


# The option, the request's field, and the kernel's name of what it chooses.
_NAMESPACES = (
    ("--pid", "pid", "pid"),
    ("--ipc", "ipc", "ipc"),
    ("--uts", "uts", "uts"),
    ("--net", "network", "net"),
    ("--cgroupns", "cgroupns", "cgroup"),
    ("--userns", "userns", "user"),
)


def _find_namespaces(request: Request) -> None:
    """Turn ``container:ID`` into the path of that container's namespace, and check all paths."""
    for option, field, file in _NAMESPACES:
        source: Source | None = getattr(request, field)
        if source is None or source[0] not in ("container", "path"):
            continue
        path = source[1]
        if source[0] == "container":
            pid = state.find_pid(state.default_directory(), path)
            path = f"/proc/{pid}/ns/{file}"
            setattr(request, field, ("path", path))
        flag = next(flag for _, name, flag in ns.NAMESPACES if name == file)
        try:
            os.close(ns.open_namespace(path, flag))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(f"cannot set {option} to '{path}'", why or "") from None


def _cgroup_path(container_id: str) -> str:
    # Root's from the top, where no one else's limits are in the way; an ordinary
    # user's in what was delegated, which is around their own.
    name = f"firkin-{container_id}"
    return f"/{name}" if os.geteuid() == 0 else name


def _make_targets(lower: str, upper: str, config: dict[str, Any]) -> None:
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


def _write_etc(
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


def _load_seccomp(prepared: Prepared, request: Request, config: dict[str, Any]) -> None:
    profile = compose.seccomp_profile(request)
    if profile == "unconfined":
        return
    bounding = config["process"]["capabilities"]["bounding"]
    cache = os.path.join(store.default_path(), "seccomp")
    store.ensure_directory(cache)
    if profile == "default":
        prepared.seccomp = seccomp.cached_default(bounding, [cache])
        return
    resolved = _profile(profile, config)
    prepared.seccomp = seccomp.cached(resolved, cache)
    prepared.seccomp_flags = seccomp.filter_flags(resolved)


def _profile(path: str, config: dict[str, Any]) -> dict[str, Any]:
    """Read the seccomp profile *path*, as Docker's ``--security-opt seccomp=`` takes it."""
    import json

    try:
        with open(path, "rb") as file:
            profile = json.loads(file.read(16 << 20))
    except OSError as error:
        raise UsageError(f"cannot use seccomp profile '{path}'", str(error.strerror)) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"cannot use seccomp profile '{path}'", f"not JSON: {error}") from None
    if not isinstance(profile, dict):
        raise UsageError(f"cannot use seccomp profile '{path}'", "not a JSON object")
    return seccomp.resolve_profile(
        profile,
        capabilities=config["process"]["capabilities"]["bounding"],
        arch=os.uname().machine,
        kernel=_kernel(),
    )


def _bundle(request: Request, container_id: str) -> Prepared:
    """Read and validate the configuration of an OCI bundle."""
    from firkin.spec import validate

    bundle = request.bundle or ""
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            data = file.read((16 << 20) + 1)
    except OSError as error:
        raise UsageError(f"cannot read '{path}'", str(error.strerror)) from None
    config = validate.parse(data, path)
    validate.validate(config)
    prepared = Prepared(cgroups.detect())
    prepared.config = config
    prepared.bundle = bundle
    linux = config.get("linux") or {}
    if any(n["type"] == "user" and not n.get("path") for n in linux.get("namespaces") or ()):
        from firkin.runtime import idmap

        prepared.maps = idmap.IdMaps(
            *(
                [(m["containerID"], m["hostID"], m["size"]) for m in linux.get(kind) or ()]
                for kind in ("uidMappings", "gidMappings")
            )
        )
    prepared.cgroup_path = linux.get("cgroupsPath") or _cgroup_path(container_id)
    profile = linux.get("seccomp")
    if profile:
        cache = os.path.join(store.default_path(), "seccomp")
        store.ensure_directory(store.default_path())
        store.ensure_directory(cache)
        prepared.seccomp = seccomp.cached(profile, cache)
        prepared.seccomp_flags = seccomp.filter_flags(profile)
    return prepared
