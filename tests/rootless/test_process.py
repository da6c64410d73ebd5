"""``firkin run`` as an ordinary user: the command's process and its terminal."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "support.box", "support.cases_process", "support.cases_terminal", "support.user_terminal"
)

from support.cases_process import *  # noqa: E402, F403
from support.cases_terminal import *  # noqa: E402, F403
