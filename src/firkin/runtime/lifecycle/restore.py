"""``restore``: make the processes of a container from the files of a checkpoint, by criu(8).

All around the processes is made as by ``create``: folder, record, cgroup. Then this
process enters a mount namespace of its own, in which the root stands where criu wants it
(a mount point whose parent nothing covers), makes criu's process there, and returns: of
the mounts nothing is ever seen on the host.

::

    this process                            criu
    create the cgroup, set its limits
    unshare(CLONE_NEWNS), mount the root
    fork ──────────────────────────────────> waits
    setns(back), move it to the cgroup
    tell it its options ───────────────────> makes namespaces
    prestart, createRuntime hooks <────────  asks, by a FIFO, if there are hooks
                          ─────────────────> makes processes, their first as our child
    wait, read its pid                       ends

Source: runc-restore(8); criu(8).
"""

from __future__ import annotations

import os
import select

from firkin.errors import FirkinError, SetupError, Unsupported, UsageError
from firkin.linux import clone, mount, ns, paths, pty
from firkin.runtime import compiler, criu
from firkin.runtime.lifecycle import delete, folder, hooks
from firkin.runtime.lifecycle.create import Creation
from firkin.runtime.lifecycle.create import Options as CreateOptions
from firkin.runtime.lifecycle.stay import stay
from firkin.spec import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from firkin.init.plan import Mount, Plan
    from firkin.runtime.cgroups.group import Cgroup
    from firkin.runtime.cgroups.none import NoCgroup
    from firkin.runtime.lifecycle.folder import Container

_LOG = "restore.log"
_PID_FILE = "pid"
_MAX_DESCRIPTORS = 65536  # bytes

