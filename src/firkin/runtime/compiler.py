"""From an OCI configuration to a Plan: everything looked up, nothing done yet.

What the configuration asks for and this runtime lacks is refused here, before
anything exists.

Source: runtime-spec config.md and config-linux.md.
"""

from __future__ import annotations

import os
import stat

from firkin.errors import ConfigError, Unsupported, UsageError
from firkin.init.plan import Mount, Plan
from firkin.linux import caps, clone, mount, ns
from firkin.linux.seccomp import SECCOMP_FILTER_FLAG_NEW_LISTENER, Filter
from firkin.runtime import mount_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firkin.runtime.cgroups.group import Cgroup
    from firkin.runtime.cgroups.none import NoCgroup

# The annotation that asks for our reaper as pid 1; it has no place in the specification.
INIT_ANNOTATION = "org.firkin.init"

# Numbers of include/uapi/asm-generic/resource.h, as x86-64 and aarch64 have them.
RLIMITS = {
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}

_PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}

# (path, mode, major, minor): the devices that the specification promises.
_DEVICES = tuple(
    (f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor), 0, 0, f"/dev/{name}")
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)
# File systems whose files have labels of the kernel's own.
_UNLABELLED = ("proc", "sysfs", "mqueue", "cgroup", "cgroup2")

_DEVICE_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}

# Fields of a process that a module of their own compiles.
_RARE = ("scheduler", "ioPriority", "apparmorProfile", "selinuxLabel")


