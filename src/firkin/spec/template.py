"""The configuration to start a bundle from, as ``runc spec`` writes it."""

from __future__ import annotations

from firkin.spec import OCI_VERSION, defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")


def template(*, rootless: bool, uid: int = 0, gid: int = 0) -> dict[str, Any]:
    """Return a configuration for a shell in the folder ``rootfs`` of a bundle.

    Args:
        rootless: for an ordinary user, with a user namespace.
        uid, gid: the ids of that user.
    """
    names = [name for name in defaults.NAMESPACES if not (rootless and name == "network")]
    linux: dict[str, Any] = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": name} for name in names],
        "maskedPaths": list(defaults.MASKED_PATHS),
        "readonlyPaths": list(defaults.READONLY_PATHS),
    }
    mounts = defaults.mounts(tty_gid=None if rootless else 5)
    if rootless:
        del linux["resources"]
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = [{"containerID": 0, "hostID": uid, "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": gid, "size": 1}]
        # The host's network namespace is not theirs, and so neither is a sysfs of it.
        mounts = [
            defaults.host_tree("/sys", "ro") if m["destination"] == "/sys" else m
            for m in mounts
            if m["type"] != "cgroup"
        ]
    capabilities = list(_CAPABILITIES)
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [f"PATH={defaults.PATH}", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "firkin",
        "mounts": mounts,
        "linux": linux,
    }
