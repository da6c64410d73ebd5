"""kill: which signals it knows, whom they reach, and when it refuses."""

from __future__ import annotations

import re
import signal

import pytest

from support.oci import Bundle, Container, Runtime, alive, nothing_remains
from support.running import wait_until

# Tells of each signal it gets; ends by QUIT.
TRAPS = """
for name in TERM HUP USR1 USR2 WINCH; do trap "echo got $name" $name; done
trap "echo got QUIT; exit 3" QUIT
echo up; while :; do sleep 0.02; done
"""


@pytest.fixture
def trapping(runtime: Runtime, bundle: Bundle) -> Container:
    """A container that tells of its signals."""
    container = runtime.up(bundle.shell(TRAPS))
    container.output(until="up\n")
    return container


SPELLINGS = {
    "TERM": ["TERM", "SIGTERM", "15", "term", "sigterm", "SigTerm"],
    "HUP": ["HUP", "1"],
    "USR1": ["usr1", "10"],
    "USR2": ["SIGUSR2", "12"],
    "WINCH": ["WINCH", "28"],
}


def test_names_and_numbers(trapping: Container) -> None:
    for name, spellings in SPELLINGS.items():
        for count, word in enumerate(spellings, 1):
            trapping.kill(word)
            wait_until(
                lambda name=name, count=count: trapping.output().count(f"got {name}") == count, word
            )
    assert trapping.output().count("got ") == sum(map(len, SPELLINGS.values()))


def test_without_a_signal_it_is_term(trapping: Container) -> None:
    trapping.kill()
    trapping.output(until="got TERM")


def test_signal_0_only_asks(trapping: Container) -> None:
    trapping.kill("0")
    assert trapping.status == "running"
    trapping.kill("QUIT")
    trapping.wait()
    assert "not running" in trapping.runtime.refused(trapping.runtime.kill(trapping.id, "0"))


def test_every_signal_of_the_kernel_has_its_name(runtime: Runtime, bundle: Bundle) -> None:
    """In a PID namespace its first process gets only what it has a handler for; and KILL, STOP."""
    container = runtime.up(bundle)
    names = [one.name for one in signal.Signals if one not in (signal.SIGKILL, signal.SIGSTOP)]
    for name in names:
        if not name.startswith("SIGRT"):
            container.kill(name)
    for number in (34, 50, 64):
        container.kill(str(number))
    assert container.status == "running"


def test_unknown_signals(trapping: Container) -> None:
    for word in ("FOO", "SIGFOO", "SIG", "9x", "1.5", "0x9", "65", "1000", 20 * "9", " 9"):
        said = trapping.runtime.refused(trapping.runtime.kill(trapping.id, word))
        assert "signal" in said, word
    assert trapping.status == "running"
    assert "got" not in trapping.output()


@pytest.mark.parametrize("word", ["KILL", "9"])
def test_kill(runtime: Runtime, bundle: Bundle, word: str) -> None:
    container = runtime.up(bundle)
    pid = container.pid
    container.kill(word)
    container.wait(pid)
    assert container.status == "stopped"


def test_a_created_container(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.create(bundle)
    pid = container.pid
    container.kill("KILL")
    container.wait(pid)
    assert container.status == "stopped"
    assert "stopped" in runtime.refuses("start", container.id)
    container.delete()


def test_a_paused_container_dies_of_kill(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    container.verb("pause")
    container.kill("KILL")
    container.wait()
    assert container.status == "stopped"
    container.delete()


def test_a_paused_container_gets_other_signals_later(trapping: Container) -> None:
    trapping.verb("pause")
    trapping.kill("TERM")
    assert trapping.status == "paused"
    assert "got" not in trapping.output()
    trapping.verb("resume")
    trapping.output(until="got TERM")


# ---------------------------------------------------------------- --all


TWO = 'sh -c "trap \\"echo got child\\" USR1; echo child; while :; do sleep 0.02; done" & '


@pytest.mark.parametrize(
    ("own", "option"), [(True, ""), (True, "--all"), (False, ""), (False, "-a")]
)
def test_whom_it_reaches(runtime: Runtime, bundle: Bundle, own: bool, option: str) -> None:
    if not own:
        bundle.without_namespace("pid")
    container = runtime.up(bundle.shell(TWO + TRAPS))
    container.output(until="up\n")
    container.output(until="child\n")
    container.kill(*([option] if option else []), "USR1")
    container.output(until="got USR1")
    if option:
        container.output(until="got child")
    else:
        container.kill("TERM")
        container.output(until="got TERM")
        assert "got child" not in container.output()


def test_all_reaches_what_exec_started(trapping: Container) -> None:
    pid = trapping.exec_detached()
    trapping.kill("--all", "KILL")
    trapping.wait()
    assert trapping.wait_adopted(pid) == -signal.SIGKILL


def orphan(runtime: Runtime, bundle: Bundle) -> tuple[Container, int]:
    """Return a stopped container without a PID namespace, and the process that outlived it."""
    bundle.without_namespace("pid").shell("sleep 999 & echo $! is up; read x < /dev/zero; wait")
    container = runtime.up(bundle)
    found = re.match(r"(\d+) is up", container.output(until="is up\n"))
    assert found
    container.stop()
    assert alive(int(found[1]))
    assert container.status == "stopped"
    return container, int(found[1])


def test_all_of_a_stopped_container(runtime: Runtime, bundle: Bundle) -> None:
    """With --all it is no error: processes may have outlived the first one."""
    container, pid = orphan(runtime, bundle)
    assert "not running" in container.refuses("kill")
    container.kill("--all", "KILL")
    container.wait(pid)
    container.delete()


def test_delete_ends_what_outlived_the_first_process(runtime: Runtime, bundle: Bundle) -> None:
    container, pid = orphan(runtime, bundle)
    container.delete()
    container.wait(pid)
    nothing_remains(runtime, container.id)


def test_all_does_not_reach_the_runtimes_neighbours(runtime: Runtime, bundle: Bundle) -> None:
    """Two containers in the host's PID namespace: each signal stays in its container."""
    first = runtime.up(bundle.without_namespace("pid").shell(TRAPS))
    second = runtime.up(bundle)
    for container in (first, second):
        container.output(until="up\n")
    first.kill("--all", "KILL")
    first.wait()
    second.kill("TERM")
    second.output(until="got TERM")
