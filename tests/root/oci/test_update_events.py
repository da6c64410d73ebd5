"""pause, resume, update and events: what they do to the cgroup, and what they tell of it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import leftovers
from support.oci import PATHS, Bundle, Container, Runtime
from support.requires import Kind, Unmet, cgroup_mounts, need, requires
from support.running import PATIENCE, wait_until

MIB = 1 << 20


def on_v2(controller: str) -> bool:
    mounts = cgroup_mounts()
    return mounts.get(controller) == mounts.get("unified")


def value(container: Container, controller: str, v1: str, v2: str = "") -> str:
    """Return a setting of the container's cgroup, from the file that this machine's version has."""
    folder = container.cgroup(controller)
    return (folder / (v2 if on_v2(controller) else v1)).read_text().strip()


# ---------------------------------------------------------------- pause and resume


def test_pause_and_resume(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle.shell("while :; do echo tick; sleep 0.02; done"))
    container.output(until="tick")
    for _ in range(2):
        container.verb("pause")
        if on_v2("pids"):
            events = (container.cgroup("pids") / "cgroup.events").read_text()
            assert "frozen 1" in events
        else:
            assert (container.cgroup("freezer") / "freezer.state").read_text() == "FROZEN\n"
        size = container.out.stat().st_size
        time.sleep(0.1)
        assert container.out.stat().st_size == size
        assert container.status == "paused"
        container.verb("resume")
        wait_until(lambda size=size: container.out.stat().st_size > size, "another tick")
        assert container.status == "running"


def test_pause_reaches_every_process(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    pid = container.exec_detached(command=("sh", "-c", "while :; do sleep 0.01; done"))
    container.verb("pause")

    def waiting() -> bool:
        return "refrigerator" in Path(f"/proc/{pid}/wchan").read_text() or on_v2("pids")

    wait_until(waiting, "the freezer")
    container.verb("resume")


def test_a_created_container_can_be_paused(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.create(bundle)
    container.verb("pause")
    assert container.status == "paused"
    container.verb("resume")
    assert container.status == "created"
    container.start()


# ---------------------------------------------------------------- update


# Flag, value, controller, v1's file and content, v2's file and content.
FLAGS = [
    ("--memory", str(64 * MIB), "memory", "memory.limit_in_bytes", None, "memory.max", None),
    (
        "--memory", "48m",
        "memory", "memory.limit_in_bytes", str(48 * MIB), "memory.max", str(48 * MIB),
    ),
    (
        "--memory-reservation", str(32 * MIB),
        "memory", "memory.soft_limit_in_bytes", None, "memory.low", None,
    ),
    ("--pids-limit", "33", "pids", "pids.max", None, "pids.max", None),
    ("--pids-limit", "-1", "pids", "pids.max", "max", "pids.max", "max"),
    ("--cpu-share", "512", "cpu", "cpu.shares", None, "cpu.weight", "20"),
    ("--cpu-quota", "40000", "cpu", "cpu.cfs_quota_us", None, "cpu.max", "40000 100000"),
    ("--cpu-period", "50000", "cpu", "cpu.cfs_period_us", None, "cpu.max", "40000 50000"),
    ("--cpuset-cpus", "0", "cpuset", "cpuset.cpus", None, "cpuset.cpus", None),
    ("--cpuset-mems", "0", "cpuset", "cpuset.mems", None, "cpuset.mems", None),
]  # fmt: skip


def test_flags(runtime: Runtime, bundle: Bundle) -> None:
    need(*{f"controller:{case[2]}" for case in FLAGS})
    container = runtime.create(bundle)
    for flag, given, controller, v1, v1_content, v2, v2_content in FLAGS:
        container.verb("update", flag, given)
        expected = (v2_content if on_v2(controller) else v1_content) or given
        assert value(container, controller, v1, v2) == expected, (flag, given)
    container.start()
    assert value(container, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"


def test_block_io_weight(runtime: Runtime, bundle: Bundle) -> None:
    """Of what schedules by weight; v2's own file has another scale: 1 to 10000."""
    need("controller:io")
    container = runtime.create(bundle)
    folder = container.cgroup("io" if on_v2("io") else "blkio")
    scales = dict.fromkeys(("blkio.weight", "blkio.bfq.weight", "io.bfq.weight"), "500")
    scales["io.weight"] = "4950"
    file = next((folder / name for name in scales if (folder / name).exists()), None)
    if file is None:
        raise Unmet("no I/O scheduler here has weights", Kind.MACHINE)
    container.verb("update", "--blkio-weight", "500")
    assert file.read_text().split()[-1] == scales[file.name]


