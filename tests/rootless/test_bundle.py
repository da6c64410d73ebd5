"""OCI bundles as an ordinary user: those of ``runc spec --rootless`` and of ``firkin spec``."""

from __future__ import annotations

from support.cases_bundle import Bundle, Cases, bundle
from support.requires import requires

__all__ = ["bundle"]  # the fixture

pytestmark = requires("user namespaces")


class TestBundle(Cases):
    """As :class:`Cases`."""


def test_the_only_id_is_ones_own(bundle: Bundle) -> None:
    assert bundle.shell("cat /proc/self/uid_map").split()[2] == "1"
