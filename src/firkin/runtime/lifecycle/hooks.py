"""The hooks that the runtime itself runs, in its own namespaces, with the container's state."""

from __future__ import annotations

from firkin.errors import SetupError
from firkin.init import hooks
from firkin.spec import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firkin.runtime.lifecycle.folder import Record


def parse(entries: list[dict[str, Any]] | None) -> tuple[hooks.Hook, ...]:
    """Return the hooks of one kind, from the configuration."""
    return tuple(
        hooks.Hook(
            entry["path"],
            entry.get("args") or (),
            entry.get("env") or (),
            entry.get("timeout") or 0,
        )
        for entry in entries or ()
    )


def run(entries: Sequence[hooks.Hook], kind: str, record: Record, status: str) -> None:
    """Run *entries* with the state that *record* and *status* make.

    Raises:
        SetupError: one failed; those after it were not run.
    """
    if not entries:
        return
    try:
        hooks.run(entries, kind, jsontext.dump(record.state(status)))
    except OSError as error:
        path = error.filename
        raise SetupError(
            f"cannot run hook '{path}'", error.strerror or "", step=kind, errno=error.errno or 0
        ) from error
