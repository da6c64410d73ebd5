"""Many runtimes at once on one root: each operation is whole, whatever runs beside it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.command import end
from support.oci import Bundle, Container, Runtime, nothing_remains
from support.running import PATIENCE

COUNT = 8
LOOKS_THEN_MAKES = "create looks for the folder and then makes it, so several can win"
PROCESSES: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """What a test started; what still runs when it fails is ended."""
    PROCESSES.clear()
    yield PROCESSES
    for process in PROCESSES:
        end(process)


def start(runtime: Runtime, *words: Any, name: str = "") -> subprocess.Popen[str]:
    """Start a runtime; what it and its container write goes to a file of this *name*."""
    return run(runtime, runtime.command(*words), name)


def run(runtime: Runtime, words: list[str], name: str) -> subprocess.Popen[str]:
    path = runtime.folder / f"at-once-{name}"
    with path.open("a") as out:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True
        )
    PROCESSES.append(process)
    return process


def statuses(processes: list[subprocess.Popen[str]]) -> list[int]:
    return [process.wait(PATIENCE) for process in processes]


def written(runtime: Runtime, name: str) -> str:
    return (runtime.folder / f"at-once-{name}").read_text()


def test_different_containers(runtime: Runtime, bundle: Bundle) -> None:
    """Each verb for all at once, one verb after the other."""
    containers = [Container(runtime, runtime.new_id(), bundle) for _ in range(COUNT)]
    folder = bundle.write().folder
    for line in (
        ["create", "--bundle", folder],
        ["start"],
        ["state"],
        ["pause"],
        ["resume"],
        ["kill", None, "KILL"],
    ):
        verb, *options = line
        signals = ["KILL"] if verb == "kill" else []
        options = [] if verb == "kill" else options
        made = [start(runtime, verb, *options, one.id, *signals, name=one.id) for one in containers]
        assert statuses(made) == [0] * COUNT, (verb, [written(runtime, c.id) for c in containers])
    for container in containers:
        deadline = time.monotonic() + PATIENCE
        while container.status != "stopped":
            assert time.monotonic() < deadline
    assert statuses([start(runtime, "delete", one.id) for one in containers]) == [0] * COUNT
    assert runtime.ids() == []
    for container in containers:
        nothing_remains(runtime, container.id)


def test_whole_lives_at_once(runtime: Runtime, bundle: Bundle) -> None:
    """Processes that each do create, start, kill, delete, as fast as they can."""
    folder = bundle.write().folder
    names = [runtime.new_id() for _ in range(COUNT)]
    for name in names:
        Container(runtime, name, bundle)
    line = " ".join(runtime.command())
    script = f"""
    set -e
    for round in 1 2 3; do
        {line} create --bundle {folder} $1 < /dev/null > /dev/null
        {line} start $1
        {line} kill $1 KILL
        until {line} state $1 | grep -q stopped; do :; done
        {line} delete $1
    done
    """
    made = [run(runtime, ["sh", "-c", script, "sh", name], name) for name in names]
    # Meanwhile: list sees whole containers only.
    while any(process.poll() is None for process in made):
        done = runtime("list", "--format", "json")
        if runtime.is_runc and done.returncode:
            continue  # it fails where a folder vanishes under it
        for entry in json.loads(done.stdout) or []:
            assert entry["id"] in names
            assert entry["status"] in ("creating", "created", "running", "stopped")
    assert [process.returncode for process in made] == [0] * COUNT, [
        written(runtime, name) for name in names
    ]
    assert runtime.ids() == []


def test_one_id(runtime: Runtime, bundle: Bundle) -> None:
    """One create wins; the others fail in one line and disturb nothing."""
    runtime.only_firkin(LOOKS_THEN_MAKES)
    container = Container(runtime, runtime.new_id(), bundle)
    folder = bundle.write().folder
    made = [
        start(runtime, "create", "--bundle", folder, container.id, name=str(number))
        for number in range(COUNT)
    ]
    ended = statuses(made)
    assert sorted(ended) == [0] + [1] * (COUNT - 1)
    for number, status in enumerate(ended):
        if status:
            runtime.message(written(runtime, str(number)))
    assert runtime.ids() == [container.id]
    assert container.status == "created"
    container.start()
    assert container.exec("echo", "works").stdout == "works\n"


def test_one_id_for_run(runtime: Runtime, bundle: Bundle) -> None:
    runtime.only_firkin(LOOKS_THEN_MAKES)
    container = Container(runtime, runtime.new_id(), bundle)
    folder = bundle.shell("echo ran; exec sleep 1000").write().folder
    made = [
        start(runtime, "run", "--detach", "--bundle", folder, container.id, name="all")
        for _ in range(COUNT)
    ]
    assert sorted(statuses(made)) == [0] + [1] * (COUNT - 1)
    assert written(runtime, "all").count("ran") == 1
    assert container.status == "running"


def test_two_starts(runtime: Runtime, bundle: Bundle) -> None:
    """The command is executed once, and only one start says that it did so."""
    runtime.only_firkin(
        "a start that meets another can hang, at the fifo that the other has emptied"
    )
    container = runtime.create(bundle.shell("echo started; exec sleep 1000"))
    made = [start(runtime, "start", container.id, name=str(number)) for number in range(COUNT)]
    assert sorted(statuses(made)) == [0] + [1] * (COUNT - 1)
    assert container.output(until="started\n") == "started\n"
    assert container.status == "running"


@pytest.mark.parametrize("attempt", range(3))
def test_delete_against_start(runtime: Runtime, bundle: Bundle, attempt: int) -> None:
    """Either order is a way to end: in both nothing is left, and nothing hangs."""
    container = runtime.create(bundle)
    verbs = [["start"], ["delete", "--force"]]
    made = [start(runtime, *verb, container.id, name=verb[0]) for verb in verbs]
    started, deleted = statuses(made)
    assert deleted == 0, written(runtime, "delete")
    assert started in (0, 1)
    runtime.delete(container.id, "--force", check=True)
    assert runtime.ids() == []
    nothing_remains(runtime, container.id)


def test_deletes_at_once(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    made = [start(runtime, "delete", "--force", container.id, name="all") for _ in range(COUNT)]
    ended = statuses(made)
    if not runtime.is_runc:  # whose deletes can stumble over each other
        assert ended == [0] * COUNT, written(runtime, "all")
    runtime.delete(container.id, "--force", check=True)
    assert runtime.ids() == []
    nothing_remains(runtime, container.id)


def test_create_after_delete_at_once(runtime: Runtime, bundle: Bundle) -> None:
    """A create that meets a delete of its id wins or fails; it is never half of both."""
    container = runtime.up(bundle)
    folder = bundle.folder
    made = [
        start(runtime, "delete", "--force", container.id, name="delete"),
        start(runtime, "create", "--bundle", folder, container.id, name="create"),
    ]
    deleted, created = statuses(made)
    if runtime.is_runc:
        pass
    else:
        assert deleted == 0, written(runtime, "delete")
        if created:
            runtime.message(written(runtime, "create"))
        else:
            assert container.status == "created"
            container.start()
    runtime.delete(container.id, "--force", check=True)
    nothing_remains(runtime, container.id)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.02, 0.03, 0.045, 0.06, 0.08])
def test_create_that_is_killed(runtime: Runtime, bundle: Bundle, seconds: float) -> None:
    """Whenever a create dies, delete --force clears what it left."""
    runtime.only_firkin("it leaves cgroups, and a child that nothing names")
    container = Container(runtime, runtime.new_id(), bundle)
    folder = bundle.write().folder
    process = start(runtime, "create", "--bundle", folder, container.id, name="create")
    time.sleep(seconds)
    process.kill()
    process.wait()
    done = runtime.delete(container.id, "--force")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert runtime.ids() == []
    nothing_remains(runtime, container.id)
