"""``firkin run -t`` as root: the command's terminal."""

from __future__ import annotations

from support.cases_terminal import *  # noqa: F403
