"""A pid that means another process by now: no operation may reach that one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.oci import Bundle, Container, Runtime, alive, nothing_remains


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def change(runtime: Runtime, container: Container, **members: object) -> None:
    path = runtime.root / container.id / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


@pytest.mark.parametrize("status", ["created", "running"])
def test_a_pid_that_was_used_again(
    runtime: Runtime, bundle: Bundle, victim: subprocess.Popen[bytes], status: str
) -> None:
    container = runtime.create(bundle)
    if status == "running":
        container.start()
    pid = container.pid
    os.kill(pid, signal.SIGKILL)
    container.wait()
    change(runtime, container, pid=victim.pid)
    state = container.state()
    assert (state["status"], state["pid"]) == ("stopped", 0)
    before = Path(f"/proc/{victim.pid}/cgroup").read_text()
    for words in (
        ("kill", container.id, "KILL"),
        ("kill", "--all", container.id, "KILL"),
        ("pause", container.id),
        ("resume", container.id),
        ("update", "--pids-limit", "1", container.id),
        ("start", container.id),
        ("events", "--stats", container.id),
    ):
        runtime.refuses(*words)
    runtime.refuses("exec", container.id, "true", status=255)
    assert runtime("ps", "--format", "json", container.id).stdout.strip() in ("[]", "null", "")
    container._pid = 0
    assert runtime.delete(container.id, "--force").stderr == ""
    assert victim.poll() is None
    assert alive(victim.pid)
    assert Path(f"/proc/{victim.pid}/cgroup").read_text() == before
    nothing_remains(runtime, container.id)


@pytest.mark.parametrize("pid", [-1, 0, -(2**31), 2**31, 2**64])
def test_pids_that_mean_no_process_or_many(runtime: Runtime, bundle: Bundle, pid: int) -> None:
    """kill(2) takes -1 for everybody, and 0 for the caller's own group."""
    container = runtime.up(bundle)
    container.stop()
    change(runtime, container, pid=pid, started=1)
    container._pid = 0
    for words in (("kill", container.id, "KILL"), ("pause", container.id)):
        assert "Traceback" not in runtime.refuses(*words)
    assert runtime.delete(container.id, "--force").returncode == 0
    nothing_remains(runtime, container.id)


@pytest.mark.parametrize(
    "paths",
    [["/sys/fs/cgroup/pids"], ["/"], ["/etc"], ["/sys/fs/cgroup/pids/../../../.."], ["relative"],
     ["/sys/fs/cgroup/pids/"], [""], ["{victim}"]],
)  # fmt: skip
def test_cgroups_that_are_none(
    runtime: Runtime, bundle: Bundle, tmp_path: Path, victim: subprocess.Popen[bytes],
    paths: list[str],
) -> None:  # fmt: skip
    """A record that was damaged leads to no folder that is not a container's cgroup."""
    container = runtime.up(bundle)
    container.stop()
    cgroups = json.loads((runtime.root / container.id / "state.json").read_text())["cgroups"]
    folder = tmp_path / "victim"
    folder.mkdir()
    change(runtime, container, cgroups=[path.replace("{victim}", str(folder)) for path in paths])
    container._pid = 0
    done = runtime.delete(container.id, "--force")
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)
    assert victim.poll() is None
    assert folder.is_dir()
    if done.returncode:
        runtime.refused(done)
        change(runtime, container, cgroups=cgroups)
        assert runtime.delete(container.id, "--force").returncode == 0
    for path in cgroups:
        if Path(path).is_dir():
            os.rmdir(path)
