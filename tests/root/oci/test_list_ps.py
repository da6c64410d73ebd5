"""list and ps: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import pwd
import re

import pytest

from support.command import execute
from support.oci import Bundle, Container, Runtime, alive, make_below
from support.requires import Kind, Unmet
from support.running import wait_until

HEADER = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]


def listed(runtime: Runtime, *words: str) -> str:
    done = runtime("list", *words, check=True)
    assert done.stderr == ""
    return str(done.stdout)


def test_nothing(runtime: Runtime) -> None:
    assert [line.split() for line in listed(runtime).splitlines()] == [HEADER]
    assert json.loads(listed(runtime, "--format", "json")) is None
    assert listed(runtime, "--quiet") == ""
    runtime.root.mkdir(exist_ok=True)
    assert json.loads(listed(runtime, "--format", "json")) is None


@pytest.fixture
def three(runtime: Runtime, bundle: Bundle) -> list[Container]:
    """Containers that are created, running and stopped."""
    made = [runtime.create(bundle) for _ in range(3)]
    for container in made[1:]:
        container.start()
    made[2].stop()
    return made


def test_the_table(runtime: Runtime, three: list[Container]) -> None:
    lines = listed(runtime).splitlines()
    assert lines[0].split() == HEADER
    # Columns begin where their headings do.
    starts = [lines[0].index(name) for name in HEADER]
    rows = {}
    for line in lines[1:]:
        ends = [*starts[1:], len(line)]
        cells = [line[a:b].strip() for a, b in zip(starts, ends, strict=True)]
        rows[cells[0]] = cells[1:]
    assert sorted(rows) == sorted(container.id for container in three)
    owner = pwd.getpwuid(os.geteuid()).pw_name
    for container, status in zip(three, ("created", "running", "stopped"), strict=True):
        state = container.state()
        pid = str(state["pid"])
        assert rows[container.id] == [pid, status, state["bundle"], state["created"], owner]
    assert rows[three[2].id][0] == "0"


def test_json(runtime: Runtime, three: list[Container]) -> None:
    text = listed(runtime, "--format", "json")
    assert text == listed(runtime, "-f", "json") == listed(runtime, "--format=json")
    assert text.endswith("\n")
    assert text.count("\n") == 1
    found = {entry["id"]: entry for entry in json.loads(text)}
    assert sorted(found) == sorted(container.id for container in three)
    for container in three:
        assert found[container.id] == container.state() | {"owner": "root"}


def test_quiet(runtime: Runtime, three: list[Container]) -> None:
    ids = sorted(container.id for container in three)
    assert sorted(listed(runtime, "--quiet").splitlines()) == ids
    assert sorted(listed(runtime, "-q", "--format", "json").splitlines()) == ids


def test_an_unknown_format(runtime: Runtime, bundle: Bundle) -> None:
    assert "format" in runtime.refuses("list", "--format", "yaml")
    container = runtime.create(bundle)
    assert "format" in container.refuses("ps", "--format", "yaml")


def test_what_is_no_container_does_not_stop_the_list(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.create(bundle)
    (runtime.root / "half-made").mkdir()
    (runtime.root / "a-file").write_text("")
    (runtime.root / "not an id").mkdir()
    done = runtime("list", "--quiet", check=True)
    assert container.id in done.stdout.splitlines()


# ---------------------------------------------------------------- ps


@pytest.fixture
def working_ps() -> None:
    """Skip where the machine's ps(1) itself fails: it needs more of /proc than all kernels have."""
    done = execute(["ps", "-ef"])
    if done.returncode:
        raise Unmet(f"ps -ef fails here: {done.stderr}", Kind.MACHINE)


def pids_of(container: Container) -> list[int]:
    return sorted(json.loads(container.verb("ps", "--format", "json").stdout))


def test_ps_json(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.create(bundle.shell("sleep 999 & exec sleep 1000"))
    assert pids_of(container) == [container.pid]
    container.start()
    wait_until(lambda: len(pids_of(container)) == 2, "two processes")
    second = container.exec_detached()
    found = pids_of(container)
    assert {container.pid, second} < set(found)
    assert len(found) == 3
    assert all(alive(pid) for pid in found)
    text = container.verb("ps", "-f", "json").stdout
    assert re.fullmatch(r"\[\d+,\d+,\d+\]\n?", text)
    container.verb("pause")
    assert pids_of(container) == found


def test_ps_of_a_cgroup_below(runtime: Runtime, bundle: Bundle) -> None:
    """A process that the container moved on is still the container's."""
    container = runtime.up(bundle)
    second = container.exec_detached()
    for folder in container.hierarchies():
        (make_below(folder) / "cgroup.procs").write_text(str(second))
    assert pids_of(container) == sorted([container.pid, second])


@pytest.mark.usefixtures("working_ps")
def test_ps_table(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    lines = container.verb("ps").stdout.splitlines()
    assert lines[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert len(lines) == 2
    assert lines[1].split()[:2] == ["root", str(container.pid)]
    assert lines[1].endswith("sleep 1000")


@pytest.mark.usefixtures("working_ps")
def test_ps_with_options(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    done = runtime("ps", container.id, "-o", "pid,args", check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows == [["PID", "COMMAND"], [str(container.pid), "sleep", "1000"]]
    aux = runtime("ps", container.id, "aux", check=True).stdout.splitlines()
    assert aux[0].split()[:2] == ["USER", "PID"]
    assert [line.split()[1] for line in aux[1:]] == [str(container.pid)]


@pytest.mark.usefixtures("working_ps")
def test_ps_with_options_that_cannot_be(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    assert "PID" in runtime.refused(runtime("ps", container.id, "-o", "comm"))
    done = runtime("ps", container.id, "--no-such-option")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr


@pytest.mark.usefixtures("working_ps")
def test_ps_of_a_stopped_container(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    container.stop()
    assert len(container.verb("ps").stdout.splitlines()) == 1
    assert json.loads(container.verb("ps", "--format", "json").stdout) in (None, [])
