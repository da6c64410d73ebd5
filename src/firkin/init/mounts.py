"""The child's mounts, in its own mount namespace, before and after the pivot.

Every target is looked up inside the new root by ``linux/paths.py`` and mounted
on through its descriptor: the contents of the root are hostile.

Source: mount_namespaces(7), overlayfs.rst, CVE-2025-31133 (masking with a
``/dev/null`` that the image provided), CVE-2019-16884 (a fake ``/proc``).
"""

from __future__ import annotations

import errno
import os
import stat

from firkin.init.plan import Mount, Plan
from firkin.linux import libc, mount, paths

# The nodes that the specification promises, where /dev is ours to fill.
_DEVICE_LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
)


def enter_root(plan: Plan) -> int:
    """Make the root a mount of this namespace; return a descriptor on it.

    The first mount of the plan is the root itself where its destination is "/".
    """
    libc.because("no mount of the container reaches the host, whatever the host's propagation")
    before = plan.root_propagation or mount.MS_SLAVE
    if before & mount.MS_UNBINDABLE:
        # Of the container's root only: volumes are still to be bound.
        before = mount.MS_PRIVATE
    mount.mount("", "/", "", before | mount.MS_REC)
    if plan.root_propagation & mount.MS_SHARED:
        # Shared volumes need the host's mounts shared; the one that our root is
        # mounted on must not be, or the root would appear on the host.
        _make_private(plan.root)
    if plan.root_tree_fd >= 0:
        libc.because("put the root file system, which only the parent may open, in its place")
        root = _open_root(plan.root)
        mount.move_mount(plan.root_tree_fd, root, at=plan.root)
        os.close(root)
    root = _open_root(plan.root)
    first = plan.mounts[0] if plan.mounts else None
    if first is not None and first.destination == "/":
        libc.because("the container's root: its writes go to the upper folder, the image stays")
        _mount_on(first, root, first.data)
    elif plan.root_tree_fd < 0:
        libc.because("pivot_root needs the new root to be a mount")
        tree = mount.open_tree(plan.root, recursive=True)
        mount.move_mount(tree, root, at=plan.root)
        os.close(tree)
    else:
        return root
    os.close(root)
    return _open_root(plan.root)


def _make_private(path: str) -> None:
    """Make the mount that *path* is on private."""
    while True:
        try:
            mount.mount("", path, "", mount.MS_PRIVATE)
        except OSError as error:
            # No mount point: that is further up.
            if error.errno != errno.EINVAL or path == "/":
                raise
            path = os.path.dirname(path)
        else:
            return


def _open_root(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def mount_all(plan: Plan, root: int) -> None:
    """Make the mounts of *plan* below *root* in their order."""
    for entry in plan.mounts:
        if entry.destination != "/":
            _mount_in(entry, root)


def _mount_in(entry: Mount, root: int) -> None:
    why = _PLACES.get(entry.destination) or _REASONS.get(entry.fstype)
    libc.because(why or "a volume: a part of the host, shown in the container")
    if entry.kind == "symlink":
        parent, name = os.path.split(entry.destination)
        folder = paths.make_in_root(root, parent, "dir")
        libc.via(os.symlink, entry.source, name, dir_fd=folder)
        os.close(folder)
        return
    if entry.kind in ("setattr", "remount"):
        made = paths.open_in_root(root, entry.destination, os.O_PATH)
        if entry.kind == "remount":
            _remount(entry, made)
        _set_attributes(entry, made)
        os.close(made)
        return
    tree = -1
    is_file = False
    if entry.kind == "bind":
        tree = entry.tree_fd
        if tree < 0:
            tree = mount.open_tree(
                entry.source, recursive=entry.recursive, follow=not entry.nofollow
            )
        is_file = not stat.S_ISDIR(os.fstat(tree).st_mode)
    data = entry.data
    if entry.fstype == "tmpfs" and "mode=" not in data:
        data = _with_mode(data, root, entry.destination)
    kind = "file" if is_file else "dir"
    make = _make_unfollowed if entry.onto_link else paths.make_in_root
    try:
        target = make(root, entry.destination, kind)
    except IsADirectoryError:
        # mount(2) itself says so of a file and a folder, and Docker looks for that.
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), entry.destination) from None
    try:
        if entry.fstype in ("proc", "sysfs"):
            _check_plain_target(root, entry)
        _mount_on(entry, target, data, tree)
        if entry.kind == "mount" and (
            entry.propagation or entry.rec_set or entry.rec_clr or entry.copy_up
        ):
            # *target* is on what the mount covers; look the mount itself up again.
            made = paths.open_in_root(root, entry.destination, os.O_PATH)
            if entry.copy_up:
                _copy_up(entry, target, made)
            _set_shared_attributes(entry, made)
            os.close(made)
    finally:
        os.close(target)
        if tree >= 0:
            os.close(tree)


