"""The last steps: the child gives up its rights and becomes the command.

The order matters. The bounding set is dropped while CAP_SETPCAP is there; the
ids change while CAP_SETUID and CAP_SETGID are; capabilities go after that, and
the seccomp filter comes last of all, or, without ``no_new_privs``, while
CAP_SYS_ADMIN still permits it.

Source: capabilities(7), credentials(7), prctl(2), execve(2), keyctl(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from firkin.init.plan import Plan
from firkin.linux import caps, libc, paths, signals

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_DUMPABLE = 4

_SYS_CLOSE_RANGE = 436
_CLOSE_RANGE_CLOEXEC = 4
_SYS_KEYCTL = 219 if os.uname().machine == "aarch64" else 250
_KEYCTL_JOIN_SESSION_KEYRING = 1

# As many interpreters of interpreters as the kernel follows (BINPRM_MAX_RECURSION).
_MAX_INTERPRETERS = 5

_personality = libc.function("personality", ctypes.c_ulong)
_setrlimit = libc.function("setrlimit", ctypes.c_int, ctypes.c_void_p)


class Rlimit(ctypes.Structure):
    """struct rlimit64; both in the resource's own unit, ~0 for infinity."""

    _fields_ = (("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64))


def die_with_parent() -> None:
    """Have the kernel kill this process when firkin dies.

    Each change of credentials clears this, so it is said again after them.
    """
    caps.prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signals.SIGKILL)


def live_without_parent() -> None:
    """Undo :func:`die_with_parent`."""
    caps.prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, 0)


def make_undumpable() -> None:
    """Let no process of the container trace us or open our files (CVE-2016-9962).

    It also keeps ``/proc/PID/exe``, the host's Python, out of reach (CVE-2019-5736).
    """
    caps.prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def make_dumpable() -> None:
    """Have this process's files in ``/proc`` belong to its own user, until they need not."""
    caps.prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 1)


def drop_privileges(plan: Plan) -> None:
    """Take the command's identity and no more than its capabilities."""
    if plan.detached:
        _give_streams(plan.uid)
    if plan.new_keyring:
        _join_keyring()
    if plan.personality >= 0:
        libc.because("the execution domain that was asked for")
        libc.call("personality", _personality, plan.personality)
    if plan.seccomp is not None and not plan.no_new_privs:
        libc.because("without no_new_privs only CAP_SYS_ADMIN may load a filter: while we have it")
        plan.seccomp()
    libc.because("capabilities that nothing in the container can ever get back")
    caps.drop_bounding(plan.bounding, plan.last_cap)
    libc.because("keep capabilities across the change of user")
    if plan.uid:
        caps.prctl("PR_SET_KEEPCAPS", caps.PR_SET_KEEPCAPS, 1)
    _enter_directory(plan, may_retry=True)
    libc.because("the command's user and groups")
    if plan.set_groups:
        libc.via(os.setgroups, list(plan.groups))
    libc.via(os.setresgid, plan.gid, plan.gid, plan.gid)
    libc.via(os.setresuid, plan.uid, plan.uid, plan.uid)
    libc.because("the change of user forgot it: the container dies with firkin")
    die_with_parent()
    _enter_directory(plan, may_retry=False)
    if plan.umask >= 0:
        os.umask(plan.umask)


def _give_streams(uid: int) -> None:
    """Give the standard streams to *uid*, who may open them by name (``/dev/stdout``).

    Of an OCI container only, whose caller made them for it; as runc does, but never a
    device, which is the host's own.
    """
    libc.because("the command may open /dev/stdout, and not only write to it")
    for fd in (0, 1, 2):
        found = os.fstat(fd)
        if found.st_uid == uid or stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            continue
        try:
            libc.via(os.fchown, fd, uid, -1)
        except OSError as error:
            # Its owner has no id in our user namespace, or its file system is read-only.
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.EROFS):
                raise


def _join_keyring() -> None:
    libc.because("a session keyring of its own: the host's keys are not reachable through it")
    try:
        libc.syscall("keyctl", _SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError as error:
        # No keyrings in this kernel, an outer seccomp profile without them, a full
        # quota: then there is nothing that could be reached either, or no key fits.
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EDQUOT, errno.ENOMEM):
            raise


def _enter_directory(plan: Plan, *, may_retry: bool) -> None:
    """Change to the working directory and see that it lies inside the container.

    First with our own rights (a folder that only root may enter is a legal
    working directory), then, where those don't do (FUSE, NFS), as the user.
    """
    libc.because("the command's working directory")
    try:
        libc.via(os.chdir, plan.cwd)
    except PermissionError:
        if may_retry:
            return
        raise
    # "(unreachable)/…": a directory outside the root, as of CVE-2024-21626.
    if not os.getcwd().startswith("/"):
        raise OSError(errno.EPERM, "it lies outside the container", plan.cwd)


def limit_capabilities(plan: Plan) -> None:
    """Set the four capability sets that remain after the bounding set."""
    libc.because("no more capabilities than the command is to have")
    permitted = plan.permitted & plan.bounding
    caps.set_caps(plan.effective & permitted, permitted, plan.inheritable & plan.bounding)
    # One that is not inheritable can't be raised; `runc spec` writes such, and runc passes over it.
    ambient = plan.ambient & permitted & plan.inheritable
    if ambient:
        libc.because("capabilities that survive execve without being root")
        caps.set_ambient(ambient)


