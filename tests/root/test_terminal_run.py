"""``firkin run -t`` as root: the command's terminal."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("support.box", "support.cases_terminal", "support.user_terminal")

from support.cases_process import box  # noqa: E402, F401
from support.cases_terminal import *  # noqa: E402, F403
