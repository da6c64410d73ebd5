"""From OCI's resources to a cgroup that can be made: which directories, which values.

All that can be refused is refused here, or by :func:`check`, before anything exists.
"""

from __future__ import annotations

import os

from firkin.errors import ConfigError, Unsupported
from firkin.runtime.cgroups import devices, tree, v1, v2
from firkin.runtime.cgroups.directory import DELEGATE, Directory
from firkin.runtime.cgroups.group import Cgroup
from firkin.runtime.cgroups.limits import Limits, Setting, parse_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firkin.runtime.cgroups.layout import Hierarchy, Layout
    from firkin.runtime.cgroups.none import NoCgroup

# Used even where nothing is limited: they say how the container ended (out of
# memory, out of processes) and what it used, and stop forks while it is killed.
# First in this order, since killing starts with pids.
_ALWAYS = ("pids", "memory")

# v1 controllers that have another name on v2.
_V2_NAMES = {"blkio": "io"}


def prepare(
    layout: Layout,
    path: str,
    resources: dict[str, Any],
    *,
    device_control: bool,
    every_controller: bool,
    reuse: bool,
) -> Cgroup | NoCgroup:
    """See :func:`firkin.runtime.cgroups.open_cgroup`."""
    parts = _parts(path)
    relative = not path.startswith("/")
    limits = Limits(resources, strict=not every_controller)
    settings = translate(layout, limits)
    rules: devices.Rules = ()
    if device_control and _may_control_devices():
        rules = devices.complete(limits.devices, devices.TUNNEL if every_controller else ())
        if rules and ("devices" in layout.controllers or layout.unified is None):
            settings += v1.device_settings(rules)
            rules = ()
    required = {setting.controller: setting.field for setting in settings}
    if limits.memory is not None or limits.swap is not None:
        required["memory"] = "memory.limit"
    # "cgroup" stands for the files that every v2 cgroup has, as cgroup.max.depth.
    bare = required.pop("cgroup", None) is not None or bool(rules)

    places: dict[Hierarchy, Directory] = {}
    for controller in dict.fromkeys((*_ALWAYS, *required)):
        hierarchy = layout.controllers.get(controller)
        needed = controller in required
        if hierarchy is None:
            if needed:
                raise _missing(layout, controller, required[controller])
            continue
        directory = places.get(hierarchy) or _place(hierarchy, parts, relative, needed=needed)
        if directory is None:
            continue
        refusal = _refusal(directory, controller)
        if refusal is None:
            directory.wanted.append(controller)
            places[hierarchy] = directory
        elif needed:
            raise refusal
    alone = layout.version == "v2" and not places
    if layout.unified and layout.unified not in places and (bare or alone):
        directory = _place(layout.unified, parts, relative, needed=bare)
        refusal = _refusal(directory, "") if directory else None
        if refusal is not None and bare:
            raise refusal
        if directory is not None and refusal is None:
            places[layout.unified] = directory
    if every_controller:
        _everywhere(layout, places, parts, relative)
    if not places:
        from firkin.runtime.cgroups.none import NoCgroup

        return NoCgroup("there is no cgroup that this user may use; " + DELEGATE)
    freezer = None
    if hierarchy := layout.controllers.get("freezer"):  # v2 has no such controller
        freezer = places.get(hierarchy) or _place(hierarchy, parts, relative, needed=False)
    return Cgroup(list(places.values()), limits, settings, rules, freezer, reuse=reuse)


def _everywhere(
    layout: Layout, places: dict[Hierarchy, Directory], parts: list[str], relative: bool
) -> None:
    """Add the hierarchies that no limit needs; v2 alone where it has the controllers."""
    if layout.version == "v2":
        if layout.unified in places:
            places[layout.unified].all_controllers = True
        return
    for hierarchy in (*layout.hierarchies, *layout.named):
        if hierarchy not in places:
            directory = _place(hierarchy, parts, relative, needed=False)
            if directory is not None and _refusal(directory, "") is None:
                places[hierarchy] = directory


def check(directories: list[Directory], limits: Limits, reuse: bool) -> None:
    """Refuse processors, memory nodes and names that this machine does not have.

    Raises:
        ConfigError: naming the value.
        SetupError: the cgroup exists; with *reuse*, and there are processes in it.
    """
    for directory in directories:
        if os.path.lexists(directory.path):
            if not reuse:
                raise directory.exists()
            directory.vacant()
        if "cpuset" in directory.wanted:
            check_lists(directory, limits)


def check_lists(directory: Directory, limits: Limits) -> None:
    """Refuse processors and memory nodes that those above *directory* do not have.

    Raises:
        ConfigError: naming the value.
    """
    for field, given in (("cpus", limits.cpus), ("mems", limits.mems)):
        if given is not None:
            _check_list(directory, field, given)


