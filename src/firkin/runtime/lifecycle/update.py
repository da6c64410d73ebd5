"""``update``: change the limits of a container that exists.

Source: runc-update(8).
"""

from __future__ import annotations

from firkin.errors import UsageError
from firkin.runtime.lifecycle import folder
from firkin.runtime.lifecycle.freeze import cgroup_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firkin.runtime.lifecycle.folder import Container


def update(container: Container, resources: dict[str, Any]) -> None:
    """Set the limits that *resources* names; all others stay as they are.

    Args:
        container: in any status but ``stopped`` and ``creating``.
        resources: validated ``linux.resources``. A number that is 0 is not named, as
            the callers of runc, which are written in Go, have it.

    Raises:
        UsageError: the container does not run.
        FirkinError: a limit can't be set; those before it are.
    """
    container.find().lock()
    status = container.status()
    if status in (folder.STOPPED, folder.CREATING):
        raise UsageError(f"cannot update container '{container.id}'", "container not running")
    cgroup_of(container).update(resources)
    container.close()
