"""``exec``: run another process in a container.

It enters the namespaces and the cgroup of the container's first process, and
gets the rights that the container's configuration gives, not more.

Source: runc-exec(8); setns(2); CVE-2016-9962, CVE-2019-5736, CVE-2024-21626 (what a
process that enters a hostile container must not bring).
"""

from __future__ import annotations

import os

from firkin.errors import FirkinError, SetupError, UsageError
from firkin.linux import clone, ns, signals
from firkin.runtime import cgroups, compiler, descriptors, launch, userns
from firkin.runtime.lifecycle import folder
from firkin.runtime.lifecycle.process import (
    clip_capabilities,
    lacks_home,
    load_seccomp,
    send_console,
    write_pid_file,
)
from firkin.runtime.lifecycle.stay import stay
from firkin.spec import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from firkin.runtime.lifecycle.folder import Container


class Options:
    """What the command line of ``exec`` says.

    Attributes:
        detach: do not stay with the process.
        pid_file: where its pid is written, or "".
        console_socket: a socket that takes the master of its terminal, or "".
        preserve_fds: how many descriptors from 3 on it inherits.
        cgroups: cgroups below the container's for it.
        ignore_paused: try although the container is paused.
        warn: told of what is passed over.
    """

    __slots__ = (
        "cgroups",
        "console_socket",
        "detach",
        "ignore_paused",
        "pid_file",
        "preserve_fds",
        "warn",
    )

    def __init__(self) -> None:
        self.detach = self.ignore_paused = False
        self.pid_file = self.console_socket = ""
        self.cgroups: list[str] = []
        self.preserve_fds = 0
        self.warn: Callable[[str], None] = lambda _text: None


def base_process(container: Container) -> dict[str, Any]:
    """Return the process of the container's configuration; to change, for :func:`execute`."""
    config = _config(container)
    process: dict[str, Any] = config.get("process") or {}
    return process


def _config(container: Container) -> dict[str, Any]:
    with open(f"{container.path}/{folder.CONFIG}", encoding="utf-8") as file:
        config: dict[str, Any] = jsontext.load(file.read())
    return config


def execute(container: Container, process: dict[str, Any], options: Options) -> int:
    """Run *process* in *container*; return its exit status, or 0 if it is detached.

    Args:
        container: one that was found.
        process: as in a configuration, validated.
        options: how.

    Raises:
        UsageError: the container does not run.
        FirkinError: the process could not be started.
    """
    status = container.status()
    if status == folder.STOPPED or status == folder.CREATING:
        raise UsageError(f"cannot exec in container '{container.id}'", "container not running")
    if status == folder.PAUSED and not options.ignore_paused:
        raise UsageError(
            f"cannot exec in container '{container.id}'",
            "it is paused, and the process would be, too",
            "resume it first, or give --ignore-paused",
        )
    terminal = bool(process.get("terminal"))
    if terminal and options.detach and not options.console_socket:
        raise UsageError(
            "cannot allocate a terminal",
            "the runtime detaches, and nobody would have it",
            "give --console-socket",
        )
    if options.console_socket and not (terminal and options.detach):
        raise UsageError(
            "cannot use --console-socket",
            "the runtime will not detach or the process has no terminal",
            "give --tty and --detach",
        )
    opened = compiler.Opened()
    cgroup = _Joined(container, options.cgroups)
    try:
        start = _prepare(container, process, options, opened, cgroup)
        if options.detach:
            _, pidfd = _start(start, options)
            os.close(pidfd)
            return 0

        def begin() -> tuple[int, int]:
            process = _start(start, options)
            opened.close()
            return process

        return stay(start, begin)
    finally:
        opened.close()
        cgroup.close()


