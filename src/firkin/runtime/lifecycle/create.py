"""``create``: everything of a container but its command, which ``start`` lets run.

``run`` uses the same, without the wait in between.

Source: runtime-spec runtime.md, "Create" and "Lifecycle"; config.md.
"""

from __future__ import annotations

import errno
import os

from firkin.errors import FirkinError, SetupError, Unsupported, UsageError
from firkin.linux import clone, signals
from firkin.runtime import cgroups, compiler, descriptors, launch, userns
from firkin.runtime.lifecycle import delete, folder, hooks
from firkin.runtime.lifecycle.process import (
    clip_capabilities,
    lacks_home,
    load_seccomp,
    send_console,
    write_pid_file,
)
from firkin.spec import jsontext, validate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from firkin.init.plan import Plan
    from firkin.runtime.cgroups.group import Cgroup
    from firkin.runtime.cgroups.none import NoCgroup
    from firkin.runtime.idmap import IdMaps
    from firkin.runtime.lifecycle.folder import Container

    class Starter(Protocol):
        """What makes the container's first process, and returns its pid and pidfd."""

        def start(self) -> tuple[int, int]: ...


class Options:
    """What the command line of ``create`` and ``run`` says.

    Attributes:
        bundle: the bundle's folder.
        config: another file than the bundle's ``config.json``, or "".
        pid_file: where the pid is written, or "".
        console_socket: the path of a socket that takes the terminal's master, or "".
        no_pivot: move the root instead of pivoting.
        new_keyring: whether the container gets a session keyring of its own.
        preserve_fds: how many descriptors from 3 on the command inherits.
        detach: the caller does not stay with the container.
        systemd_cgroup: ``cgroupsPath`` is systemd's, ``slice:prefix:name``.
        no_cgroup: leave the container in the caller's cgroup.
        warn: told of what is passed over.
    """

    __slots__ = (
        "bundle",
        "config",
        "console_socket",
        "detach",
        "new_keyring",
        "no_cgroup",
        "no_pivot",
        "pid_file",
        "preserve_fds",
        "systemd_cgroup",
        "warn",
    )

    def __init__(self) -> None:
        self.bundle = "."
        self.config = self.pid_file = self.console_socket = ""
        self.no_pivot = False
        self.new_keyring = True
        self.preserve_fds = 0
        self.detach = True
        self.systemd_cgroup = self.no_cgroup = False
        self.warn: Callable[[str], None] = lambda _text: None


def create(container: Container, options: Options) -> None:
    """Create *container*; its process then waits for ``start``.

    Raises:
        FirkinError: it could not be created; nothing of it is left.
    """
    creation = Creation(container, options)
    _, pidfd = creation.start(wait=True)
    os.close(pidfd)
    container.close()


