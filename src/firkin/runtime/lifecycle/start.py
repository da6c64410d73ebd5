"""``start``: let the process that waits in a created container become its command.

Source: runtime-spec runtime.md, "Start"; fifo(7).
"""

from __future__ import annotations

import errno
import os
import select

from firkin.errors import SetupError, UsageError
from firkin.runtime.lifecycle import folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.runtime.lifecycle.folder import Container


def start(container: Container) -> None:
    """Start a created container; its command has been executed when this returns.

    Raises:
        UsageError: it is unknown, or not in the status ``created``.
        SetupError: a hook failed, or the command can't be executed; the container is
            stopped then.
    """
    container.find().lock()
    container.find()
    status = container.status()
    if status == folder.STOPPED:
        # It may have said why, where nobody was left to hear it.
        _raise_error(container)
    if status != folder.CREATED:
        why = {
            folder.STOPPED: "it has stopped already; a container runs once",
            folder.CREATING: "its creation has not come to an end",
        }.get(status, f"it is {status} already")
        raise UsageError(f"cannot start container '{container.id}'", why)
    path = f"{container.path}/{folder.FIFO}"
    try:
        fifo = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise SetupError(f"cannot open '{path}'", error.strerror or "") from error
        raise UsageError(
            f"cannot start container '{container.id}'", "its process is dead"
        ) from error
    # From here on it is no longer "created", whatever becomes of this process.
    os.unlink(path)
    try:
        try:
            os.write(fifo, b"0")
        except BrokenPipeError:
            raise SetupError(
                f"cannot start container '{container.id}'", "its process is dead"
            ) from None
        # The other end is closed by execve, or by the end of the process.
        poller = select.poll()
        poller.register(fifo, 0)
        while not poller.poll():
            continue
    finally:
        os.close(fifo)
    _raise_error(container)
    if folder.never_executed(container.record.pid):
        raise SetupError(
            f"cannot start container '{container.id}'", "its process was killed before its command"
        )
    after_start(container)
    container.close()


def after_start(container: Container) -> None:
    """Run the ``poststart`` hooks; one that fails ends the container.

    Raises:
        SetupError: a hook failed.
    """
    record = container.record
    if not record.hooks.get("poststart"):
        return
    from firkin.runtime.lifecycle import delete, hooks

    try:
        hooks.run(hooks.parse(record.hooks["poststart"]), "poststart", record, folder.RUNNING)
    except SetupError:
        delete.kill_first(record.pid, record.started, record.cgroups)
        raise


def _raise_error(container: Container) -> None:
    """Raise what the process wrote when it could not become the command."""
    path = f"{container.path}/{folder.ERROR}"
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except FileNotFoundError:
        return  # told already
    os.unlink(path)
    if not text:
        return
    from firkin.runtime.failures import failure

    fields = text.split("\0", 3)
    with open(f"{container.path}/{folder.CONFIG}", encoding="utf-8") as file:
        from firkin.spec import jsontext

        command = jsontext.load(file.read())["process"]["args"][0]
    raise failure(command, *fields)
