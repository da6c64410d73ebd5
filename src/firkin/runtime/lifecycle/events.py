"""``events``: statistics of a container, and word of its out-of-memory kills.

Source: runc-events(8); runc's types/events.go has the form.
"""

from __future__ import annotations

import os
import select
from time import monotonic

from firkin.errors import UsageError
from firkin.runtime.cgroups import oom, stats
from firkin.runtime.lifecycle import folder
from firkin.runtime.lifecycle.freeze import cgroup_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from firkin.runtime.lifecycle.folder import Container

# poll(2) counts milliseconds in an int; who has more time is asked again, in seconds.
_LONGEST = 1_000_000.0


def statistics(container: Container) -> dict[str, Any]:
    """Return one event of type ``stats``.

    Raises:
        UsageError: the container has stopped.
    """
    if container.status() in (folder.STOPPED, folder.CREATING):
        raise UsageError(f"cannot read events of '{container.id}'", "container is not running")
    return {"type": "stats", "id": container.id, "data": stats.read(cgroup_of(container))}


def follow(container: Container, interval: float) -> Iterator[dict[str, Any]]:
    """Yield events until the container has ended: ``oom`` at once, ``stats`` each *interval*.

    Args:
        container: one that was found.
        interval: in seconds.
    """
    # Asked for now, to be refused now: the first comes after the interval.
    statistics(container)
    watcher = oom.watch(cgroup_of(container))
    pidfd = os.pidfd_open(container.record.pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if watcher is not None:
            poller.register(watcher.fileno(), select.POLLIN)
        due = monotonic() + interval
        while container.status() != folder.STOPPED:
            left = min(max(0.0, due - monotonic()), _LONGEST)
            ready = dict(poller.poll(left * 1000))
            if watcher is not None and watcher.fileno() in ready:
                what = watcher.read()
                if what == "oom":
                    yield {"type": "oom", "id": container.id}
                elif what == "gone":
                    return
            if pidfd in ready:
                return
            if monotonic() >= due:
                due += interval
                yield statistics(container)
    finally:
        os.close(pidfd)
        if watcher is not None:
            watcher.close()
