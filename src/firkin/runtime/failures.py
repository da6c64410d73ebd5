"""What the child's reports mean, in words; light, for ``start`` of an OCI container reads them."""

from __future__ import annotations

import errno

from firkin.errors import NotExecutable, NotFound, SetupError

# What each step of the child does, for "cannot …".
_DOING = {
    "unshare_namespaces": "create the container's namespaces",
    "join_namespaces": "join a namespace",
    "become_root": "enter the user namespace",
    "unshare_cgroup": "create the cgroup namespace",
    "set_time": "set the time namespace's offsets",
    "set_names": "set the host name",
    "bring_up_loopback": "bring the loopback device up",
    "build_root": "mount",
    "run_hooks": "run hook",
    "set_sysctls": "set a sysctl",
    "enter_root": "pivot into the root file system",
    "make_directory": "make the working directory",
    "open_console": "open a terminal",
    "close_root": "hide or protect",
    "set_traits": "set the memory policy or a label",
    "drop_privileges": "take the command's user and directory",
    "limit_capabilities": "limit the capabilities",
    "wait_on_fifo": "run hook",
    "clean_process": "close files and reset signals",
    "limit_resources": "limit the command's resources",
    "load_listener": "load the seccomp filter",
}


def failure(command: str, step: str, number: str, path: str, why: str) -> SetupError:
    """Turn what the child reported into the exception to raise.

    Args:
        command: what was to be run.
        step: the function of ``firkin.init.stages`` that failed.
        number: the errno as text, "0" where there is none.
        path: the file that it is about, or "".
        why: the reason in words.
    """
    code = int(number)
    facts = {"step": step, "errno": code, "path": path}
    if step in ("find_command", "check_interpreters", "execute"):
        what = f"cannot run '{command}'"
        if code in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            if step == "execute":
                why = "the interpreter or loader that it names is not in the container"
            return _typed(NotFound, what, why, facts)
        if code:
            return _typed(NotExecutable, what, why, facts)
    doing = _DOING.get(step, f"do step {step}")
    if path:
        doing += f" '{path}'"
    mend = ""
    if step == "join_namespaces" and code == errno.EPERM:
        mend = "its user namespace must be joined, too, by one who has rights over it"
    elif step == "build_root" and code == errno.EPERM and path in ("/proc", "/sys"):
        mend = "an outer container that hides parts of its own does not let us mount a fresh one"
    elif step == "build_root" and code == errno.ELOOP:
        mend = "are the image and the store inside each other?"
    return _typed(SetupError, f"cannot {doing}", why, facts, mend)


def _typed(
    kind: type[SetupError], what: str, why: str, facts: dict[str, object], mend: str = ""
) -> SetupError:
    error = kind(what, why, mend)
    error.step = str(facts["step"])
    error.errno = int(str(facts["errno"]))
    error.path = str(facts["path"])
    return error
