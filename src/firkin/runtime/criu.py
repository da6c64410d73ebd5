"""criu(8): the program that writes a container's processes to files, and makes them again.

Driven by its command line, whose words are what ``checkpoint`` and ``restore`` have in
common here; what they do around it is in ``runtime/lifecycle``.

Source: criu(8); https://criu.org/CLI.
"""

from __future__ import annotations

import os

from firkin.errors import ConfigError, SetupError, Unsupported, UsageError
from firkin.linux import clone, ns, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firkin.init.plan import Plan

# What the standard descriptors were, for restore; runc reads and writes the same file.
DESCRIPTORS = "descriptors.json"
# What is bound over files that are masked.
NULL = "/dev/null"
CGROUP_MODES = ("soft", "full", "strict", "ignore")

# Settings for containers alone, read where they are there, as by runc; an annotation names others.
_CONFIG = "/etc/criu/runc.conf"
_CONFIG_ANNOTATION = "org.criu.config"

_MAX_OUTPUT = 65536
_MAX_LOG = 64 << 20
_LONGEST = 300  # characters of an error of criu's that are quoted


class Settings:
    """What ``checkpoint`` and ``restore`` are both asked for.

    Attributes:
        program: criu's name or path.
        image_path: the folder of the checkpoint.
        work_path: the folder of logs and statistics, or "" for the same.
        cgroups_mode: one of :data:`CGROUP_MODES`.
        tcp_established: established TCP connections are part of it.
        ext_unix_sk: sockets whose other end is outside may be.
        shell_job: the terminal and session may be the caller's.
        file_locks: file locks are part of it.
        lazy_pages: memory is fetched when it is used.
        auto_dedup: memory pages that are stored twice are freed.
    """

    __slots__ = (
        "auto_dedup",
        "cgroups_mode",
        "ext_unix_sk",
        "file_locks",
        "image_path",
        "lazy_pages",
        "program",
        "shell_job",
        "tcp_established",
        "work_path",
    )

    def __init__(self) -> None:
        self.program = "criu"
        self.image_path = "checkpoint"
        self.work_path = ""
        self.cgroups_mode = "soft"
        self.tcp_established = self.ext_unix_sk = self.shell_job = False
        self.file_locks = self.lazy_pages = self.auto_dedup = False

    def folders(self, *, make: bool) -> tuple[str, str]:
        """Return the absolute folders of images and logs, made where they are missing.

        Args:
            make: the folder of images, too, may be missing.

        Raises:
            UsageError: one can't be made, or is missing.
        """
        image = os.path.abspath(self.image_path)
        work = os.path.abspath(self.work_path) if self.work_path else image
        for path, wanted in ((image, make), (work, True)):
            try:
                if wanted:
                    os.makedirs(path, 0o700, exist_ok=True)
                os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            except OSError as error:
                raise UsageError(f"cannot use '{path}'", error.strerror or "") from None
        return image, work

    def words(self) -> list[str]:
        """Return these settings as criu's options."""
        given = {
            "--tcp-established": self.tcp_established,
            "--ext-unix-sk": self.ext_unix_sk,
            "--shell-job": self.shell_job,
            "--file-locks": self.file_locks,
            "--lazy-pages": self.lazy_pages,
            "--auto-dedup": self.auto_dedup,
        }
        # The network is its owner's, who sets it up again: only the namespace is made.
        return [
            f"--manage-cgroups={self.cgroups_mode}",
            "--empty-ns",
            "net",
            *(word for word, wanted in given.items() if wanted),
        ]


