"""``firkin run`` as root: the command's process."""

from __future__ import annotations

from support.cases_process import *  # noqa: F403