# What criu runs at each stage. The names of the FIFOs are beside it; whatever the answer
# is, criu takes a failure for a reason to give up.
_SCRIPT = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = setup-namespaces ] || exit 0
cd "${0%/*}" || exit 1
echo "$CRTOOLS_INIT_PID" >asked
read -r answer <answered && [ "$answer" = go ]
"""


class Options(criu.Settings):
    """What the command line of ``restore`` says, besides what it shares with ``create``.

    Attributes:
        lsm_profile: ``TYPE:NAME`` of the profile to use instead, or "".
        lsm_mount_context: the SELinux context of mounts to use instead, or "".
    """

    __slots__ = ("lsm_mount_context", "lsm_profile")

    def __init__(self) -> None:
        super().__init__()
        self.lsm_profile = self.lsm_mount_context = ""


def restore(
    container: Container, shared: CreateOptions, options: Options, *, subreaper: bool
) -> int:
    """Restore *container*; return its command's exit status, or 0 if it is detached.

    Args:
        container: a new one.
        shared: what ``run`` has, too: bundle, pid file, console, cgroup manager.
        options: what is criu's.
        subreaper: adopt what it leaves behind in a PID namespace that it shares.

    Raises:
        UsageError: there is no checkpoint.
        Unsupported: there is no criu, or this user can't.
        FirkinError: it could not be restored; nothing of it is left.
    """
    restoration = Restoration(container, shared, options)
    if shared.detach:
        _, pidfd = restoration.start(wait=True)
        os.close(pidfd)
        container.close()
        return 0

    def begin() -> tuple[int, int]:
        process = restoration.start(wait=True)
        container.close()
        return process

    status = stay(restoration, begin, adopt=subreaper)
    delete.delete(container, force=True, warn=shared.warn)
    return status


class Restoration(Creation):
    """One restoration under way: a creation in which criu makes the first process."""

    __slots__ = ("_criu", "_descriptors", "_image", "_program", "_work")

    def __init__(self, container: Container, shared: CreateOptions, options: Options) -> None:
        super().__init__(container, shared)
        self._criu = options
        self._program = criu.find(options.program)
        self._image, self._work = options.folders(make=False)
        self._descriptors = _read_descriptors(self._image)

    def _prepare(self, *, wait: bool) -> _Start:
        container, linux = self._container, self._config.get("linux") or {}
        record = container.record
        cgroup, _ = self._begin()
        plan = compiler.compile_plan(self._config, record.bundle, cgroup, self._opened)
        record.rootfs = plan.root
        record.cgroups = cgroup.paths()
        record.shares_pids = not plan.clone_flags & clone.CLONE_NEWPID
        words = self._words(plan)
        if linux.get("intelRdt") is not None:
            self._make_rdt_group(linux["intelRdt"])
        container.write(folder.CONFIG, self._text)
        container.save()
        return _Start(lambda: self._launch(plan, cgroup, words))

    def _words(self, plan: Plan) -> list[str]:
        """Return the options that are known before criu's process is there."""
        options = self._criu
        words = [self._program, "restore", "--images-dir", self._image, "--work-dir", self._work]
        words += ["--log-file", _LOG, "-v4", "--restore-detached", "--restore-sibling"]
        words += ["--evasive-devices", *options.words()]
        words += criu.config_words(self._container.record.annotations)
        if options.lsm_profile:
            words += ["--lsm-profile", options.lsm_profile]
        if options.lsm_mount_context:
            words += ["--lsm-mount-context", options.lsm_mount_context]
        for fd, flag, path in plan.joins:
            if flag in criu.INHERITED:
                kind = criu.INHERITED[flag]
                os.set_inheritable(fd, True)
                words += _inherit(fd, criu.namespace_name(kind))
            elif flag in criu.JOINED:
                words += ["--join-ns", f"{criu.JOINED[flag]}:{path}"]
            else:
                raise UsageError(
                    f"cannot restore container '{self._container.id}'",
                    f"CRIU can't restore it into the {ns.flag_names(flag)} namespace '{path}'",
                )
        for name, source in criu.external_mounts(plan):
            words += criu.external("mnt", name, source)
        if plan.masked:
            words += criu.external("mnt", criu.NULL, criu.NULL)
        for number, name in enumerate(self._descriptors[:3]):
            if criu.is_pipe(name):
                fd = self._opened.add(os.dup(number))
                os.set_inheritable(fd, True)
                words += _inherit(fd, name)
        return words

    def _launch(self, plan: Plan, cgroup: Cgroup | NoCgroup, words: list[str]) -> tuple[int, int]:
        cgroup.create()
        cgroup.apply()
        cgroup.apply_memory()
        if not plan.terminal:
            return self._run(plan, cgroup, words)
        master = pty.open_ptmx("/dev/ptmx")
        try:
            slave = self._opened.add(pty.open_slave(master))
            os.set_inheritable(slave, True)
            words += criu.external("mnt", "/dev/console", os.ttyname(slave))
            for name in self._descriptors[3:4]:
                words += _inherit(slave, name)
            pid, pidfd = self._run(plan, cgroup, words)
        except BaseException:
            os.close(master)
            raise
        self._send_console(master)
        return pid, pidfd

    def _run(self, plan: Plan, cgroup: Cgroup | NoCgroup, words: list[str]) -> tuple[int, int]:
        container = self._container
        configured = self._config.get("hooks") or {}
        kinds = {kind: hooks.parse(configured.get(kind)) for kind in ("prestart", "createRuntime")}
        log = f"{self._work}/{_LOG}"
        run = criu.Run(words, log)
        stage = _Stage(container, asks=any(kinds.values()))
        try:
            with_root = stage.enter(plan, run)
            # Until there is a first process it stands for it: what is in the cgroup is ours.
            self._note_pid(run.pid)
            cgroup.join(run.pid)
            run.start((*with_root, *_cgroup_roots(run.pid)))
            asked = stage.wait_asked(run.pidfd)
            failed: FirkinError | None = None
            if asked:
                try:
                    self._note_pid(asked)
                    for kind, entries in kinds.items():
                        hooks.run(entries, kind, container.record, folder.CREATING)
                except (FirkinError, OSError) as error:
                    failed = error if isinstance(error, FirkinError) else _gone(container)
                stage.answer("no" if failed else "go")
            why = run.wait()
            if failed is not None:
                raise failed
            if why:
                raise criu.failure(f"cannot restore container '{container.id}'", why, log)
            return self._adopt(stage.read_pid())
        finally:
            run.close()
            stage.close()

    def _adopt(self, pid: int) -> tuple[int, int]:
        """Note the first process, which criu has made our child."""
        container = self._container
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            raise _gone(container) from None
        try:
            # It may have ended, but until we wait for our child the number is no other's.
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            self._note_pid(pid)
            if container.record.shares_pids and not container.record.cgroups:
                self._note_members(ns.mount_namespace_id(pid))
        except BaseException as error:
            os.close(pidfd)
            if isinstance(error, ChildProcessError):
                raise _gone(container) from None
            raise
        return pid, pidfd


