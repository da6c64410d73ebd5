"""From a request to everything that a start needs: image, ids, files, configuration.

:func:`prepare` makes what must exist on disk, each thing on the container's
record first; :func:`describe` only composes, for ``firkin spec``.
"""

from __future__ import annotations

import os

from firkin.engine import compose, resources, rootfs
from firkin.errors import Unsupported, UsageError
from firkin.image import reference, store, users
from firkin.linux import caps, ns
from firkin.runtime import cgroups, seccomp_cache, state
from firkin.spec import defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firkin.engine.request import Request, Source
    from firkin.runtime.cgroups import Layout
    from firkin.runtime.idmap import IdMaps, Mapping


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


def prepare(request: Request, record: state.State) -> Prepared:
    """Make everything for *request*, and note on *record* what a sweep must remove.

    Raises:
        FirkinError: what can't be had, and why.
    """
    if request.bundle is not None:
        return _bundle(request, record.id)
    _find_namespaces(request)
    maps = user_maps(request)
    image = rootfs.find_image(request, maps)
    layout = cgroups.detect()
    scratch = rootfs.make_scratch(record, image, maps)
    # Root's own files are nobody's in a user namespace of other ids: the image is
    # mounted with its ids mapped, at a folder that the container's root can reach.
    mapped = maps is not None and os.geteuid() == 0
    root = rootfs.root_of(image, scratch, in_userns=maps is not None, mapped=mapped)
    rootfs.fill_mounts(request, scratch, maps if mapped else None)
    config = _compose(request, record.id, image, root, maps, layout)
    if maps is not None and not mapped:
        rootfs.make_targets(image.layers[0], os.path.join(scratch, "upper"), config)
    root_ids = (maps.uids[0][1], maps.gids[0][1]) if maps is not None and mapped else None
    rootfs.write_etc(request, scratch, config, root_ids)
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
    image = rootfs.find_image(request, maps)
    layout = cgroups.detect()
    container_id = request.name or new_id()
    scratch = os.path.join(store.default_path(), "containers", container_id)
    # Who runs it makes no folders for an overlay: the image itself is the root, as in
    # any bundle. What is not the caller's own folder is not theirs to write to.
    binds = [defaults.mount(where, "bind", what, "rbind", "ro") for what, where in image.overlays]
    for number, mount in enumerate(m for m in request.mounts if m.kind == "overlay"):
        rootfs.set_layers(mount, scratch, number)
    root = compose.Root(image.layers[0], binds, [])
    config = _compose(request, container_id, image, root, maps, layout)
    what = reference.parse(request.image or "")
    if what.kind != "path" or not os.path.isdir(what.value):
        config["root"]["readonly"] = True
    profile = compose.seccomp_profile(request)
    if profile == "default":
        bounding = config["process"]["capabilities"]["bounding"]
        from firkin.runtime import seccomp

        config["linux"]["seccomp"] = seccomp.default_profile(bounding)
    elif profile != "unconfined":
        config["linux"]["seccomp"] = _profile(profile, config)
    return config


def _compose(
    request: Request,
    container_id: str,
    image: rootfs.Image,
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


def _user(request: Request, image: rootfs.Image) -> users.User:
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


def _load_seccomp(prepared: Prepared, request: Request, config: dict[str, Any]) -> None:
    profile = compose.seccomp_profile(request)
    if profile == "unconfined":
        return
    bounding = config["process"]["capabilities"]["bounding"]
    cache = os.path.join(store.default_path(), "seccomp")
    store.ensure_directory(cache)
    if profile == "default":
        prepared.seccomp = seccomp_cache.cached_default(bounding, [cache])
        return
    resolved = _profile(profile, config)
    prepared.seccomp = seccomp_cache.cached(resolved, [cache])
    config["linux"]["seccomp"] = resolved
    from firkin.runtime import seccomp

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
    from firkin.runtime import seccomp

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
    if any((config.get("hooks") or {}).values()):
        raise Unsupported(
            "cannot run this configuration: hooks",
            "firkin run runs none",
            "use firkin-runtime run",
        )
    if linux.get("intelRdt") is not None:
        raise Unsupported(
            "cannot run this configuration: linux.intelRdt",
            "firkin run makes no groups of resctrl",
            "use firkin-runtime run",
        )
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
        store.ensure_passable(store.default_path())
        store.ensure_directory(cache)
        prepared.seccomp = seccomp_cache.cached(profile, [cache])
        from firkin.runtime import seccomp

        prepared.seccomp_flags = seccomp.filter_flags(profile)
    return prepared