def _prepare(
    container: Container,
    process: dict[str, Any],
    options: Options,
    opened: compiler.Opened,
    cgroup: _Joined,
) -> launch.Launch:
    record = container.record
    linux = _config(container).get("linux") or {}
    program, flags = load_seccomp(linux.get("seccomp"))
    plan = compiler.compile_process(process, program, flags)
    compiler.compile_traits(plan, linux)
    compiler.compile_listener(plan, linux.get("seccomp") or {}, flags)
    plan.joins = _namespaces(container, opened)
    plan.joined_user = any(flag == clone.CLONE_NEWUSER for _, flag, _ in plan.joins)
    plan.detached = True
    clip_capabilities(plan, process, options.warn)
    plan.find_home = lacks_home(plan)
    plan.keep_fds = options.preserve_fds
    descriptors.check_inherited(options.preserve_fds)
    start = launch.Launch(plan, cgroup)
    if plan.joined_user:
        from firkin.runtime import idmap

        userns.apply_maps(plan, idmap.of_process(record.pid))
    start.oom_score_adj = process.get("oomScoreAdj")
    if plan.listener:
        start.on_listener = lambda pid, fd: _send_listener(container, linux["seccomp"], pid, fd)
    if "resctrl" in record.undo:
        from firkin.runtime import rdt

        start.on_pid = lambda pid: rdt.join(record.undo["resctrl"], pid)
    if plan.terminal and options.console_socket:
        start.on_console = lambda master: send_console(options.console_socket, master)
    return start


def _send_listener(container: Container, profile: dict[str, Any], pid: int, fd: int) -> None:
    from firkin.runtime import seccomp_notify

    seccomp_notify.send(profile, container.record.state(folder.RUNNING), pid, fd)


def _start(start: launch.Launch, options: Options) -> tuple[int, int]:
    pid, pidfd = start.start()
    if options.pid_file:
        try:
            write_pid_file(options.pid_file, pid)
        except SetupError:
            signals.pidfd_send_signal(pidfd, signals.SIGKILL)
            os.waitpid(pid, 0)
            raise
    return pid, pidfd


def _namespaces(container: Container, opened: compiler.Opened) -> tuple[tuple[int, int, str], ...]:
    """Open the namespaces of the container's first process that are not our own."""
    record = container.record
    joins = []
    for kind, file, flag in ns.NAMESPACES:
        path = f"/proc/{record.pid}/ns/{file}"
        try:
            theirs, ours = os.stat(path), os.stat(f"/proc/self/ns/{file}")
            if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
                continue
            fd = opened.add(ns.open_namespace(path, flag))
        except FileNotFoundError:
            if kind == "time" and os.path.isdir("/proc/self/ns"):
                continue  # a kernel without time namespaces
            raise UsageError(
                f"cannot exec in container '{container.id}'", "container not running"
            ) from None
        except OSError as error:
            raise SetupError(
                f"cannot open the {kind} namespace of container '{container.id}'",
                error.strerror or "",
                errno=error.errno or 0,
                path=path,
            ) from error
        joins.append((fd, flag, path))
    # The files are those of the process that we know, not of one that took its number.
    if not folder.is_alive(record.pid, record.started):
        raise UsageError(f"cannot exec in container '{container.id}'", "container not running")
    return tuple(joins)


class _Joined:
    """The cgroup of a container that exists, in the terms of a launch.

    Args:
        container: whose.
        places: cgroups below it, as :func:`firkin.runtime.cgroups.existing.within` takes them.
    """

    __slots__ = ("_cgroup", "_first")

    def __init__(self, container: Container, places: list[str]) -> None:
        paths = container.record.cgroups
        self._cgroup = cgroups.reopen(cgroups.detect(), paths) if paths else None
        # A container may have moved its processes below; not where a place is named.
        self._first = 0 if places else container.record.pid
        if not places:
            return
        if self._cgroup is None:
            raise UsageError(f"cannot use --cgroup '{places[0]}'", "the container has none")
        from firkin.runtime.cgroups import existing

        self._cgroup = existing.within(self._cgroup, places)

    def create(self) -> None:
        """It exists."""

    def apply(self) -> None:
        """Its limits are set."""

    def apply_memory(self) -> None:
        """Its limits are set."""

    def join(self, pid: int) -> None:
        if self._cgroup is not None:
            self._cgroup.join(pid)

    def entries(self) -> list[int]:
        return self._cgroup.entries() if self._cgroup is not None else []

    def directory_fd(self) -> int | None:
        return self._cgroup.directory_fd(self._first) if self._cgroup is not None else None

    def close(self) -> None:
        if self._cgroup is not None:
            self._cgroup.close()


def mark(error: FirkinError) -> FirkinError:
    """Note on *error* that it is of ``exec``, whose failures have a status of their own."""
    error.of_exec = True  # type: ignore[attr-defined]
    return error
