"""A stand-in for criu(8), for machines whose kernel its CRIU can't work on. It is no CRIU.

It saves and restores nothing: ``dump`` kills the process (or leaves it, as asked),
``restore`` starts a shell in its place, as a child of its caller as CRIU does. What it
is for is to see what a runtime asks of CRIU: it has the real one's parser judge its
command line, and writes down its arguments and what it finds around it, as JSON, to
``$STANDIN/ACTION.json``.

``$STANDIN_FAILS`` tells how it fails; ``$STANDIN_SCRIPT`` is what the shell runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from firkin.linux.clone import CLONE_PARENT, clone

# Options with a value in the next word, of those that runtimes pass.
WITH_VALUE = frozenset(
    (
        *("--tree", "--images-dir", "--work-dir", "--log-file", "--root", "--external"),
        *("--freeze-cgroup", "--prev-images-dir", "--address", "--port", "--status-fd"),
        *("--empty-ns", "--inherit-fd", "--join-ns", "--lsm-profile", "--lsm-mount-context"),
        *("--cgroup-root", "--pidfile", "--action-script", "--config"),
    )
)


class Options:
    """A command line of criu's: each option with its values, in order."""

    def __init__(self, words: list[str]) -> None:
        self.given: dict[str, list[str]] = {}
        at = 0
        while at < len(words):
            name, _, value = words[at].partition("=")
            if words[at] in WITH_VALUE:
                at += 1
                value = words[at]
            self.given.setdefault(name, []).append(value)
            at += 1

    def one(self, name: str) -> str:
        (value,) = self.given[name]
        return value


def fail(options: Options, message: str) -> NoReturn:
    log = Path(options.one("--work-dir"), options.one("--log-file"))
    log.write_text(
        "(00.000049) Version: stand-in\n"
        f"(00.041516) Error (criu/standin.c:1): {message}\n"
        "(00.041519) Error (criu/cr-dump.c:2053): Dumping FAILED.\n"
    )
    sys.exit(1)


def judge(words: list[str]) -> None:
    """Have the real criu parse the command line."""
    done = subprocess.run(["criu", *words, "-V"], capture_output=True, text=True, close_fds=False)
    if done.returncode != 0 or not done.stdout.startswith("Version:"):
        print(f"Error (standin): the real criu refuses: {done.stdout}{done.stderr}")
        sys.exit(99)


def surroundings() -> dict[str, Any]:
    return {
        "cgroup": Path("/proc/self/cgroup").read_text(),
        "mountinfo": Path("/proc/self/mountinfo").read_text(),
        "mnt": os.readlink("/proc/self/ns/mnt"),
        "fds": {
            name: os.readlink(f"/proc/self/fd/{name}")
            for name in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{name}")
        },
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    }


def main() -> None:
    action, words = sys.argv[1], sys.argv[2:]
    judge([action, *words])
    options = Options(words)
    found = surroundings() | {"options": options.given}
    root = options.given.get("--root", [""])[0]
    if action == "restore":
        found["root"] = sorted(
            str(path.relative_to(root)) for path in Path(root).rglob("*") if "bin" not in path.parts
        )
    Path(os.environ["STANDIN"], f"{action}.json").write_text(json.dumps(found))
    mode = os.environ.get("STANDIN_FAILS", "")
    if mode == "hangs":
        signal.pause()
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "frozen":
        Path(options.one("--freeze-cgroup"), "freezer.state").write_text("FROZEN")
    if mode in ("plain", "frozen"):
        fail(options, "it was told to fail")
    if action == "restore":
        restore(options, mode)
    elif action == "dump" and "--leave-running" not in options.given:
        os.kill(int(options.one("--tree")), signal.SIGKILL)


def restore(options: Options, mode: str) -> None:
    standard = {0: 0, 1: 1, 2: 2}
    was = json.loads(Path(options.one("--images-dir"), "descriptors.json").read_text())
    for value in options.given.get("--inherit-fd", []):
        fd, _, name = value.partition(":")
        for number, old in enumerate(was[:3]):
            if name == old or (name.startswith("tty[") and name == was[3:4]):
                standard[number] = int(fd.removeprefix("fd[").removesuffix("]"))
        if name.startswith("tty["):
            standard = dict.fromkeys(range(3), int(fd.removeprefix("fd[").removesuffix("]")))
    waits, go = os.pipe()
    pid, _ = clone(CLONE_PARENT)
    if pid == 0:
        os.close(go)
        if not os.read(waits, 1):
            os._exit(1)
        for number, fd in standard.items():
            os.dup2(fd, number)
        os.setsid()
        script = os.environ.get("STANDIN_SCRIPT", "exec sleep 1000")
        os.closerange(3, 100)
        os.execv("/bin/sh", ["sh", "-c", script])
    for script in options.given.get("--action-script", []):
        env = os.environ | {
            "CRTOOLS_SCRIPT_ACTION": "setup-namespaces",
            "CRTOOLS_INIT_PID": str(pid),
        }
        if subprocess.run(["sh", "-c", script], env=env).returncode:
            os.kill(pid, signal.SIGKILL)
            fail(options, "setup-namespaces failed")
    # As criu does: the file must not be there.
    if mode != "silent":
        with open(options.one("--pidfile"), "x") as file:
            file.write(str(pid))
    if mode == "dead":
        os.kill(pid, signal.SIGKILL)
    os.write(go, b"x")


if __name__ == "__main__":
    main()
