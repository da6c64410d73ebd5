"""What a test needs of its machine, and the only lawful way to skip.

A test says ``@requires("root", "controller:io")`` (or calls :func:`need` in its
body or fixture). A requirement is looked up on the machine itself, and what it
lacks becomes the skip message. Under ``CI=true``

* a skip that did not come from here is a failure;
* so is an unmet requirement that the set-up should have met;
* so is one that the choice of user decides, but for ``tests/unit`` and
  ``tests/clients``, which both users run.
"""

from __future__ import annotations

import enum
import functools
import os
import platform
import pwd
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from _pytest.outcomes import Skipped  # pytest.skip.Exception, under a name that types know

from support.roots import DEBIAN_ARCHIVE

CI = os.environ.get("CI") == "true"


class Kind(enum.Enum):
    """Who could meet a requirement."""

    MACHINE = "another machine or kernel"
    SETUP = "the set-up"
    USER = "the other user that runs the tests"


class Unmet(Skipped):
    """A skip because something is lacking, raised by :func:`need` only."""

    def __init__(self, message: str, kind: Kind) -> None:
        # The report then names the place of the test, not of this file.
        super().__init__(message, _use_item_location=True)
        self.kind = kind


class Requirement(NamedTuple):
    """One thing that a test can need.

    Args:
        lacking: given the text after the colon, says what is missing, or nothing.
        kind: who could mend that.
    """

    lacking: Callable[[str], str]
    kind: Kind


