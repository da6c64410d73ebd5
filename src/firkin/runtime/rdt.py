"""Intel's Resource Director Technology: shares of caches and memory bandwidth, by resctrl.

A container lies in a group: the one that ``closID`` names, which may be there already
and stays, or one of its own, which goes with it.

Source: runtime-spec config-linux.md, "IntelRdt"; Documentation/filesystems/resctrl.rst.
"""

from __future__ import annotations

import os

from firkin.errors import ConfigError, SetupError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FIELD = "linux.intelRdt"


class Group:
    """The group of one container.

    Args:
        wanted: ``linux.intelRdt``.
        container_id: names what has no other name.
        root: where resctrl is mounted, as :func:`find_mount` finds it.

    Attributes:
        path: its folder.
        monitor: the folder of its monitoring group, or "".
        remove: folders that go with the container, the innermost first. Known before any
            of them is made, for whoever records them.
    """

    __slots__ = ("_exists", "_wanted", "monitor", "path", "remove")

    def __init__(self, wanted: dict[str, Any], container_id: str, root: str) -> None:
        self._wanted = wanted
        name = wanted.get("closID") or ""
        self.path = root if name == "/" else f"{root}/{name or container_id}"
        self.monitor = ""
        self._exists = os.path.isdir(self.path)
        self.remove: list[str] = []
        if wanted.get("enableMonitoring"):
            self.monitor = f"{self.path}/mon_groups/{container_id}"
            self.remove.append(self.monitor)
        if not name and not self._exists:
            self.remove.append(self.path)

    def record(self) -> dict[str, list[str]]:
        """Return what :func:`join` and :func:`remove` need, as JSON has it."""
        return {"join": [self.path, *filter(None, [self.monitor])], "remove": self.remove}

    def create(self) -> None:
        """Make the group, or see that the one that is there is as it should be.

        Raises:
            ConfigError: it has other shares, or ``closID`` alone names none that is there.
            SetupError: the kernel refused; what was made is to be removed.
        """
        lines = [
            line
            for line in (
                self._wanted.get("l3CacheSchema"),
                self._wanted.get("memBwSchema"),
            )
            if line
        ]
        more = list(self._wanted.get("schemata") or ())
        if not self._exists:
            if self._wanted.get("closID") and not lines and not more:
                raise ConfigError(f"{_FIELD}.closID", f"there is no group '{self.path}'")
            _attempt("make", os.mkdir, self.path, 0o755)
        elif lines:
            _compare(self.path, lines)
            lines = []
        for line in lines + more:
            _attempt("write", _write, f"{self.path}/schemata", line)
        if self.monitor:
            _attempt("make", os.mkdir, self.monitor, 0o755)


def find_mount() -> str:
    """Return where resctrl is mounted.

    Raises:
        Unsupported: nowhere.
    """
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            if fields[fields.index("-") + 1] == "resctrl":
                return fields[4]
    raise Unsupported(
        "cannot set linux.intelRdt",
        "no resctrl file system is mounted",
        "where the processor has it: mount -t resctrl resctrl /sys/fs/resctrl",
    )


def join(record: dict[str, list[str]], pid: int) -> None:
    """Put the process *pid* into a group; its children will follow.

    Raises:
        SetupError: the kernel refused.
    """
    for folder in record["join"]:
        _attempt("write", _write, f"{folder}/tasks", str(pid))


def _attempt(what: str, function: Any, path: str, *more: Any) -> None:
    try:
        function(path, *more)
    except OSError as error:
        raise SetupError(
            f"cannot {what} '{path}'",
            f"{error.strerror}{_last_status(path)}",
            step="intel_rdt",
            errno=error.errno or 0,
            path=path,
        ) from error


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


def _last_status(path: str) -> str:
    """Return what resctrl says of its last refusal, for the end of a message."""
    while path != "/":
        path = os.path.dirname(path)
        try:
            with open(f"{path}/info/last_cmd_status") as file:
                text = file.read().strip()
        except OSError:
            continue
        return f" ({text})" if text != "ok" else ""
    return ""


def _compare(path: str, wanted: list[str]) -> None:
    """Compare the shares of a group that is there with those that are wanted.

    Raises:
        ConfigError: they differ.
    """
    try:
        with open(f"{path}/schemata") as file:
            present = shares(file.read())
    except OSError as error:
        raise SetupError(f"cannot read '{path}/schemata'", error.strerror or "") from error
    for line in wanted:
        for key, value in shares(line).items():
            if present.get(key) != value:
                raise ConfigError(
                    f"{_FIELD}.closID",
                    f"group '{path}' is there with other shares than {line!r}",
                )


def shares(text: str) -> dict[tuple[str, str], str]:
    """Return the shares that lines of a schemata file spell, by resource and cache.

    ``L3:0=00ff;1=f`` is ``{("L3", "0"): "ff", ("L3", "1"): "f"}``: what means the same
    is spelled the same.
    """
    found = {}
    for line in text.splitlines():
        resource, _, domains = line.strip().partition(":")
        for domain in domains.split(";"):
            cache, _, value = domain.partition("=")
            value = value.strip().lower().lstrip("0") or "0"
            found[resource.strip(), cache.strip().lstrip("0") or "0"] = value
    return found
