"""What the tests share: requirements, test roots, the command, the search for leftovers."""

from pathlib import Path

import pytest

# Before any of them is imported: their assertions then show values, as those of tests do.
pytest.register_assert_rewrite(
    *(f"support.{path.stem}" for path in Path(__file__).parent.glob("[!_]*.py"))
)
