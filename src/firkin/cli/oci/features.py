"""``firkin-runtime features``."""

from __future__ import annotations

from firkin import __version__
from firkin.cli.oci.parse import verb
from firkin.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firkin.cli.oci.main import Context


def main(_context: Context, argv: Sequence[str]) -> int:
    """Print what this runtime can do as JSON; return 0."""
    found = verb("features", "", "Show what this runtime can do.", {}, {}, argv, least=0, most=0)
    if found is None:
        return 0
    from firkin.spec.jsontext import dump

    print(dump(features(), indent=4))
    return 0


def features() -> dict[str, Any]:
    """Return the specification's features: what is built in, whatever this machine has.

    Source: runtime-spec features.md and features-linux.md.
    """
    from firkin.linux import caps, ns
    from firkin.runtime.compiler import INIT_ANNOTATION
    from firkin.runtime.mount_options import option_names
    from firkin.spec import OCI_VERSION, schema

    annotations = {"org.firkin.version": __version__}
    seccomp: dict[str, Any] = {
        "enabled": True,
        "actions": sorted(schema.ACTION.choices),
        "operators": sorted(schema.OPERATOR.choices),
        "archs": sorted(schema.ARCHITECTURE.choices),
        "knownFlags": sorted(schema.SECCOMP_FLAG.choices),
        "supportedFlags": sorted(schema.SECCOMP_FLAG.choices),
    }
    try:
        from firkin.linux import libseccomp
    except Unsupported:
        seccomp = {"enabled": False}
    else:
        annotations["io.github.seccomp.libseccomp.version"] = libseccomp.version()
        seccomp["archs"] = [a for a in seccomp["archs"] if libseccomp.arch(a) is not None]
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": list(schema.HOOK_KINDS),
        "mountOptions": option_names(),
        "linux": {
            "namespaces": sorted(ns.FLAGS),
            "capabilities": list(caps.NAMES),
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": False,
                "systemdUser": False,
                "rdma": True,
            },
            "seccomp": seccomp,
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": True},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
        "annotations": annotations,
        # What the owner of a configuration could give themselves beyond its other fields.
        "potentiallyUnsafeConfigAnnotations": [INIT_ANNOTATION],
    }
