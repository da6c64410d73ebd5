"""``firkin run`` as an ordinary user: the command's process and its terminal."""

from __future__ import annotations

from support.cases_process import *  # noqa: F403
from support.cases_terminal import *  # noqa: F403