def limit_reaper(plan: Plan) -> None:
    """Leave pid 1 of ``--init`` the one right that it needs: to signal a command of any user."""
    libc.because("the reaper passes signals on, and needs no other right")
    caps.drop_bounding(0, plan.last_cap)
    kill = caps.mask(("CAP_KILL",)) & plan.bounding
    caps.set_caps(kill, kill, 0)
    caps.prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def find_command(plan: Plan) -> str:
    """Return the path of the command in the container, as ``execvp`` would find it.

    Raises:
        OSError: ENOENT where no folder of PATH has it, EACCES where it is there
            and can't be executed.
    """
    name = plan.args[0]
    if "/" in name:
        _check_executable(name)
        return name
    denied = False
    for folder in plan.paths:
        path = f"{folder or '.'}/{name}"
        try:
            _check_executable(path)
        except PermissionError:
            denied = True
        except OSError:
            continue
        else:
            return path
    if denied:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), name)
    raise OSError(errno.ENOENT, "executable file not found in $PATH", name)


def _check_executable(path: str) -> None:
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not os.access(path, os.X_OK, effective_ids=True):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)


def refuse_magic_links(path: str) -> None:
    """Refuse a command, or an interpreter of it, that is a link such as /proc/self/exe.

    That link names the host's Python here. Executed, it would run in the
    container, which could then change it through ``/proc`` (CVE-2019-5736).
    What can't be looked at is refused, too. Who can write to the command's file
    from elsewhere (a volume that is shared) could still exchange it afterwards.

    Source: load_script in fs/binfmt_script.c, exec_binprm in fs/exec.c.
    """
    libc.because("no script may have the host's Python, /proc/self/exe, for its interpreter")
    # The kernel reads scripts with no regard to who may read them: so do we, for a moment.
    _, permitted, inheritable = caps.get_caps()
    caps.set_caps(permitted, permitted, inheritable)
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(1 + _MAX_INTERPRETERS):
            absolute = os.path.join(os.getcwd(), path)
            fd = paths.open_in_root(root, absolute, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                head = os.read(fd, 256)
            finally:
                os.close(fd)
            if head[:2] != b"#!":
                return
            # As the kernel: blanks are space and tab, and NUL ends a name, too.
            line = head[2:].split(b"\n", 1)[0].lstrip(b" \t")
            name = line.replace(b"\t", b" ").replace(b"\0", b" ").split(b" ", 1)[0]
            if not name:
                return
            path = os.fsdecode(name)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return  # execve says it better
        why = "a link of /proc can't be executed"
        if error.errno != errno.ELOOP:
            why = f"it can't be checked: {error.strerror}"
        raise OSError(errno.EACCES, why, path) from None
    finally:
        os.close(root)


def set_rlimits(plan: Plan) -> None:
    """Set the resource limits; the parent has raised the hard ones that had to be."""
    libc.because("--ulimit")
    for resource, soft, hard in plan.rlimits:
        libc.call(
            "setrlimit",
            _setrlimit,
            resource,
            ctypes.byref(Rlimit(soft, hard)),
            shown=(resource, soft, hard),
        )


def close_files(plan: Plan) -> None:
    """Mark all descriptors but the standard ones and those asked for close-on-exec."""
    first = 3 + plan.keep_fds
    for fd in range(3, first):
        os.set_inheritable(fd, True)
    libc.because("no file of the host's stays open in the container")
    try:
        libc.syscall("close_range", _SYS_CLOSE_RANGE, first, 0x7FFFFFFF, _CLOSE_RANGE_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise
        # Before Linux 5.11. The limit may have been lowered below what is open.
        for fd in range(first, max(os.sysconf("SC_OPEN_MAX"), 65536)):
            try:
                os.set_inheritable(fd, False)
            except OSError:
                continue


def close_others(plan: Plan, kept: tuple[int, ...]) -> None:
    """Close all descriptors but the standard ones, those asked for and *kept*.

    For who waits, perhaps for days: what our caller forgot to close is not to be had
    from ``/proc`` meanwhile, and :func:`close_files` acts only at ``execve``.
    """
    libc.because("who waits holds no file of the host's")
    first = 3 + plan.keep_fds
    for fd in sorted({*kept, 0x80000000}):
        if fd > first:
            try:
                libc.syscall("close_range", _SYS_CLOSE_RANGE, first, fd - 1, 0)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
                os.closerange(first, min(fd, 65536))
        first = max(first, fd + 1)


def load_seccomp(plan: Plan) -> None:
    """Give up what set-user-ID programs give, and load the filter, which then needs no rights."""
    libc.because("no set-user-ID program gives anything back")
    caps.prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    if plan.seccomp is not None:
        libc.because("system calls that containers don't need are refused, last of all")
        plan.seccomp()


def execute(plan: Plan, path: str) -> None:
    """Load the seccomp filter where it comes last, and become the command.

    Raises:
        OSError: execve failed; this process must end.
    """
    if plan.no_new_privs:
        load_seccomp(plan)
    environment = {}
    for entry in plan.env:
        name, _, value = entry.partition("=")
        environment[name] = value
    libc.because("the child becomes the command")
    if libc.listener is not None:
        libc.listener("execve", (path, list(plan.args), f"{len(environment)} variables"), 0, 0, "")
    os.execve(path, plan.args, environment)
