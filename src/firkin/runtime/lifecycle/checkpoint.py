"""``checkpoint``: write the processes of a container to files, by criu(8).

Whatever goes wrong, the container goes on as it did before.

Source: runc-checkpoint(8); criu(8).
"""

from __future__ import annotations

import os
import stat

from firkin.errors import SetupError, UsageError
from firkin.linux import paths, signals
from firkin.runtime import compiler, criu
from firkin.runtime.cgroups import light
from firkin.runtime.lifecycle import delete, folder, freeze
from firkin.spec import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from firkin.init.plan import Plan
    from firkin.runtime.lifecycle.folder import Container

_LOG = "dump.log"


class Options(criu.Settings):
    """What the command line of ``checkpoint`` says.

    Attributes:
        parent_path: the folder of an earlier ``pre_dump``, relative to ``image_path``, or "".
        leave_running: the container goes on afterwards.
        pre_dump: write its memory only, and let it go on.
        tcp_skip_in_flight: TCP connections that are just being made are left out.
        link_remap: files without a name may get one for the time.
        status_fd: a descriptor of the caller's that gets a NUL when pages can be asked
            for, or -1.
        page_server: the (address, port) that pages are sent to, or None.
        warn: told of a ``poststop`` hook that failed.
    """

    __slots__ = (
        "leave_running",
        "link_remap",
        "page_server",
        "parent_path",
        "pre_dump",
        "status_fd",
        "tcp_skip_in_flight",
        "warn",
    )

    def __init__(self) -> None:
        super().__init__()
        self.parent_path = ""
        self.leave_running = self.pre_dump = False
        self.tcp_skip_in_flight = self.link_remap = False
        self.status_fd = -1
        self.page_server: tuple[str, int] | None = None
        self.warn: Callable[[str], None] = lambda _text: None


def checkpoint(container: Container, options: Options) -> None:
    """Write *container* to files; unless it is to go on, it is deleted then, as by runc.

    Raises:
        UsageError: it does not run, or an option is wrong.
        Unsupported: there is no criu.
        SetupError: criu failed, and the container goes on.
    """
    container.find().lock()
    container.find()
    status = container.status()
    if status not in (folder.RUNNING, folder.PAUSED):
        raise UsageError(
            f"cannot checkpoint container '{container.id}'",
            f"container cannot be checkpointed in {status} state",
        )
    program = criu.find(options.program)
    _check_status_fd(options)
    image, work = options.folders(make=True)
    _check_parent(options, image)
    opened = compiler.Opened()
    log = f"{work}/{_LOG}"
    try:
        words = [program, "pre-dump" if options.pre_dump else "dump"]
        words += ["--tree", str(container.record.pid), "--images-dir", image, "--work-dir", work]
        words += ["--log-file", _LOG, "-v4", "--root", container.record.rootfs]
        words += _words(container, options, image, opened)
        why = _run(container, criu.Run(words, log), was_paused=status == folder.PAUSED)
    finally:
        opened.close()
    if why:
        if not options.pre_dump:
            os.unlink(f"{image}/{criu.DESCRIPTORS}")
        raise criu.failure(f"cannot checkpoint container '{container.id}'", why, log)
    if options.leave_running or options.pre_dump:
        container.close()
    else:
        delete.destroy(container, options.warn)


def _run(container: Container, run: criu.Run, *, was_paused: bool) -> str:
    """Let criu do it; return "" or why it could not."""
    # It is criu that a ^C ends; this process sees to the container then.
    old = signals.block(signals.ALL)
    try:
        run.fork()
        run.start()
        return run.wait()
    finally:
        run.close()
        if not was_paused and light.is_frozen(container.record.cgroups):
            freeze.cgroup_of(container).thaw()
        signals.set_mask(old)


def _words(
    container: Container, options: Options, image: str, opened: compiler.Opened
) -> list[str]:
    """Return criu's options for *container*, and write down what its descriptors are."""
    record = container.record
    words = [*options.words(), *criu.config_words(record.annotations)]
    freezer = _freezer(record.cgroups)
    if freezer:
        words += ["--freeze-cgroup", freezer]
    if options.parent_path:
        words += ["--prev-images-dir", options.parent_path]
    if options.parent_path or options.pre_dump:
        words.append("--track-mem")
    if options.tcp_skip_in_flight:
        words.append("--skip-in-flight")
    if options.link_remap:
        words.append("--link-remap")
    if options.page_server is not None:
        address, port = options.page_server
        words += ["--page-server", "--address", address, "--port", str(port)]
    if options.lazy_pages and options.status_fd >= 0:
        words += ["--status-fd", str(options.status_fd)]
    if options.pre_dump:
        return words
    if options.leave_running:
        words.append("--leave-running")
    with open(f"{container.path}/{folder.CONFIG}", encoding="utf-8") as file:
        config = jsontext.load(file.read())
    plan = compiler.compile_plan(config, record.bundle, _cgroup_of(container), opened)
    words += _externals(container, plan)
    descriptors = _descriptors(record.pid)
    if plan.terminal:
        name = _terminal(record.pid)
        words += ["--external", name]
        descriptors.append(name)
    _write(f"{image}/{criu.DESCRIPTORS}", jsontext.dump(descriptors))
    return words


