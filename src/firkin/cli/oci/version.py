"""``firkin-runtime --version``; Docker and others read its first lines."""

from __future__ import annotations

from firkin import __version__
from firkin.errors import Unsupported
from firkin.spec import OCI_VERSION


def main() -> int:
    """Print the versions of the runtime, the specification and libseccomp; return 0."""
    print(f"firkin-runtime version {__version__}")
    print(f"spec: {OCI_VERSION}")
    try:
        from firkin.linux import libseccomp
    except Unsupported:
        return 0  # not installed: then there is no line, as with a runc built without it
    print(f"libseccomp: {libseccomp.version()}")
    return 0
