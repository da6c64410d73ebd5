"""``pause`` and ``resume``: the freezer.

Source: cgroups(7); runc-pause(8).
"""

from __future__ import annotations

from firkin.errors import UsageError
from firkin.runtime import cgroups
from firkin.runtime.cgroups.light import is_frozen
from firkin.runtime.lifecycle import folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.runtime.cgroups.group import Cgroup
    from firkin.runtime.lifecycle.folder import Container


def cgroup_of(container: Container) -> Cgroup:
    """Return the cgroup of a container that was found.

    Raises:
        UsageError: it has none.
    """
    if not container.record.cgroups:
        raise UsageError(
            f"cannot use the cgroup of container '{container.id}'",
            "it has none",
            "as root, or with a cgroup that is delegated to you, it would",
        )
    return cgroups.reopen(cgroups.detect(), container.record.cgroups)


def pause(container: Container) -> None:
    """Stop all processes of the container where they are.

    Raises:
        UsageError: it is neither created nor running.
        FirkinError: it can't be frozen.
    """
    container.find().lock()
    status = container.status()
    if status not in (folder.RUNNING, folder.CREATED):
        raise UsageError(f"cannot pause container '{container.id}'", f"it is {status}, not running")
    cgroup_of(container).freeze()
    container.close()


def resume(container: Container) -> None:
    """Let a paused container go on.

    Raises:
        UsageError: it is not paused.
        FirkinError: it can't be thawed.
    """
    container.find().lock()
    status = container.status()
    if not is_frozen(container.record.cgroups) or status == folder.STOPPED:
        raise UsageError(f"cannot resume container '{container.id}'", f"it is {status}, not paused")
    cgroup_of(container).thaw()
    container.close()
