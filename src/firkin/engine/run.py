"""One container from start to removal: what ``firkin run`` does.

Everything is undone in reverse order, whatever happens; what a SIGKILL of this
process leaves is on the container's record and swept by the next start.
"""

from __future__ import annotations

import os
import sys
from time import monotonic

from firkin.engine import prepare, rootfs
from firkin.errors import ConfigError, FirkinError, SetupError, UsageError
from firkin.linux import caps, clone, libc, mount, signals
from firkin.runtime import cgroups, compiler, foreground, launch, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from firkin.engine.prepare import Prepared
    from firkin.engine.request import Request
    from firkin.init.plan import Plan
    from firkin.runtime.cgroups.group import Cgroup
    from firkin.runtime.cgroups.none import NoCgroup
    from firkin.runtime.terminal import Terminal

_PR_SET_CHILD_SUBREAPER = 36

# The options whose values only the cgroup code can judge, by the fields that they become.
_OPTIONS = {
    "linux.resources.memory.limit": "--memory",
    "linux.resources.memory.reservation": "--memory-reservation",
    "linux.resources.cpu.cpus": "--cpuset-cpus",
    "linux.resources.cpu.mems": "--cpuset-mems",
}

# The exit status of a container that --timeout ended: 128 + SIGKILL.
TIMED_OUT = 137


