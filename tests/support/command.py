"""Running firkin and other commands from tests, so that none of them can hang the suite."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support import leftovers

TIMEOUT = 60.0  # seconds; a run takes some tens of milliseconds
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Other users may not be able to read this tree; `tools/setup test` makes a copy that they can.
SHARED_PYTHON = "/var/cache/firkin-test/venv/bin/python"
SHARED_COMMAND = "/var/cache/firkin-test/venv/bin/firkin"


def environment(user: str | None = None) -> dict[str, str]:
    """Return a small environment, for this user or for *user*."""
    entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    env = {
        "HOME": entry.pw_dir,
        "LANG": "C.UTF-8",
        "LOGNAME": entry.pw_name,
        "PATH": PATH,
        "USER": entry.pw_name,
    }
    if not user and "XDG_RUNTIME_DIR" in os.environ:
        env["XDG_RUNTIME_DIR"] = os.environ["XDG_RUNTIME_DIR"]
    return env


def identity(user: str | None) -> dict[str, Any]:
    """Return the options of :class:`subprocess.Popen` that make a command *user*'s."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    groups = os.getgrouplist(user, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}


def execute(
    command: list[str],
    *,
    user: str | None = None,
    input: str | bytes | None = None,  # noqa: A002  (subprocess.run's name)
    timeout: float = TIMEOUT,
    text: bool = True,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run *command* to its end, as :func:`subprocess.run`, with all output captured.

    Args:
        command: program and arguments.
        user: whose process it becomes; this one's without. Others need root.
        input: what it reads from standard input; nothing without.
        timeout: seconds; after that it and all that it started are killed, and
            the test fails with what it wrote and what its processes waited for.
        text: whether input and output are str.
        check: whether a status other than 0 fails the test.
        options: for :class:`subprocess.Popen`.
    """
    options.setdefault("env", environment(user))
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    if input is None:
        options.setdefault("stdin", subprocess.DEVNULL)
    else:
        options["stdin"] = subprocess.PIPE
    if user and "cwd" not in options:
        options["cwd"] = "/"
    if text:
        # A hostile container may write any bytes.
        options.setdefault("errors", "backslashreplace")
    process = subprocess.Popen(
        command, text=text, start_new_session=True, **identity(user), **options
    )
    try:
        out, err = process.communicate(input, timeout)
    except subprocess.TimeoutExpired as late:
        tree = leftovers.describe([process.pid, *leftovers.descendants(process.pid)])
        out, err = end(process)
        # The exception's output is bytes even in text mode.
        out, err = out or late.stdout or "", err or late.stderr or ""
        pytest.fail(
            f"{command} still ran after {timeout} s\n-- processes\n{tree}\n"
            f"-- stdout\n{out!s}\n-- stderr\n{err!s}",
            pytrace=False,
        )
    except BaseException:
        end(process)
        raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check and done.returncode:
        pytest.fail(f"{command}: status {done.returncode}\n{out!s}{err!s}", pytrace=False)
    return done


def end(process: subprocess.Popen[Any]) -> tuple[Any, Any]:
    """Kill *process* and all that it started, and return the rest of its output."""
    pids = leftovers.descendants(process.pid)
    process.kill()
    leftovers.kill(pids)
    try:
        return process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        # Something that escaped still holds the pipes; don't wait for it.
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
        process.wait(5)
        return None, None


class Firkin:
    """The ``firkin`` command, with a store and a state folder that only this session uses.

    Attributes:
        folder: what the session keeps its files in; every user can pass through it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def command(self, user: str | None = None) -> str:
        """Return the path of the command, as *user* can execute it."""
        if user is not None:
            return SHARED_COMMAND
        # Not resolved: the venv's python is a link to the system's.
        return str(Path(sys.executable).with_name("firkin"))

    def env(self, user: str | None = None) -> dict[str, str]:
        """Return the environment that the command gets."""
        home = self.folder / (user or "own")
        for name in ("store", "state"):
            folder = home / name
            if not folder.exists():
                folder.mkdir(parents=True)
                if user:
                    entry = pwd.getpwnam(user)
                    os.chown(home, entry.pw_uid, entry.pw_gid)
                    os.chown(folder, entry.pw_uid, entry.pw_gid)
        folders = {"FIRKIN_STORE": str(home / "store"), "FIRKIN_STATE": str(home / "state")}
        return environment(user) | folders

    def __call__(
        self,
        *arguments: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run ``firkin ARGUMENTS`` to its end; *options* are those of :func:`execute`.

        Args:
            env: added to the environment of :meth:`env`.
            user: who runs it; needs root, and the copy that ``tools/setup test`` makes.
        """
        command = [self.command(user), *(os.fspath(argument) for argument in arguments)]
        return execute(command, user=user, env=self.env(user) | dict(env or {}), **options)

    def start(
        self,
        *arguments: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start ``firkin ARGUMENTS`` and return it running; the caller waits or calls :func:`end`.

        *options* are those of :class:`subprocess.Popen`; output is piped and text
        unless they say otherwise.
        """
        command = [self.command(user), *(os.fspath(argument) for argument in arguments)]
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "start_new_session": True,
        } | options
        return subprocess.Popen(
            command, env=self.env(user) | dict(env or {}), **identity(user), **options
        )