def _check_list(directory: Directory, name: str, given: str) -> None:
    """v2 takes any number and then uses what exists; v1's EINVAL says nothing."""
    above = directory.ancestor()
    text = ""
    while len(above) >= len(directory.hierarchy.mount):
        for file in (f"cpuset.{name}.effective", f"cpuset.effective_{name}", f"cpuset.{name}"):
            try:
                text = tree.read(f"{above}/{file}").strip()
            except FileNotFoundError:
                continue
            break
        if text:
            break
        above = above.rpartition("/")[0]
    if not text:
        return
    outside = parse_list(given) - parse_list(text)
    if outside:
        raise ConfigError(
            f"linux.resources.cpu.{name}",
            f"{given!r}: {min(outside)} is not among those there are here, {text}",
        )


def _missing(layout: Layout, controller: str, field: str) -> Unsupported:
    mend = "enable it in the kernel, and mount it below /sys/fs/cgroup"
    if layout.version == "none":
        mend = "mount cgroup2 at /sys/fs/cgroup"
    return Unsupported(
        f"cannot set linux.resources.{field}",
        f"no cgroup hierarchy mounted here has the {controller} controller",
        mend,
    )


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts:
        raise ConfigError("linux.cgroupsPath", f"{path!r} names no cgroup")
    for part in parts:
        # A newline would break /proc/PID/cgroup; the kernel refuses it too.
        if part == ".." or not part.isprintable() or len(os.fsencode(part)) > 255:
            raise ConfigError("linux.cgroupsPath", f"{part!r} cannot be part of it")
    return parts


def translate(layout: Layout, limits: Limits) -> list[Setting]:
    """The values to write, named for the version of each controller's hierarchy.

    Raises:
        Unsupported: a value that this version does not have.
    """
    if layout.version == "v2":
        v2.refuse(limits)
        return [s for section in v2.SECTIONS.values() for s in section(limits)] + v2.unified(limits)
    v2.refuse(limits, {c for c, hierarchy in layout.controllers.items() if hierarchy.version == 2})
    if limits.unified:
        raise Unsupported(
            "cannot set linux.resources.unified", "this machine's controllers are on cgroup v1"
        )
    settings: list[Setting] = []
    for name, section in v1.SECTIONS.items():
        new = _V2_NAMES.get(name, name)
        hierarchy = layout.controllers.get(new)
        if hierarchy is not None and hierarchy.version == 2:
            section = v2.SECTIONS[new]
        settings += section(limits)
    return settings


def _may_control_devices() -> bool:
    """Only root of the machine may; in a user namespace mknod of a device fails anyway."""
    if os.geteuid() != 0:
        return False
    return tree.read("/proc/self/uid_map").split() == ["0", "0", "4294967295"]


def _place(
    hierarchy: Hierarchy, parts: list[str], relative: bool, *, needed: bool
) -> Directory | None:
    """The cgroup's directory in *hierarchy*, ``None`` where it cannot be told."""
    base = ""
    if relative:
        if hierarchy.own is None:
            if needed:
                raise Unsupported(
                    f"cannot find the caller's own cgroup below {hierarchy.mount}",
                    "it is outside of this cgroup namespace",
                    "give an absolute cgroupsPath",
                )
            return None
        base = hierarchy.own.rstrip("/")
        if hierarchy.version == 2:
            base = base.rpartition("/")[0]
    return Directory(
        hierarchy, hierarchy.mount + "/".join((base, *parts) if base else ("", *parts))
    )


def _refusal(directory: Directory, controller: str) -> Unsupported | None:
    """Why *controller* ("" for none) cannot be had in *directory*, or ``None``."""
    what = f"cannot create cgroup {directory.path}"
    above = directory.ancestor()
    if not os.access(above, os.W_OK | os.X_OK, effective_ids=True):
        return Unsupported(what, f"no right to write in {above}", DELEGATE)
    if directory.hierarchy.version == 1:
        return None
    mount = directory.hierarchy.mount
    # Joining takes the right to move processes at the common ancestor (cgroups(7)).
    own = directory.hierarchy.own
    if own is not None:
        common = mount
        for part in own.split("/")[1:]:
            if not directory.path.startswith(f"{common}/{part}/"):
                break
            common = f"{common}/{part}"
        if not os.access(f"{common}/cgroup.procs", os.W_OK, effective_ids=True):
            return Unsupported(what, f"no right to write {common}/cgroup.procs", DELEGATE)
    if not controller:
        return None
    # It must be enabled in each cgroup above, from one that already has it down.
    while controller not in tree.read(f"{above}/cgroup.subtree_control").split():
        if not os.access(f"{above}/cgroup.subtree_control", os.W_OK, effective_ids=True):
            return Unsupported(
                f"cannot enable the {controller} controller for cgroup {directory.path}",
                f"no right to write {above}/cgroup.subtree_control",
                DELEGATE,
            )
        if os.path.exists(f"{above}/cgroup.type") and tree.read(f"{above}/cgroup.procs").strip():
            return Unsupported(
                f"cannot enable the {controller} controller for cgroup {directory.path}",
                f"{above} has processes of its own",
                f"move those of {above}/cgroup.procs to a cgroup below it first",
            )
        if controller in tree.read(f"{above}/cgroup.controllers").split():
            break
        if above == mount:
            return Unsupported(
                f"cannot enable the {controller} controller for cgroup {directory.path}",
                f"{above}/cgroup.controllers does not list it",
                "have it enabled from outside of this container",
            )
        above = above.rpartition("/")[0]
    return None
