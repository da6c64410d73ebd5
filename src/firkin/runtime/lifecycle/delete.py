"""``delete``: undo what ``create`` did, whether the container came to its end or not.

Source: runtime-spec runtime.md, "Delete".
"""

from __future__ import annotations

import os
import select

from firkin.errors import FirkinError, SetupError, UsageError
from firkin.runtime.cgroups import light
from firkin.runtime.lifecycle import folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firkin.runtime.lifecycle.folder import Container

_SIGKILL = 9
# How long a process may take to die, in milliseconds; one in the disk's hands can't be hurried.
_PATIENCE = 10_000
# The same for one that has nothing left to do but to end, in seconds.
_DYING = 2.0


def delete(container: Container, *, force: bool, warn: Callable[[str], None]) -> None:
    """Delete a container that has stopped, or with *force* any.

    Args:
        container: may be unknown with *force*, which is no error.
        force: kill it first.
        warn: told of a ``poststop`` hook that failed, which stops nothing.

    Raises:
        UsageError: it is unknown, or has not stopped.
        Busy: another operation on it does not end.
        SetupError: something of it can't be removed; it stays known.
    """
    try:
        container.find()
        if force and container.record.pid > 0 and container.is_busy():
            # What has it may wait for this very process, as `start` for a hook inside.
            kill_first(container.record.pid, container.record.started, container.record.cgroups)
        container.lock()
        # What was true before we had it may not be any more.
        container.find()
    except folder.Busy:
        raise
    except (UsageError, SetupError):
        if not force:
            raise
        _delete_remains(container)
        return
    status = container.status()
    if not force and status not in (folder.STOPPED, folder.CREATED):
        raise UsageError(
            f"cannot delete container '{container.id}'",
            f"it is not stopped: {status}",
            "kill it first, or give --force",
        )
    destroy(container, warn)


def _delete_remains(container: Container) -> None:
    """Remove what there is of a container that has no record, or none that can be read."""
    try:
        if container.fileno() < 0:
            container.lock()
        container.forget()
    except folder.Busy:
        raise
    except UsageError:
        if os.path.isdir(container.root):
            container.clear()


def destroy(container: Container, warn: Callable[[str], None] | None = None) -> None:
    """Kill the container, remove all of it, and run its ``poststop`` hooks.

    The caller has locked it.

    Raises:
        SetupError, OSError: something can't be removed; it stays recorded.
    """
    record = container.record
    if record.pid > 0:
        kill_first(record.pid, record.started, record.cgroups)
        _remove_cgroups(record.cgroups)
    else:
        # It had no process yet, or one that dies with its maker. Who lives in there is of
        # another container with the same cgroupsPath.
        light.remove(record.cgroups, _DYING)
    for path in record.undo.get("resctrl", {}).get("remove", ()):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue
    if record.mount_namespace:
        from firkin.runtime import state

        state.kill_members(record.mount_namespace)
    if record.hooks.get("poststop") and record.pid > 0:
        _poststop(container, warn)
    container.forget()


def kill_first(pid: int, started: int, cgroups: list[str]) -> None:
    """Kill the container's first process, and wait until it has ended.

    Args:
        pid, started: which.
        cgroups: those that it may be frozen in.
    """
    # Built in, and all that is needed of the module `signal`.
    from _signal import pidfd_send_signal  # type: ignore[import-not-found]

    if not folder.is_alive(pid, started):
        return  # also where a damaged record has what is no pid
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # The descriptor is open: from here on the number can't come to mean another.
        if not folder.is_alive(pid, started):
            return
        pidfd_send_signal(pidfd, _SIGKILL)
        folder.thaw(cgroups)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        # If not, the removal of its cgroup says so.
        poller.poll(_PATIENCE)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def _remove_cgroups(paths: list[str]) -> None:
    left = light.remove(paths)
    if left:
        # It has cgroups of its own making below it, or processes.
        from firkin.runtime import cgroups

        cgroups.remove_paths(left)


def _poststop(container: Container, warn: Callable[[str], None] | None) -> None:
    from firkin.runtime.lifecycle import hooks

    # Each of them, whatever becomes of the others.
    for hook in hooks.parse(container.record.hooks["poststop"]):
        try:
            hooks.run((hook,), "poststop", container.record, folder.STOPPED)
        except FirkinError as error:
            if warn is not None:
                warn(str(error))