class Creation:
    """One creation under way.

    Attributes:
        on_console: called with the master of the terminal where there is no socket
            that takes it.
    """

    __slots__ = (
        "_cgroup",
        "_cgroup_owner",
        "_config",
        "_container",
        "_opened",
        "_options",
        "_text",
        "on_console",
    )

    def __init__(self, container: Container, options: Options) -> None:
        self._container = container
        self._options = options
        self._opened = compiler.Opened()
        self._cgroup: Cgroup | NoCgroup | None = None
        # The user of the host to whom it is given, or -1.
        self._cgroup_owner = -1
        self._text, self._config = read_config(options)
        self.on_console: Callable[[int], None] | None = None

    @property
    def terminal(self) -> bool:
        """Whether the configuration asks for a terminal."""
        return bool((self._config.get("process") or {}).get("terminal"))

    def start(self, *, wait: bool) -> tuple[int, int]:
        """Make the container, and return its first process's pid and pidfd.

        Args:
            wait: it stops before its command, until ``start``. Otherwise it runs it.

        Raises:
            FirkinError: nothing of it is left.
        """
        container, options = self._container, self._options
        _check_console(self.terminal, options)
        # Before anything exists; and no signal ends this process half-way.
        old = signals.block(signals.ALL)
        container.make()
        try:
            start = self._prepare(wait=wait)
            pid, pidfd = start.start()
            self._opened.close()
            if options.pid_file:
                write_pid_file(options.pid_file, pid)
            container.record.created = True
            container.save()
        except BaseException as error:
            self._undo()
            if isinstance(error, OSError):
                raise _os_error(error) from error
            raise
        finally:
            signals.set_mask(old)
        if self._cgroup is not None:
            self._cgroup.close()
        return pid, pidfd

    def _undo(self) -> None:
        """Take away what there is of the container, whatever happens on the way."""
        self._opened.close()
        if self._cgroup is not None:
            self._cgroup.close()
        try:
            delete.destroy(self._container)
        except (FirkinError, OSError):
            return  # it stays recorded, for `delete --force`

    def _prepare(self, *, wait: bool) -> Starter:
        container, options, config = self._container, self._options, self._config
        process, linux = config.get("process") or {}, config.get("linux") or {}
        record = container.record
        cgroup, maps = self._begin()
        plan = self._compile(cgroup, linux)
        record.rootfs = plan.root
        record.cgroups = cgroup.paths()
        record.shares_pids = not plan.clone_flags & clone.CLONE_NEWPID
        plan.watch_members = record.shares_pids and not record.cgroups
        plan.detached = True
        clip_capabilities(plan, process, options.warn)
        plan.find_home = lacks_home(plan)
        plan.release_fds = (container.fileno(),)
        plan.no_pivot = options.no_pivot
        plan.new_keyring = options.new_keyring
        plan.keep_fds = self._inherited(plan)
        if plan.init:
            from firkin.init import reaper

            plan.arguments_area = reaper.arguments_area()
        if wait:
            self._make_fifo(plan)
        start = launch.Launch(plan, cgroup)
        if maps is not None:
            userns.apply_maps(plan, maps)
            if plan.groups and not plan.set_groups:
                options.warn("ignoring additionalGids: this user namespace forbids setgroups(2)")
            if plan.new_user:
                start.maps = maps
            if plan.new_cgroup and self._has_writable_cgroup():
                self._cgroup_owner = maps.outside(0)
            if os.geteuid() == 0:
                userns.open_binds(plan, self._opened)
        start.oom_score_adj = process.get("oomScoreAdj")
        start.on_pid = self._note_pid
        if linux.get("intelRdt") is not None:
            self._make_rdt_group(linux["intelRdt"])
        start.on_ready = self._note_members
        if plan.terminal:
            start.on_console = self._send_console
        if plan.listener:
            start.on_listener = self._send_listener
        self._plan_hooks(plan, start)
        container.write(folder.CONFIG, self._text)
        container.save()
        return start

    def _begin(self) -> tuple[Cgroup | NoCgroup, IdMaps | None]:
        """Note what the configuration says of the container; return its cgroup and its ids."""
        container, options, config = self._container, self._options, self._config
        linux = config.get("linux") or {}
        record = container.record
        record.bundle = os.path.abspath(options.bundle)
        record.annotations = config.get("annotations") or {}
        record.owner = _owner()
        record.hooks = {
            kind: entries
            for kind, entries in (config.get("hooks") or {}).items()
            if kind in ("poststart", "poststop")
        }
        maps = _maps(linux)
        self._cgroup = cgroup = _open_cgroup(linux, container.id, options, maps)
        return cgroup, maps

    def _compile(self, cgroup: Cgroup | NoCgroup, linux: dict[str, Any]) -> Plan:
        program, flags = load_seccomp(linux.get("seccomp"))
        bundle = self._container.record.bundle
        return compiler.compile_plan(self._config, bundle, cgroup, self._opened, program, flags)

    def _inherited(self, plan: Plan) -> int:
        """Count the descriptors to keep; those of socket activation, too (sd_listen_fds(3))."""
        listening = os.environ.get("LISTEN_FDS", "")
        known = listening.isascii() and listening.isdigit() and len(listening) < 10
        count = int(listening) if known else 0
        if os.environ.get("LISTEN_PID") != str(os.getpid()):
            count = 0  # they are for another process
        if count:
            plan.env = (*plan.env, f"LISTEN_FDS={count}", "LISTEN_PID=1")
        count += self._options.preserve_fds
        descriptors.check_inherited(count)
        return count

    def _has_writable_cgroup(self) -> bool:
        return any(
            mount.get("type") in ("cgroup", "cgroup2") and "ro" not in (mount.get("options") or ())
            for mount in self._config.get("mounts") or ()
        )

    def _make_fifo(self, plan: Plan) -> None:
        path = f"{self._container.path}/{folder.FIFO}"
        os.mkfifo(path, 0o600)
        # For reading and writing: opening does not wait, and reading does.
        plan.fifo_fd = self._opened.add(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        path = f"{self._container.path}/{folder.ERROR}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        plan.error_fd = self._opened.add(os.open(path, flags, 0o600))

    def _plan_hooks(self, plan: Plan, start: launch.Launch) -> None:
        """Distribute the hooks of the creation and the start to who runs them."""
        configured = self._config.get("hooks") or {}
        record = self._container.record
        plan.create_hooks = hooks.parse(configured.get("createContainer"))
        plan.start_hooks = hooks.parse(configured.get("startContainer"))
        record.pid = -1  # where those in the container put their own
        states = []
        for status in (folder.CREATING, folder.CREATED):
            before, _, after = jsontext.dump(record.state(status)).partition('"pid":-1')
            states.append((f'{before}"pid":', after))
        record.pid = 0
        plan.hook_states = (states[0], states[1])
        kinds = {kind: hooks.parse(configured.get(kind)) for kind in ("prestart", "createRuntime")}
        if not any(kinds.values()):
            return
        plan.runtime_hooks = True

        def run(_pid: int) -> None:
            for kind, entries in kinds.items():
                hooks.run(entries, kind, record, folder.CREATING)

        start.on_hooks = run

    def _make_rdt_group(self, wanted: dict[str, Any]) -> None:
        from firkin.runtime import rdt

        group = rdt.Group(wanted, self._container.id, rdt.find_mount())
        self._container.record.undo["resctrl"] = group.record()
        # First of all what is to be removed, then what that is.
        self._container.save()
        group.create()

    def _note_pid(self, pid: int) -> None:
        record = self._container.record
        record.pid, record.started = pid, folder.start_time(pid)
        self._container.save()
        if self._cgroup_owner >= 0 and self._cgroup is not None:
            self._cgroup.delegate(self._cgroup_owner)
        if "resctrl" in record.undo:
            from firkin.runtime import rdt

            rdt.join(record.undo["resctrl"], pid)

    def _note_members(self, mount_namespace: int) -> None:
        self._container.record.mount_namespace = mount_namespace

    def _send_listener(self, pid: int, fd: int) -> None:
        from firkin.runtime import seccomp_notify

        state = self._container.record.state(folder.CREATING)
        seccomp_notify.send(self._config["linux"]["seccomp"], state, pid, fd)

    def _send_console(self, master: int) -> None:
        if self._options.console_socket:
            send_console(self._options.console_socket, master)
        elif self.on_console is not None:
            self.on_console(master)


def read_config(options: Options) -> tuple[bytes, dict[str, Any]]:
    """Read and check the configuration of a bundle; return its text and what it says.

    Raises:
        UsageError: it can't be read, or is no valid configuration.
    """
    path = options.config or os.path.join(options.bundle, "config.json")
    try:
        with open(path, "rb", buffering=0) as file:
            text = file.read(validate.MAX_SIZE + 1)
    except OSError as error:
        raise UsageError(f"cannot read '{path}'", str(error.strerror).lower()) from None
    config = validate.parse(text or b"", path)
    validate.validate(config)
    return text or b"", config


def _check_console(terminal: bool, options: Options) -> None:
    """Refuse a terminal that nobody would hold, and a socket that would get none."""
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
            "set process.terminal, and --detach with run",
        )