class Run:
    """A run of *request*.

    Attributes:
        timed_out: whether ``--timeout`` ended it.
        on_debug: told of each kernel call of the child, for ``--explain``.
    """

    __slots__ = (
        "_cgroup",
        "_cidfile",
        "_mount_namespace",
        "_opened",
        "_prepared",
        "_request",
        "_shares_pids",
        "_state",
        "_terminal",
        "on_debug",
        "timed_out",
    )

    def __init__(self, request: Request) -> None:
        self._request = request
        self._terminal: Terminal | None = None
        self._cgroup: Cgroup | NoCgroup | None = None
        self._state: state.State | None = None
        self._prepared: Prepared | None = None
        self._opened = compiler.Opened()
        # Whether the end of the first process is not the end of all.
        self._shares_pids = False
        # A file with the id of a container that has not started yet.
        self._cidfile = ""
        # The id of the container's mount namespace, where that is what finds its processes.
        self._mount_namespace = 0
        self.timed_out = False
        self.on_debug: Callable[[list[str]], None] | None = None

    def run(self) -> int:
        """Start the container, wait for it, remove it; return the exit status.

        Raises:
            FirkinError: it could not be started; nothing of it is left.
        """
        request = self._request
        if request.preserve_fds:
            from firkin.runtime import descriptors

            descriptors.check_inherited(request.preserve_fds)
        if request.tty and request.interactive:
            from firkin.runtime.terminal import require_tty

            require_tty(0)
        # Before anything exists: from here on no signal ends us half-way.
        old_mask = signals.block(foreground.HANDLED)
        signal_fd = signals.signalfd(foreground.HANDLED, signals.SFD_CLOEXEC | signals.SFD_NONBLOCK)
        try:
            return self._run(signal_fd)
        except OSError as error:
            # A full disk, mostly; what can be said better was said where it happened.
            on = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
            raise SetupError(
                f"cannot use '{on}'" if on else "cannot make the container's files",
                error.strerror or str(error),
                errno=error.errno or 0,
                path=on,
            ) from error
        finally:
            os.close(signal_fd)
            signals.set_mask(old_mask)

    def _run(self, signal_fd: int) -> int:
        request = self._request
        directory = state.prepare_directory(state.default_directory())
        record = state.State(directory, request.name or prepare.new_id(), rootfs.remove_scratch)
        self._state = record
        try:
            if request.cidfile is not None:
                _write_cidfile(request.cidfile, record.id)
                self._cidfile = request.cidfile
            # What others have left. Not while the container runs, for then it is waited for.
            state.sweep(directory, rootfs.remove_scratch)
            prepared = prepare.prepare(request, record)
            self._prepared = prepared
            start = self._compile(prepared, record)
            deadline = None if request.timeout is None else monotonic() + request.timeout
            pid, pidfd = start.start()
            self._cidfile = ""
            self._opened.close()
            try:
                return self._wait(pid, pidfd, signal_fd, deadline)
            finally:
                self._end(pid, pidfd)
        finally:
            self._clean()
            # Again, for a firkin that was killed just before our start: its child, which
            # shares its lock, may have died only since.
            state.sweep(directory, rootfs.remove_scratch)

    def _compile(self, prepared: Prepared, record: state.State) -> launch.Launch:
        linux = prepared.config.get("linux") or {}
        try:
            cgroup = cgroups.open_cgroup(
                prepared.layout,
                prepared.cgroup_path,
                linux.get("resources") or {},
                device_control=prepared.maps is None,
            )
            cgroup.check()
        except ConfigError as error:
            # Who gave options is told of those, not of the configuration made of them.
            option = _OPTIONS.get(error.field) if self._request.bundle is None else None
            if option is None:
                raise
            raise UsageError(f"cannot set {option}", error.why, error.mend) from None
        plan = compiler.compile_plan(
            prepared.config,
            prepared.bundle,
            cgroup,
            self._opened,
            prepared.seccomp,
            prepared.seccomp_flags,
        )
        for path in cgroup.paths():
            record.record("cgroup", path)
        self._cgroup = cgroup
        request = self._request
        plan.explain = self.on_debug is not None
        plan.keep_fds = request.preserve_fds
        if request.bundle is None and not request.interactive:
            plan.null_fd = self._opened.add(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        if plan.init:
            from firkin.init import reaper

            plan.arguments_area = reaper.arguments_area()
        self._shares_pids = not plan.clone_flags & clone.CLONE_NEWPID
        if self._shares_pids:
            libc.because("what the command leaves behind becomes our child, to be ended")
            caps.prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)
            plan.watch_members = not cgroup.paths()
        start = launch.Launch(plan, cgroup)
        if prepared.maps is not None:
            from firkin.runtime import userns

            if plan.new_user:
                start.maps = prepared.maps
            userns.apply_maps(plan, prepared.maps)
            if os.geteuid() == 0:
                self._open_for_mapped(plan, prepared)
        start.oom_score_adj = prepared.config["process"].get("oomScoreAdj")
        start.on_pid = lambda pid: record.record("pid", f"{pid} {state.started(pid)}")
        start.on_ready = self._note_members
        start.on_debug = self.on_debug
        if plan.listener:
            start.on_listener = self._send_listener
        if plan.terminal:
            plan.window = _window() if plan.window == (0, 0) else plan.window
            start.on_console = self._attach
        return start

    def _open_for_mapped(self, plan: Plan, prepared: Prepared) -> None:
        """Open what the root of the container, an ordinary user outside, could not reach."""
        from firkin.runtime import userns

        opened = self._opened
        userns.open_binds(plan, opened)
        if not prepared.lower or prepared.maps is None:
            return
        from firkin.runtime import idmap

        libc.because("the image's files belong to the ids of the container")
        try:
            holder = opened.add(idmap.holder(prepared.maps))
        except OSError as error:
            raise launch.clone_error(error, new_user=True) from error
        tree = opened.add(mount.open_tree(prepared.lower, recursive=False))
        try:
            mount.mount_setattr(
                tree, attr_set=mount.MOUNT_ATTR_IDMAP, userns_fd=holder, at=prepared.lower
            )
        except OSError as error:
            raise SetupError(
                f"cannot map the ids of '{prepared.lower}'",
                error.strerror or "",
                "its file system or this kernel lacks idmapped mounts; leave out --userns",
                step="open_for_mapped",
                errno=error.errno or 0,
            ) from error
        plan.root_tree_fd = tree

    def _send_listener(self, pid: int, fd: int) -> None:
        from firkin.runtime import seccomp_notify
        from firkin.spec import OCI_VERSION

        prepared, record = self._prepared, self._state
        if prepared is None or record is None:
            return
        state: dict[str, Any] = {
            "ociVersion": OCI_VERSION,
            "id": record.id,
            "status": "creating",
            "pid": pid,
            "bundle": os.path.abspath(prepared.bundle),
        }
        if prepared.config.get("annotations"):
            state["annotations"] = prepared.config["annotations"]
        seccomp_notify.send(prepared.config["linux"]["seccomp"], state, pid, fd)

    def _note_members(self, mount_namespace: int) -> None:
        if mount_namespace and self._state is not None:
            self._mount_namespace = mount_namespace
            self._state.record("mntns", str(mount_namespace))

    def _attach(self, master: int) -> None:
        from firkin.runtime.terminal import Terminal

        self._terminal = Terminal(master, 0, 1, self._request.interactive)
        self._terminal.start()

    def _wait(self, pid: int, pidfd: int, signal_fd: int, deadline: float | None) -> int:
        """Pass signals and terminal on until the first process has ended."""

        def end() -> None:
            self.timed_out = True
            self._kill(pidfd)

        return foreground.Foreground(pid, pidfd, signal_fd, self._terminal).wait(deadline, end)

    def _kill(self, pidfd: int) -> None:
        """End every process of the container."""
        try:
            signals.pidfd_send_signal(pidfd, signals.SIGKILL)
        except ProcessLookupError:
            pass
        if self._cgroup is not None:
            self._cgroup.kill()

    def _end(self, pid: int, pidfd: int) -> None:
        """Leave no process, even where the PID namespace is not the container's own."""
        try:
            if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                self._kill(pidfd)
                os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # waited for already
        os.close(pidfd)
        if self._shares_pids:
            if self._cgroup is not None:
                self._cgroup.kill()
            _kill_orphans()
            state.kill_members(self._mount_namespace)

    def _clean(self) -> None:
        """Undo everything, in reverse; all of it, even when a part fails."""
        failures: list[Exception] = []

        def attempt(function: Callable[..., Any], *arguments: Any) -> None:
            try:
                function(*arguments)
            except (OSError, FirkinError) as error:
                failures.append(error)

        if self._terminal is not None:
            attempt(self._terminal.close)
        attempt(self._opened.close)
        if self._cidfile:
            attempt(os.unlink, self._cidfile)
        if self._prepared is not None and self._prepared.lock >= 0:
            attempt(os.close, self._prepared.lock)
        if self._cgroup is not None:
            attempt(self._cgroup.remove)
            attempt(self._cgroup.close)
        record = self._state
        if record is None:
            return
        scratch = record.scratch
        if scratch:
            attempt(rootfs.remove_scratch, scratch, record.maps)
        if not failures:
            attempt(record.remove)
        # The record stays, so the next start tries again. What went wrong first is not
        # to be hidden by what went wrong then.
        if failures and sys.exc_info()[1] is None:
            raise SetupError("cannot remove the container", str(failures[0])) from failures[0]


def _kill_orphans() -> None:
    """End the processes that became our children when theirs ended; PR_SET_CHILD_SUBREAPER."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        if not children:
            return
        for pid in children:
            # Our own children keep their number until we wait for them.
            os.kill(pid, signals.SIGKILL)
            os.waitpid(pid, 0)


def _write_cidfile(path: str, container_id: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(
            f"cannot write the container's id to '{path}'", str(error.strerror)
        ) from None
    os.write(fd, container_id.encode())
    os.close(fd)


def _window() -> tuple[int, int]:
    from firkin.linux import pty

    for fd in (1, 0, 2):
        try:
            return pty.get_winsize(fd)
        except OSError:
            continue
    return (0, 0)