class _Start:
    """What :class:`firkin.runtime.launch.Launch` is for a creation."""

    __slots__ = ("start",)

    def __init__(self, start: Callable[[], tuple[int, int]]) -> None:
        self.start = start


def _gone(container: Container) -> SetupError:
    return SetupError(f"cannot restore container '{container.id}'", "criu left no first process")


def _inherit(fd: int, name: str) -> list[str]:
    return ["--inherit-fd", f"fd[{fd}]:{name}"]


def _read_descriptors(image: str) -> list[str]:
    """Return what the standard descriptors were, and the terminal, if there was one.

    Raises:
        UsageError: the folder holds no checkpoint.
    """
    path = f"{image}/{criu.DESCRIPTORS}"
    what = f"cannot restore from '{image}'"
    try:
        with open(path, "rb", buffering=0) as file:
            text = file.read(_MAX_DESCRIPTORS) or b""
    except OSError as error:
        raise UsageError(
            what, f"{criu.DESCRIPTORS}: {error.strerror}", "name the checkpoint with --image-path"
        ) from None
    try:
        found = jsontext.load(text.decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UsageError(what, f"{criu.DESCRIPTORS} is no list of names")
    return found


def _cgroup_roots(pid: int) -> list[str]:
    """Return the options that put the container into the cgroup that *pid* is in."""
    words = []
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, names, path = line.rstrip("\n").split(":", 2)
            for name in names.split(","):
                # Without a controller: of the unified hierarchy, and all others.
                words += ["--cgroup-root", f"{name}:{path}" if name else path]
    return words


class _Stage:
    """The mount namespace in which criu finds the container's root.

    Args:
        container: whose folder is covered there, by a file system in memory for the root
            and what criu and this process have to tell each other.
        asks: whether there are hooks, for which criu is to stop half-way.
    """

    __slots__ = ("_answered", "_asked", "_asks", "_container", "_folder")

    def __init__(self, container: Container, *, asks: bool) -> None:
        self._container = container
        self._asks = asks
        self._folder = self._asked = self._answered = -1

    def enter(self, plan: Plan, run: criu.Run) -> list[str]:
        """Make the namespace and criu's process in it; return the options that name its parts.

        Raises:
            Unsupported: this user may not have such a namespace.
        """
        # Where we come back to, with our working directory.
        home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                ns.unshare(clone.CLONE_NEWNS)
            except PermissionError as error:
                raise Unsupported(
                    f"cannot restore container '{self._container.id}'",
                    f"it takes a mount namespace: {error.strerror}",
                    "CRIU needs root",
                ) from None
            try:
                # What is mounted here stays here; what is mounted there is seen here, too.
                mount.mount("", "/", "", mount.MS_SLAVE | mount.MS_REC)
                words = self._mount(plan)
                run.fork()
            finally:
                ns.setns(home, clone.CLONE_NEWNS)
                os.fchdir(here)
        finally:
            os.close(home)
            os.close(here)
        return words

    def _mount(self, plan: Plan) -> list[str]:
        path = self._container.path
        # Opened before they are covered: any of them may be below the container's folder.
        first = mount.open_tree(plan.root, recursive=True)
        second = mount.open_tree(plan.root, recursive=True)
        covered = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        flags = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV
        memory = mount.detached_tmpfs("mode=0700,size=1m", flags)
        try:
            mount.move_mount(memory, covered, at=path)
            self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for name, tree in (("points", first), ("root", second)):
                os.mkdir(name, 0o700, dir_fd=self._folder)
                self._move(tree, name)
                if name == "points":
                    _make_points(f"{path}/{name}", plan.mounts)
                    mount.umount_detach(f"{path}/{name}")
        finally:
            for fd in (first, second, covered, memory):
                os.close(fd)
        words = ["--root", f"{path}/root", "--pidfile", f"{path}/{_PID_FILE}"]
        if self._asks:
            words += ["--action-script", self._make_script(path)]
        return words

    def _move(self, tree: int, name: str) -> None:
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            mount.move_mount(tree, fd, at=f"{self._container.path}/{name}")
        finally:
            os.close(fd)

    def _make_script(self, path: str) -> str:
        fds = []
        for name in ("asked", "answered"):
            os.mkfifo(name, 0o600, dir_fd=self._folder)
            # For reading and writing: opening does not wait for the other end.
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
            fds.append(os.open(name, flags, dir_fd=self._folder))
        self._asked, self._answered = fds
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open("script", flags, 0o700, dir_fd=self._folder)
        os.write(fd, _SCRIPT.encode())
        os.close(fd)
        return f"{path}/script"

    def wait_asked(self, pidfd: int) -> int:
        """Return the pid of the container's first process when its namespaces are there.

        Args:
            pidfd: criu's.

        Returns:
            0 if nobody is to be asked, or criu has ended.
        """
        if not self._asks:
            return 0
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.register(self._asked, select.POLLIN)
        ready = dict(poller.poll())
        return _number(os.read(self._asked, 64)) if self._asked in ready else 0

    def answer(self, word: str) -> None:
        """Let criu go on, or not."""
        os.write(self._answered, f"{word}\n".encode())

    def read_pid(self) -> int:
        """Return the pid of the first process, from the file that criu wrote.

        Raises:
            SetupError: it wrote none.
        """
        try:
            fd = os.open(_PID_FILE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            text = b""
        else:
            text = os.read(fd, 64)
            os.close(fd)
        pid = _number(text)
        if not pid:
            raise SetupError(
                f"cannot restore container '{self._container.id}'",
                "criu did not say the number of its first process",
            )
        return pid

    def close(self) -> None:
        """Let the namespace go, with all that is mounted in it."""
        for fd in (self._folder, self._asked, self._answered):
            if fd >= 0:
                os.close(fd)
        self._folder = self._asked = self._answered = -1


def _number(text: bytes) -> int:
    """Return the number of a process in *text*, or 0."""
    digits = text.strip()
    return int(digits) if digits.isdigit() and len(digits) < 10 else 0


def _make_points(root: str, mounts: Sequence[Mount]) -> None:
    """Make the mount points that a creation would have made, for criu makes none.

    What lies in a file system of the container's own comes with that.
    """
    own: list[str] = []
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for made in mounts:
            where = made.destination
            # What is only changed is there; a root of its own has its own mount points.
            if made.kind not in ("mount", "bind") or where == "/":
                continue
            if any(where.startswith(f"{above}/") for above in own):
                continue
            if made.kind == "mount":
                own.append(where)
                os.close(paths.make_in_root(top, where, "dir"))
                continue
            is_folder = os.path.isdir(made.source)
            point = paths.make_in_root(top, where, "dir" if is_folder else "file")
            try:
                # The next one's may lie in it.
                tree = mount.open_tree(made.source, recursive=made.recursive)
                try:
                    mount.move_mount(tree, point, at=where)
                finally:
                    os.close(tree)
            finally:
                os.close(point)
    finally:
        os.close(top)
