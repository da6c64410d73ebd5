"""Between ``create`` and ``start``: what the waiting process, which is ours, has and shows."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from support.attack import PRELUDE
from support.oci import Bundle, Runtime, mount


def descriptors(pid: int) -> dict[int, str]:
    folder = Path(f"/proc/{pid}/fd")
    return {int(name): os.readlink(folder / name) for name in os.listdir(folder)}


def test_its_descriptors(runtime: Runtime, bundle: Bundle) -> None:
    host = os.open("/etc", os.O_RDONLY)
    try:
        container = runtime.create(bundle, pass_fds=[host])
    finally:
        os.close(host)
    found = descriptors(container.pid)
    folder = str(runtime.root / container.id)
    # It waits on the one, and tells of its failure in the other. The lock it must not
    # hold: nobody could start or delete it.
    state = [path for fd, path in found.items() if fd > 2 and path.startswith(str(runtime.root))]
    assert sorted(state) == [f"{folder}/exec.error", f"{folder}/exec.fifo"]
    others = [path for fd, path in found.items() if fd > 2 and path not in state]
    known = ("anon_inode:", "socket:", "/dev/null")
    assert [path for path in others if not path.startswith(known)] == []
    for fd in found:
        status = os.stat(f"/proc/{container.pid}/fd/{fd}")
        assert not stat.S_ISDIR(status.st_mode), found[fd]
    container.start()
    assert set(descriptors(container.pid)) == {0, 1, 2}


# A second container in the PID namespace of the first looks at the process that waits.
LOOK = (
    PRELUDE
    + """
pid = int(sys.argv[1])
folder = f"/proc/{pid}/"
print([tried(os.open, folder + file, flags) for file, flags in (
    ("exe", os.O_RDONLY), ("exe", os.O_PATH), ("mem", os.O_RDWR), ("environ", os.O_RDONLY))]
    + [tried(os.listdir, folder + file) for file in ("root", "cwd")]
    + [tried(os.open, folder + f"fd/{fd}", os.O_PATH) for fd in range(3)]
    + [tried(os.readlink, folder + "exe"), -call("ptrace", 16, pid, 0, 0)])
"""
)


@pytest.mark.parametrize("status", ["created", "running"])
def test_from_a_second_container(
    runtime: Runtime, bundle: Bundle, own_root: Path, tmp_path: Path, status: str
) -> None:
    container = runtime.create(bundle)
    if status == "running":
        container.start()
    second = Bundle(tmp_path / "second", own_root).args("/usr/bin/python3", "-c", LOOK, "1")
    second.config = {**bundle.config, "process": {**bundle.process, "args": second.process["args"]}}
    second.config["linux"] = {**bundle.linux, "namespaces": [
        *(one for one in bundle.namespaces if one["type"] != "pid"),
        {"type": "pid", "path": f"/proc/{container.pid}/ns/pid"},
    ]}  # fmt: skip
    done = runtime.run(second)
    assert done.returncode == 0, done.stderr
    if status == "created":
        assert done.stdout == f"{['EACCES'] * 10 + [1]}\n"
    else:
        # The control: with the command in its place all of that can be had.
        assert "EACCES" not in done.stdout


def test_it_is_not_to_be_started_from_inside(
    runtime: Runtime, bundle: Bundle, own_root: Path
) -> None:
    """Files of the container's with the names of ours mean nothing."""
    for name in ("exec.fifo", "exec.error", "state.json", "lock"):
        (own_root / name).write_text("{}")
    container = runtime.create(bundle)
    assert container.status == "created"
    container.start()
    assert container.status == "running"


def test_the_state_is_root_s_alone(runtime: Runtime, bundle: Bundle) -> None:
    """Not to be read through a mount of the state folder as another user."""
    container = runtime.create(bundle)
    folder = runtime.root / container.id
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(folder.stat().st_mode) & 0o066 == 0
    assert mount("/x", "bind", str(folder))["source"] == str(folder)