def _maps(linux: dict[str, Any]) -> IdMaps | None:
    """Return the ids of the user namespace, new or joined; None where there is none."""
    for number, entry in enumerate(linux.get("namespaces") or ()):
        if entry["type"] != "user":
            continue
        from firkin.runtime import idmap

        path = entry.get("path")
        if path:
            try:
                return idmap.of_namespace(path)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                raise UsageError(
                    f"invalid configuration: linux.namespaces[{number}].path",
                    f"cannot join '{path}': {why}",
                ) from None
        for kind in ("uidMappings", "gidMappings"):
            if not linux.get(kind):
                raise UsageError(
                    f"invalid configuration: linux.{kind}",
                    "is missing, and there is a new user namespace",
                )
        return idmap.IdMaps(
            *(
                [(m["containerID"], m["hostID"], m["size"]) for m in linux.get(kind) or ()]
                for kind in ("uidMappings", "gidMappings")
            )
        )
    return None


def _open_cgroup(
    linux: dict[str, Any], container_id: str, options: Options, maps: IdMaps | None
) -> Cgroup | NoCgroup:
    path = linux.get("cgroupsPath") or ""
    if options.no_cgroup:
        return _no_cgroup(linux)
    if options.systemd_cgroup:
        from firkin.runtime.cgroups import systemd

        path = systemd.systemd_path(path, container_id)
        raise Unsupported(
            f"cannot make the cgroup {path}",
            "firkin does not speak systemd's D-Bus interface yet",
            "leave --systemd-cgroup out; the engine's cgroup driver is then cgroupfs",
        )
    if not path:
        path = f"firkin-runtime-{container_id}"
        path = f"/{path}" if os.geteuid() == 0 else path
    cgroup = cgroups.open_cgroup(
        cgroups.detect(),
        path,
        linux.get("resources") or {},
        device_control=maps is None,
        every_controller=True,
        reuse=True,
    )
    cgroup.check()
    return cgroup


def _no_cgroup(linux: dict[str, Any]) -> NoCgroup:
    if any(value for key, value in (linux.get("resources") or {}).items() if key != "devices"):
        raise UsageError(
            "cannot limit the container", "its cgroup is disabled", "leave out --cgroup-manager"
        )
    from firkin.runtime.cgroups.none import NoCgroup

    return NoCgroup("--cgroup-manager disabled")


def _owner() -> str:
    uid = os.geteuid()
    if uid == 0:
        return ""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _os_error(error: OSError) -> FirkinError:
    on = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    return SetupError(
        f"cannot use '{on}'" if on else "cannot create the container",
        error.strerror or str(error),
        errno=error.errno or errno.EIO,
        path=on,
    )
