"""The parent's half of a start: clone the child, do what only the parent may, let it go.

The conversation is drawn in ``init/channel.py``. Whatever fails, the child is
killed and waited for before the error is raised.

Source: clone(2), prlimit(2), proc(5) on oom_score_adj.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os

from firkin.errors import SetupError, Unsupported
from firkin.init import channel as protocol
from firkin.init import stages
from firkin.init.final import Rlimit
from firkin.linux import clone, libc, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from firkin.init.channel import Channel
    from firkin.init.plan import Plan
    from firkin.runtime.idmap import IdMaps
    from firkin.runtime.net_devices import Devices

    class Home(Protocol):
        """What a launch needs of the cgroup that its child is to be in."""

        def create(self) -> None: ...
        def apply(self) -> None: ...
        def apply_memory(self) -> None: ...
        def join(self, pid: int) -> None: ...
        def entries(self) -> list[int]: ...
        def directory_fd(self) -> int | None: ...


_prlimit = libc.function("prlimit", ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class Launch:
    """What the parent does while a child carries out *plan*.

    Attributes:
        maps: the ids of a new user namespace, or None.
        oom_score_adj: -1000 … 1000, or None to leave it.
        on_pid: called with the pid of the container's first process, before it
            has done anything; what it records is there for a sweep.
        on_ready: called before the command is started, with the id of the
            container's mount namespace if ``plan.watch_members``, else 0.
        on_hooks: runs the hooks of the host's side; called with the pid when the root
            stands, if ``plan.runtime_hooks``.
        on_listener: called with the pid and the listener of a seccomp filter that asks
            someone, if ``plan.listener``.
        on_console: called with the master of the container's terminal.
        on_debug: called with each kernel call that the child tells of.
    """

    __slots__ = (
        "cgroup",
        "maps",
        "on_console",
        "on_debug",
        "on_hooks",
        "on_listener",
        "on_pid",
        "on_ready",
        "oom_score_adj",
        "plan",
    )

    def __init__(self, plan: Plan, cgroup: Home) -> None:
        self.plan = plan
        self.cgroup = cgroup
        self.maps: IdMaps | None = None
        self.oom_score_adj: int | None = None
        self.on_pid: Callable[[int], None] | None = None
        self.on_ready: Callable[[int], None] | None = None
        self.on_hooks: Callable[[int], None] | None = None
        self.on_listener: Callable[[int, int], None] | None = None
        self.on_console: Callable[[int], None] | None = None
        self.on_debug: Callable[[list[str]], None] | None = None

    def start(self) -> tuple[int, int]:
        """Start the container; return its first process's pid and pidfd once it has exec'ed.

        One whose plan has it wait on a FIFO is left there, ready to become the command.

        The caller is single-threaded and has blocked the signals that it
        handles. The cgroup is created here, and left to the caller to remove.

        Raises:
            FirkinError: as ``errors.py`` draws them; then no process is left.
        """
        plan = self.plan
        stages.preload(plan)
        self.cgroup.create()
        libc.because("a channel for what parent and child have to tell each other")
        ours, theirs = protocol.pair()
        # The child shares our pages until one of us writes: a collection would
        # touch every object's header.
        gc.disable()
        gc.freeze()
        libc.because("the child, in the namespaces that a process must be born in")
        plan.cgroup_entries = tuple(self.cgroup.entries())
        directory = self.cgroup.directory_fd()
        plan.into_cgroup = -1 if directory is None else directory
        if directory is not None:
            # The child is born in it: a directory of the host's, from which ".." leads on.
            plan.release_fds = (*plan.release_fds, directory)
        try:
            pid, pidfd = self._clone()
        except OSError as error:
            ours.close()
            theirs.close()
            raise clone_error(error, plan.new_user) from error
        if pid == 0:
            ours.close()
            stages.run(plan, theirs)
        theirs.close()
        child = _Start(self, ours, pid, pidfd)
        try:
            child.prepare()
            return child.converse()
        except BaseException:
            child.kill()
            raise
        finally:
            ours.close()
            if child.devices is not None:
                child.devices.close()

    def _clone(self) -> tuple[int, int]:
        plan = self.plan
        flags = 0 if plan.joins else plan.clone_flags
        try:
            return clone.clone(flags, plan.into_cgroup)
        except OSError as error:
            # Outer seccomp profiles block clone3: then it is moved in by its pid.
            if plan.into_cgroup < 0 or error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            plan.into_cgroup = -1
            return clone.clone(flags)


class _Start:
    """One start under way."""

    __slots__ = ("channel", "devices", "launch", "pid", "pidfd")

    def __init__(self, launch: Launch, channel: Channel, pid: int, pidfd: int) -> None:
        self.devices: Devices | None = None  # of the host's network, moved to the container
        self.launch = launch
        self.channel = channel
        self.pid = pid
        self.pidfd = pidfd

    def kill(self) -> None:
        if self.devices is not None:
            self.devices.undo()
        try:
            signals.pidfd_send_signal(self.pidfd, signals.SIGKILL)
        except OSError:
            pass  # it has ended by itself
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)

    def prepare(self) -> None:
        """What needs the parent's rights, before the child may go on."""
        launch = self.launch
        plan = launch.plan
        if launch.on_pid is not None:
            launch.on_pid(self.pid)
        if plan.rlimits:
            self._raise_rlimits()
        if launch.oom_score_adj is not None:
            libc.because("how readily the kernel's out-of-memory killer chooses the container")
            try:
                libc.write_file(f"/proc/{self.pid}/oom_score_adj", str(launch.oom_score_adj))
            except OSError as error:
                raise SetupError(
                    f"cannot set the OOM score to {launch.oom_score_adj}",
                    error.strerror or "",
                    "only root may lower it",
                    step="prepare",
                    errno=error.errno or 0,
                ) from error
        launch.cgroup.apply()
        if plan.affinity[0]:
            self._set_initial_affinity()
        if plan.into_cgroup < 0 and not plan.cgroup_entries:
            launch.cgroup.join(self.pid)
        if launch.maps is not None and not plan.joins:
            launch.maps.write(self.pid)
        self._send(protocol.START)

    def _set_initial_affinity(self) -> None:
        libc.because("process.execCPUAffinity.initial")
        try:
            libc.via(os.sched_setaffinity, self.pid, self.launch.plan.affinity[0])
        except OSError as error:
            raise SetupError(
                "cannot set process.execCPUAffinity.initial",
                error.strerror or "",
                step="prepare",
                errno=error.errno or 0,
            ) from error

    def _raise_rlimits(self) -> None:
        """Raise hard limits that are to be higher than ours, while the child has our rights.

        Lowering them is left to the child's last step: a low limit on open
        files or memory must not hit its own work.
        """
        libc.because("hard limits above our own need the rights of the host's root")
        for resource, _, hard in self.launch.plan.rlimits:
            current = Rlimit()
            _prlimit(self.pid, resource, None, ctypes.byref(current))
            if hard <= current.hard:
                continue
            wanted = Rlimit(current.soft, hard)
            try:
                libc.call(
                    "prlimit",
                    _prlimit,
                    self.pid,
                    resource,
                    ctypes.byref(wanted),
                    None,
                    shown=(self.pid, resource, wanted.soft, wanted.hard),
                )
            except OSError as error:
                from firkin.runtime.compiler import RLIMITS

                name = next(name for name, number in RLIMITS.items() if number == resource)
                raise SetupError(
                    f"cannot raise the hard limit of {name} to {hard}",
                    f"{error.strerror}; this process's own hard limit is {current.hard}",
                    "raising it needs CAP_SYS_RESOURCE",
                    step="prepare",
                    errno=error.errno or 0,
                ) from error

    def converse(self) -> tuple[int, int]:
        """Answer the child until it has become the command."""
        launch = self.launch
        gone = False
        while True:
            kind, fields, fds = self.channel.receive()
            if kind == protocol.DEBUG:
                if launch.on_debug is not None:
                    launch.on_debug(fields)
            elif kind == protocol.FORKED and len(fds) == 1:
                self._follow(int(fields[0]), fds[0])
            elif kind == protocol.CONSOLE and len(fds) == 1 and launch.on_console is not None:
                launch.on_console(fds[0])
            elif kind == protocol.READY and not gone:
                self._move_devices()
                self._set_traits()
                # Not before: the child's own Python would count against a small limit.
                launch.cgroup.apply_memory()
                if launch.on_ready is not None:
                    launch.on_ready(int(fields[0]))
                gone = True
                self._send(protocol.GO)
            elif kind == protocol.LISTENER and gone and launch.on_listener is not None:
                self._pass_listener(launch.on_listener, fields, fds)
            elif kind == protocol.HOOKS and launch.on_hooks is not None:
                self._move_devices()
                launch.on_hooks(self.pid)
                self._send(protocol.HOOKED)
            elif kind == protocol.ERROR:
                from firkin.runtime.failures import failure

                raise failure(launch.plan.args[0], *fields)
            elif kind == protocol.CREATED and gone:
                if launch.plan.fifo_fd >= 0:
                    return self.pid, self.pidfd
            elif not kind and gone:
                if not launch.plan.init and not _has_executed(self.pid):
                    raise self._broken(kind)
                return self.pid, self.pidfd
            else:
                for fd in fds:
                    os.close(fd)
                raise self._broken(kind)

    def _pass_listener(
        self, pass_on: Callable[[int, int], None], fields: list[str], fds: list[int]
    ) -> None:
        if fds:
            fd = fds[0]
        else:
            from firkin.linux import pidfd

            fd = pidfd.get_fd(self.pidfd, int(fields[0]))
        try:
            pass_on(self.pid, fd)
        finally:
            os.close(fd)
        self._send(protocol.LISTENED)

    def _move_devices(self) -> None:
        """Move network devices into the container, before anybody looks for them there."""
        wanted = self.launch.plan.net_devices
        if not wanted or self.devices is not None:
            return
        from firkin.runtime.net_devices import Devices

        self.devices = Devices(f"/proc/{self.pid}/ns/net")
        self.devices.move(wanted)

    def _set_traits(self) -> None:
        """Set what takes rights over the host; the child may have none, and sets up no more."""
        plan = self.launch.plan
        if plan.sched_attr or plan.io_priority >= 0 or plan.affinity[1]:
            from firkin.runtime import process_fields

            process_fields.apply(plan, self.pid)

    def _send(self, kind: bytes) -> None:
        try:
            self.channel.send(kind)
        except OSError:
            # It ended; what it said before that is still to be read.
            return

    def _follow(self, pid: int, pidfd: int) -> None:
        """The bridge, which joined namespaces, has forked the real child."""
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pid, self.pidfd = pid, pidfd
        launch = self.launch
        if launch.on_pid is not None:
            launch.on_pid(pid)
        if launch.maps is not None:
            launch.maps.write(pid)
        self._send(protocol.MAPPED)

    def _broken(self, kind: bytes) -> SetupError:
        if kind:
            return SetupError("cannot start the container", f"unexpected message {kind!r}")
        info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        code = info.si_status if info else 0
        how = f"signal {code}" if info and info.si_code != os.CLD_EXITED else f"status {code}"
        return SetupError(
            "cannot start the container",
            f"its first process ended with {how} during set-up",
            "was it the out-of-memory killer? see the kernel's log" if code == 9 else "",
        )


def _has_executed(pid: int) -> bool:
    """Whether *pid* has come through execve: PF_FORKNOEXEC (linux/sched.h) is gone.

    The kernel clears it before it closes the channel; the flags of a zombie still tell.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        return not int(file.read().rpartition(b")")[2].split()[6]) & 0x40


def clone_error(error: OSError, new_user: bool) -> SetupError | Unsupported:
    """What a failed clone means; a refused user namespace names its switch."""
    if not new_user or error.errno not in (errno.EPERM, errno.ENOSPC, errno.EUSERS, errno.EINVAL):
        return SetupError(
            "cannot create the container's first process",
            error.strerror or "",
            "root, or a user namespace, is needed" if error.errno == errno.EPERM else "",
            step="clone",
            errno=error.errno or 0,
        )
    mend = "an outer container or seccomp profile may forbid it"
    for path, forbidding in (
        ("/proc/sys/user/max_user_namespaces", "0"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        try:
            with open(path) as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == forbidding:
            name = path.removeprefix("/proc/sys/").replace("/", ".")
            mend = f"sysctl {name} is {value}: ask an administrator to change it"
            break
    return Unsupported("cannot create a user namespace", error.strerror or "", mend)
