"""Where systemd keeps a container's cgroup: ``slice:prefix:name`` as a path.

Sources: systemd.slice(5), systemd.unit(5); ``--systemd-cgroup`` of runc(8), and its
docs/systemd.md.
"""

from __future__ import annotations

import os

from firkin.errors import ConfigError, Unsupported

_FIELD = "linux.cgroupsPath"


def systemd_path(cgroups_path: str, container_id: str = "") -> str:
    """As :func:`unit_path`, on a machine where systemd runs.

    Raises:
        ConfigError: it has another form, or is no unit's name.
        Unsupported: systemd does not run here.
    """
    path = unit_path(cgroups_path, container_id)
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        raise Unsupported(
            "cannot use systemd for the container's cgroup",
            "systemd is not running here",
            "leave --systemd-cgroup out",
        )
    return path


def unit_path(cgroups_path: str, container_id: str = "") -> str:
    """The path below each hierarchy's root of the unit that *cgroups_path* names.

    Args:
        cgroups_path: ``slice:prefix:name``. Without a slice it is ``system.slice``; the unit
            is ``prefix-name.scope``, or *name* itself where that is a slice. Empty for
            ``system.slice:runc:ID``, which is what clients of runc look for.
        container_id: ID of that.

    Returns:
        As ``/a.slice/a-b.slice/prefix-name.scope``: a dash leads to a slice within one.

    Raises:
        ConfigError: it has another form, or is no unit's name.
    """
    if not cgroups_path and container_id:
        cgroups_path = f"system.slice:runc:{container_id}"
    parts = cgroups_path.split(":")
    if len(parts) != 3:
        why = f"expected slice:prefix:name for systemd, not {cgroups_path!r}"
        raise ConfigError(_FIELD, why, "leave --systemd-cgroup out for a path")
    parent, prefix, name = parts
    path = _slices(parent or "system.slice")
    if not name or not _is_unit(name) or not _is_unit(prefix):
        raise ConfigError(_FIELD, f"{cgroups_path!r} does not name a unit of systemd")
    if name.endswith(".slice"):
        unit = name
    else:
        unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return f"{path}/{unit}"


def _slices(name: str) -> str:
    """The path of a slice: ``a-b.slice`` lies in ``a.slice``, ``-.slice`` is the root."""
    if name == "-.slice":
        return ""
    stem = name.removesuffix(".slice")
    steps = stem.split("-")
    if stem == name or not _is_unit(stem) or not all(steps):
        raise ConfigError(_FIELD, f"{name!r} is not the name of a slice of systemd")
    path = ""
    for count in range(1, len(steps) + 1):
        path += f"/{'-'.join(steps[:count])}.slice"
    return path


def _is_unit(text: str) -> bool:
    """Whether *text* has only characters that a unit's name may have (systemd.unit(5))."""
    return len(text) < 256 and all(c.isascii() and (c.isalnum() or c in "-_.\\@") for c in text)