def _freezer(cgroups: list[str]) -> str:
    """Return the directory of the freezer, or ""."""
    # v1's, where there is one: on a hybrid machine both files are there.
    for name in ("freezer.state", "cgroup.freeze"):
        for path in cgroups:
            if os.path.exists(f"{path}/{name}"):
                return path
    return ""


def _cgroup_of(container: Container) -> Any:
    if container.record.cgroups:
        return freeze.cgroup_of(container)
    from firkin.runtime.cgroups.none import NoCgroup

    return NoCgroup("the container has none")


def _externals(container: Container, plan: Plan) -> list[str]:
    """Return the options for mounts and namespaces that others own."""
    pid = container.record.pid
    words = []
    for _, flag, _ in plan.joins:
        kind = criu.INHERITED.get(flag)
        if kind is not None:
            number = os.stat(f"/proc/{pid}/ns/{kind}").st_ino
            words += criu.external(kind, str(number), criu.namespace_name(kind))
    wanted = {
        destination: destination for destination, _ in criu.external_mounts(plan)
    } | dict.fromkeys(plan.masked, criu.NULL)
    if plan.terminal:
        wanted["/dev/console"] = "/dev/console"
    points = _mount_points(pid)
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for destination, name in wanted.items():
            point, is_folder = _resolve(root, destination)
            # A folder is masked by a file system of its own.
            if point in points and not (is_folder and name == criu.NULL):
                words += criu.external("mnt", point, name)
    finally:
        os.close(root)
    return words


def _resolve(root: int, path: str) -> tuple[str, bool]:
    """Return what *path* is in the container without its links, and whether it is a folder."""
    try:
        fd = paths.open_in_root(root, path, os.O_PATH)
    except OSError:
        return "", False
    try:
        return os.readlink(f"/proc/self/fd/{fd}"), stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _mount_points(pid: int) -> set[str]:
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split(" ", 5)[4] for line in file]
    escapes = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}
    found = set()
    for point in points:
        for escape, character in escapes.items():
            point = point.replace(escape, character)
        found.add(point)
    return found


def _descriptors(pid: int) -> list[str]:
    """Return what the standard descriptors of *pid* are; "" for one that is closed."""
    found = []
    for number in range(3):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except FileNotFoundError:
            found.append("")
    return found


def _terminal(pid: int) -> str:
    """Return how criu names the terminal of *pid*, whose master nobody in the container has."""
    for number in range(3):
        try:
            fd = os.open(f"/proc/{pid}/fd/{number}", os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
        # Unix98 pseudoterminals' slaves: include/uapi/linux/major.h.
        if stat.S_ISCHR(found.st_mode) and 136 <= os.major(found.st_rdev) <= 143:
            return f"tty[{found.st_rdev:x}:{found.st_dev:x}]"
    raise SetupError("cannot checkpoint the terminal", "the first process has closed it")


def _write(path: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise SetupError(f"cannot write '{path}'", error.strerror or "") from error


def _check_parent(options: Options, image: str) -> None:
    """See that ``--parent-path`` is as criu takes it: beside the images."""
    path = options.parent_path
    if not path:
        return
    what = f"cannot use --parent-path '{path}'"
    if os.path.isabs(path):
        raise UsageError(what, "it must be relative, to the folder of --image-path")
    if not os.path.isdir(os.path.join(image, path)):
        raise UsageError(what, f"'{os.path.join(image, path)}' is no folder")


def _check_status_fd(options: Options) -> None:
    """See that ``--status-fd`` is the caller's, and can be written to."""
    fd = options.status_fd
    if fd < 0 or not options.lazy_pages:
        return
    import fcntl

    what = f"cannot use --status-fd {fd}"
    if fd >= 1 << 31:
        raise UsageError(what, "it is not open")
    try:
        ours = not os.get_inheritable(fd)
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise UsageError(what, error.strerror or "") from None
    if ours:
        raise UsageError(what, "it is not open")
    if mode == os.O_RDONLY:
        raise UsageError(what, "it is not writable")
