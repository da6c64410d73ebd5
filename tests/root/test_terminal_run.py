"""``firkin run -t`` as root: the command's terminal."""

from __future__ import annotations

from support.cases_process import box  # noqa: F401
from support.cases_terminal import *  # noqa: F403