def _with_mode(data: str, root: int, path: str) -> str:
    """Add the mode of the folder that a tmpfs covers, as runc and crun do; 1777 otherwise."""
    try:
        covered = paths.open_in_root(root, path, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return data
    mode = stat.S_IMODE(os.fstat(covered).st_mode)
    os.close(covered)
    return f"{data},mode={mode:o}".lstrip(",")


def _make_unfollowed(root: int, path: str, kind: str) -> int:
    """As ``make_in_root``, but a link in the last place is itself what is returned."""
    parent, name = os.path.split(path)
    folder = paths.make_in_root(root, parent, "dir")
    try:
        try:
            fd: int = libc.via(
                os.open, name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
            )
        except FileNotFoundError:
            return paths.make_in_root(folder, name, kind)
    finally:
        os.close(folder)
    return fd


def _remount(entry: Mount, made: int) -> None:
    flags = entry.flags | mount.MS_REMOUNT
    where = f"/proc/self/fd/{made}"
    mount.mount(entry.source, where, entry.fstype, flags, entry.data, at=entry.destination)


def _copy_up(entry: Mount, covered: int, made: int) -> None:
    from firkin.init import copy_up

    copy_up.copy_up(covered, made, entry.destination, entry.data)
    if entry.attr_set:
        mount.mount_setattr(made, attr_set=entry.attr_set, at=entry.destination)


# One line a place, or else a file system type, for --explain.
_PLACES = {
    "/dev": "a /dev of the container's own, with few devices",
    "/dev/shm": "shared memory of the container's own",  # noqa: S108
    "/etc/hostname": "the name that the container was given",
    "/etc/hosts": "localhost and the container's own name have addresses",
    "/etc/resolv.conf": "names are looked up as on the host",
    "/sys/fs/cgroup": "the container's own limits and readings, read-only",
}
_REASONS = {
    "proc": "programs see their own processes, not the host's",
    "sysfs": "devices and kernel settings, read-only",
    "tmpfs": "files that live in memory and die with the container",
    "devpts": "terminals of the container's own",
    "mqueue": "POSIX message queues of the container's IPC namespace",
    "cgroup": "the container's own limits and readings",
    "cgroup2": "the container's own limits and readings",
    "overlay": "a part of the host below a private layer: writes stay in the container",
}


def _check_plain_target(root: int, entry: Mount) -> None:
    """Refuse a link in the place of /proc or /sys (CVE-2019-16884 and its kin)."""
    try:
        fd = os.open(
            entry.destination.lstrip("/"), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root
        )
    except OSError as error:
        raise OSError(error.errno, error.strerror, entry.destination) from None
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTDIR, "it must be a folder, not a link", entry.destination)
    finally:
        os.close(fd)


def _mount_on(entry: Mount, target: int, data: str, tree: int = -1) -> None:
    at = entry.destination
    if entry.kind == "bind":
        _set_attributes(entry, tree)
        mount.move_mount(tree, target, at=at)
        return
    where = f"/proc/self/fd/{target}"
    mount.mount(entry.source, where, entry.fstype, entry.flags, data, at=at)


def _set_attributes(entry: Mount, tree: int) -> None:
    at = entry.destination
    if entry.attr_set or entry.attr_clr:
        mount.mount_setattr(tree, attr_set=entry.attr_set, attr_clr=entry.attr_clr, at=at)
    _set_shared_attributes(entry, tree)


def _set_shared_attributes(entry: Mount, tree: int) -> None:
    """Set what binds and file systems are given alike: recursive options and propagation."""
    at = entry.destination
    if entry.rec_set or entry.rec_clr:
        mount.mount_setattr(
            tree, attr_set=entry.rec_set, attr_clr=entry.rec_clr, recursive=True, at=at
        )
    for flags in entry.propagation:
        mount.mount_setattr(
            tree,
            propagation=flags & ~mount.MS_REC,
            recursive=bool(flags & mount.MS_REC),
            at=at,
        )


def make_devices(plan: Plan, root: int) -> None:
    """Fill /dev: nodes (or the host's, bound, in a user namespace) and links."""
    if not plan.devices:
        return
    dev = paths.make_in_root(root, "/dev", "dir")
    try:
        _make_nodes(plan, root, dev)
        libc.because("the names that programs expect beside the nodes")
        for target, name in _DEVICE_LINKS:
            try:
                libc.via(os.symlink, target, name, dir_fd=dev)
            except FileExistsError:
                # The image's own, on a /dev that is not a fresh tmpfs: as runc, keep it.
                continue
    finally:
        os.close(dev)


