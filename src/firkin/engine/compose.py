"""From a request, a root and a machine to an OCI runtime configuration.

:func:`compose` is pure: it looks nothing up and asks the kernel nothing, so the
same input gives the same configuration, on any machine. What needs the machine
is done before, by the caller:

* ``("container", ID)`` namespaces are turned into paths;
* overlay mounts without folders for what is written get theirs;
* the user is looked up in the container's files, devices on the host
  (:func:`~firkin.engine.resources.look_up_devices`), and id mappings are chosen.

The mounts come in this order: those that make the root; the standard ones;
``/etc/hosts`` and its like; the user's, parents first. A mount of the user's
takes the place of any standard mount at or below its target.

Source: https://github.com/opencontainers/runtime-spec/blob/main/config.md,
moby's daemon/oci_linux.go for what docker's options mean.
"""

from __future__ import annotations

from firkin.engine import resources
from firkin.errors import UsageError
from firkin.linux.caps import NAMES as ALL_CAPABILITIES
from firkin.spec import OCI_VERSION, defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Protocol

    from firkin.engine.request import Mount, Request, Source
    from firkin.engine.resources import Device

    class User(Protocol):
        """Whom the command runs as, looked up in the container's files."""

        uid: int
        gid: int
        groups: list[int]
        home: str


# The annotation with which a configuration asks for firkin's process at pid 1.
INIT = "org.firkin.init"