def find(program: str) -> str:
    """Return the path of criu.

    Raises:
        Unsupported: there is none.
    """
    folders = [""] if "/" in program else os.environ.get("PATH", "").split(":")
    for folder in folders:
        path = os.path.join(folder, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return os.path.abspath(path)
    why = "no such file or directory" if "/" in program else "it is not on PATH"
    raise Unsupported(
        f"cannot use '{program}'",
        why,
        "install CRIU (Debian's package is criu), or name it with --criu",
    )


def config_words(annotations: dict[str, str]) -> list[str]:
    """Return the options that name a file with more options, if there is one."""
    path = annotations.get(_CONFIG_ANNOTATION, _CONFIG)
    return ["--config", path] if path and os.path.isfile(path) else []


# ---------------------------------------------------------------- what is the host's


def external_mounts(plan: Plan) -> list[tuple[str, str]]:
    """Return the mounts whose contents are the host's: (destination, source).

    Raises:
        ConfigError, UsageError: one that criu's command line can't say.
    """
    found = []
    for made in plan.mounts:
        if made.tree_fd >= 0:
            raise ConfigError(
                "mounts", f"'{made.destination}' has mapped ids, which CRIU would not restore"
            )
        if made.kind == "bind":
            found.append((made.destination, made.source))
    if plan.bind_devices:
        found += [(device[0], device[5]) for device in plan.devices]
    for words in found:
        for word in words:
            if "]" in word or "\n" in word:
                raise UsageError(f"cannot checkpoint the mount '{word}'", "its name has a ']'")
    return found


def external(kind: str, name: str, value: str) -> list[str]:
    """Return the option for a resource that is not criu's to save or make."""
    return ["--external", f"{kind}[{name}]:{value}"]


def namespace_name(kind: str) -> str:
    """Return how an image calls the container's namespace of this kind that others made."""
    return f"extRoot{kind.capitalize()}NS"


# Namespaces that are joined by a descriptor, by the flags of :mod:`firkin.linux.clone`.
INHERITED = {clone.CLONE_NEWNET: "net", clone.CLONE_NEWPID: "pid"}
# Those that are joined by a path; of the others criu knows only how to make new ones.
JOINED = {ns.FLAGS[name]: file for name, file, _ in ns.NAMESPACES if name in ("ipc", "uts", "time")}


def is_pipe(text: str) -> bool:
    """Whether *text* is what a link in ``/proc/PID/fd`` says of a pipe."""
    number = text.removeprefix("pipe:[").removesuffix("]")
    return text == f"pipe:[{number}]" and number.isascii() and number.isdigit()


# ---------------------------------------------------------------- running it


class Run:
    """One run of criu.

    Args:
        words: its path, action and options.
        log: where its log will be.

    Attributes:
        pid, pidfd: of its process, from :meth:`start` to :meth:`wait`.
    """

    __slots__ = ("_go", "_log", "_output", "_words", "pid", "pidfd")

    def __init__(self, words: Sequence[str], log: str) -> None:
        self._words = list(words)
        self._log = log
        self._output = self._go = self.pid = self.pidfd = -1

    def fork(self) -> None:
        """Make its process, which waits for :meth:`start`, in this process's mount namespace.

        It inherits what is inheritable, and standard input; what it says itself is kept
        apart from the container's output.
        """
        try:
            os.unlink(self._log)  # what an earlier run said
        except FileNotFoundError:
            pass
        self._output = os.memfd_create("criu", os.MFD_CLOEXEC)
        waits, self._go = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid, self.pidfd = clone.clone(0)
            if self.pid == 0:
                _become(waits, self._go, self._output)
        finally:
            os.close(waits)

    def start(self, words: Sequence[str] = ()) -> None:
        """Let it go, with *words* as its last options."""
        text = "\0".join((*self._words, *words)).encode(errors="surrogateescape")
        view = memoryview(text)
        try:
            while view:
                view = view[os.write(self._go, view) :]
        except BrokenPipeError:
            pass  # it has ended; wait() says how
        os.close(self._go)
        self._go = -1

    def wait(self) -> str:
        """Return "" when it has done its work, else why it has not."""
        _, status = os.waitpid(self.pid, 0)
        self.pid = -1
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return ""
        how = f"status {code}" if code > 0 else f"signal {-code}"
        return self._last_error() or f"it ended with {how} and no error in its log"

    def close(self) -> None:
        """Release all, and end it if it has not been let go or waited for."""
        if self._go >= 0:
            os.close(self._go)
        if self.pid > 0:
            try:
                signals.pidfd_send_signal(self.pidfd, signals.SIGKILL)
            except ProcessLookupError:
                pass
            os.waitpid(self.pid, 0)
        for fd in (self.pidfd, self._output):
            if fd >= 0:
                os.close(fd)
        self.pid = self.pidfd = self._output = self._go = -1

    def _last_error(self) -> str:
        """Return criu's own words: the first error, which is the cause, and the last."""
        found = _errors_of(self._log)
        if not found:
            said = os.pread(self._output, _MAX_OUTPUT, 0).decode(errors="replace")
            lines = [line for line in said.splitlines() if line.strip()]
            found = [_message(line) for line in lines if "Error" in line] or lines[:1]
        words = [found[0]] if found else []
        if found and found[-1] != found[0]:
            words.append(found[-1])
        return " … ".join(word.strip()[:_LONGEST].rstrip(".") for word in words)


def _become(waits: int, go: int, output: int) -> None:
    """Wait for the command line, and execute it; the child's half of :meth:`Run.fork`."""
    status = 127
    try:
        os.close(go)
        text = b""
        while part := os.read(waits, 65536):
            text += part
        if text:
            words = text.split(b"\0")
            os.dup2(output, 1)
            os.dup2(output, 2)
            signals.reset_dispositions()
            signals.set_mask(0)
            os.execv(words[0], words)
    except OSError as error:
        os.write(output, f"Error (execve): {error.strerror}\n".encode())
    finally:
        os._exit(status)


def _message(line: str) -> str:
    """Return what a line of the log says, without time and place of the source."""
    head, _, rest = line.partition("Error (")
    return rest.partition("): ")[2] or rest or head


def _errors_of(path: str) -> list[str]:
    found: list[str] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as log:
            left = _MAX_LOG
            while left > 0 and (line := log.readline(4096)):
                left -= len(line)
                # "Dumping FAILED.": that it failed is known by then.
                if "Error (" in line and "FAILED" not in line:
                    found = [*found[:1], _message(line.rstrip())]
    except OSError:
        return []
    return found


def failure(what: str, why: str, log: str) -> SetupError:
    """Return the error for criu's own *why*."""
    mend = f"its log is '{log}'" if os.path.exists(log) else ""
    return SetupError(what, f"criu says: {why}", mend, step="criu")
