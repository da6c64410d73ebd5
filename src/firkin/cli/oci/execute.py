"""``firkin-runtime exec``."""

from __future__ import annotations

from firkin.cli.oci.parse import FLAG, LIST, NUMBER, VALUE, Word, verb
from firkin.errors import FirkinError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firkin.cli.oci.main import Context
    from firkin.runtime.lifecycle.folder import Container

_OPTIONS = {
    "--process": Word(VALUE, "FILE", "the process as JSON, as in a configuration"),
    "--tty": Word(FLAG, "", "give it a terminal"),
    "--detach": Word(FLAG, "", "do not stay with it"),
    "--console-socket": Word(VALUE, "PATH", "a Unix socket that takes the master of the terminal"),
    "--pid-file": Word(VALUE, "FILE", "write its pid to this file"),
    "--user": Word(VALUE, "UID[:GID]", "as whom it runs"),
    "--additional-gids": Word(LIST, "GID", "one more group"),
    "--cwd": Word(VALUE, "DIR", "its working directory"),
    "--env": Word(LIST, "NAME=VALUE", "one more variable"),
    "--cap": Word(LIST, "NAME", "one more capability"),
    "--no-new-privs": Word(FLAG, "", "set no_new_privs"),
    "--apparmor": Word(VALUE, "PROFILE", "its AppArmor profile"),
    "--process-label": Word(VALUE, "LABEL", "its SELinux label"),
    "--preserve-fds": Word(NUMBER, "N", "pass N more descriptors from 3 on"),
    "--cgroup": Word(LIST, "PATH", "a cgroup below the container's for it"),
    "--ignore-paused": Word(FLAG, "", "also in a paused container, where it waits"),
    "--no-subreaper": Word(FLAG, "", "accepted and without effect, as in runc"),
}
_SHORT = {
    "-p": "--process",
    "-t": "--tty",
    "-d": "--detach",
    "-u": "--user",
    "-g": "--additional-gids",
    "-e": "--env",
    "-c": "--cap",
}


def main(context: Context, argv: Sequence[str]) -> int:
    """Run another process in a container; return its exit status, or 0 if detached."""
    try:
        return _main(context, argv)
    except FirkinError as error:
        from firkin.runtime.lifecycle.exec import mark

        raise mark(error) from None


def _main(context: Context, argv: Sequence[str]) -> int:
    found = verb(
        "exec",
        "[OPTIONS] ID [COMMAND [ARGUMENT…]]",
        "Run another process in a container.",
        _OPTIONS,
        _SHORT,
        argv,
        least=1,
        most=-1,
        interspersed=False,
    )
    if found is None:
        return 0
    given, arguments = found
    from firkin.runtime.lifecycle import exec as operation
    from firkin.runtime.lifecycle.folder import Container

    container = Container(context.root, arguments[0]).find()
    options = operation.Options()
    options.warn = context.log.warn
    options.detach = bool(given.get("--detach"))
    options.ignore_paused = bool(given.get("--ignore-paused"))
    options.pid_file = given.get("--pid-file") or ""
    options.console_socket = given.get("--console-socket") or ""
    options.preserve_fds = given.get("--preserve-fds") or 0
    options.cgroups = given.get("--cgroup") or []
    if given.get("--process"):
        process = _read(container, given["--process"])
        if given.get("--tty"):
            process["terminal"] = True
    else:
        process = _compose(container, given, arguments[1:])
    return operation.execute(container, process, options)


# What a process file need not say: then it is as the container's own process has it, as in
# runc. Without them it would run unconfined, or hidden from the out-of-memory killer.
_INHERITED = ("apparmorProfile", "capabilities", "oomScoreAdj", "selinuxLabel")


def _read(container: Container, path: str) -> dict[str, Any]:
    from firkin.runtime.lifecycle.exec import base_process
    from firkin.spec import validate

    try:
        with open(path, "rb") as file:
            data = file.read(validate.MAX_SIZE + 1)
    except OSError as error:
        raise UsageError(f"cannot read '{path}'", error.strerror or "") from None
    process = validate.parse(data, path)
    validate.validate_process(process)
    base = base_process(container)
    for name in _INHERITED:
        if base.get(name) is not None and process.get(name) in (None, ""):
            process[name] = base[name]
    return process


def _compose(container: Container, given: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """Return the container's own process, changed as the options say."""
    from firkin.runtime.lifecycle.exec import base_process
    from firkin.spec import validate

    process = base_process(container)
    if not command:
        raise UsageError("cannot exec", "process args cannot be empty", "name a command")
    process["args"] = list(command)
    process["terminal"] = bool(given.get("--tty"))
    process["env"] = [*(process.get("env") or ()), *given.get("--env", ())]
    if given.get("--cwd"):
        process["cwd"] = given["--cwd"]
    # As runc: what is not said stays as the configuration has it.
    process["user"] = user = {**(process.get("user") or {})}
    if given.get("--user"):
        uid, colon, gid = given["--user"].partition(":")
        user["uid"] = _id("--user", uid)
        if colon:
            user["gid"] = _id("--user", gid)
    if given.get("--additional-gids"):
        gids = [_id("--additional-gids", gid) for gid in given["--additional-gids"]]
        user["additionalGids"] = [*(user.get("additionalGids") or ()), *gids]
    if given.get("--cap"):
        sets = process.get("capabilities") or {}
        # As runc: not ambient nor inheritable, for these would leak through execve.
        for name in ("bounding", "effective", "permitted"):
            sets[name] = sorted({*(sets.get(name) or ()), *given["--cap"]})
        process["capabilities"] = sets
    if given.get("--no-new-privs"):
        process["noNewPrivileges"] = True
    if given.get("--apparmor"):
        process["apparmorProfile"] = given["--apparmor"]
    if given.get("--process-label"):
        process["selinuxLabel"] = given["--process-label"]
    validate.validate_process(process)
    return process


def _id(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) >= 1 << 32:
        raise UsageError(f"cannot set {option} to '{text}'", "expected a number")
    return int(text)
