"""``firkin-runtime state``."""

from __future__ import annotations

from firkin.cli.oci.parse import verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firkin.cli.oci.main import Context
    from firkin.runtime.lifecycle.folder import Container


def main(context: Context, argv: Sequence[str]) -> int:
    """Print the state of a container as JSON; return 0."""
    found = verb("state", "ID", "Show the state of a container.", {}, {}, argv, least=1, most=1)
    if found is None:
        return 0
    from firkin.runtime.lifecycle.folder import Container
    from firkin.spec.jsontext import dump

    print(dump(describe(Container(context.root, found[1][0]).find()), indent=2))
    return 0


def describe(container: Container) -> dict[str, Any]:
    """Return the specification's state with what runc adds to it."""
    record = container.record
    state = record.state(container.status())
    annotations = state.pop("annotations", None)
    state |= {"rootfs": record.rootfs, "created": record.time}
    if annotations:
        state["annotations"] = annotations
    state["owner"] = record.owner
    return state