class Opened:
    """Descriptors that a Plan refers to, to be closed when the child has them."""

    __slots__ = ("fds",)

    def __init__(self) -> None:
        self.fds: list[int] = []

    def add(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def compile_plan(
    config: dict[str, Any],
    bundle: str,
    cgroup: Cgroup | NoCgroup,
    opened: Opened,
    seccomp: bytes | None = None,
    seccomp_flags: int = 0,
) -> Plan:
    """Compile *config*.

    Args:
        config: a validated OCI configuration.
        bundle: the folder that its relative paths start from.
        cgroup: the container's cgroup, for what ``/sys/fs/cgroup`` shows.
        opened: takes the descriptors that the Plan names.
        seccomp: the compiled filter, or None for no filter.
        seccomp_flags: ``SECCOMP_FILTER_FLAG_…``.

    Raises:
        ConfigError: a field that can't be carried out.
        Unsupported: a field that this version or machine does not know.
    """
    process = config.get("process")
    if not process:
        raise ConfigError("process", "it is missing, and there is nothing to run without it")
    linux = config.get("linux") or {}
    plan = Plan()
    _namespaces(plan, config, linux, opened)
    _root(plan, config, linux, bundle, cgroup, opened)
    _process(plan, process)
    compile_traits(plan, linux)
    if seccomp is not None:
        plan.seccomp = Filter(seccomp, seccomp_flags).load
        compile_listener(plan, linux.get("seccomp") or {}, seccomp_flags)
    plan.init = (config.get("annotations") or {}).get(INIT_ANNOTATION) == "true"
    if plan.init and plan.listener:
        # The descriptor would be that of pid 1's child, whom the parent does not know.
        raise Unsupported(
            "cannot run --init with a seccomp listener",
            "the filter is not that of the container's first process",
            "leave out --init",
        )
    traces, admin = (
        plan.bounding & caps.mask((f"CAP_SYS_{name}",)) for name in ("PTRACE", "ADMIN")
    )
    if plan.init and not plan.new_user and traces and not admin:
        # Who has CAP_SYS_ADMIN over the host needs no such detour. Otherwise: undumpable
        # does not keep the reaper from a root with this capability, who could trace it,
        # and so change the host's Python (CVE-2019-5736).
        raise Unsupported(
            "cannot run --init with CAP_SYS_PTRACE",
            "the command could trace the init, which runs the host's Python",
            "add --userns auto, or leave out --init",
        )
    return plan


def compile_process(process: dict[str, Any], seccomp: bytes | None, seccomp_flags: int) -> Plan:
    """Compile a process that joins an existing container; its namespaces are still to be named.

    Args:
        process: a validated ``process`` of a configuration.
        seccomp, seccomp_flags: as for :func:`compile_plan`.

    Raises:
        ConfigError, Unsupported: as :func:`compile_plan`.
    """
    plan = Plan()
    _process(plan, process)
    if process.get("execCPUAffinity"):
        from firkin.runtime.process_fields import affinity

        plan.affinity = affinity(process)
    if seccomp is not None:
        plan.seccomp = Filter(seccomp, seccomp_flags).load
    return plan


def compile_listener(plan: Plan, profile: dict[str, Any], flags: int) -> None:
    """Say in *plan* how the listener of a filter with ``SCMP_ACT_NOTIFY`` is handed over.

    Raises:
        ConfigError: *profile* does not let it.
    """
    if flags & SECCOMP_FILTER_FLAG_NEW_LISTENER:
        from firkin.runtime import seccomp_notify

        plan.listener = seccomp_notify.way(profile)


def compile_traits(plan: Plan, linux: dict[str, Any]) -> None:
    """Compile what all processes of a container have in common: personality, memoryPolicy.

    Raises:
        ConfigError: nodes that no kernel takes.
    """
    personality = linux.get("personality") or {}
    if personality:
        plan.personality = _PERSONALITIES[personality["domain"]]
    if linux.get("memoryPolicy"):
        from firkin.runtime.process_fields import memory_policy

        plan.memory_policy = memory_policy(linux["memoryPolicy"])


def _namespaces(plan: Plan, config: dict[str, Any], linux: dict[str, Any], opened: Opened) -> None:
    new = 0
    joins = {}
    for number, entry in enumerate(linux.get("namespaces") or ()):
        kind = entry["type"]
        path = entry.get("path")
        flag = ns.FLAGS[kind]
        if not path:
            new |= flag
            continue
        try:
            fd = opened.add(ns.open_namespace(path, flag))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(
                f"linux.namespaces[{number}].path",
                f"cannot join the {kind} namespace '{path}': {why}",
            ) from None
        joins[kind] = (fd, flag, path)
    plan.joins = tuple(joins[kind] for kind, _, _ in ns.NAMESPACES if kind in joins)
    plan.new_user = bool(new & clone.CLONE_NEWUSER)
    plan.joined_user = "user" in joins
    plan.new_cgroup = bool(new & clone.CLONE_NEWCGROUP)
    # These two must be there from the first moment: the user namespace owns the
    # others, and a process enters a PID namespace only by being born in it.
    at_birth = clone.CLONE_NEWUSER | clone.CLONE_NEWPID
    plan.clone_flags = new & at_birth
    plan.unshare_flags = new & ~at_birth & ~clone.CLONE_NEWCGROUP & ~clone.CLONE_NEWTIME
    plan.loopback = bool(new & clone.CLONE_NEWNET)
    plan.hostname = config.get("hostname") or ""
    plan.domainname = config.get("domainname") or ""
    if "uts" in joins and ns.is_own(joins["uts"][0], "uts"):
        _refuse_new_name(plan)
    if new & clone.CLONE_NEWTIME:
        offsets = linux.get("timeOffsets") or {}
        plan.time_offsets = tuple(
            (clock, int(o.get("secs") or 0), int(o.get("nanosecs") or 0))
            for clock, o in offsets.items()
            if clock in ("boottime", "monotonic")
        ) or (("boottime", 0, 0),)
    if linux.get("sysctl"):
        plan.sysctl = _sysctls(linux["sysctl"], joins)
    if linux.get("netDevices"):
        from firkin.runtime import net_devices

        plan.net_devices = net_devices.compile_devices(linux["netDevices"])
    if not new & clone.CLONE_NEWNS and "mount" not in joins:
        raise ConfigError(
            "linux.namespaces",
            "without a mount namespace the container would mount on the host",
            'add {"type": "mount"}',
        )
    plan.root = "" if "mount" in joins else "/"


def _refuse_new_name(plan: Plan) -> None:
    """Refuse names that would become the host's, whose UTS namespace is joined by path."""
    host = os.uname().nodename
    with open("/proc/sys/kernel/domainname") as file:
        domain = file.read().strip()
    for field, wanted, present in (
        ("hostname", plan.hostname, host),
        ("domainname", plan.domainname, domain),
    ):
        if wanted and wanted != present:
            raise ConfigError(field, "the container shares the uts namespace of the host")


def _root(
    plan: Plan,
    config: dict[str, Any],
    linux: dict[str, Any],
    bundle: str,
    cgroup: Cgroup | NoCgroup,
    opened: Opened,
) -> None:
    if not plan.root:
        return
    root = config.get("root")
    if not root:
        raise ConfigError("root", "it is missing, and there is no image without it")
    path = os.path.join(bundle, root["path"])
    plan.root = os.path.realpath(path)
    if not os.path.isdir(plan.root):
        raise ConfigError("root.path", f"'{path}' is not a folder")
    plan.readonly_root = bool(root.get("readonly"))
    propagation = linux.get("rootfsPropagation")
    if propagation:
        plan.root_propagation = mount_options.propagation_flags(
            propagation, "linux.rootfsPropagation"
        )
    plan.masked = tuple(linux.get("maskedPaths") or ())
    plan.readonly_paths = tuple(linux.get("readonlyPaths") or ())
    mounts: list[Mount] = []
    mapped: list[tuple[Mount, dict[str, Any], str]] = []
    private = plan.new_cgroup
    for number, entry in enumerate(config.get("mounts") or ()):
        field = f"mounts[{number}]"
        if entry.get("type") in ("cgroup", "cgroup2"):
            mounts += _cgroup_mounts(entry, cgroup, private, field)
        else:
            mounts.append(_mount(entry, bundle, field))
            if number and mounts[-1].destination == "/":
                raise ConfigError(f"{field}.destination", "only the first mount can be the root")
            if _has_own_ids(entry):
                mapped.append((mounts[-1], entry, field))
    plan.mounts = tuple(mounts)
    _label_mounts(plan, linux)
    if mapped:
        from firkin.runtime import mount_ids

        mount_ids.map_ids(plan, linux, opened, mapped)
    _devices(plan, linux)


def _label_mounts(plan: Plan, linux: dict[str, Any]) -> None:
    if not linux.get("mountLabel"):
        return
    from firkin.runtime.process_fields import mount_label

    option = mount_label(linux["mountLabel"])
    for made in plan.mounts:
        if made.kind == "mount" and made.fstype not in _UNLABELLED:
            made.data = f"{made.data},{option}".lstrip(",")


def _has_own_ids(entry: dict[str, Any]) -> bool:
    options = entry.get("options") or ()
    return bool(
        "idmap" in options
        or "ridmap" in options
        or entry.get("uidMappings")
        or entry.get("gidMappings")
    )


def _devices(plan: Plan, linux: dict[str, Any]) -> None:
    # A /dev that is bound from the host is not ours to fill.
    at_dev = [made for made in plan.mounts if made.destination == "/dev"]
    if any(made.kind == "bind" for made in at_dev):
        return
    for made in at_dev:
        if made.flags & mount.MS_RDONLY:
            # Devices are still to be made in it: it turns read-only with the other paths.
            made.flags &= ~mount.MS_RDONLY
            plan.readonly_paths = ("/dev", *plan.readonly_paths)
    joins_user = any(flag == clone.CLONE_NEWUSER for _, flag, _ in plan.joins)
    plan.bind_devices = plan.new_user or joins_user or _in_user_namespace()
    wanted = {
        entry["path"]: _device(entry, plan.bind_devices, f"linux.devices[{number}]")
        for number, entry in enumerate(linux.get("devices") or ())
    }
    # One that the configuration has, too, is made as that says.
    promised = [device for device in _DEVICES if device[0] not in wanted]
    plan.devices = (*promised, *wanted.values())


def _sysctls(
    wanted: dict[str, str], joins: dict[str, tuple[int, int, str]]
) -> tuple[tuple[str, str], ...]:
    """Compile ``linux.sysctl``, and see that no joined namespace is the host's own."""
    from firkin.spec.rules import sysctl_namespace, sysctl_path

    found = []
    for name, value in wanted.items():
        path = sysctl_path(name)
        kind = sysctl_namespace(path)
        if kind in joins and ns.is_own(joins[kind][0], kind):
            raise ConfigError(
                f"linux.sysctl.{name}", f"the container shares the {kind} namespace of the host"
            )
        found.append((f"/proc/sys/{path}", value))
    return tuple(found)


def _in_user_namespace() -> bool:
    """Whether firkin itself runs in a user namespace, where mknod is not permitted."""
    with open("/proc/self/uid_map") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def _destination(entry: dict[str, Any]) -> str:
    # Older configurations have relative ones; the specification says: from "/".
    destination: str = entry["destination"]
    return "/" + os.path.normpath(f"/{destination}").lstrip("/")


def _mount(entry: dict[str, Any], bundle: str, field: str) -> Mount:
    options = mount_options.parse_options(entry.get("options") or [], f"{field}.options")
    kind = entry.get("type") or ""
    bind = options.bind or kind in ("bind", "rbind")
    source: str = entry.get("source") or kind or "none"
    destination = _destination(entry)
    if bind:
        path = os.path.join(bundle, source)
        if options.copy_symlink and os.path.islink(path):
            return Mount("symlink", destination, os.readlink(path))
        result = Mount("setattr" if options.remount else "bind", destination, path)
        result.recursive = options.recursive or kind == "rbind"
        result.attr_set, result.attr_clr = options.attr_set, options.attr_clr
        result.nofollow = options.src_nofollow
    else:
        if not kind or kind == "none":
            raise ConfigError(f"{field}.type", "it is missing, and the mount is no bind")
        result = Mount("remount" if options.remount else "mount", destination, source, kind)
        result.flags = options.flags
        result.data = options.data
    result.onto_link = options.dest_nofollow
    result.rec_set, result.rec_clr = options.rec_set, options.rec_clr
    result.propagation = tuple(options.propagation)
    if options.tmpcopyup:
        _set_copy_up(result, f"{field}.options")
    return result


def _set_copy_up(made: Mount, field: str) -> None:
    if made.fstype != "tmpfs" or made.kind != "mount":
        raise ConfigError(field, "tmpcopyup is for a tmpfs")
    made.copy_up = True
    if made.flags & mount.MS_RDONLY:
        # Once its contents are there.
        made.flags &= ~mount.MS_RDONLY
        made.attr_set = mount.MOUNT_ATTR_RDONLY


def _cgroup_mounts(
    entry: dict[str, Any], cgroup: Cgroup | NoCgroup, private: bool, field: str
) -> list[Mount]:
    """The mounts behind one of type ``cgroup``: several on v1, one on v2."""
    options = mount_options.parse_options(entry.get("options") or [], f"{field}.options")
    top = _destination(entry)
    mounts = []
    for kind, source, name, data in cgroup.mounts(private):
        where = os.path.join(top, name) if name else top
        if kind == "symlink":
            made = Mount("symlink", where, source, "cgroup")
        elif kind == "bind":
            made = Mount("bind", where, source, "cgroup")
            made.attr_set = options.attr_set
        else:
            made = Mount("mount", where, source, kind)
            made.data = data
            # The folders of the hierarchies are still to be made in the tmpfs.
            made.flags = options.flags & ~mount.MS_RDONLY if kind == "tmpfs" else options.flags
        mounts.append(made)
    if mounts and mounts[0].fstype == "tmpfs" and options.flags & mount.MS_RDONLY:
        last = Mount("setattr", top, "", "cgroup")
        last.attr_set = mount.MOUNT_ATTR_RDONLY
        mounts.append(last)
    return mounts


def _device(entry: dict[str, Any], bound: bool, field: str) -> tuple[str, int, int, int, int, str]:
    path = entry["path"]
    kind = _DEVICE_TYPES[entry["type"]]
    if os.path.normpath(path) != path or path == "/":
        raise ConfigError(f"{field}.path", f"'{path}' is not a plain absolute path")
    mode = entry.get("fileMode")
    number = os.makedev(entry.get("major") or 0, entry.get("minor") or 0)
    if kind == stat.S_IFIFO:
        number, bound = 0, False
    source = path
    if bound:
        from firkin.runtime import host_devices

        source = host_devices.find(path, kind, number, field)
    return (
        path,
        kind | (0o666 if mode is None else mode & 0o7777),
        number,
        entry.get("uid") or 0,
        entry.get("gid") or 0,
        source,
    )


def _process(plan: Plan, process: dict[str, Any]) -> None:
    args = process.get("args")
    if not args:
        raise ConfigError("process.args", "it is empty: there is no command")
    plan.args = tuple(args)
    plan.env = tuple(process.get("env") or ())
    plan.paths = tuple(_search_path(plan.env).split(":"))
    plan.cwd = os.path.normpath(process["cwd"])
    plan.terminal = bool(process.get("terminal"))
    size = process.get("consoleSize") or {}
    plan.window = (size.get("height") or 0, size.get("width") or 0)
    user = process.get("user") or {}
    plan.uid, plan.gid = user.get("uid") or 0, user.get("gid") or 0
    plan.groups = tuple(user.get("additionalGids") or ())
    umask = user.get("umask")
    plan.umask = 0o022 if umask is None else umask
    if any(process.get(name) for name in _RARE):
        from firkin.runtime.process_fields import compile_process as compile_rare

        compile_rare(plan, process)
    plan.no_new_privs = bool(process.get("noNewPrivileges"))
    sets = process.get("capabilities") or {}
    plan.last_cap = caps.last()
    known = (1 << plan.last_cap + 1) - 1
    plan.bounding = caps.mask(sets.get("bounding") or ()) & known
    plan.effective = caps.mask(sets.get("effective") or ()) & known
    plan.permitted = caps.mask(sets.get("permitted") or ()) & known
    plan.inheritable = caps.mask(sets.get("inheritable") or ()) & known
    # The kernel refuses what is not inheritable, too; like runc, leave that out: the
    # configurations that `runc spec` and `crun spec` write have no inheritable ones.
    plan.ambient = caps.mask(sets.get("ambient") or ()) & plan.inheritable
    plan.rlimits = tuple(
        (_rlimit(entry["type"]), entry["soft"], entry["hard"])
        for entry in process.get("rlimits") or ()
    )


def _rlimit(name: str) -> int:
    if name not in RLIMITS:
        raise UsageError(f"cannot set {name}", "this kernel has no such limit")
    return RLIMITS[name]


def _search_path(env: tuple[str, ...]) -> str:
    found = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    for entry in env:
        if entry.startswith("PATH="):
            found = entry[5:]
    return found
