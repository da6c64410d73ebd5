"""What the tests share: requirements, test roots, the command, the search for leftovers."""

import pytest

# These hold tests, for files of several folders to import.
pytest.register_assert_rewrite("support.namespace_cases", "support.rootfs_cases")