@requires("cgroup v1")
def test_real_time(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.create(bundle)
    folder = container.cgroup("cpu")
    if not (folder / "cpu.rt_runtime_us").exists():  # a kernel without RT_GROUP_SCHED
        container.refuses("update", "--cpu-rt-runtime", "1000")
        return
    container.verb("update", "--cpu-rt-period", "900000")
    assert (folder / "cpu.rt_period_us").read_text() == "900000\n"
    container.verb("update", "--cpu-rt-runtime", "1000")
    assert (folder / "cpu.rt_runtime_us").read_text() == "1000\n"


@requires("swap accounting")
def test_memory_and_swap(runtime: Runtime, bundle: Bundle) -> None:
    """The value is memory and swap together; v2's file has swap alone."""

    def found() -> tuple[str, str]:
        return (
            value(container, "memory", "memory.limit_in_bytes", "memory.max"),
            value(container, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max"),
        )

    container = runtime.up(bundle)
    # Up, further up and down again: the kernel wants another order each way.
    for memory, swap in ((64, 128), (256, 512), (32, 64)):
        container.verb("update", "--memory", str(memory * MIB), "--memory-swap", str(swap * MIB))
        seen = (swap - memory if on_v2("memory") else swap) * MIB
        assert found() == (str(memory * MIB), str(seen))
    container.verb("update", "--memory", "-1", "--memory-swap", "-1")
    assert all(one == "max" or int(one) > 1 << 60 for one in found())


def test_several_at_once_and_the_rest_stays(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] |= {
        "pids": {"limit": 44},
        "memory": {"limit": 128 * MIB},
        "cpu": {"quota": 30_000, "period": 60_000},
    }
    container = runtime.up(bundle)
    container.verb("update", "--cpu-quota", "20000", "--memory-reservation", str(16 * MIB))
    assert value(container, "pids", "pids.max", "pids.max") == "44"
    assert value(container, "memory", "memory.limit_in_bytes", "memory.max") == str(128 * MIB)
    if on_v2("cpu"):
        assert value(container, "cpu", "", "cpu.max") == "20000 60000"
    else:
        assert value(container, "cpu", "cpu.cfs_quota_us") == "20000"
        assert value(container, "cpu", "cpu.cfs_period_us") == "60000"


RESOURCES = {
    "memory": {"limit": 64 * MIB, "reservation": 0, "swap": 0, "kernel": 0},
    "cpu": {"shares": 0, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": ""},
    "pids": {"limit": 50},
    "blockIO": {"weight": 0},
}


def check_resources(container: Container) -> None:
    assert value(container, "memory", "memory.limit_in_bytes", "memory.max") == str(64 * MIB)
    assert value(container, "pids", "pids.max", "pids.max") == "50"
    assert value(container, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"
    if on_v2("cpu"):
        assert value(container, "cpu", "", "cpu.max") == "50000 100000"
    else:
        assert value(container, "cpu", "cpu.cfs_quota_us") == "50000"
        assert value(container, "cpu", "cpu.shares") == "1024"


def test_resources_from_a_file(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """As Docker writes them: zeros are what stays as it is."""
    (tmp_path / "resources.json").write_text(json.dumps(RESOURCES))
    container = runtime.up(bundle)
    container.verb("update", "--resources", tmp_path / "resources.json")
    check_resources(container)
    (tmp_path / "resources.json").write_text('{"pids": {"limit": 51}}')
    container.verb("update", "-r", tmp_path / "resources.json")
    assert value(container, "pids", "pids.max", "pids.max") == "51"


def test_resources_from_standard_input(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    container.verb("update", "--resources", "-", input=json.dumps(RESOURCES))
    check_resources(container)
    container.verb("update", "--resources", "-", input="{}")
    check_resources(container)


def test_with_a_file_the_flags_are_ignored(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    words = ["--pids-limit", "77", "--resources", "-"]
    container.verb("update", *words, input='{"pids": {"limit": 66}}')
    assert value(container, "pids", "pids.max", "pids.max") == "66"


def test_a_paused_container_can_be_updated(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    container.verb("pause")
    container.verb("update", "--pids-limit", "12")
    assert value(container, "pids", "pids.max", "pids.max") == "12"
    assert container.status == "paused"


def test_devices_stay_as_they_are(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    before = container.exec("sh", "-c", "echo x > /dev/null && echo written").stdout
    container.verb("update", "--pids-limit", "12")
    assert container.exec("sh", "-c", "echo x > /dev/null && echo written").stdout == before
    if not on_v2("devices") and "devices" in cgroup_mounts():
        listed = (container.cgroup("devices") / "devices.list").read_text()
        assert not listed.startswith("a *:* rwm")


BAD_VALUES = [
    ["--memory", "lots"],
    ["--memory", "-5x"],
    ["--cpu-period", "-5"],
    ["--cpu-share", "x"],
    ["--cpuset-cpus", "4096"],
    ["--cpuset-cpus", "a"],
    ["--cpuset-mems", "999"],
    ["--cpu-quota", "5"],
    ["--resources", "/nonexistent"],
    ["--no-such-flag"],
]


def test_bad_values(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    for words in BAD_VALUES:
        done = runtime("update", *words, container.id)
        # Of an unknown flag runc prints the help to standard output, too.
        assert done.returncode == 1, words
        assert runtime.message(done.stderr)
    assert container.status == "running"


def test_bad_resources(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.up(bundle)
    for text in ("", "{", "[]", '{"pids": 3}', '{"memory": {"limit": "x"}}'):
        container.refuses("update", "--resources", "-", input=text)


def test_resctrl(runtime: Runtime, bundle: Bundle) -> None:
    if Path("/sys/fs/resctrl/schemata").exists():
        raise Unmet("this machine has resctrl", Kind.MACHINE)
    container = runtime.up(bundle)
    for flag in ("--l3-cache-schema", "--mem-bw-schema"):
        said = container.refuses("update", flag, "L3:0=f")
        assert "Intel RDT" in said or "resctrl" in said


# ---------------------------------------------------------------- events


def stats_of(container: Container) -> dict[str, Any]:
    text = container.verb("events", "--stats").stdout
    assert text.endswith("\n")
    assert text.count("\n") == 1
    found = json.loads(text)
    assert sorted(found) == ["data", "id", "type"]
    assert (found["type"], found["id"]) == ("stats", container.id)
    return dict(found["data"])


def keys(data: Any, path: str = "") -> set[str]:
    """Return the paths of all members."""
    found = set()
    for name, member in data.items() if isinstance(data, dict) else ():
        found |= {f"{path}.{name}"} | keys(member, f"{path}.{name}")
    return found


def test_stats(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] |= {"pids": {"limit": 44}, "memory": {"limit": 64 * MIB}}
    container = runtime.up(bundle.shell("sleep 999 & exec sleep 1000"))
    wait_until(lambda: stats_of(container)["pids"]["current"] == 2, "the second process")
    data = stats_of(container)
    assert data["pids"] == {"current": 2, "limit": 44}
    assert data["memory"]["usage"]["limit"] == 64 * MIB
    assert 0 < data["memory"]["usage"]["usage"] < 64 * MIB
    cpu = data["cpu"]["usage"]
    assert cpu["total"] > 0
    if not on_v2("memory"):
        usage = data["memory"]["usage"]
        assert usage["usage"] <= usage["max"] < 64 * MIB
        assert data["memory"]["raw"]["hierarchical_memory_limit"] == 64 * MIB
        assert sum(cpu["percpu"]) <= cpu["total"] * 1.5 + 10**7
        total = int((container.cgroup("cpuacct") / "cpuacct.usage").read_text())
        assert cpu["total"] <= total


def test_stats_have_runcs_members(bundle: Bundle, tmp_path: Path) -> None:
    """Programs that read runc's find the same in ours.

    But for hugetlb: where v1 and v2 are mixed runc does not look for it on v2. And for
    numbers that are left out while they are 0.
    """
    varying = (".hugetlb.", ".blkio.", ".memory.cache")
    need("program:runc")
    found = {}
    for name, path in PATHS.items():
        runtime = Runtime(path, tmp_path / name / "state")
        runtime.folder.mkdir()
        try:
            container = runtime.up(bundle)
            container.exec("sh", "-c", "cat /bin/busybox > /dev/null")
            found[name] = {one for one in keys(stats_of(container)) if not one.startswith(varying)}
        finally:
            runtime.close()
    assert found["firkin-runtime"] == found["runc"]


def test_stats_of_a_created_and_a_paused_container(runtime: Runtime, bundle: Bundle) -> None:
    container = runtime.create(bundle)
    assert stats_of(container)["pids"]["current"] >= 1
    container.start()
    container.verb("pause")
    assert stats_of(container)["pids"]["current"] == 1


class Stream:
    """``events`` that runs beside the test.

    Attributes:
        process: the runtime.
    """

    def __init__(self, container: Container, *options: str) -> None:
        words = container.runtime.command("events", *options, container.id)
        self.file = container.runtime.folder / f"events{' '.join(options)}"
        with self.file.open("w") as out:
            self.process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = [line for line in self.file.read_text().splitlines(True) if line.endswith("\n")]
        found = [json.loads(line) for line in lines]
        return [event for event in found if event["type"] == kind]


@pytest.fixture
def streams() -> Iterator[list[Stream]]:
    made: list[Stream] = []
    yield made
    for stream in made:
        leftovers.kill([stream.process.pid])
        stream.process.wait()


def test_the_stream(runtime: Runtime, bundle: Bundle, streams: list[Stream]) -> None:
    container = runtime.up(bundle)
    stream = Stream(container, "--interval", "50ms")
    streams.append(stream)
    wait_until(lambda: len(stream.events("stats")) >= 3, "three events")
    assert {event["id"] for event in stream.events("stats")} == {container.id}
    # It ends with the container.
    container.stop()
    container.delete()
    assert stream.process.wait(PATIENCE) == 0


def test_the_first_event_comes_after_the_interval(
    runtime: Runtime, bundle: Bundle, streams: list[Stream]
) -> None:
    container = runtime.up(bundle)
    late = [Stream(container, "--interval", interval) for interval in ("1h", "0h100m5.5s")]
    soon = Stream(container, "--interval", "20000us")
    streams += [*late, soon]
    wait_until(lambda: len(soon.events("stats")) >= 5, "events of the other")
    for stream in late:
        assert stream.process.poll() is None
        assert stream.file.read_text() == ""


def test_bad_intervals(runtime: Runtime, bundle: Bundle) -> None:
    """A duration of Go's: a number with a unit."""
    container = runtime.up(bundle)
    for interval in ("0", "-1s", "soon", "5", "", "0s"):
        done = runtime("events", f"--interval={interval}", container.id, timeout=10)
        assert done.returncode == 1, interval
        assert runtime.message(done.stderr)


def test_an_oom_is_told(runtime: Runtime, bundle: Bundle, streams: list[Stream]) -> None:
    limit = {"limit": 24 * MIB}
    if not on_v2("memory"):
        limit["swap"] = 24 * MIB
    bundle.linux["resources"]["memory"] = limit
    # The first process is spared: it has the least memory.
    bundle.process["oomScoreAdj"] = 0
    container = runtime.up(bundle)
    stream = Stream(container, "--interval", "1h")
    streams.append(stream)
    # It listens once it has opened the file of the cgroup.
    wait_until(lambda: listens(stream.process.pid), "the watch")
    done = container.exec("sh", "-c", "tail /dev/zero; exit 0")
    assert done.returncode in (0, 137)
    wait_until(lambda: stream.events("oom"), "the event")
    event = stream.events("oom")[0]
    assert event["id"] == container.id
    assert event["type"] == "oom"


def listens(pid: int) -> bool:
    """Tell whether a process has an eventfd for v1's memory.oom_control, or inotify on v2."""
    links = []
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            links.append(path.readlink().as_posix())
        except OSError:
            continue
    wanted = ("inotify",) if on_v2("memory") else ("memory.oom_control", "[eventfd]")
    return any(one in link for link in links for one in wanted)