class Root:
    """The root file system of a container, as ``image/`` made it.

    Args:
        path: ``root.path`` of the configuration.
        mounts: OCI mounts that make the root, in order; the first may have
            the destination ``/``.
        etc: OCI mounts of files made for the container: hosts, hostname, resolv.conf.
        environment: variables that the image sets.
    """

    __slots__ = ("environment", "etc", "mounts", "path")

    def __init__(
        self,
        path: str,
        mounts: Sequence[dict[str, Any]] = (),
        etc: Sequence[dict[str, Any]] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.mounts = mounts
        self.etc = etc
        self.environment = environment or {}


class Machine:
    """What compose has to know of the machine and of the caller.

    Args:
        container_id: the container's id.
        rootless: the caller is not root on the host.
        uid, gid: the caller's ids.
        uid_mappings, gid_mappings: OCI id mappings of a new user namespace;
            None for no new one.
        cgroup_version: 1 or 2; a hybrid is 1.
        terminal: the caller's TERM, empty if there is none.
        hostname: the host's name, for containers that share it.
        capabilities: names of those that can be given at all.
        devices: what :func:`~firkin.engine.resources.look_up_devices` found.
        recursive_read_only: the kernel has mount_setattr(2) (Linux 5.12).
        swap_limit: the kernel can limit swap.
        masked_paths: paths to mask besides the default ones, as thermal_throttle of each
            processor, a side channel (GHSA-6fw5-f8r9-fgfm).
    """

    __slots__ = (
        "capabilities",
        "cgroup_version",
        "container_id",
        "devices",
        "gid",
        "gid_mappings",
        "hostname",
        "masked_paths",
        "recursive_read_only",
        "rootless",
        "swap_limit",
        "terminal",
        "uid",
        "uid_mappings",
    )

    def __init__(
        self,
        container_id: str,
        *,
        rootless: bool = False,
        uid: int = 0,
        gid: int = 0,
        uid_mappings: Sequence[dict[str, int]] | None = None,
        gid_mappings: Sequence[dict[str, int]] | None = None,
        cgroup_version: int = 2,
        terminal: str = "",
        hostname: str = "",
        capabilities: Sequence[str] = ALL_CAPABILITIES,
        devices: Mapping[str, Device] | None = None,
        recursive_read_only: bool = False,
        swap_limit: bool = False,
        masked_paths: Sequence[str] = (),
    ) -> None:
        self.container_id = container_id
        self.rootless = rootless
        self.uid = uid
        self.gid = gid
        self.uid_mappings = uid_mappings
        self.gid_mappings = gid_mappings
        self.cgroup_version = cgroup_version
        self.terminal = terminal
        self.hostname = hostname
        self.capabilities = capabilities
        self.devices = devices or {}
        self.recursive_read_only = recursive_read_only
        self.swap_limit = swap_limit
        self.masked_paths = masked_paths


def compose(
    request: Request,
    root: Root,
    machine: Machine,
    user: User,
    seccomp: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the OCI configuration of a run, as plain objects that JSON can hold.

    Args:
        request: what was asked for.
        root: the root file system.
        machine: what it runs on.
        user: whom the command runs as.
        seccomp: ``linux.seccomp``, resolved for this kernel. ``firkin spec``
            gives it. ``firkin run`` gives None and hands the runtime the
            compiled filter of :func:`seccomp_profile` beside the
            configuration, which saves translating the profile at each start.

    Raises:
        UsageError: the request contradicts itself or what the machine has.
    """
    request.check()
    userns = _user_namespace(request, machine)
    linux: dict[str, Any] = {"namespaces": _namespaces(request, userns)}
    if machine.uid_mappings is not None and userns is not None and "path" not in userns:
        linux["uidMappings"] = list(machine.uid_mappings)
        linux["gidMappings"] = list(machine.gid_mappings or ())
    if request.time_offsets:
        linux["timeOffsets"] = {
            clock: {"secs": secs, "nanosecs": nanosecs}
            for clock, (secs, nanosecs) in request.time_offsets.items()
        }
    devices = resources.devices(request, machine, userns is not None)
    if devices:
        linux["devices"] = devices
    limits = resources.limits(request, machine)
    if limits:
        linux["resources"] = limits
    if request.cgroup_parent is not None:
        linux["cgroupsPath"] = _cgroups_path(request.cgroup_parent, machine.container_id)
    if request.sysctl:
        linux["sysctl"] = dict(request.sysctl)
    propagation = _root_propagation(request)
    if propagation:
        linux["rootfsPropagation"] = propagation
    if request.system_paths and not request.privileged:
        linux["maskedPaths"] = [*defaults.MASKED_PATHS, *machine.masked_paths]
        linux["readonlyPaths"] = list(defaults.READONLY_PATHS)
    if seccomp is not None:
        linux["seccomp"] = seccomp

    hostname = _hostname(request, machine)
    config: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(request, root, machine, user, hostname),
        "root": {"path": root.path, "readonly": request.read_only},
        "mounts": _mounts(request, root, machine, userns is not None),
        "linux": linux,
    }
    if request.uts == ("private", ""):
        config["hostname"] = hostname
    if request.domainname is not None:
        config["domainname"] = request.domainname
    annotations = {**request.labels, **request.annotations}
    if request.init:
        annotations[INIT] = "true"
    if annotations:
        config["annotations"] = annotations
    return config


def seccomp_profile(request: Request) -> str:
    """Return the seccomp profile to use: ``default``, ``unconfined`` or the path of one."""
    return request.seccomp or ("unconfined" if request.privileged else "default")


# Namespaces.


def _user_namespace(request: Request, machine: Machine) -> dict[str, Any] | None:
    if request.userns is not None and request.userns[0] in ("path", "container"):
        return _namespace("user", request.userns)
    return None if machine.uid_mappings is None else {"type": "user"}


def _namespaces(request: Request, userns: dict[str, Any] | None) -> list[dict[str, Any]]:
    sources = (
        ("pid", request.pid),
        ("ipc", request.ipc),
        ("uts", request.uts),
        ("network", request.network),
        ("cgroup", request.cgroupns),
    )
    listed = [{"type": "mount"}]
    listed += [_namespace(kind, source) for kind, source in sources if source[0] != "host"]
    if userns is not None:
        listed.append(userns)
    if request.time_offsets:
        listed.append({"type": "time"})
    return listed


def _namespace(kind: str, source: Source) -> dict[str, Any]:
    mode, where = source
    if mode == "container":
        raise UsageError(f"cannot join the {kind} namespace of '{where}'", "no such container runs")
    return {"type": kind, "path": where} if mode == "path" else {"type": kind}


def _hostname(request: Request, machine: Machine) -> str:
    mode = request.uts[0]
    if mode == "private":
        # docker's default: the id as docker ps shows it.
        return request.hostname or machine.container_id[:12]
    return machine.hostname if mode == "host" else ""


def _cgroups_path(parent: str, container_id: str) -> str:
    if parent.endswith(".slice"):
        return f"{parent}:firkin:{container_id}"  # what systemd drivers read
    return f"/{parent.strip('/')}/{container_id}"


# Process.


def _process(
    request: Request, root: Root, machine: Machine, user: User, hostname: str
) -> dict[str, Any]:
    arguments = (request.entrypoint or []) + request.command
    if not arguments:
        raise UsageError("cannot run", "there is no command", "write one after IMAGE")
    process: dict[str, Any] = {
        "terminal": request.tty,
        "user": _user(request, machine, user),
        "args": arguments,
        "env": _environment(request, root, machine, user, hostname),
        "cwd": request.workdir or "/",
        "capabilities": _capabilities(request, machine, user),
        "noNewPrivileges": request.no_new_privileges
        if request.no_new_privileges is not None
        else not request.privileged,
    }
    if request.rlimits:
        process["rlimits"] = [
            {"type": kind, "soft": soft, "hard": hard}
            for kind, (soft, hard) in sorted(request.rlimits.items())
        ]
    if request.oom_score_adj is not None:
        process["oomScoreAdj"] = request.oom_score_adj
    return process


def _environment(
    request: Request, root: Root, machine: Machine, user: User, hostname: str
) -> list[str]:
    variables: dict[str, str] = {"PATH": defaults.PATH, "HOME": user.home or "/"}
    if request.tty or machine.terminal:
        variables["TERM"] = machine.terminal or "xterm"
    if hostname:
        variables["HOSTNAME"] = hostname
    variables.update(root.environment)
    for key, value in request.environment.items():
        if value is None:
            variables.pop(key, None)
        else:
            variables[key] = value
    return [f"{key}={value}" for key, value in variables.items()]


def _user(request: Request, machine: Machine, user: User) -> dict[str, Any]:
    _check_mapped("user", user.uid, machine.uid_mappings)
    _check_mapped("group", user.gid, machine.gid_mappings)
    result: dict[str, Any] = {"uid": user.uid, "gid": user.gid}
    groups = list(user.groups)
    mappings = machine.gid_mappings
    if request.group_add:
        for group in groups:
            _check_mapped("group", group, mappings)
    if mappings is not None:
        # Groups that nobody asked for come from the image's /etc/group. Without
        # newgidmap the kernel denies setgroups(2) altogether (user_namespaces(7)).
        single = machine.rootless and sum(m["size"] for m in mappings) == 1
        groups = [] if single else [group for group in groups if _mapped(group, mappings)]
    if groups:
        result["additionalGids"] = groups
    return result


def _mapped(number: int, mappings: Sequence[dict[str, int]] | None) -> bool:
    return mappings is None or any(
        m["containerID"] <= number < m["containerID"] + m["size"] for m in mappings
    )


def _check_mapped(kind: str, number: int, mappings: Sequence[dict[str, int]] | None) -> None:
    if mappings is None or _mapped(number, mappings):
        return
    what = f"cannot run with {kind} id {number}"
    if sum(m["size"] for m in mappings) == 1:
        raise UsageError(
            what,
            "there are no subordinate ids, so the container has one user and one group",
            "install newuidmap (package uidmap) and give your account ids with "
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535",
        )
    raise UsageError(
        what,
        "it is not mapped in the container's user namespace",
        "see /etc/subuid and /etc/subgid",
    )


def _capabilities(request: Request, machine: Machine, user: User) -> dict[str, list[str]]:
    names = _capability_set(request, machine)
    if user.uid != 0:
        # What execve leaves to a user who is not root, and what docker gives:
        # the bounding set alone, for programs with file capabilities.
        return {"bounding": names, "effective": [], "permitted": []}
    return {"bounding": names, "effective": list(names), "permitted": list(names)}


def _capability_set(request: Request, machine: Machine) -> list[str]:
    available = machine.capabilities
    if request.privileged:
        return list(available)
    if "ALL" in request.cap_add:
        wanted = set(available) - set(request.cap_drop)
    elif "ALL" in request.cap_drop:
        wanted = set(request.cap_add)
    else:
        wanted = (set(defaults.CAPABILITIES) - set(request.cap_drop)) | set(request.cap_add)
    for name in request.cap_add:
        if name != "ALL" and name not in available:
            raise UsageError(f"cannot add {name}", "this machine cannot give it to a container")
    # In the kernel's order, whatever the order of the options.
    return [name for name in ALL_CAPABILITIES if name in wanted and name in available]


# Mounts.


def _mounts(
    request: Request, root: Root, machine: Machine, in_userns: bool
) -> list[dict[str, Any]]:
    wanted = sorted(request.mounts, key=lambda mount: mount.target.count("/"))
    targets = [mount.target for mount in wanted]
    etc = [_protected(mount) for mount in root.etc] if request.read_only else root.etc
    standard = [*_standard_mounts(request, machine, in_userns), *etc]
    return [
        *root.mounts,
        *(m for m in standard if not _covered(m["destination"], targets)),
        *(_mount(mount, machine, in_userns) for mount in wanted),
    ]


def _standard_mounts(request: Request, machine: Machine, in_userns: bool) -> list[dict[str, Any]]:
    mounts = defaults.mounts(
        tty_gid=5 if _mapped(5, machine.gid_mappings) else None,
        shm_size=request.shm_size,
        writable_sys=request.privileged,
    )
    # A user namespace may mount these only for namespaces that it owns; podman
    # shows the host's instead, and so do we.
    shared: dict[str, tuple[str, ...]] = {}
    if request.ipc[0] == "host":
        shared[defaults.SHM] = ()
    if in_userns:
        only: tuple[str, ...] = () if request.privileged else ("ro",)
        if only and machine.recursive_read_only:
            only += ("rro",)
        if request.pid[0] == "host":
            shared["/proc"] = ()
        if request.network[0] not in ("none", "private"):
            shared["/sys"] = only
        if request.cgroupns[0] == "host":
            shared["/sys/fs/cgroup"] = only
        if request.ipc[0] == "host":
            # Hosts need not have it mounted; mq_overview(7) works without.
            mounts = [m for m in mounts if m["type"] != "mqueue"]
    return [
        defaults.host_tree(m["destination"], *shared[m["destination"]])
        if m["destination"] in shared
        else m
        for m in mounts
    ]


def _covered(destination: str, targets: Sequence[str]) -> bool:
    return any(destination == target or destination.startswith(target + "/") for target in targets)


def _protected(mount: dict[str, Any]) -> dict[str, Any]:
    return {**mount, "options": [*mount.get("options", ()), "ro"]}


def _mount(mount: Mount, machine: Machine, in_userns: bool) -> dict[str, Any]:
    options = list(mount.options)
    if mount.read_only:
        options.append("ro")
        recursive = mount.read_only == "auto" and machine.recursive_read_only
        if mount.read_only == "recursive" or (recursive and "rbind" in options):
            options.append("rro")
    if mount.kind == "overlay":
        if not mount.upper or not mount.work:
            raise UsageError(f"cannot mount overlay on '{mount.target}'", "it has no upper folder")
        options += [
            f"lowerdir={mount.source}",
            f"upperdir={mount.upper}",
            f"workdir={mount.work}",
        ]
        if in_userns:
            # overlayfs may not write trusted.* attributes there (Linux 5.11).
            options.append("userxattr")
    source = mount.source if mount.kind == "bind" else mount.kind
    return defaults.mount(mount.target, mount.kind, source, *options)


def _root_propagation(request: Request) -> str:
    # A bind mount can only stay a peer (or slave) of the host's mount when the
    # root it was cloned from is one at that moment.
    options = {option for mount in request.mounts for option in mount.options}
    if options & {"shared", "rshared"}:
        return "shared"
    return "rslave" if options & {"slave", "rslave"} else ""
