"""The devices and limits of a configuration: ``linux.devices`` and ``linux.resources``."""

from __future__ import annotations

import os
import stat

from firkin.errors import UsageError
from firkin.spec import defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firkin.engine.compose import Machine
    from firkin.engine.request import Request

    # type ("c" or "b"), major, minor, permission bits, uid, gid.
    Device = tuple[str, int, int, int, int, int]

_CPU_PERIOD = 100_000  # microseconds; the kernel's and docker's

# Of /dev, what each container has of its own.
_OWN_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx")
_OWN_FOLDERS = ("pts", "shm", "mqueue", "fd")


def look_up_devices(request: Request) -> dict[str, Device]:
    """Return the host's devices that *request* names, by their path; all of them if privileged.

    Raises:
        UsageError: a path is not a device.
    """
    found: dict[str, Device] = {}
    if request.privileged:
        _walk_devices("/dev", found)
    named = [path for path, _, _ in request.devices]
    named += [path for _, path, _ in request.device_rates]
    for path in named:
        try:
            device = _device(os.stat(path))
        except OSError as error:
            raise UsageError(f"cannot use device '{path}'", str(error.strerror)) from None
        if device is None:
            raise UsageError(f"cannot use device '{path}'", "it is not a device")
        found[path] = device
    return found


def _walk_devices(folder: str, found: dict[str, Device]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            own = folder == "/dev" and entry.name in _OWN_DEVICES + _OWN_FOLDERS
            if own or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                _walk_devices(entry.path, found)
                continue
            device = _device(entry.stat(follow_symlinks=False))
            if device is not None:
                found[entry.path] = device


def _device(status: os.stat_result) -> Device | None:
    mode = status.st_mode
    if not stat.S_ISCHR(mode) and not stat.S_ISBLK(mode):
        return None
    kind = "c" if stat.S_ISCHR(mode) else "b"
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return kind, major, minor, stat.S_IMODE(mode), status.st_uid, status.st_gid


def devices(request: Request, machine: Machine, in_userns: bool) -> list[dict[str, Any]]:
    """Return ``linux.devices``: the nodes in /dev besides the standard ones."""
    wanted: list[tuple[str, str]] = [(path, target) for path, target, _ in request.devices]
    if request.privileged and not in_userns:
        taken = {target for _, target in wanted}
        wanted += [(path, path) for path in sorted(machine.devices) if path not in taken]
    result = []
    for path, target in wanted:
        kind, major, minor, mode, uid, gid = machine.devices[path]
        device = {"path": target, "type": kind, "major": major, "minor": minor, "fileMode": mode}
        if not in_userns:
            device.update(uid=uid, gid=gid)
        result.append(device)
    return result


def limits(request: Request, machine: Machine) -> dict[str, Any]:
    """Return ``linux.resources``: the limits that were asked for, and who may use which device."""
    resources: dict[str, Any] = {}
    rules = _device_rules(request, machine)
    if rules:
        resources["devices"] = rules
    memory = {
        "limit": request.memory,
        "reservation": request.memory_reservation,
        "swap": request.memory_swap,
        "swappiness": request.memory_swappiness,
    }
    if request.memory is not None and request.memory_swap is None and machine.swap_limit:
        memory["swap"] = 2 * request.memory  # docker's default: as much swap as memory
    quota, period = request.cpu_quota, request.cpu_period
    if request.nano_cpus is not None:
        quota, period = request.nano_cpus * _CPU_PERIOD // 10**9, _CPU_PERIOD
    cpu = {
        "shares": request.cpu_shares,
        "quota": quota,
        "period": period,
        "cpus": request.cpuset_cpus,
        "mems": request.cpuset_mems,
    }
    block: dict[str, Any] = {"weight": request.blkio_weight}
    for field, path, rate in request.device_rates:
        _, major, minor, *_ = machine.devices[path]
        block.setdefault(field, []).append({"major": major, "minor": minor, "rate": rate})
    pids = {"limit": request.pids_limit}
    for name, group in (("memory", memory), ("cpu", cpu), ("blockIO", block), ("pids", pids)):
        given = {key: value for key, value in group.items() if value is not None}
        if given:
            resources[name] = given
    return resources


def _device_rules(request: Request, machine: Machine) -> list[dict[str, Any]]:
    if machine.rootless:
        # Only root may set them, and a user namespace cannot make device nodes anyway.
        return []
    if request.privileged:
        return [{"allow": True, "access": "rwm"}]
    rules = defaults.device_rules()
    for path, _, access in request.devices:
        kind, major, minor, *_ = machine.devices[path]
        rules.append(defaults.device_rule(kind, major, minor, access))
    return rules
