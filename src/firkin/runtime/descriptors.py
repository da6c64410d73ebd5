"""Descriptors that are handed on from our caller to the command."""

from __future__ import annotations

import os

from firkin.errors import UsageError


def check_inherited(count: int) -> None:
    """See that the *count* descriptors from 3 on were inherited from our caller.

    Raises:
        UsageError: one is not open, or is one that we have opened ourselves.
    """
    for fd in range(3, 3 + count):
        try:
            ours = not os.get_inheritable(fd)
        except OSError:
            ours = True
        # What the caller left open was inherited; what we have opened is not to be.
        if ours:
            raise UsageError(f"cannot preserve {count} descriptors", f"descriptor {fd} is not open")