def requires(*names: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test unless this machine has all that *names* say.

    Args:
        names: keys of :data:`REQUIREMENTS`, with ``:ARGUMENT`` where they take one.
    """
    for name in names:
        find(name)
    return pytest.mark.requires(*names)


def need(*names: str) -> None:
    """Skip the running test unless this machine has all that *names* say."""
    for name in names:
        requirement, argument = find(name)
        lacking = requirement.lacking(argument)
        if lacking:
            raise Unmet(f"requires {name}: {lacking}", requirement.kind)


def find(name: str) -> tuple[Requirement, str]:
    """Split ``NAME:ARGUMENT`` and look the requirement up."""
    key, _, argument = name.partition(":")
    if key not in REQUIREMENTS:
        raise ValueError(f"unknown requirement {name!r}; known: {', '.join(sorted(REQUIREMENTS))}")
    return REQUIREMENTS[key], argument


# ---------------------------------------------------------------- users


def _root(_: str) -> str:
    return "" if os.geteuid() == 0 else "runs as root only"


def _ordinary_user(_: str) -> str:
    return "" if os.geteuid() != 0 else "runs as an ordinary user only"


def _user(name: str) -> str:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return f"there is no user {name}; `tools/setup test` makes it"
    return ""


def _subordinate_ids(_: str) -> str:
    if not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        return "no newuidmap and newgidmap; Debian's package is uidmap"
    user = pwd.getpwuid(os.geteuid())
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            owners = {line.split(":")[0] for line in Path(path).read_text().splitlines()}
        except OSError as error:
            return str(error)
        if not owners & {user.pw_name, str(user.pw_uid)}:
            return f"{user.pw_name} has no range in {path}"
    return ""


# ---------------------------------------------------------------- what the set-up brings


def _program(name: str) -> str:
    return "" if shutil.which(name) else f"{name} is not installed"


def _debian_root(_: str) -> str:
    return "" if DEBIAN_ARCHIVE.exists() else f"{DEBIAN_ARCHIVE} is missing; see tools/make_roots"


# ---------------------------------------------------------------- the kernel and the machine


@functools.cache
def cgroup_mounts() -> dict[str, str]:
    """Return where each cgroup controller can be used.

    Returns:
        controller to its v1 mount point, or to the v2 mount point where it sits
        on v2. The v2 mount itself is under ``unified``, if there is one.
    """
    found: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        point, (kind, _source, options) = head.split()[4], tail.split()[:3]
        if kind == "cgroup":
            found |= {o: point for o in options.split(",") if o not in {"rw", "ro", "xattr"}}
        elif kind == "cgroup2" and "unified" not in found:
            found["unified"] = point
            on_v2 = Path(point, "cgroup.controllers").read_text().split()
            found |= dict.fromkeys(on_v2, point)
    return found


def _cgroup_v1(_: str) -> str:
    mounts = cgroup_mounts()
    on_v1 = [c for c in ("memory", "pids") if mounts.get(c) not in (None, mounts.get("unified"))]
    return "" if len(on_v1) == 2 else "memory and pids controllers are not on cgroup v1 here"


def _cgroup_v2(_: str) -> str:
    mounts = cgroup_mounts()
    on_v2 = [c for c in ("memory", "pids") if c in mounts and mounts[c] == mounts.get("unified")]
    return "" if len(on_v2) == 2 else "memory and pids controllers are not on cgroup v2 here"


def _controller(name: str) -> str:
    mounts = cgroup_mounts()
    # The io controller of v2 is v1's blkio, whose limits are the throttle files.
    if name == "io" and "blkio" in mounts:
        throttle = Path(mounts["blkio"], "blkio.throttle.read_bps_device")
        return "" if throttle.exists() else "blkio without throttling"
    return "" if name in mounts else f"this kernel has no {name} controller mounted"


def _swap_accounting(_: str) -> str:
    mounts = cgroup_mounts()
    if "memory" not in mounts:
        return "no memory controller"
    folder = Path(mounts["memory"])
    if (folder / "memory.memsw.limit_in_bytes").exists():
        return ""
    return "" if any(folder.glob("*/memory.swap.max")) else "the kernel does not account for swap"


def _delegated_cgroup(_: str) -> str:
    unified = cgroup_mounts().get("unified")
    own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
    if unified and own and os.access(f"{unified}{own}", os.W_OK) and os.geteuid() != 0:
        return "" if "memory" in cgroup_mounts() else "no controllers on cgroup v2"
    return "nobody delegated a cgroup to this user"


CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24, "CAP_MKNOD": 27}


def _capability(name: str) -> str:
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return "" if effective >> CAPABILITIES[name] & 1 else f"this process has no {name}"


@functools.cache
def _user_namespaces(_: str) -> str:
    try:
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "true"], capture_output=True, text=True
        )
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip()


def _namespace(kind: str) -> str:
    return "" if os.path.exists(f"/proc/self/ns/{kind}") else f"no {kind} namespaces in this kernel"


def _kernel(version: str) -> str:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("-")[0].split(".")[:2])

    running = platform.release()
    return "" if numbers(running) >= numbers(version) else f"the kernel is {running}"


def _cpus(count: str) -> str:
    have = len(os.sched_getaffinity(0))
    return "" if have >= int(count) else f"this process has {have} CPU"


def _architecture(name: str) -> str:
    return "" if platform.machine() == name else f"this machine is {platform.machine()}"


def _systemd(_: str) -> str:
    return "" if os.path.isdir("/run/systemd/system") else "systemd is not running"


def _criu(_: str) -> str:
    # Its own answer: it knows which kernels it can work on.
    try:
        done = subprocess.run(["criu", "check"], capture_output=True, text=True)
    except OSError:
        return "criu is not installed"
    if done.returncode == 0:
        return ""
    lines = (done.stderr or done.stdout).splitlines()
    return f"criu cannot work on this kernel: {lines[0] if lines else 'it does not say why'}"


def _lsm(name: str) -> str:
    try:
        active = Path("/sys/kernel/security/lsm").read_text().split(",")
    except OSError:
        active = []
    return "" if name in active else f"{name} is not active in this kernel"


def _no_lsm(name: str) -> str:
    return "" if _lsm(name) else f"{name} is active in this kernel"


def _numa(_: str) -> str:
    return "" if os.path.exists("/proc/self/numa_maps") else "the kernel knows one memory node only"


# The reviewed list: what is the MACHINE's may be missing in CI.
REQUIREMENTS = {
    "root": Requirement(_root, Kind.USER),
    "ordinary user": Requirement(_ordinary_user, Kind.USER),
    "user": Requirement(_user, Kind.SETUP),  # :NAME
    "subordinate ids": Requirement(_subordinate_ids, Kind.SETUP),
    "program": Requirement(_program, Kind.SETUP),  # :NAME
    "debian root": Requirement(_debian_root, Kind.SETUP),
    "cgroup v1": Requirement(_cgroup_v1, Kind.MACHINE),
    "cgroup v2": Requirement(_cgroup_v2, Kind.MACHINE),
    "controller": Requirement(_controller, Kind.MACHINE),  # :NAME, v2's names
    "swap accounting": Requirement(_swap_accounting, Kind.MACHINE),
    "delegated cgroup": Requirement(_delegated_cgroup, Kind.MACHINE),
    "capability": Requirement(_capability, Kind.MACHINE),  # :NAME, of CAPABILITIES
    "user namespaces": Requirement(_user_namespaces, Kind.MACHINE),
    "namespace": Requirement(_namespace, Kind.MACHINE),  # :KIND, as in /proc/self/ns
    "kernel": Requirement(_kernel, Kind.MACHINE),  # :MAJOR.MINOR, at least
    "cpus": Requirement(_cpus, Kind.MACHINE),  # :COUNT, at least
    "architecture": Requirement(_architecture, Kind.MACHINE),  # :NAME, of uname(2)
    "systemd": Requirement(_systemd, Kind.MACHINE),
    "lsm": Requirement(_lsm, Kind.MACHINE),  # :NAME
    "no lsm": Requirement(_no_lsm, Kind.MACHINE),  # :NAME
    "numa": Requirement(_numa, Kind.MACHINE),
    "criu": Requirement(_criu, Kind.MACHINE),  # that works
}