def _make_nodes(plan: Plan, root: int, dev: int) -> None:
    for path, mode, number, uid, gid, source in plan.devices:
        if plan.bind_devices and not stat.S_ISFIFO(mode):
            libc.because("a user namespace can't make device nodes: the host's are bound")
            tree = mount.open_tree(source, recursive=False)
            if os.fstat(tree).st_rdev != number:
                raise OSError(errno.ENODEV, "the host has another device under this name", path)
            target = paths.make_in_root(root, path, "file")
            mount.move_mount(tree, target, at=path)
            os.close(target)
            os.close(tree)
            continue
        libc.because("the device nodes that every program may use")
        parent, name = os.path.split(path)
        folder = os.dup(dev) if parent == "/dev" else paths.make_in_root(root, parent, "dir")
        try:
            libc.via(os.mknod, name, mode, number, dir_fd=folder)
            if uid or gid:
                os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            _check_node(folder, name, mode, number, path)
        finally:
            os.close(folder)


def _check_node(folder: int, name: str, mode: int, number: int, path: str) -> None:
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_IFMT(found.st_mode) != stat.S_IFMT(mode) or found.st_rdev != number:
        raise OSError(errno.EEXIST, "the image has something else in a device's place", path)


def prepare_masks(plan: Plan) -> tuple[int, int]:
    """Open what hides things: the host's /dev/null and an empty read-only folder.

    Before the pivot, for the image's /dev/null may be anything.

    Returns:
        Detached trees (file, folder), -1 where there is nothing to mask.
    """
    if not plan.masked:
        return -1, -1
    libc.because("what hides files: the host's own null device")
    null = mount.open_tree("/dev/null", recursive=False)
    libc.because("what hides folders: an empty read-only tmpfs")
    empty = mount.detached_tmpfs("size=0,nr_inodes=1,mode=555", mount.MOUNT_ATTR_RDONLY)
    return null, empty


def mask_paths(plan: Plan, null: int, empty: int) -> None:
    """Hide ``maskedPaths`` and turn ``readonlyPaths`` read-only; after the pivot."""
    libc.because("settings of the kernel that can be read and not changed")
    for path in plan.readonly_paths:
        try:
            tree = mount.open_tree(path, recursive=True)
        except (FileNotFoundError, NotADirectoryError):
            continue
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
        mount.mount_setattr(tree, attr_set=mount.MOUNT_ATTR_RDONLY, at=path)
        mount.move_mount(tree, target, at=path)
        os.close(target)
        os.close(tree)
    libc.because("files that tell of the host or can harm it are hidden")
    for path in plan.masked:
        try:
            target = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue
        is_folder = stat.S_ISDIR(os.fstat(target).st_mode)
        tree = mount.open_tree("", recursive=False, dirfd=empty if is_folder else null)
        mount.move_mount(tree, target, at=path)
        os.close(target)
        os.close(tree)
    for fd in (null, empty):
        if fd >= 0:
            os.close(fd)


def pivot(root: int, propagation: int) -> None:
    """Make *root* the root of this process, and the host's unreachable.

    Args:
        root: a descriptor of the new root.
        propagation: ``MS_…`` of the new root mount, with ``MS_REC`` of all below it, for
            mounts that come later; or 0.
    """
    libc.because("the container's root becomes /; the host's root lies below it for a moment")
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    libc.via(os.fchdir, root)
    mount.pivot_root(".", ".")
    libc.because("nothing of the host's tree is reachable any more")
    # The old root lies on "/" now, but "." is still the new one, whose volumes may be shared.
    libc.via(os.fchdir, old)
    os.close(old)
    # As a slave first, lest the detach travel to the host.
    mount.mount("", ".", "", mount.MS_SLAVE | mount.MS_REC)
    mount.umount_detach(".")
    libc.via(os.chdir, "/")
    if propagation:
        libc.because("rootfsPropagation")
        mount.mount("", "/", "", propagation)


def move_root(root: int, propagation: int) -> None:
    """As :func:`pivot`, where the host's root is a ramfs, which can't be pivoted away.

    What was mounted on the host's root before is covered, not gone: processes with
    CAP_SYS_ADMIN can reach it. For ``--no-pivot`` only.
    """
    libc.because("--no-pivot: the container's root covers the host's")
    libc.via(os.fchdir, root)
    tree = mount.open_tree("", recursive=True, dirfd=root)
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mount.move_mount(tree, old, at="/")
    os.close(old)
    libc.via(os.fchdir, tree)
    os.close(tree)
    libc.via(os.chroot, ".")
    libc.via(os.chdir, "/")
    if propagation:
        libc.because("rootfsPropagation")
        mount.mount("", "/", "", propagation)


def readonly_root() -> None:
    """Turn the root mount read-only."""
    libc.because("--read-only: the root file system can't be written")
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mount.mount_setattr(fd, attr_set=mount.MOUNT_ATTR_RDONLY, at="/")
    os.close(fd)
